"""A run trained by processes that a cell starts: what it prints, what it leaves, how it fails."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from kdnb.recipes import launch
from kdnb.runs import Run

CHILD = """
import sys
print("noise")
print("epoch 1/2 | step 3")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Function that launches with a stand-in that ends with `code`; returns (run, the command that was to be started)."""
    commands = []

    def run(code: int, **changes):
        def popen(command, **settings):
            commands.append([str(word) for word in command])
            return subprocess.Popen([sys.executable, "-c", CHILD, str(code)], **settings)

        stand_in = SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
        monkeypatch.setattr(launch, "subprocess", stand_in)
        p = SimpleNamespace(processes=2, student_args={"width": 8}, feature_layers=[], run_name=None)
        vars(p).update(changes)
        opened = Run("r", {}, outputs=tmp_path)
        launch.train_on_processes(p, "train_fixed", opened)
        return opened, commands

    return run


def test_rank_0_is_followed_and_the_run_is_the_notebooks_own(start, capsys):
    run, (command,) = start(0)
    assert capsys.readouterr().out == "epoch 1/2 | step 3\n"
    assert command[command.index("--nproc-per-node") + 1] == "2" and "kdnb.papermill" in command
    given = yaml.safe_load((run.folder / "processes.yaml").read_text())
    assert given == {"processes": 1, "student_args": {"width": 8}, "feature_layers": [], "run_name": "r"}


def test_a_failure_is_told_with_the_last_lines(start):
    with pytest.raises(RuntimeError, match="2 processes failed on r; the end of what they said: noise"):
        start(3)


def test_one_process_or_a_rank_of_its_own_starts_nothing(start, monkeypatch):
    assert start(0, processes=1)[1] == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch.ranks, "agree", lambda value: value)
    assert start(0)[1] == []
