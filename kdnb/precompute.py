"""Decode a source of images once, into shards that training reads.

Shard k holds positions k * shard_size and following of the source (optionally permuted). A run that was killed at any
moment goes on where it stopped, and ends with the bytes that an undisturbed run gives. Cost: decoding, about 0.1 ms for a
32x32 JPEG and 3 ms for a photograph at 224x224, divided by `num_workers`; memory of about three shards.
"""

import contextlib
import itertools
import logging
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kdnb.data.decode import RESIZE_MODES, UnreadableImage, decode_all
from kdnb.data.parts import all_entries, check_parts, remove_lists, write_part
from kdnb.data.shards import STORAGE_DTYPES, write_index, write_shard
from kdnb.data.stored import CacheError, cache_facts, check_space, covered, only_writer, stored_shards, writing
from kdnb.data.views import normalise
from kdnb.files import remove_temporary

__all__ = ["CacheError", "precompute"]

_REPORT_EVERY = 64  # images between two calls of progress
_log = logging.getLogger(__name__)


def precompute(
    source,
    cache_dir: str | Path,
    *,
    image_size: int,
    shard_size: int = 2048,
    storage: str = "uint8",
    resize: str = "crop",
    max_samples: int | None = None,
    permutation_seed: int | None = None,
    num_workers: int = 0,
    on_unreadable: str = "skip",
    verify: bool = False,
    part: int = 0,
    parts: int = 1,
    progress=None,
) -> dict:
    """Fill `cache_dir` with the images of `source`, or go on filling it, and return the cache's index.

    Args:
        source: from `kdnb.data.images.open_source`.
        image_size, resize: side of the stored square, and how an image becomes one (see `kdnb.data.images.resize`).
        storage: `uint8` loses nothing; `float32` and `float16` hold images normalised with ImageNet's mean and std.
        max_samples: images to store, None for all; a larger number later extends the cache.
        permutation_seed: store the source in a random order, the same for the same seed; None keeps its order.
        num_workers: processes that decode; 0 decodes in this one. The bytes do not depend on it.
        on_unreadable: `skip` leaves out images that cannot be decoded, logs them and lists their ids in the index;
            `refuse` stops at the first.
        verify: compare the checksums of all stored shards and make altered ones again; sizes are always compared.
        part, parts: make only every `parts`-th shard, from number `part` on; other jobs make the others, at any time and on
            any machine that shares the folder (see `kdnb.data.parts`).
        progress: object with `update(done, total=, images_per_second=, seconds_left=, bytes_written=)`.

    Raises:
        ValueError: a parameter out of range, an empty source, or a cache that was made from another source or with
            other preprocessing. UnreadableImage: see `on_unreadable`. CacheError: a disk that is full, or a folder that
            cannot be written; the shards stored so far stay usable.
    """
    _check_count("image_size", image_size, 1)
    _check_count("shard_size", shard_size, 1)
    _check_count("num_workers", num_workers, 0)
    _check_count("max_samples", max_samples, 1, none="all")
    _check_count("permutation_seed", permutation_seed, 0, none="the source's own order")
    check_parts(Path(cache_dir), part, parts)
    _check_choice("storage", storage, tuple(STORAGE_DTYPES))
    _check_choice("resize", resize, RESIZE_MODES)
    _check_choice("on_unreadable", on_unreadable, ("skip", "refuse"))
    if source.num_images is None and permutation_seed is not None:
        raise ValueError(f"permutation_seed is {permutation_seed}, but {source.name} is streamed in its own order; leave it out.")
    if source.num_images is None and parts > 1:
        raise ValueError(f"parts is {parts}, but {source.name} is streamed, and its shards are made in turn; leave it out.")
    settings = {"image_size": image_size, "resize": resize, "storage": storage, "shard_size": shard_size}
    facts = cache_facts(source, permutation_seed=permutation_seed, **settings)
    folder = Path(cache_dir)
    with only_writer(folder, part if parts > 1 else None):
        with writing(folder):
            remove_temporary(folder, of=lambda name: parts == 1 or _owner(name, parts) == part)
        facts, index, entries = stored_shards(folder, source, facts, verify=verify, mine=lambda n: n % parts == part)
        cache = _Cache(source, folder, facts, index, entries, max_samples, part, parts)
        if cache.total is None or cache.missing():
            space = cache.check_space()
            if progress is not None:  # somebody watches
                print(space, flush=True)
            cache.save()  # before the work: shards that are made again must not be listed meanwhile
            report = _Report(cache, progress)
            items = cache.items(permutation_seed)
            with contextlib.closing(decode_all(items, image_size, resize, num_workers=num_workers)) as decoded:
                for number, images in itertools.groupby(decoded, key=lambda image: image[0][0] // shard_size):
                    cache.store(number, images, on_unreadable, report)
            if parts == 1:
                cache.note_end()
        cache.save()
        cache.complete()
    if parts == 1 and not any(entry["rows"] for entry in cache.entries.values()):
        none = "none of which could be read; the log says why" if cache.total else "so there is nothing to store"
        raise ValueError(f"{source.name} holds {cache.total} images, {none}.")
    return cache.index()


class _Cache:
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

    def items(self, permutation_seed: int | None) -> Iterator[tuple]:
        """(position, id, label, encoded) of what is still to be stored, in order."""
        size = self.facts["shard_size"]
        if self.source.num_images is None:
            first = next(n for n in itertools.count() if n not in self.entries)
            rows = range(first * size, sys.maxsize if self.total is None else self.total)
            for position, encoded, label in self.source.items(rows):
                if position // size not in self.entries:
                    yield position, position, label, encoded
            return
        ids = positions = np.concatenate([n * size + np.arange(self.planned(n)) for n in self.missing()])
        if permutation_seed is not None:
            # Raw words, sorted: NumPy keeps them the same in all its versions, which it does not promise of shuffles.
            words = np.random.PCG64(np.random.SeedSequence(permutation_seed)).random_raw(self.source.num_images)
            ids = np.argsort(words, kind="stable")[positions]
        for position, (row, encoded, label) in zip(positions.tolist(), self.source.items(ids), strict=True):
            yield position, row, label, encoded

    def store(self, number: int, images: Iterator[tuple], on_unreadable: str, report: "_Report"):
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


class _Report:
    """Calls progress every few images."""

    def __init__(self, cache: _Cache, progress):
        self._cache, self._progress = cache, progress
        self._before = sum(covered(entry) for entry in cache.entries.values())
        self._made, self._written, self._start = 0, 0, time.monotonic()

    def one(self):
        self._made += 1
        if self._made % _REPORT_EVERY == 0:
            self._update()

    def shard(self, size: int):
        self._written += size
        self._update()

    def _update(self):
        if self._progress is None:
            return
        done, total = self._before + self._made, self._cache.total
        speed = self._made / max(time.monotonic() - self._start, 1e-9)
        left = None if total is None else (total - done) / speed
        written = self._written
        self._progress.update(done, total=total, images_per_second=speed, seconds_left=left, bytes_written=written)


def _floats(images: torch.Tensor, facts: dict) -> torch.Tensor:
    """uint8 [N, 3, H, W], normalised and in the stored float type."""
    stored = torch.empty(images.shape, dtype=STORAGE_DTYPES[facts["storage"]])
    for begin in range(0, len(images), 64):  # in pieces: a shard's worth of float32 is more than a gigabyte
        stored[begin : begin + 64] = normalise(images[begin : begin + 64], facts["mean"], facts["std"])
    return stored


def _owner(name: str, parts: int) -> int | None:
    """The job that writes the file `name`; None for what is nobody's own."""
    found = re.search(r"_(?:shard|part)_(\d+)", name)
    return int(found[1]) % parts if found else None


def _check_count(name: str, value: object, low: int, *, none: str | None = None):
    if value is None and none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        also = f", or None for {none}" if none else ""
        raise ValueError(f"{name} is {value!r}; allowed are whole numbers from {low}{also}.")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]):
    if value == "bfloat16":
        raise ValueError("storage is 'bfloat16', which loses almost half an 8-bit level; use uint8 (nothing is lost).")
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}.")
