"""A run trained by processes that a cell starts: what it prints, what it leaves, how it fails."""

import multiprocessing
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
import yaml

from kdnb import files, papermill
from kdnb.distributed import Preempted
from kdnb.runs import Run

CHILD = """
import os, signal, sys, time
print("noise")
print("epoch 1/2 | step 3", flush=True)
if sys.argv[1] == "asleep":
    os.kill(os.getppid(), signal.SIGINT)  # the notebook's stop button
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Function that launches with a stand-in that ends with `code`; returns (run, the command that was to be started)."""
    commands = []

    def run(code, *, steps=(), processes=2):
        def popen(command, **settings):
            commands.append([str(word) for word in command])
            return subprocess.Popen([sys.executable, "-c", CHILD, str(code)], **settings)

        stand_in = SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
        monkeypatch.setattr(papermill, "subprocess", stand_in)
        parameters = {"processes": processes, "student_args": {"width": 8}, "feature_layers": [], "run_name": None}
        opened = Run("r", parameters, outputs=tmp_path)
        for step in steps:
            opened.save_checkpoint(step, {})
        papermill.train_on_processes(opened, "train_fixed", processes=processes)
        return opened, commands

    return run


def test_rank_0_is_followed_and_the_run_is_the_notebooks_own(start, capsys):
    run, (command,) = start(0)
    assert capsys.readouterr().out == "epoch 1/2 | step 3\n"
    assert command[command.index("--nproc-per-node") + 1] == "2" and "kdnb.papermill" in command
    parameters = yaml.safe_load((run.folder / "processes.yaml").read_text())
    assert parameters == {"processes": 1, "student_args": {"width": 8}, "feature_layers": [], "run_name": "r"}


def test_a_failure_is_told_with_the_last_lines(start):
    with pytest.raises(RuntimeError, match="2 processes failed on r; the end of their output: noise"):
        start(3)


def test_a_second_job_that_would_train_the_same_run_is_told_who_does(start, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 1)
    run, _ = start(0)
    ready, done = (multiprocessing.get_context("fork").Event() for _ in range(2))
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(run, ready, done))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(RuntimeError, match=f"run r is held by process {holder.pid} on "):
        start(0)
    done.set()
    holder.join()
    start(0)


def _hold(run, ready, done):
    with run.only_job(".processes.lock"):
        ready.set()
        done.wait(60)


@pytest.fixture
def interruptible():
    """With SIGINT as a kernel has it while a cell runs, wherever the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupting_the_cell_ends_the_processes_and_says_how_to_go_on(start, interruptible, tmp_path):
    others = set(psutil.Process().children())  # of earlier tests, such as multiprocessing's resource tracker
    with pytest.raises(Preempted, match="^r was interrupted and has a checkpoint of step 7; run this cell again to go on.$"):
        start("asleep", steps=(3, 7))
    assert set(psutil.Process().children()) <= others
    for path in (tmp_path / "r/checkpoints").iterdir():
        path.unlink()
    with pytest.raises(KeyboardInterrupt):  # nothing to go on from
        start("asleep")


def test_one_process_or_a_rank_of_its_own_starts_nothing(start, monkeypatch):
    assert start(0, processes=1)[1] == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(papermill.distributed, "broadcast", lambda value: value)
    assert start(0)[1] == []
