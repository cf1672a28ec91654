"""A cache while it is being filled: what is still to be stored, and each shard as it becomes complete."""

import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from kdnb.data.augment import normalise
from kdnb.data.decode import UnreadableImage
from kdnb.data.keyed import permutation
from kdnb.data.parts import all_entries, remove_lists, write_part
from kdnb.data.shards import STORAGE_DTYPES, write_index, write_shard
from kdnb.data.stored import check_space, covered, writing

SOURCE_FILES = "source_files.json"  # rows of the files that a stream has gone through
_log = logging.getLogger(__name__)


class Filling:
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
