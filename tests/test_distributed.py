"""Several processes train as one does: the same samples per step, the same losses, resumable at another number.

Signals that ask to stop: noticed in the block, handed back after it, and absorbed where another rank's came first.
"""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from caches import write_cache

from kdnb.distributed import SIGNALS, Preempted, catch_signals

HERE = Path(__file__).resolve().parent


def launch(count: int, cache, out, what: str, *, survives: bool = True, gpus: bool = False) -> list[dict]:
    """The result of each of `count` processes, where they survive, on CPUs or on GPUs; their output is the error's text."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"] if count > 1 else []
    if count == 1:
        command = [sys.executable]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "KDNB_PROGRESS": "none"} | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
    command += [HERE / "rank_training.py", cache, out, what]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode == 0) == survives, result.stdout[-2000:] + result.stderr[-4000:]
    return [json.loads((out / f"{what}_{count}_{rank}.json").read_text()) for rank in range(count if survives else 0)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "cache"
    write_cache(folder)
    return folder


@pytest.fixture(scope="module")
def results(cache, tmp_path_factory) -> dict[int, list[dict]]:
    """Those of 1, 2 and 4 processes."""
    return {count: launch(count, cache, tmp_path_factory.mktemp(f"ranks{count}"), "all") for count in (1, 2, 4)}


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("what", ["images", "accumulated", "texts"])
def test_losses_are_those_of_one_process(results, count, what):
    alone = results[1][0][what]["losses"]
    for rank in results[count]:
        assert rank[what]["losses"] == pytest.approx(alone, rel=1e-5)
    assert len(alone) == {"images": 18, "accumulated": 9, "texts": 4}[what]


@pytest.mark.parametrize("count", [2, 4])
def test_each_step_visits_the_same_samples_and_all_ranks_end_with_the_same_weights(results, count):
    alone, together = results[1][0]["images"], [rank["images"] for rank in results[count]]
    for step, ids in enumerate(alone["seen"]):
        parts = [rank["seen"][step] for rank in together]
        assert sorted(sum(parts, [])) == sorted(ids) and len({len(part) for part in parts}) == 1
    assert all(rank["weights"] == together[0]["weights"] for rank in together)
    assert together[0]["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-5)


def test_ranks_agree_on_a_name_and_refuse_what_they_cannot_share(results):
    assert len({rank["name"] for rank in results[4]}) == 1
    for rank in results[4]:
        assert rank["odd"] == "batch_size is 5, but 4 processes share a batch equally; choose a multiple of 4."
        assert rank["different"].startswith("the cache is 'a' on rank 0 but 'b' on rank 1; every process")


def test_a_signal_to_one_rank_stops_all_at_the_same_step_and_another_number_goes_on(cache, tmp_path, results):
    ranks = launch(2, cache, tmp_path, "stop")
    for rank in ranks:
        assert rank["stopped"].startswith("Preempted: stopped was asked to stop by")
        assert "; run this cell again to go on, or the same command" in rank["stopped"]
    steps = {int(re.search(r"wrote a checkpoint at step (\d+);", rank["stopped"])[1]) for rank in ranks}
    assert len(steps) == 1 and 7 <= steps.pop() < 18
    resumed = launch(1, cache, tmp_path, "go on")[0]
    assert resumed["losses"] == pytest.approx(results[1][0]["images"]["losses"], rel=1e-5)


def test_each_rank_draws_for_itself_and_a_killed_job_goes_on_with_the_same_numbers(cache, tmp_path, results):
    """18 steps; both ranks are killed in the ninth, after the checkpoint at the eighth. The net has batch norm, too."""
    undisturbed = [rank["dropout"] for rank in results[2]]
    assert all(mine != other for mine, other in zip(*[rank["masks"] for rank in undisturbed], strict=True))
    assert results[1][0]["dropout"]["losses"] != pytest.approx(undisturbed[0]["losses"], rel=1e-5)  # as their numbers differ
    launch(2, cache, tmp_path, "killed", survives=False)
    for resumed, rank in zip(launch(2, cache, tmp_path, "go on after a kill"), undisturbed, strict=True):
        assert resumed["seen"] == rank["seen"][8:] and resumed["masks"] == rank["masks"][8:]
        assert resumed["losses"] == rank["losses"] and resumed["weights"] == rank["weights"]


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="the processes' threads are held back with a Linux scheduler")
def test_a_process_ends_well_while_its_groups_threads_are_at_work():
    # Of processes that do not leave their group, two in three abort.
    result = subprocess.run([sys.executable, HERE / "rank_exit.py", "4"], capture_output=True, text=True)
    ended = result.stdout.splitlines()[-1:]  # before it, torch 2.10's gloo says that ranks are connected
    assert ended == [" ".join(["0"] * 8)], result.stderr[-2000:]


@pytest.fixture
def came():
    """Names of the signals that reached whoever had them before the block."""
    names = []
    before = {
        number: signal.signal(number, lambda number, frame: names.append(signal.Signals(number).name)) for number in SIGNALS
    }
    yield names
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noticed_in_the_block_and_handed_back_after_it(came, number):
    with pytest.raises(Preempted), catch_signals() as stop_flag:
        assert stop_flag.signal_name == ""
        os.kill(os.getpid(), number)
        assert stop_flag.signal_name == signal.Signals(number).name and came == []
        raise Preempted("a checkpoint was written")
    os.kill(os.getpid(), number)
    assert came == [signal.Signals(number).name]


def test_a_block_that_ends_in_another_way_hands_the_signals_back(came):
    with pytest.raises(ValueError, match="a bug"), catch_signals():
        raise ValueError("a bug")
    os.kill(os.getpid(), signal.SIGUSR1)
    assert came == ["SIGUSR1"]


def test_a_rank_that_stopped_for_another_survives_its_own_signal(came):
    with pytest.raises(Preempted), catch_signals() as stop_flag:
        raise Preempted("another rank was stop_flag to stop")
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert came == [] and stop_flag.signal_name == "SIGTERM"


def test_a_second_interrupt_stops_at_once_and_other_signals_do_not(came):
    with pytest.raises(KeyboardInterrupt), catch_signals() as stop_flag:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop_flag.signal_name == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second interrupt was not obeyed")
    os.kill(os.getpid(), signal.SIGINT)
    assert came == ["SIGINT"]


def test_what_the_process_ignores_stays_ignored(came):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a job in a shell's background
    with catch_signals() as stop_flag:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_flag.signal_name == ""
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
