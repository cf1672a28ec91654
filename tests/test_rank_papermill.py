"""Notebooks on several ranks: one out.ipynb, failures that end all, signals that reach the kernels, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

HELLO = """
import json, os
from ipykernel.connect import get_connection_info
print(f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}, {word}")
print(json.loads(get_connection_info())["transport"])
"""
# A sum over ranks again and again, a file when it has begun; what a rank does when asked is written by each test.
SUMS = """
import os, pathlib, time, torch, torch.distributed as dist
from kdnb.distributed import Preempted, catch_signals
dist.init_process_group("gloo")
rank = dist.get_rank()
pathlib.Path(out, f"pid{rank}").write_text(str(os.getpid()))
with catch_signals() as stop_flag:
    for step in range(3000):
        flag = torch.tensor(float(bool(stop_flag)))
        dist.all_reduce(flag)
        if flag:
            raise Preempted(f"stopped at step {step}")
        time.sleep(0.01)
"""


def notebook(path: Path, *cells: str, **parameters) -> Path:
    first = nbformat.v4.new_code_cell("\n".join(f"{k} = {v!r}" for k, v in parameters.items()), metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[first, *map(nbformat.v4.new_code_cell, cells)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


def start(book: Path, *options: str, ranks: int = 1, **environment) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
    launcher += ["--rdzv-endpoint", "localhost:0", "--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    command = [sys.executable, *(launcher if ranks > 1 else []), "-m", "kdnb.papermill", book, book.with_name("out.ipynb")]
    environment = {"KDNB_PROGRESS": "none", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731 - which tests in the background do not
    return subprocess.Popen([*command, *options], env=os.environ | environment, preexec_fn=heed, **pipes)


def wait_for(condition, seconds: float = 60, *, process: subprocess.Popen | None = None):
    """Until `condition()`; what `process` said is the error's text where it ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "".join(filter(None, process.communicate()))[-6000:]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def outputs(path: Path) -> str:
    return "".join(o.get("text", "") for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", []))


def test_alone_it_is_papermill(tmp_path):
    book = notebook(tmp_path / "in.ipynb", HELLO, word="a")
    process = start(book, "-p", "word", "hello")
    assert process.communicate()[1] is not None and process.returncode == 0
    assert outputs(tmp_path / "out.ipynb") == "rank 0 of 1, hello\nipc\n"
    failing = start(notebook(tmp_path / "bad.ipynb", "raise KeyError('no such thing')"))
    error = failing.communicate()[1]
    assert failing.returncode == 1 and "no such thing" in error and "Traceback" in error
    wrong = start(book, "--no-such-option")
    error = wrong.communicate()[1]
    assert wrong.returncode == 2 and "No such option" in error and "Traceback" not in error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_writes_its_own_output_only_where_that_is_asked_for(tmp_path, rank):
    book = notebook(tmp_path / "in.ipynb", HELLO, word="a")
    process = start(book, "-p", "word", "hello", RANK=str(rank), WORLD_SIZE="2")
    process.communicate()
    assert process.returncode == 0
    assert [path.name for path in tmp_path.glob("out*")] == (["out.ipynb"] if rank == 0 else [])
    if rank == 0:
        assert outputs(tmp_path / "out.ipynb") == "rank 0 of 2, hello\nipc\n"
    bad = start(notebook(tmp_path / "bad.ipynb", "1 / 0"), RANK=str(rank), WORLD_SIZE="2")
    error = bad.communicate()[1]
    assert bad.returncode == 1 and f"rank {rank} of 2: ZeroDivisionError: division by zero" in error
    assert (tmp_path / "out.rank1.ipynb").exists() == (rank == 1)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_kernel_and_the_code_says_try_again(tmp_path, number):
    wait = "from kdnb.distributed import Preempted, catch_signals\nimport pathlib, time\nwith catch_signals() as stop_flag:\n"
    wait += "    pathlib.Path(out, 'pid').write_text('')\n    while not stop_flag:\n        time.sleep(0.01)\n"
    wait += "raise Preempted(f'wrote a checkpoint after {stop_flag.signal_name}')"
    process = start(notebook(tmp_path / "in.ipynb", wait, out=str(tmp_path)))
    wait_for((tmp_path / "pid").exists, process=process)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and f"wrote a checkpoint after {signal.Signals(number).name}" in error


def test_a_second_interrupt_ends_notebook_and_kernel(tmp_path):
    wait = "import os, pathlib, signal, time\nsignal.signal(signal.SIGINT, lambda *of: None)\n"
    wait += "pathlib.Path(out, 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    process = start(notebook(tmp_path / "in.ipynb", wait, out=str(tmp_path)))
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), process=process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "the notebook was stopped by SIGINT; the same command goes on" in error
    wait_for(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))


def test_a_kernel_that_does_not_answer_is_ended(tmp_path):
    deaf = "import signal, pathlib, time, os\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    deaf += "pathlib.Path(out, 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"
    book = notebook(tmp_path / "in.ipynb", deaf, out=str(tmp_path))
    process = start(book, RANK="0", WORLD_SIZE="2", KDNB_GRACE_S="1")
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), process=process)
    process.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and "to which the kernel did not react" in error
    wait_for(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))


def pids(folder: Path) -> list[int]:
    return [int((folder / f"pid{rank}").read_text()) for rank in range(2)]


def begun(folder: Path) -> bool:
    return all((folder / f"pid{rank}").exists() and (folder / f"pid{rank}").read_text() for rank in range(2))


@pytest.mark.parametrize("victim", ["kernel", "launcher"])
def test_when_a_rank_is_killed_all_ends_and_no_kernel_stays(tmp_path, victim):
    process = start(notebook(tmp_path / "in.ipynb", SUMS, out=str(tmp_path)), ranks=2)
    wait_for(lambda: begun(tmp_path), 120, process=process)
    kernels = pids(tmp_path)
    psutil.Process(kernels[1] if victim == "kernel" else psutil.Process(kernels[1]).ppid()).kill()
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and ("rank 0 of 2:" in error or "rank 1 of 2:" in error)
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in kernels), 30)


def test_two_ranks_write_one_notebook_and_stop_together_when_asked(tmp_path):
    process = start(notebook(tmp_path / "in.ipynb", SUMS, out=str(tmp_path)), ranks=2)
    wait_for(lambda: begun(tmp_path), 120, process=process)
    process.send_signal(signal.SIGUSR1)
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and error.count("of 2: stopped at step") == 2, error
    assert [path.name for path in tmp_path.glob("out*")] == ["out.ipynb"]
