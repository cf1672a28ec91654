"""The folder of a run: outputs/<run>/, which evaluation reads and a killed run goes on from.

config.json comes first (parameters, versions, git revision, device), then checkpoints/, with the records of training beside
them, best_model/, final_model/, history.json and figures/, and summary.json last: its presence means finished. Reading a run is
free at any time; training one is for one job at a time, which holds the file .lock meanwhile.
"""

import contextlib
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import count
from pathlib import Path

import numpy as np

from kdnb import distributed
from kdnb.distributed import find_device
from kdnb.files import (
    Damaged,
    Held,
    hash_of,
    only_process,
    read_json,
    read_tensors,
    require_file,
    set_aside,
    write_json,
    write_tensors,
)
from kdnb.params import FREE


def project_root() -> Path:
    """The project that the current folder lies in: the nearest folder, from there upwards, that holds notebooks/ and outputs/.

    Papermill runs in the caller's folder, JupyterLab in the notebook's: in this project both mean the same. A script
    elsewhere has a project of its own, its current folder; where kdnb is installed does not matter.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if os.path.isdir(folder / "notebooks") and os.path.isdir(folder / "outputs"):  # False where one may not look
            return folder
    return here


def anchored(path: str | Path) -> Path:
    """`path`, taken from the project's root unless it is absolute."""
    return project_root() / os.path.expanduser(path)  # as it is where there is no such user


def local_or_hub(name: str) -> str:
    """`name` as a path from the project's root where there is such a file or folder; else as it is, for timm or the Hub."""
    path = anchored(name)
    return str(path) if path.exists() else name


