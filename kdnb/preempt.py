"""Being asked to stop: SIGTERM and SIGUSR1, which schedulers send some time before they take the machine away.

Training notices at its next step, writes a checkpoint and raises `Preempted`; started again, it goes on from there.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):
    """The run was asked to stop, and can be started again."""


class Asked:
    """Whether a signal has come: its name, else ""."""

    def __init__(self):
        self.by = ""

    def __call__(self, number: int, frame):
        self.by = signal.Signals(number).name


@contextlib.contextmanager
def watching() -> Iterator[Asked]:
    """Take the signals in the block, and hand them back to whoever had them after it. Only a main thread can.

    A rank that stops because another one was asked to keeps them: its own signal is on the way, and would end the process in the
    middle of saying goodbye.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, asked) for number in SIGNALS}
    try:
        yield asked
    except Preempted:
        if not asked.by:
            before = {}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
