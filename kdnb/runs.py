"""The folder of a run: outputs/<run>/, which evaluation reads and a killed run goes on from.

config.json comes first (parameters, versions, git revision, device), then checkpoints/, with the records of training beside
them, best_model/, final_model/, history.json and figures/, and summary.json last: its presence means finished. Reading a run is
free at any time; training one is for one job at a time, which holds the file .lock meanwhile.
"""

import contextlib
import itertools
import json
import os
import platform
import random
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from kdnb import distributed
from kdnb.distributed import find_device
from kdnb.files import (
    Damaged,
    Held,
    disk_fault,
    find_os_error,
    hash_of,
    only_process,
    read_json,
    read_tensors,
    remove_temporary,
    require_file,
    set_aside,
    write_atomically,
    write_json,
    write_tensors,
)
from kdnb.params import FREE, TABLE

_NAMES = {name for rows in TABLE.values() for name in rows}  # of all parameters


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
    first = f"{stem}_{time.strftime('%Y%m%d_%H%M%S')}"
    require_run_name(first, outputs=outputs)
    names = itertools.chain([first], (f"{first}_{number}" for number in itertools.count(2)))
    return distributed.on_rank_0(lambda: next(name for name in names if _makes(anchored(outputs) / name)))


def _makes(folder: Path) -> bool:
    """Whether it is this call that has made `folder`."""
    with _told(folder), contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
        return True
    return False


