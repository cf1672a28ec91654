"""The notebook's stop button, in a real kernel: a checkpoint and one sentence; run again, the cell ends as if undisturbed."""

import time
from pathlib import Path

import pytest
from caches import write_cache
from jupyter_client.manager import start_new_kernel

HERE = Path(__file__).resolve().parent
PIECES = """
import itertools, sys, time
sys.path.insert(0, {here!r})
import torch
from training import Net, frozen_teacher, mse
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.views import SimpleTransform
from kdnb.runs import Run, set_seed
from kdnb.distillation.train import train

loader = build_pretraining_dataloader(cache_dir={cache!r}, batch_size=4, shuffle="all", reuse_buffers=True, **{workers!r})
views = SimpleTransform(size=4, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
pauses = iter(())

def loss(*arguments):
    seconds = next(pauses, 0.0)
    if seconds:
        print(f"pause of {{seconds}} s", flush=True)
    time.sleep(seconds)
    return mse(*arguments)

def pieces(name):
    teacher = frozen_teacher()
    set_seed(0)
    return Net(), teacher, Run(name, {{}}, outputs={outputs!r})

settings = dict(views=views, loss=loss, epochs=3, learning_rate=1e-2, warmup_steps=1, gradient_accumulation_steps=5)
student, teacher, run = pieces("undisturbed")
train(student, teacher, loader, run=run, **settings)
expected = student.state_dict()
"""
TRAIN = "history = train(student, teacher, loader, run=run, **settings)"


class Notebook:
    """A kernel, and what its cells print."""

    def __init__(self, kernel, client):
        self.kernel, self.client = kernel, client

    def start(self, cell: str):
        self.cell, self.printed = self.client.execute(cell, stop_on_error=False), ""

    def until(self, word: str):
        """Wait until the cell has printed `word`."""
        while word not in self.printed:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") == self.cell:
                self.printed += message["content"].get("text", "")
                assert message["msg_type"] != "error", message["content"]

    def reply(self) -> dict:
        while True:
            reply = self.client.get_shell_msg(timeout=120)
            if reply["parent_header"]["msg_id"] == self.cell:
                return reply["content"]

    def run(self, cell: str) -> dict:
        self.start(cell)
        return self.reply()

    def value(self, expression: str):
        settings = {"user_expressions": {"v": expression}, "timeout": 60, "output_hook": lambda message: None}
        while True:
            reply = self.client.execute_interactive("", **settings)["content"]
            if reply["status"] != "aborted":  # as ipykernel 6 does for a moment after an error
                return reply["user_expressions"]["v"]["data"]["text/plain"]


@pytest.fixture(
    scope="module", params=[{}, {"num_workers": 1, "persistent_workers": True}], ids=["one thread", "worker processes"]
)
def notebook(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupt")
    write_cache(folder / "cache")
    kernel, client = start_new_kernel(kernel_name="python3")
    notebook = Notebook(kernel, client)
    names = {"here": str(HERE), "cache": str(folder / "cache"), "outputs": str(folder), "workers": request.param}
    assert notebook.run(PIECES.format(**names))["status"] == "ok"
    yield notebook
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


CASES = {  # interrupts, pauses of the losses in seconds, how the cell ends, the last checkpoint
    # At the first of five batches of a step, whose other batches still have to be read.
    "once": (1, "itertools.chain([0] * 6, itertools.repeat(0.5))", "Preempted", 3),
    # In the middle of a step: the student has gradients of its first batches, which must not count in the step made anew.
    "twice": (2, "itertools.chain([0] * 8, [60])", "KeyboardInterrupt", 2),
}


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_cell_ends_at_once_and_run_again_it_goes_on(notebook, case):
    interrupts, pauses, error, step = CASES[case]
    assert notebook.run(f"student, teacher, run = pieces({case!r})")["status"] == "ok"
    assert notebook.run(f"pauses = {pauses}")["status"] == "ok"
    notebook.start(TRAIN)
    notebook.until("pause of")
    for number in range(interrupts):
        time.sleep(0.5 * number)
        notebook.kernel.interrupt_kernel()
    reply = notebook.reply()
    assert reply["ename"] == error
    assert len(reply["traceback"]) == 1 and reply["traceback"][0].startswith(f"{error}: ")  # a sentence, no frames
    if error == "Preempted":
        assert reply["evalue"].startswith(f"{case} was interrupted and wrote a checkpoint at step {step}; run this cell again")
    assert notebook.value("run.checkpoints()[-1].name") == f"'step_{step:08d}.pt'"
    assert notebook.run("pauses = iter(())")["status"] == notebook.run(TRAIN)["status"] == "ok"
    assert notebook.value("[int(record['step']) for record in history['epochs']]") == "[2, 4, 6]"
    assert notebook.value("all(torch.equal(w, expected[name]) for name, w in student.state_dict().items())") == "True"
