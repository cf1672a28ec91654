"""Several processes that do one piece of work, and signals that ask to stop.

A process knows its place from what torch.distributed.run puts into the environment. Exchanges are Accelerate's; a process that
works alone does none and does not even import it.
"""

import atexit
import contextlib
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # those that ask to stop

_TIMEOUT = timedelta(hours=2)  # one rank may train a built-in teacher, or fill a cache, while the others wait
_TRUE = ("1", "true", "yes", "y", "t", "on")  # what Accelerate reads as a yes


def rank() -> int:
    """Number of this process among all of them, from 0."""
    return int(os.environ.get("RANK", 0)) if world() > 1 else 0


def world() -> int:
    """How many processes work together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def find_device():
    """The torch.device that this process works on: a GPU where there is one, and of several ranks each has one of its own.

    Which one follows from LOCAL_RANK alone, so that it is the same before and after the ranks are connected. ACCELERATE_USE_CPU
    hides GPUs, as it does for Accelerate.

    Raises:
        ValueError: more ranks on this machine than GPUs that they see.
    """
    import torch

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in _TRUE:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() and world() == 1 else "cpu")
    if world() > 1:
        number, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if number >= gpus:
            raise ValueError(
                f"LOCAL_RANK is {number}, but this process sees {gpus} GPU(s); start as many processes a machine as it has GPUs "
                "(--nproc-per-node), let each see all of them (CUDA_VISIBLE_DEVICES), or set ACCELERATE_USE_CPU=1."
            )
        torch.cuda.set_device(number)
    return torch.device("cuda", torch.cuda.current_device())


def init_distributed():
    """Join the process group, once; every function below that waits for others does so first."""
    if world() > 1:
        import torch.distributed as dist
        import torch.distributed.nn  # noqa: F401 - later, its functions' defaults would hold the group that is there by then
        from accelerate import PartialState

        joins = not dist.is_initialized()
        PartialState(cpu=find_device().type == "cpu", timeout=_TIMEOUT)
        if joins:
            atexit.register(_leave)


def _leave():
    """End the group's threads before the interpreter ends: one that lets go of a Python tensor later aborts the process.

    After an error the others may wait for this process in vain, and it would wait for them: then it just ends.
    """
    import torch.distributed as dist

    gc.collect()  # a model wrapped for several processes is part of a cycle, and holds the group
    if dist.is_initialized() and not hasattr(sys, "last_value"):
        dist.destroy_process_group()


def broadcast(value):
    """The value that rank 0 has, on every rank (a name made from the time, say)."""
    if world() == 1:
        return value
    init_distributed()
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def on_rank_0(work: Callable[[], T]) -> T:
    """What `work()` returns on rank 0, on every rank; the error that it raises there, too."""
    result, fault = None, None
    try:
        result = work() if rank() == 0 else None
    except Exception as error:
        fault = error
    result, fault = broadcast((result, fault))
    if fault is not None:
        raise fault
    return result


def gather(value) -> list:
    """The values of all ranks, in their order, on every rank."""
    if world() == 1:
        return [value]
    init_distributed()
    from accelerate.utils import gather_object

    return gather_object([value])


def require_same(what: str, value):
    """Refuse to go on where ranks have different values of `what`: a ValueError on each of them, with who has which."""
    values = gather(value)
    if any(other != values[0] for other in values):
        odd = next(number for number, other in enumerate(values) if other != values[0])
        raise ValueError(f"{what} is {values[0]!r} on rank 0 but {values[odd]!r} on rank {odd}; every process must read the same "
                         "files: put them on a disk that all of them share.")  # fmt: skip


def barrier():
    """Wait until every rank is here."""
    if world() > 1:
        init_distributed()
        from accelerate import PartialState

        PartialState().wait_for_everyone()


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Rank 0 does the block alone, then the others do, who read what it made.

    Not Accelerate's `main_process_first`: there the others wait in vain where rank 0 fails.
    """
    if rank() > 0:
        barrier()
    try:
        yield
    finally:
        if rank() == 0:
            barrier()


class Preempted(Exception):
    """The run was asked to stop, and can be started again."""


class StopFlag:
    """A signal handler that is true once a signal has come; a second SIGINT is a KeyboardInterrupt.

    Attributes:
        signal_name: of the last signal, "" before the first.
    """

    def __init__(self):
        self.signal_name = ""

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def __call__(self, number: int, frame):
        name = signal.Signals(number).name
        if name == self.signal_name == "SIGINT":
            raise KeyboardInterrupt
        self.signal_name = name


@contextlib.contextmanager
def catch_signals() -> Iterator[StopFlag]:
    """Note the `SIGNALS` in the block, and hand them back to whoever had them after it. Only a main thread can.

    What the process ignores, as one in the background ignores Ctrl-C, stays ignored. A rank that stops because another one got
    a signal keeps the handlers: its own signal is on the way, and would end the process before it has left the group.
    """
    stop_flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield stop_flag
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop_flag) for number in heeded}
    try:
        yield stop_flag
    except Preempted:
        if not stop_flag:
            before = {}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