def require_run_name(name: str, *, outputs: str | Path = "outputs"):
    """Refuse what can be no run below `outputs`. A name `a/b` is a run inside the folder of `a`, as a comparison has them.

    Raises:
        ValueError: a path that leads elsewhere, a name that no file can have, or the folder of something else, such as a cache.
    """
    plain = all(part and part.isprintable() and not part.startswith(".") for part in name.split("/"))
    if not plain or len(name.encode()) > 255:
        shown = name if len(name) < 60 else f"{name[:60]}..."
        raise ValueError(f"run_name is {shown!r}; allowed is the name of a folder below {outputs}: at most 255 bytes, no "
                         "line breaks or the like, and neither a dot at its start nor a path that leads elsewhere.")  # fmt: skip
    folder = anchored(outputs) / name
    with _told(folder):
        files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        taken = os.path.lexists(folder) and (not folder.is_dir() or any(files))
        if taken and not (folder / "config.json").is_file():  # asked last: another job may make the run now, and that file first
            raise ValueError(f"run_name is {name!r}, but {folder} holds no run (no config.json); choose another run_name.")


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say in a sentence what the disk refuses: an OSError with it."""
    try:
        yield
    except Exception as error:
        refused = find_os_error(error)
        if refused is None:
            raise
        full = "Free some space and run again: the run goes on from its last checkpoint"
        raise OSError(f"{folder} {disk_fault(refused, choose='run_name', when_full=full)}.") from error


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
        ValueError: a name that can be no run's; the run holds what other parameters have made, which are named; a file of it
            is broken. RuntimeError: another job has begun the run with other parameters. OSError: a disk that is full or
            read-only.

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
        self.name = new_name(prefix, outputs=outputs) if name is None else distributed.broadcast(name)
        self.folder = anchored(outputs) / self.name
        self.parameters, self.prefix = parameters, prefix
        self.resumed = distributed.on_rank_0(lambda: self._open(outputs))
        if not self.resumed:
            self._make_folders()  # by every rank: they are there then, on any file system

    def _open(self, outputs: str | Path) -> bool:
        """Whether the run existed before; config.json then has its parameters, unless another job trains it already."""
        require_run_name(self.name, outputs=outputs)
        with _told(self.folder):
            config = self._known()
            if config is None:
                self._make_folders()
            if config is None or config["parameters"] != self._plain_parameters() or any(self._leftovers()):
                try:
                    with self.writing():
                        self._claim()
                except (RuntimeError, OSError):  # another job has it, or it is there to be read alone
                    if config is None or self._differences(config):
                        raise
        return config is not None

    def _make_folders(self):
        for name in ("checkpoints", "figures"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def _leftovers(self) -> Iterator[Path]:
        """What a killed job has left half written, as long as no other one holds the run."""
        for name in ("", "checkpoints", "figures"):
            yield from (self.folder / name).glob(".*.tmp")

    def _claim(self):
        """Put the parameters into config.json: the run is bound to them once it holds work. To be called by who holds it."""
        for folder in {path.parent for path in self._leftovers()}:
            remove_temporary(folder)
        config = self._known()
        if config is None or config["parameters"] != self._plain_parameters():
            if config is None or not self._holds_work():
                config = {"notebook": self.prefix, **environment_info()}
            elif gone := sorted(config["parameters"].keys() - self.parameters.keys() - _NAMES):
                print(f"run {self.name}: {', '.join(gone)} in its config.json: no parameter any more, ignored", flush=True)
            self.write("config.json", config | {"parameters": self.parameters})

    def _known(self) -> dict | None:
        """config.json, None where there is none; refused where the run holds what other parameters have made."""
        config = read_config(self.folder)
        differences = self._differences(config) if config else []
        if differences and self._holds_work():
            raise ValueError(
                f"run_name {self.name} exists with other parameters ({'; '.join(differences)}); choose another run_name, or give "
                "the parameters of that run to resume it."
            )
        return config

    def _holds_work(self) -> bool:
        """Whether anything was made with the parameters: a checkpoint, a summary, or a model or a run in a folder of its own."""
        made = ("summary.json", "history.json", "checkpoints/step_*.pt", "*/config.json", "*/*/config.json")
        return any(path for pattern in made for path in self.folder.glob(pattern))

    def _plain_parameters(self) -> dict:
        return json.loads(json.dumps(self.parameters))

    def _differences(self, config: dict) -> list[str]:
        """In words, where the parameters are others than those in config.json, but for those that may change.

        What no notebook has as a parameter any more does not count; what this one has only since then counts as its default.
        """
        before, now = config["parameters"], self._plain_parameters()
        tables = [TABLE[self.prefix]] if self.prefix in TABLE else list(TABLE.values())
        rows = [rows[name] for rows in tables for name in now.keys() & rows.keys() if config.get("notebook") == self.prefix]
        others = defaultdict(lambda: None, now)
        default = {row.name for row in rows if row.resolve(row.convert(row.default), others) == now[row.name]}
        same = FREE | {"run_name"} | (before.keys() - now.keys() - _NAMES) | (default - before.keys())
        names = sorted(name for name in {*before, *now} - same if before.get(name) != now.get(name))
        return [f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names]

    @contextlib.contextmanager
    def held(self, *, wait: bool = False) -> Iterator[None]:
        """Keep other jobs from writing to this run meanwhile; all ranks of this one call it, and it may be called inside itself.

        Raises:
            RuntimeError: another job has it, with who that is; with `wait`, it is waited for instead.
            ValueError: another job has begun it with other parameters since it was opened.
        """
        with contextlib.ExitStack() as stack:

            def hold():
                stack.enter_context(self.only_job(wait=wait))
                with _told(self.folder):
                    self._make_folders()
                    self._claim()

            distributed.on_rank_0(hold)
            yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run while this process writes to its folder, and say in a sentence what the disk refuses.

        Raises:
            RuntimeError: another job has it. OSError: a disk that is full or read-only.
        """
        with self.only_job(), _told(self.folder):
            yield

    @contextlib.contextmanager
    def only_job(self, file: str = ".lock", *, wait: bool = False) -> Iterator[None]:
        """Hold a file of the run; RuntimeError where another job has it."""
        with contextlib.ExitStack() as stack:
            try:
                with _told(self.folder):
                    stack.enter_context(only_process(self.folder / file, wait=wait))
            except Held as holder:
                raise RuntimeError(
                    f"run {self.name} is held by {holder}; wait for it, stop it, or choose another run_name."
                ) from None
            yield

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    def read(self, name: str):
        """Content of a JSON file of the run, or None where it does not exist."""
        return _read_json(self.folder / name)

    def write(self, name: str, content):
        """Write a JSON file of the run, atomically; of several ranks, rank 0 does."""
        if distributed.rank() == 0:
            with self.writing():
                write_json(self.folder / name, content, allow_nan=False)

    def save_figure(self, name: str, figure) -> Path:
        """Write a matplotlib figure to figures/<name>.png."""
        path = self.folder / "figures" / f"{name}.png"
        if distributed.rank() == 0:
            with self.writing():
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"))
        return path

    def checkpoints(self) -> list[Path]:
        """Checkpoint files, oldest first."""
        return sorted((self.folder / "checkpoints").glob("step_*.pt"))

    def save_checkpoint(self, step: int, state: dict, *, keep: int | None = None):
        """Write checkpoints/step_<step>.pt atomically, then delete all but the newest `keep`; of several ranks, rank 0 does."""
        if distributed.rank() > 0:
            return
        path = self.folder / "checkpoints" / f"step_{step:08d}.pt"
        with self.writing():
            write_tensors(path, state)
        for old in self.checkpoints()[: -keep if keep else 0]:
            set_aside(old) if old.is_dir() else old.unlink()

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
        with self.writing(), open(self._records, "ab") as file:
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
        """Write summary.json: the run is finished. A config.json that was deleted meanwhile comes back."""
        if distributed.rank() == 0:
            with self.writing():
                self._claim()
                self.write("summary.json", summary)


def read_config(folder: Path) -> dict | None:
    """config.json of the run in `folder`, with its "parameters"; None where there is none. ValueError: it is no run's."""
    config = _read_json(folder / "config.json")
    if config is None or isinstance(config, dict) and isinstance(config.get("parameters"), dict):
        return config
    raise ValueError(f"{folder / 'config.json'} holds no run's parameters; choose another run_name.")


def _read_json(path: Path):
    """Content of a JSON file, or None where it does not exist."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return None
    except Damaged as error:
        raise ValueError(f"{error}; restore it, or delete it and run again.") from None


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
