"""A cache while it is being filled: what is still to be stored, and each shard as it becomes complete."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from kdnb.data.augment import normalise
from kdnb.data.cache import (
    CACHE_KEYS,
    FORMAT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INDEX_FILE,
    STORAGE_DTYPES,
    BrokenIndex,
    Fault,
    ShardError,
    adopt_shard,
    check_shard,
    find_shards,
    open_shard,
    quick_fault,
    read_index,
    shard_name,
    write_index,
    write_shard,
)
from kdnb.data.decode import UnreadableImage
from kdnb.data.keyed import permutation
from kdnb.files import write_json
from kdnb.progress import format_bytes

_NAME = re.compile(r"index_part_(\d+)_of_(\d+)\.json")


def part_file(folder: Path, part: int, parts: int) -> Path:
    """The list of job `part`."""
    return folder / f"index_part_{part:03d}_of_{parts:03d}.json"


def check_parts(folder: Path, part: int, parts: int):
    """Refuse a part that does not exist, and a folder that other jobs fill with another number of parts."""
    if parts < 1 or not 0 <= part < parts:
        raise ValueError(f"part is {part} of parts {parts}; parts count from 0 to parts - 1.")
    others = {int(found[2]) for path in _lists(folder) if (found := _NAME.fullmatch(path.name))} - {parts}
    if others and parts > 1:
        raise ValueError(f"parts is {parts}, but other jobs fill {folder} in {min(others)} parts; give the same number to all, "
                         "or remove the index_part_*.json of jobs that nobody runs any more.")  # fmt: skip


def read_part(folder: Path, part: int, parts: int) -> dict | None:
    """What job `part` has listed; None where it has not begun, or its list is broken."""
    try:
        return json.loads(part_file(folder, part, parts).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_part(folder: Path, part: int, parts: int, index: dict):
    """List the shards of job `part`: an index of its own shards."""
    write_json(part_file(folder, part, parts), index)


def all_entries(folder: Path, parts: int) -> dict[int, dict]:
    """Entries of the shards that any job has listed, by number."""
    lists = [read_part(folder, part, parts) for part in range(parts)]
    return {entry["number"]: entry for index in lists if index for entry in index["shards"]}


def remove_lists(folder: Path):
    """Remove all jobs' lists: the index holds what they say."""
    for path in _lists(folder):
        path.unlink(missing_ok=True)


