"""Jobs that meet at one run's folder, as real processes: one trains, the others are told who does, and all may read."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from functools import partial

import pytest
from training import run_training

from kdnb import files, runs
from kdnb.runs import Run, new_name

JOBS, ROUNDS = 4, 100
FORK = multiprocessing.get_context("fork")
meet = FORK.Barrier(JOBS, timeout=60)  # of the jobs of a test, which inherit it


def in_processes(work) -> list:
    """What `work(number of the job)` returned in each of `JOBS` processes, which run at the same time."""
    with FORK.Pool(JOBS) as pool:
        return pool.map(work, range(JOBS), chunksize=1)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Who holds a run does so for longer than it takes to write one file."""
    monkeypatch.setattr(files, "_PATIENCE", 1)


def open_and_hold(folder, job: int) -> list[str]:
    """How it ended to open one new run after another, with parameters that every second job shares, and to hold it."""
    ended = []
    for number in range(ROUNDS):
        meet.wait()
        try:
            with Run(f"r{number}", {"seed": job % 2}, outputs=folder).held():
                ended.append("held")
                meet.wait()  # until everybody has tried
        except RuntimeError as error:
            ended.append(re.sub(r"process \d+ on .+ since [\d: -]+", "WHO", str(error)))
            meet.wait()
    return ended


def test_of_jobs_that_open_and_train_one_run_at_the_same_moment_one_does(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "environment_info", dict)  # Git need not be asked 400 times
    outcomes = in_processes(partial(open_and_hold, tmp_path))
    for number in range(ROUNDS):
        ended = [job[number] for job in outcomes]
        told = f"run r{number} is held by WHO; wait for it, stop it, or choose another run_name."
        assert Counter(ended) == {"held": 1, told: JOBS - 1}
        config = json.loads((tmp_path / f"r{number}/config.json").read_text())
        assert config["parameters"] == {"seed": ended.index("held") % 2}  # of the one that trains


def new_names(folder, job: int) -> list[str]:
    meet.wait()
    return [new_name("a", outputs=folder) for _ in range(ROUNDS)]


def test_names_that_are_made_in_the_same_second_differ(tmp_path):
    names = sum(in_processes(partial(new_names, tmp_path)), [])
    assert len(set(names)) == JOBS * ROUNDS == len(list(tmp_path.iterdir()))
    assert all(re.fullmatch(r"a_\d{8}_\d{6}(_\d+)?", name) for name in names)


def hold(folder, holds):
    """Hold the run, with a child that outlives this process, as a loader's worker may."""
    os.setpgid(0, 0)
    with Run("full", {"regime": "full"}, outputs=folder).held():
        os.fork()
        holds.set()
        time.sleep(120)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the run `full`."""
    holds = FORK.Event()
    job = FORK.Process(target=hold, args=(tmp_path, holds))
    job.start()
    assert holds.wait(60)
    yield job
    os.killpg(job.pid, signal.SIGKILL)  # its child
    job.join()


def test_a_killed_job_lets_go_at_once_even_where_its_children_live_on(tmp_path, holder):
    run = Run("full", {"regime": "full"}, outputs=tmp_path)
    with pytest.raises(RuntimeError, match=f"run full is held by process {holder.pid} on .* since 20"), run.held():
        pass
    holder.kill()
    holder.join()
    with run.held(), run.held():  # inside itself, too, as where a recipe holds the run that it trains
        pass


def test_training_leaves_a_run_alone_that_another_job_trains(tmp_path, holder, make_cache):
    make_cache(tmp_path / "cache")
    with pytest.raises(RuntimeError, match="run full is held by process"):
        run_training(tmp_path / "cache", tmp_path, "full")
    assert not list((tmp_path / "full/checkpoints").iterdir())
    assert Run("full", {"regime": "full"}, outputs=tmp_path).resumed  # opening it, as an evaluation does, is free


def test_one_that_waits_says_for_whom_and_goes_on_when_it_is_free(tmp_path, holder, capsys):
    before = signal.signal(signal.SIGALRM, lambda number, frame: holder.kill())
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with Run("full", {"regime": "full"}, outputs=tmp_path).held(wait=True):
        assert f"is held by process {holder.pid} on " in capsys.readouterr().out
    signal.signal(signal.SIGALRM, before)
    with Run("full", {"regime": "full"}, outputs=tmp_path).held():  # the same process once more
        pass
