"""Two processes that talk and end at once, many times over: `python tests/rank_exit.py TRIALS` prints how each of them ended.

The group's threads get the processor last, so that they are often still at work when the interpreter ends.
"""

import os
import socket
import sys

import accelerate  # noqa: F401 - here once, not in each process
import torch
import torch._dynamo  # noqa: F401 - which wrapping a model imports
import torch.distributed as dist

from kdnb import distributed


def talk(rank: int, port: int):
    """What one process does: connect, wrap a model, gather, and return with the group's threads still busy."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[rank % len(processors)]})
    distributed.init_distributed()
    torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != os.getpid():
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    dist.all_gather_object([None, None], "a" * rank)


if __name__ == "__main__":
    ended = []
    for _ in range(int(sys.argv[1])):
        with socket.socket() as listener:
            listener.bind(("localhost", 0))
            port = listener.getsockname()[1]
        children = []
        for rank in range(2):
            child = os.fork()
            if child == 0:
                talk(rank, port)
                sys.exit()
            children.append(child)
        ended += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(*ended)
