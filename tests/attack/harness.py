"""Work in a forked process that is killed, or meets what was done to its files, and what became of it.

This process only starts others: importing torch costs seconds, a fork of it milliseconds. It must not train itself, as a fork of
a process whose autograd has run cannot.
"""

import contextlib
import logging
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kdnb.notebook_errors import find_sentence

LIMIT = 120  # seconds after which a try counts as a hang
BAD = ("silent", "traceback", "hang", "lost")
STOPPED = (os.EX_TEMPFAIL, -signal.SIGTERM, 128 + signal.SIGTERM)  # how kdnb.papermill ends, early and late
COLUMNS = ("found", "healed", "harmless", *BAD)


@dataclass
class Ended:
    """How work ended: `done`, `sentence` (an error for people), `traceback` (any other error, or a crash), `hang`, or `stopped`
    (by SIGTERM)."""

    how: str
    said: str  # what it printed, and its error
    result: object = None
    seconds: float = 0.0
    memory: int = 0  # bytes at most, beside what this process holds


class Worker:
    """`work(folder)` in a forked process with `folder` as its current one."""

    def __init__(self, work: Callable, folder: Path):
        self.report, self.began, self.status = Path(tempfile.mkdtemp()), time.monotonic(), None
        (self.report / "said").touch()
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            _work(work, folder, self.report)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or done so itself
            os.setpgid(self.pid, self.pid)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within `seconds`."""
        end = time.monotonic() + seconds
        while self.status is None and (left := end - time.monotonic()) > 0:
            pid, status, self.usage = os.wait4(self.pid, os.WNOHANG)
            self.status = status if pid else None
            time.sleep(0 if pid else min(0.005, left))
        return self.status is not None

    def kill(self, number: int = signal.SIGKILL, *, alone: bool = False):
        """Send a signal to it and to the processes that it started, or to it `alone`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number) if alone else os.killpg(self.pid, number)

    def ended(self) -> Ended:
        hung, seconds = not self.wait(self.began + LIMIT - time.monotonic()), time.monotonic() - self.began
        self.kill()  # or what it left behind
        self.wait(LIMIT)
        code, error, result = os.waitstatus_to_exitcode(self.status), "", None
        how = "hang" if hung else "done" if code == 0 else "stopped" if code in STOPPED else "traceback"
        if (self.report / "result").exists():
            how, error, result = pickle.loads((self.report / "result").read_bytes())
        said = (self.report / "said").read_text(errors="replace") + error or f"ended with code {code}"
        shutil.rmtree(self.report)
        return Ended(how, said, result, seconds, 1024 * (self.usage.ru_maxrss - _own_memory()))


def run(work: Callable, folder: Path) -> Ended:
    """How `work(folder)` ends when nobody disturbs it."""
    return Worker(work, folder).ended()


def _work(work: Callable, folder: Path, report: Path):
    try:
        os.setpgid(0, 0)
        file = os.open(report / "said", os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        logging.basicConfig(force=True, format="%(message)s")  # instead of pytest's own
        warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
        torch.set_num_threads(1)
        os.chdir(folder)
        try:
            outcome = ("done", "", work(folder))
        except BaseException as error:
            sentence = find_sentence(error)
            outcome = ("sentence", sentence, None) if sentence else ("traceback", traceback.format_exc(), None)
        (report / "whole").write_bytes(pickle.dumps(outcome))
        (report / "whole").rename(report / "result")  # which a kill does not tear
        sys.stdout.flush()
    finally:
        os._exit(1)


def _own_memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def verdict(ended: Ended, undisturbed: Ended, altered: Path, *, was: bytes | None = None) -> str:
    """What came of the file `altered`, which held `was`: a column of the table."""
    if ended.how != "done":
        return {"sentence": "found"}.get(ended.how, ended.how)
    new = set(ended.said.splitlines()) - set(undisturbed.said.splitlines())
    names = (
        altered.name,
        "/".join(altered.parts[-3:-1]),
        *(f"{part}: " for part in altered.parts),
    )  # as in "done: 3 records ..."
    said = any(name in line for line in new for name in names)
    if ended.result != undisturbed.result:
        return "found" if said else "silent"
    return "healed" if said or (altered.is_file() and altered.read_bytes() == was) else "harmless"


def differing(ended: Ended, undisturbed: Ended) -> str:
    """Which parts of a result are not as they were, or how it ended."""
    if ended.how != "done":
        return brief(ended.said)
    return ", ".join(name for name, value in undisturbed.result.items() if ended.result.get(name) != value)


def brief(said: str) -> str:
    """The last line, and the last place in kdnb that a traceback names."""
    lines = said.strip().splitlines() or ["nothing was said"]
    places = [line.strip() for line in lines if "/kdnb/" in line and line.strip().startswith("File")]
    return f"{lines[-1][-200:]} {places[-1].rpartition('/kdnb/')[2] if places else ''}"


class Table:
    """Counts of outcomes by attack, and the tries that went badly."""

    def __init__(self):
        self.counts: dict[str, Counter] = {}
        self.bad: dict[str, list[int]] = {}  # seeds, by what happened

    def __str__(self) -> str:
        lines = [f"| attack | tries | {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * (1 + len(COLUMNS))}"]
        for name, counts in self.counts.items():
            lines.append(f"| {name} | {' | '.join(str(n) for n in (counts.total(), *(counts[c] for c in COLUMNS)))} |")
        bad = [f"{what} (seeds {', '.join(map(str, seeds[:10]))} of {len(seeds)})" for what, seeds in self.bad.items()]
        return "\n".join([*lines, "", *bad])


class Attack:
    """One family's tries, one after the other until its time is up; each has a random generator with a seed of its own."""

    def __init__(self, table: Table, project: Path, seconds: float, seed: int):
        self.table, self.project, self.seconds, self.seed, self.bad = table, project, seconds, seed, []

    def tries(self) -> Iterator[random.Random]:
        end = time.monotonic() + self.seconds
        while True:
            yield random.Random(self.seed)
            self.seed += 1
            if time.monotonic() > end:
                return

    def fresh(self, template: Path) -> Path:
        """The project as `template` has it."""
        shutil.rmtree(self.project, ignore_errors=True)
        shutil.copytree(template, self.project, symlinks=True, dirs_exist_ok=True)
        return self.project

    def count(self, row: str, outcome: str, detail: str = "", *, tries: int = 1):
        self.table.counts.setdefault(row, Counter())[outcome] += tries
        if outcome in BAD:
            what = f"{row}: {outcome}: {detail}"
            self.bad.append(f"{what} (KDNB_ATTACK_SEED={self.seed})")
            self.table.bad.setdefault(what, []).append(self.seed)
            if len(self.table.bad[what]) == 1:
                print(self.bad[-1], flush=True)
