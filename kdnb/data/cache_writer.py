"""A cache while it is being filled: what is still to be stored, and each shard as it becomes complete."""

import contextlib
import fcntl
import itertools
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kdnb.data.augment import normalise
from kdnb.data.cache import (
    CACHE_KEYS,
    STORAGE_DTYPES,
    BrokenIndex,
    ShardError,
    adopt_shard,
    cache_facts,
    check_shard,
    covered,
    find_shards,
    made_from,
    number_of_parts,
    open_shard,
    part_index,
    part_indexes,
    preprocessing_changes,
    quick_fault,
    read_index,
    write_index,
    write_shard,
)
from kdnb.data.decode import UnreadableImage, decode_all
from kdnb.data.keyed import permutation
from kdnb.files import disk_fault, memory_bytes, remove_temporary, write_json
from kdnb.progress import format_bytes

SOURCE_FILES = "source_files.json"  # rows of the files that a stream has gone through
_REPORT_EVERY = 64  # images between two calls of progress
_SAVE_EVERY = 2  # seconds between two indexes while shards are made; a whole shard that none lists yet is found by its name
_log = logging.getLogger(__name__)


class CacheError(OSError):
    """A cache that cannot be written where it was asked for."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in a sentence what the disk refuses.

    Raises:
        CacheError: in the place of an OSError.
    """
    try:
        yield
    except OSError as error:
        full = "The shards stored so far are complete and stay usable; free some space and run precompute again, it goes on from "
        full += "there"
        raise CacheError(f"{folder} {disk_fault(error, choose='cache_dir', when_full=full)}.") from error