def set_seed(seed: int):
    """Seed Python, NumPy and PyTorch."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries that draw from the global state must be seeded, too
    torch.manual_seed(seed)


def new_name(stem: str, *, outputs: str | Path = "outputs") -> str:
    """`stem`, the time, and a number where that is taken: a folder below `outputs` that was made just now, for nobody else."""
    first = name = f"{stem}_{time.strftime('%Y%m%d_%H%M%S')}"
    for number in count(2) if distributed.rank() == 0 else ():
        try:
            (anchored(outputs) / name).mkdir(parents=True)
            break
        except FileExistsError:
            name = f"{first}_{number}"
    return distributed.broadcast(name)


class Run:
    """One run's folder; opening the name of a run that exists resumes it.

    Args:
        name: folder below `outputs`; None takes a new one of `prefix` and the time.
        parameters: those of the run (plain values). Resuming with others is refused, but for those that do not change what
            comes out, such as `num_workers`.
        prefix: the notebook's name.
        outputs: folder of all runs, from the project's root (`project_root`) unless it is absolute.

    Attributes:
        folder, name, parameters. finished: whether summary.json exists. resumed: whether the run existed before.

    Raises:
        ValueError: the run exists with other parameters, which are named, or a file of it is broken.

    Example:
        >>> import tempfile, torch
        >>> outputs = tempfile.mkdtemp()
        >>> run = Run("r18", {"epochs": 10}, outputs=outputs)
        >>> run.save_checkpoint(5, {"weights": torch.ones(2)})
        >>> run.finish({"loss": 0.25})
        >>> run = Run("r18", {"epochs": 10}, outputs=outputs)
        >>> run.resumed, run.finished, run.read("summary.json"), run.load_checkpoint()
        (True, True, {'loss': 0.25}, {'weights': tensor([1., 1.])})
        >>> Run("r18", {"epochs": 20}, outputs=outputs)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: run_name r18 exists with other parameters (epochs was 10, now 20); choose another run_name, ...
    """

    def __init__(self, name: str | None, parameters: dict, *, prefix: str = "run", outputs: str | Path = "outputs"):
        self.name = distributed.broadcast(name) if name else new_name(prefix, outputs=outputs)
        self.folder = anchored(outputs) / self.name
        self.parameters = parameters
        config = distributed.broadcast(self.read("config.json"))
        if config is None:
            for name in ("checkpoints", "figures"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)  # by every rank: it is there then, on any file system
            config = distributed.broadcast(self._create(prefix) if distributed.rank() == 0 else None)
        self.resumed = config is not None
        if config is not None:
            self._check_same(config["parameters"])
            if config["parameters"] != json.loads(json.dumps(parameters)):
                self.write("config.json", config | {"parameters": parameters})

    def _create(self, prefix: str) -> dict | None:
        """Write config.json and return None; or return what another job has written there at the same time."""
        while True:
            with contextlib.suppress(Held), only_process(self.folder / ".lock"):
                config = self.read("config.json")
                if config is None:
                    self.write("config.json", {"notebook": prefix, "parameters": self.parameters, **environment_info()})
                return config
            config = self.read("config.json")  # the one who held the file may train by now, for hours
            if config is not None:
                return config
            time.sleep(0.05)

    def _check_same(self, before: dict):
        now = json.loads(json.dumps(self.parameters))
        differ = [k for k in sorted({*before, *now} - FREE - {"run_name"}) if before.get(k) != now.get(k)]
        if differ:
            changes = "; ".join(f"{k} was {before.get(k)!r}, now {now.get(k)!r}" for k in differ)
            raise ValueError(
                f"run_name {self.name} exists with other parameters ({changes}); choose another run_name, or give "
                "the parameters of that run to resume it."
            )

    @contextlib.contextmanager
    def held(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other jobs from training this run meanwhile; all ranks of this one call it, and it may be called inside itself.

        Raises:
            RuntimeError: another job has it, with who that is; with `wait`, it is waited for instead.
        """
        with contextlib.ExitStack() as stack:
            holder = None
            if distributed.rank() == 0:
                try:
                    stack.enter_context(only_process(self.folder / ".lock", wait=wait))
                except Held as error:
                    holder = str(error)
            holder = distributed.broadcast(holder)
            if holder is not None:
                raise RuntimeError(f"run {self.name} is held by {holder}; wait for it, stop it, or choose another run_name.")
            yield

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    def read(self, name: str):
        """Content of a JSON file of the run, or None where it does not exist."""
        try:
            return read_json(self.folder / name)
        except FileNotFoundError:
            return None
        except Damaged as error:
            raise ValueError(f"{error}; restore it, or delete the folder and run again.") from None

    def write(self, name: str, content):
        """Write a JSON file of the run, atomically; of several ranks, rank 0 does."""
        if distributed.rank() > 0:
            return
        write_json(self.folder / name, content, allow_nan=False)

    def save_figure(self, name: str, figure) -> Path:
        """Write a matplotlib figure to figures/<name>.png."""
        path = self.folder / "figures" / f"{name}.png"
        if distributed.rank() == 0:
            figure.savefig(path, dpi=150, bbox_inches="tight")
        return path

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step_*.pt"))

    def save_checkpoint(self, step: int, state: dict, *, keep: int | None = None):
        """Write checkpoints/step_<step>.pt atomically, then delete all but the newest `keep`; of several ranks, rank 0 does."""
        if distributed.rank() > 0:
            return
        path = self.folder / "checkpoints" / f"step_{step:08d}.pt"
        write_tensors(path, state)
        for old in self.checkpoints()[: -keep if keep else 0]:
            old.unlink()

    def load_checkpoint(self) -> dict | None:
        """The newest checkpoint whose bytes are whole, on the CPU, or None where there is none. No object is unpickled.

        Newer ones that are damaged are set aside, with a line; all ranks call it, and read the one that rank 0 has found whole.

        Raises:
            ValueError: there are some, and all are damaged.
        """
        name, state = self._newest_whole() if distributed.rank() == 0 else (None, None)
        name = distributed.broadcast(name)
        return state if name is None or state is not None else read_tensors(self.folder / "checkpoints" / name)

    def _newest_whole(self) -> tuple[str | None, dict | None]:
        """(name, content) of the newest checkpoint that is whole."""
        damaged = []
        for path in reversed(self.checkpoints()):
            try:
                state = read_tensors(path)
            except Damaged as error:
                damaged.append((path, error))
                continue
            for newer, error in damaged:
                print(f"{error}; set aside as {set_aside(newer).name}, going on from {path.name}", flush=True)
            return path.name, state
        if damaged:
            path, error = damaged[0]
            raise ValueError(f"{error}, and so is every older one; restore one, or delete {path.parent} to begin anew.")
        return None, None

    @property
    def _records(self) -> Path:
        return self.folder / "checkpoints" / "history.jsonl"

    def history(self, count: int | None = None) -> dict[str, list[dict]]:
        """{"steps": [...], "epochs": [...]}: what training has recorded up to its last checkpoint, or the first `count` records.

        An older version's run has them in history.json.

        Raises:
            ValueError: a line is broken.
        """
        history: dict[str, list[dict]] = {"steps": [], "epochs": []}
        try:
            require_file(self._records)
        except FileNotFoundError:
            return self.read("history.json") or history
        for number, line in enumerate(self._record_lines(count), start=1):
            try:
                kind, record, *checksum = json.loads(line)
                if checksum and checksum != [hash_of((kind, record), length=8)]:
                    raise ValueError
                history[kind].append(record)
            except (ValueError, TypeError, KeyError):
                path = self._records
                raise ValueError(f"line {number} of {path} is broken; delete the file: training goes on without it.") from None
        return history

    def record(self, records: Iterable[tuple[str, dict]]):
        """Append records of training, each ("steps" or "epochs", record), a line each with a checksum; of several ranks, rank 0
        does."""
        if distributed.rank() > 0:
            return
        with open(self._records, "ab") as file:
            lines = (json.dumps([*record, hash_of(record, length=8)], allow_nan=False) for record in records)
            file.writelines(f"{line}\n".encode() for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def cut_records(self, count: int):
        """Keep the first `count` records alone; of several ranks, rank 0 does."""
        if distributed.rank() == 0 and self._records.exists():
            os.truncate(self._records, sum(map(len, self._record_lines(count))))

    def _record_lines(self, count: int | None = None) -> list[bytes]:
        """Whole lines: a kill may tear the last one."""
        lines = self._records.read_bytes().splitlines(keepends=True)[:count]
        return [line for line in lines if line.endswith(b"\n")]

    def finish(self, summary: dict):
        """Write summary.json: the run is finished."""
        self.write("summary.json", summary)


def environment_info() -> dict:
    """What a reader needs to repeat the run: versions, revision, device."""
    names = ("kdnb", "torch", "torchvision", "timm", "transformers", "accelerate", "numpy")
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
        revision = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    import torch

    device = find_device()
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "git_revision": revision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