def missing(folder: str | Path) -> list[Fault] | None:
    """The shards that jobs have still to make, where the index waits for them; None where no such jobs are at work."""
    lists = _lists(Path(folder))
    if (Path(folder) / INDEX_FILE).exists() or not lists:
        return None
    parts = int(_NAME.fullmatch(lists[0].name)[2])
    entries = all_entries(Path(folder), parts)
    index = next(found for part in range(parts) if (found := read_part(Path(folder), part, parts)))
    count = -(-index["num_images"] // index["shard_size"])
    wanted = (number for number in range(count) if number not in entries)
    return [Fault(shard_name(number), f"is missing: part {number % parts} of {parts} has not made it yet") for number in wanted]


def _lists(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("index_part_*.json") if _NAME.fullmatch(path.name))


# What, besides the source, decides on the bytes of a shard. How many images are stored does not: a cache may grow.
_PREPROCESSING = ("format", "image_size", "resize", "storage", "mean", "std", "shard_size", "permutation_seed")


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


_log = logging.getLogger(__name__)


class CacheError(OSError):
    """A cache that cannot be written where it was asked for."""


def cache_facts(source, *, image_size: int, resize: str, storage: str, shard_size: int, permutation_seed: int | None) -> dict:
    """What the index and each shard say about how they were made; the fingerprint sums it up."""
    facts = {
        "format": FORMAT,
        "fingerprint": "",
        "source": source.name,
        "image_size": image_size,
        "resize": resize,
        "storage": storage,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "shard_size": shard_size,
        "permutation_seed": permutation_seed,
        "classes": source.classes,
        "labelled": source.labelled,
    }
    return facts | {"fingerprint": _fingerprint(facts, source)}


def stored_shards(
    folder: Path, source, facts: dict, *, verify: bool, mine: Callable[[int], bool] = lambda number: True
) -> tuple[dict, dict | None, dict[int, dict]]:
    """(facts, index as it is on the disk or None, entries of whole shards by number) of the cache in `folder`.

    Shards that are not `mine` are another job's, and only listed where the index lists them; but all have to be of this cache.
    The facts returned keep the name under which the source was first read, so that new shards match the old ones.

    Raises:
        ValueError: the folder holds shards of another source or of other preprocessing.
    """
    try:
        index = read_index(folder)
    except FileNotFoundError:
        index = None
    except BrokenIndex:
        _log.warning("the index in %s is broken; it is rebuilt from the shards", folder)
        index = None
    if (there := index or recorded_facts(folder)) is not None:
        _refuse_other(folder, there, facts, source)
        facts = {key: there[key] for key in CACHE_KEYS}
    entries, faults, altered = {}, {}, set()
    for entry in index["shards"] if index else []:
        number, fault = entry["number"], quick_fault(folder, entry)
        if fault is None and verify and mine(number):
            fault = check_shard(folder, entry, facts["fingerprint"])
            altered |= {number} if fault else set()
        if fault is None:
            entries[number] = entry
        else:
            faults[number] = fault
    for number, path in find_shards(folder).items():
        if number in entries or number in altered or not mine(number):
            continue
        try:  # a kill between a shard and its index leaves it unlisted, but whole
            entry, meta = adopt_shard(path)
        except ShardError as error:
            if number not in faults:
                _log.warning("not used: %s", error)
            continue
        _refuse_other(path, meta, facts, source)
        facts = {key: meta[key] for key in CACHE_KEYS}
        entries[number] = entry
    for number in faults.keys() - entries.keys():
        _log.warning("%s %s; it is made again", *faults[number])
    return facts, index, dict(sorted(entries.items()))


def recorded_facts(folder: Path) -> dict | None:
    """What the cache in `folder` says about how it was made: its index, else its first shard; None: it holds nothing."""
    with contextlib.suppress(FileNotFoundError, BrokenIndex):
        return read_index(folder)
    for path in find_shards(folder).values():
        with contextlib.suppress(ShardError):
            return open_shard(path)["meta"]
    return None


def covered(entry: dict) -> int:
    """Positions of the source that a shard accounts for: its rows, and the images that could not be read."""
    return entry["rows"] + len(entry["unreadable"])


@contextlib.contextmanager
def only_writer(folder: Path, part: int | None = None) -> Iterator[None]:
    """Make `folder`, and hold it for this process: whoever else wants to fill it waits. A killed process lets go.

    Several jobs that fill a `part` each hold nothing: they may be on different machines, whose locks do not know each other.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if part is not None:
        yield
        return
    with writing(folder):
        held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another process is filling %s; waiting for it", folder)
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:  # some network file systems have no locks
            pass
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in a sentence what the disk refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            said = "cannot be written any further: its disk is full, or a quota is used up. The shards stored so far are "
            said += "complete and stay usable; free some space and run precompute again, it goes on from there"
        elif error.errno in _READ_ONLY:
            said = "is read-only for this user; choose another cache_dir"
        elif isinstance(error, FileExistsError | NotADirectoryError):
            said = "is a file, or lies below one; choose a folder as cache_dir"
        else:
            said = f"cannot be written: {error.strerror or error}"
        raise CacheError(f"{folder} {said}.") from error


def check_space(folder: Path, needed: int, what: str) -> str:
    """A sentence on what is needed; CacheError where `folder` cannot be written, or its disk has less than that left."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CacheError(f"{folder} is read-only for this user; choose another cache_dir.")
    free = shutil.disk_usage(folder).free
    need, left = format_bytes(needed), format_bytes(free)
    if needed > free:
        raise CacheError(
            f"{folder} needs {need} for {what}, but its disk has {left} free; choose another cache_dir, or a smaller "
            "image_size or max_samples, or storage uint8."
        )
    return f"{what} will take {need}; {left} are free in {folder}"


def _refuse_other(where: Path, old: dict, new: dict, source):
    """Raise where the cache at `where` was not made with the facts `new`, naming all that differs."""
    if old["fingerprint"] == new["fingerprint"]:
        return
    differs = [f"{key} was {old[key]!r} and is now {new[key]!r}" for key in _PREPROCESSING if old[key] != new[key]]
    if not made_from(old, source):
        names = f"source was {old['source']!r} and is now {new['source']!r}"
        same_name = f"source {new['source']!r} does not hold the same images as when the cache was made"
        differs.insert(0, names if old["source"] != new["source"] else same_name)
    raise ValueError(f"{where} cannot be gone on with: {'; '.join(differs)}. Use the same settings again, or another cache_dir.")


def made_from(index: dict, source) -> bool:
    """Whether the cache that `index` describes was made from `source`, wherever it lay."""
    return _fingerprint(index, source) == index["fingerprint"]


def _fingerprint(facts: dict, source) -> str:
    decisive = [source.fingerprint, *(facts[key] for key in _PREPROCESSING)]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


SOURCE_FILES = "source_files.json"  # rows of the files that a stream has gone through


class CacheWriter:
    """The cache on the disk: what is to be stored, and what is stored so far.

    Attributes:
        entries: complete shards by number (of several jobs: of this one, and in the index). total: images to store, known:
            images in the source; None while nobody knows.
    """

    def __init__(
        self, source, folder: Path, facts: dict, index: dict | None, entries: dict, max_samples: int | None, part: int, parts: int
    ):
        self.source, self.folder, self.facts, self._on_disk, self._listed = source, folder, facts, index, None
        self.part, self.parts = part, parts
        self.known = source.num_images if source.num_images is not None else (index or {}).get("source_images")
        self.total = min((limit for limit in (self.known, max_samples) if limit is not None), default=None)
        self.entries = entries
        if self.total is not None and self.stored_until() > self.total:
            raise ValueError(
                f"max_samples is {max_samples}, but {folder} holds {self.stored_until()} images already, and a cache only "
                "grows; choose another cache_dir, or train on fewer with fixed_shards or samples_per_epoch."
            )
        self.entries = {n: entry for n, entry in entries.items() if covered(entry) == self.planned(n)}
        self._pixels: torch.Tensor | None = None

    def planned(self, number: int) -> int:
        """Images that shard `number` covers."""
        size = self.facts["shard_size"]
        return size if self.total is None else min(size, self.total - number * size)

    def missing(self) -> list[int]:
        """Shards still to be made by this job; only where the total is known."""
        mine = range(self.part, self._count(), self.parts)
        return [n for n in mine if n not in self.entries]

    def _count(self) -> int:
        return -(-self.total // self.facts["shard_size"])

    def stored_until(self) -> int:
        """The position after the last one stored."""
        return max((n * self.facts["shard_size"] + covered(entry) for n, entry in self.entries.items()), default=0)

    def index(self) -> dict:
        shards = [self.entries[number] for number in sorted(self.entries)]
        return {**self.facts, "num_images": self.total, "source_images": self.known, "shards": shards}

    def save(self):
        """Bring the index on the disk up to date, or this job's list."""
        if self.parts > 1:
            if self.index() != self._listed and (self._on_disk is None or self.missing()):
                with writing(self.folder):
                    write_part(self.folder, self.part, self.parts, self.index())
                self._listed = self.index()
            return
        if self.index() != self._on_disk and (self.entries or self._on_disk):
            with writing(self.folder):
                write_index(self.folder, self.index())
            self._on_disk = self.index()

    def complete(self):
        """Of several jobs, the last one writes the index. A job that makes everything leaves no lists of others behind."""
        if self.parts == 1:
            remove_lists(self.folder)
            return
        found = self.entries | all_entries(self.folder, self.parts)
        found = {n: entry for n, entry in found.items() if covered(entry) == self.planned(n)}
        if len(found) == self._count():
            self.entries, self.parts = found, 1
            self.save()
            remove_lists(self.folder)

    def check_space(self) -> str:
        """A sentence on what is to come; CacheError where the folder cannot be written, or its disk cannot hold that."""
        side, kind = self.facts["image_size"], STORAGE_DTYPES[self.facts["storage"]]
        missing = [] if self.total is None else self.missing()  # of a stream, nobody may know
        rows = sum(map(self.planned, missing))
        needed = rows * (3 * side * side * kind.itemsize + 16) + 4096 * len(missing)
        return check_space(self.folder, needed, f"{rows:,} images of {side}x{side} in {self.facts['storage']}")

    def items(self) -> Iterator[tuple]:
        """(position, id, label, encoded) of what is still to be stored, in order."""
        size = self.facts["shard_size"]
        if self.source.num_images is None:
            self.source.remember_files(self.folder / SOURCE_FILES)
            first = next(n for n in itertools.count() if n not in self.entries)
            rows = range(first * size, sys.maxsize if self.total is None else self.total)
            for position, encoded, label in self.source.items(rows):
                if position // size not in self.entries:
                    yield position, position, label, encoded
            return
        ids = positions = np.concatenate([n * size + np.arange(self.planned(n)) for n in self.missing()])
        if self.facts["permutation_seed"] is not None:
            ids = permutation(self.source.num_images, self.facts["permutation_seed"])[positions]
        for position, (row, encoded, label) in zip(positions.tolist(), self.source.items(ids), strict=True):
            yield position, row, label, encoded

    def store(self, number: int, images: Iterator[tuple], on_unreadable: str, report):
        """Write shard `number` from ((position, id, label), pixels or why there are none), and list it."""
        if self._pixels is None:
            side = self.facts["image_size"]
            self._pixels = torch.empty((self.planned(number), 3, side, side), dtype=torch.uint8)
        pixels, ids, labels, unreadable = self._pixels.numpy(), [], [], []
        for (_, row, label), image in images:
            if isinstance(image, str):
                said = f"image {row} of {self.source.name} cannot be read ({image})"
                if on_unreadable == "refuse":
                    raise UnreadableImage(f"{said}; with on_unreadable 'skip' such images are left out and listed.")
                _log.warning("%s and is left out", said)
                unreadable.append(row)
            else:
                pixels[len(ids)] = image
                ids.append(row)
                labels.append(label)
            report.one()
        content = {"images": self._pixels[: len(ids)], "ids": torch.tensor(ids, dtype=torch.int64), "labels": None}
        if self.facts["storage"] != "uint8":
            content["images"] = _floats(content["images"], self.facts)
        if self.facts["labelled"]:
            content["labels"] = torch.tensor(labels, dtype=torch.int64)
        with writing(self.folder):
            self.entries[number] = write_shard(self.folder, number, meta=self.facts | {"unreadable": unreadable}, **content)
        self.save()
        report.shard(self.entries[number]["bytes"])

    def note_end(self):
        """After the last image: a stream has said by now how many there are."""
        if self.total is None or self.stored_until() < self.total:
            self.total = self.known = self.stored_until()


def _floats(images: torch.Tensor, facts: dict) -> torch.Tensor:
    """uint8 [N, 3, H, W], normalised and in the stored float type."""
    stored = torch.empty(images.shape, dtype=STORAGE_DTYPES[facts["storage"]])
    for begin in range(0, len(images), 64):  # in pieces: a shard's worth of float32 is more than a gigabyte
        stored[begin : begin + 64] = normalise(images[begin : begin + 64], facts["mean"], facts["std"])
    return stored