@contextlib.contextmanager
def only_writer(folder: Path, part: int, parts: int) -> Iterator[None]:
    """Make `folder` and hold it: whoever else wants to fill it waits. Remove what a kill left half written.

    The folder itself is locked, by `flock`: unlike the lock file of `kdnb.files.only_process`, that adds no file to the cache,
    needs no right to write to it, and stops another thread of this process, too. Several jobs that fill a part each hold
    nothing: they may be on different machines, whose locks do not know each other.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            if parts == 1:
                _wait_for_lock(held, folder)
        with writing(folder):
            remove_temporary(folder, of=lambda name: parts == 1 or _part_of(name, parts) == part)
        yield
    finally:
        os.close(held)


def _wait_for_lock(held: int, folder: Path):
    """A line says so where it takes longer than a second."""
    for _ in range(20):
        try:
            return fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    print(f"{folder} is being filled by another process; waiting for it", flush=True)
    fcntl.flock(held, fcntl.LOCK_EX)


def check_parts(folder: Path, part: int, parts: int):
    """Refuse a part that does not exist, and a folder that other jobs fill with another number of parts: ValueError."""
    if parts < 1 or not 0 <= part < parts:
        raise ValueError(f"part is {part} of parts {parts}; parts count from 0 to parts - 1.")
    others = {number_of_parts(path) for path in part_indexes(folder)} - {parts}
    if others and parts > 1:
        raise ValueError(f"parts is {parts}, but other jobs fill {folder} in {min(others)} parts; give the same number to all, "
                         "or remove the index_part_*.json of jobs that nobody runs any more.")  # fmt: skip


class CacheWriter:
    """The cache on the disk: what is to be stored, and what is stored so far. Hold the folder with `only_writer` meanwhile.

    Args:
        the parameters of `kdnb.data.precompute.precompute`.

    Attributes:
        facts: by `CACHE_KEYS`. entries: complete shards by number (of several jobs: of this one, and in the index).
        total: images to store, known: images in the source; None while nobody knows.
        note: a sentence where permutation_seed gave way, else "".

    Raises:
        ValueError: the folder holds shards of another source or of other preprocessing, or more images than max_samples.
    """

    def __init__(
        self, source, folder: Path, *, image_size: int, cache_shard_size: int, max_samples: int | None, storage: str, resize: str,
        permutation_seed: int | None, verify: bool, part: int, parts: int,
    ):  # fmt: skip
        self.source, self.folder, self.part, self.parts = source, folder, part, parts
        self._on_disk: dict | None = None  # the index as it is on the disk
        self._listed: dict | None = None  # ... and this job's list
        with contextlib.suppress(FileNotFoundError):
            try:
                self._on_disk = read_index(folder)
            except BrokenIndex:
                _log.warning("the index in %s is broken; it is rebuilt from the shards", folder)
        recorded = self._on_disk or self._first_meta()
        seed, self.note = self._order(permutation_seed, recorded)
        sizes = {"image_size": image_size, "shard_size": cache_shard_size}
        self.facts = cache_facts(source, **sizes, resize=resize, storage=storage, permutation_seed=seed)
        if recorded is not None:
            self._go_on_with(folder, recorded)
        entries = self._whole_shards(verify)
        self.known: int | None = (
            source.num_images if source.num_images is not None else (self._on_disk or {}).get("source_images")
        )
        self.total = min((limit for limit in (self.known, max_samples) if limit is not None), default=None)
        self.entries = entries
        if self.total is not None and self.stored_until() > self.total:
            raise ValueError(
                f"max_samples is {max_samples}, but {folder} holds {self.stored_until()} images already, and a cache only "
                "grows; choose another cache_dir, or train on fewer with fixed_shards or samples_per_epoch."
            )
        self.entries = {number: entry for number, entry in entries.items() if covered(entry) == self.planned(number)}
        self._pixels: torch.Tensor | None = None
        self._progress, self._before, self._made, self._written = None, 0, 0, 0  # images stored before and now, bytes now
        self._saved = 0.0  # when the index was, by time.monotonic

    def _first_meta(self) -> dict | None:
        for path in find_shards(self.folder).values():
            with contextlib.suppress(ShardError):
                return open_shard(path)["meta"]
        return None

    def _order(self, seed: int | None, recorded: dict | None) -> tuple[int | None, str]:
        """(permutation_seed to store with, a sentence where the default, 0, gives way to something else)."""
        if seed == 0 and self.source.num_images is None:
            return None, (
                f"{self.source.name} is streamed, so it is stored in the order in which it comes (permutation_seed None): where "
                "that is sorted by class, any few shards hold few of the classes; read without streaming it would be permuted."
            )
        if seed != 0 or recorded is None or recorded["permutation_seed"] == seed:
            return seed, ""
        seed = recorded["permutation_seed"]
        return seed, f"{self.folder} was begun with permutation_seed {seed}, and goes on with it."

    def _go_on_with(self, where: Path, old: dict):
        """Take over the facts `old`, with the name under which the source was first read, so that new shards match old ones."""
        if old["fingerprint"] != self.facts["fingerprint"]:
            differs = preprocessing_changes(old, self.facts)
            if not made_from(old, self.source):
                name = self.source.name
                names = f"source was {old['source']!r} and is now {name!r}"
                same_name = f"source {name!r} does not hold the same images as when the cache was made"
                differs.insert(0, names if old["source"] != name else same_name)
            raise ValueError(
                f"{where} cannot be gone on with: {'; '.join(differs)}. Use the same settings again, or another cache_dir."
            )
        self.facts = {key: old[key] for key in CACHE_KEYS}

    def _whole_shards(self, verify: bool) -> dict[int, dict]:
        """Entries of whole shards by number; another job's only where the index lists them."""
        entries, faults, altered = {}, {}, set()
        for entry in self._on_disk["shards"] if self._on_disk else []:
            number, fault = entry["number"], quick_fault(self.folder, entry)
            if fault is None and verify and self._is_mine(number):
                fault = check_shard(self.folder, entry, self.facts["fingerprint"])
                altered |= {number} if fault else set()
            if fault is None:
                entries[number] = entry
            else:
                faults[number] = fault
        for number, path in find_shards(self.folder).items():
            if number in entries or number in altered or not self._is_mine(number):
                continue
            try:  # a kill between a shard and its index leaves it unlisted, but whole
                entries[number], meta = adopt_shard(path)
            except ShardError as error:
                if number not in faults:
                    _log.warning("not used: %s", error)
                continue
            self._go_on_with(path, meta)
        for number in faults.keys() - entries.keys():
            _log.warning("%s %s; it is made again", *faults[number])
        return dict(sorted(entries.items()))

    def _is_mine(self, number: int) -> bool:
        return number % self.parts == self.part

    def planned(self, number: int) -> int:
        """Images that shard `number` covers."""
        size = self.facts["shard_size"]
        return size if self.total is None else min(size, self.total - number * size)

    def missing(self) -> list[int]:
        """Shards still to be made by this job; only where the total is known."""
        return [number for number in range(self.part, self._count(), self.parts) if number not in self.entries]

    def _count(self) -> int:
        return -(-(self.total or 0) // self.facts["shard_size"])

    def stored_until(self) -> int:
        """The position after the last one stored."""
        return max((n * self.facts["shard_size"] + covered(entry) for n, entry in self.entries.items()), default=0)

    def index(self) -> dict:
        """The index of what is stored so far; see `kdnb.data.cache.read_index`."""
        shards = [self.entries[number] for number in sorted(self.entries)]
        return {**self.facts, "num_images": self.total, "source_images": self.known, "shards": shards}

    def save(self):
        """Bring the index on the disk up to date, or this job's list."""
        index = self.index()
        with writing(self.folder):
            if self.parts > 1:
                if index != self._listed and (self._on_disk is None or self._made or self.missing()):
                    write_json(part_index(self.folder, self.part, self.parts), index)
                    self._listed = index
            elif index != self._on_disk and (self.entries or self._on_disk):
                write_index(self.folder, index)
                self._on_disk = index
        self._saved = time.monotonic()

    def fill(self, progress=None, *, num_workers: int, on_unreadable: str):
        """Decode and store what is missing, and bring the index up to date."""
        if self.total is None or self.missing():
            space = self._check_space()
            for note in filter(None, (getattr(self.source, "note", ""), self.note)):
                print(note, flush=True)
            if progress is not None:  # somebody watches
                print(space, flush=True)
            self.save()  # before the work: shards that are made again must not be listed meanwhile
            self._progress, self._before = progress, sum(map(covered, self.entries.values()))
            size, side, mode = (self.facts[name] for name in ("shard_size", "image_size", "resize"))
            try:
                with contextlib.closing(decode_all(self._items(), side, mode, num_workers=num_workers)) as decoded:
                    for number, images in itertools.groupby(decoded, key=lambda image: image[0][0] // size):
                        self._store(number, images, on_unreadable)
            except BaseException:
                with contextlib.suppress(OSError):  # of a full disk, say, which is raised already
                    self.save()
                raise
            if self.parts == 1 and (self.total is None or self.stored_until() < self.total):
                self.total = self.known = self.stored_until()  # the stream has ended
        self.save()
        if self.parts > 1:  # the last job writes the index
            lists = part_indexes(self.folder).values()
            entries = self.entries | {entry["number"]: entry for index in lists if index for entry in index["shards"]}
            entries = {number: entry for number, entry in entries.items() if covered(entry) == self.planned(number)}
            if len(entries) < self._count():
                return
            self.entries, self.parts = entries, 1
            self.save()
        for path in part_indexes(self.folder):  # the index holds what they say
            path.unlink(missing_ok=True)

    def _check_space(self) -> str:
        missing = [] if self.total is None else self.missing()  # of a stream, nobody may know
        facts = {name: self.facts[name] for name in ("image_size", "storage")}
        return check_space(self.folder, sum(map(self.planned, missing)), shards=len(missing), **facts)

    def _items(self) -> Iterator[tuple]:
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

    def _store(self, number: int, images: Iterator[tuple], on_unreadable: str):
        """Write shard `number` from ((position, id, label), pixels or why there are none), and list it."""
        if self._pixels is None:
            side = self.facts["image_size"]
            self._pixels = torch.empty((self.planned(number), 3, side, side), dtype=torch.uint8)
        pixels, unreadable = self._pixels.numpy(), []
        ids: list[int] = []
        labels: list[int | None] = []
        for (_, row, label), image in images:
            if isinstance(image, str):
                fault = f"image {row} of {self.source.name} cannot be read ({image})"
                if on_unreadable == "refuse":
                    raise UnreadableImage(f"{fault}; with on_unreadable 'skip' such images are left out and listed.")
                _log.warning("%s and is left out", fault)
                unreadable.append(row)
            else:
                pixels[len(ids)] = image
                ids.append(row)
                labels.append(label)
            self._made += 1
            if self._made % _REPORT_EVERY == 0:
                self._report()
        content = {
            "images": _as_stored(self._pixels[: len(ids)], self.facts),
            "labels": torch.tensor(labels, dtype=torch.int64) if self.facts["labelled"] else None,
            "ids": torch.tensor(ids, dtype=torch.int64),
        }
        with writing(self.folder):
            self.entries[number] = write_shard(self.folder, number, meta=self.facts | {"unreadable": unreadable}, **content)
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()
        self._written += self.entries[number]["bytes"]
        self._report()

    def _report(self):
        if self._progress is not None:
            self._progress.update(self._before + self._made, total=self.total, bytes_written=self._written)


def _part_of(name: str, parts: int) -> int | None:
    """The job that writes the file `name`; None for what is nobody's own."""
    number = re.search(r"_(?:shard|part)_(\d+)", name)
    return int(number[1]) % parts if number else None


def _as_stored(images: torch.Tensor, facts: dict) -> torch.Tensor:
    """uint8 [N, 3, H, W] as it is, or normalised and in the stored float type."""
    if facts["storage"] == "uint8":
        return images
    stored = torch.empty(images.shape, dtype=STORAGE_DTYPES[facts["storage"]])
    for begin in range(0, len(images), 64):  # in pieces: a shard's worth of float32 is more than a gigabyte
        stored[begin : begin + 64] = normalise(images[begin : begin + 64], facts["mean"], facts["std"])
    return stored


def check_space(folder: Path, rows: int, *, shards: int, image_size: int, storage: str) -> str:
    """A sentence on so many images to come; CacheError where the folder cannot be written, its disk has less than that
    left, or no memory holds a shard.

    A folder that is not there yet is made below the nearest one that is.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise CacheError(f"{there} is read-only for this user; choose another cache_dir.")
    largest, memory = -(-rows // max(shards, 1)), memory_bytes()
    if (shard := 3 * image_size * image_size * largest) > memory:
        raise CacheError(
            f"a shard of {largest:,} images of {image_size}x{image_size} takes {format_bytes(shard)} of memory, and this machine "
            f"has {format_bytes(memory)}; choose a smaller cache_shard_size or image_size."
        )
    needed = rows * (3 * image_size * image_size * STORAGE_DTYPES[storage].itemsize + 16) + 4096 * shards
    free = shutil.disk_usage(there).free
    what = f"{rows:,} images of {image_size}x{image_size} in {storage}"
    need, left = format_bytes(needed), format_bytes(free)
    if needed > free:
        raise CacheError(
            f"{folder} needs {need} for {what}, but its disk has {left} free; choose another cache_dir, or a smaller "
            "image_size or max_samples, or storage uint8."
        )
    return f"{what} will take {need}; {left} are free in {folder}"
