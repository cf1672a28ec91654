"""Signals that ask to stop: noticed in the block, handed back after it, and absorbed where another rank's came first."""

import os
import signal
import weakref

import pytest

from kdnb.distributed import SIGNALS, Preempted, catch_signals


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


def test_a_notebook_shows_one_sentence_and_the_frames_let_go_of_what_they_held():
    class Large:
        pass

    def train():
        large = Large()
        weakref.finalize(large, ended.append, "let go")
        raise Preempted("a was interrupted")

    ended = []
    with pytest.raises(Preempted) as raised:
        train()
    assert ended == []
    assert raised.value._render_traceback_() == ["a was interrupted"]
    assert ended == ["let go"]
