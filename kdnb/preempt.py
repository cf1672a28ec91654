"""Being asked to stop: by a person (SIGINT: the notebook's stop button, Ctrl-C), or by a scheduler some time before it takes the
machine away (SIGTERM, SIGUSR1).

Training notices at its next step, writes a checkpoint and raises `Preempted`; started again, it goes on from there. A person who
interrupts a second time is obeyed at once.
"""

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):
    """The run was asked to stop, and can be started again. A notebook shows its sentence alone."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows. The frames that raised it let go of their tensors, which the next run may need room for."""
        traceback.clear_frames(self.__traceback__)
        return [str(self)]


class Asked:
    """Whether a signal has come: its name, else ""."""

    def __init__(self):
        self.by = ""

    def __call__(self, number: int, frame):
        name = signal.Signals(number).name
        if name == self.by == "SIGINT":
            raise KeyboardInterrupt
        self.by = name


@contextlib.contextmanager
def watching() -> Iterator[Asked]:
    """Take the signals in the block, and hand them back to whoever had them after it. Only a main thread can.

    What the process ignores, as one in the background ignores Ctrl-C, stays ignored. A rank that stops because another one was
    asked to keeps the signals: its own is on the way, and would end the process in the middle of saying goodbye.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, asked) for number in heeded}
    try:
        yield asked
    except Preempted:
        if not asked.by:
            before = {}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
