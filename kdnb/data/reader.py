"""Rows of a cache by position: memory-mapped shards, copied straight into the batch's own buffer.

Opening a cache reads the index and compares file sizes; a shard is mapped when a batch first needs it, and its pages stay
the kernel's (they are dropped under memory pressure), so memory does not grow with the cache. Reading costs one memcpy: a
slice copy where positions are consecutive, a gather otherwise. Cold data is asked for ahead (`advise`); on the machines where
we measured, that beats both touching a mapping unprepared and positioned reads (tests/benchmarks/test_reader_speed.py).
"""

import ctypes
import mmap
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from kdnb.data.cache import STORAGE_DTYPES, ShardError, open_shard, quick_fault, read_index

_SMALL_ROW = 32 * 1024  # bytes; below, asking row by row costs more than reading the whole shard ahead once
# Advice on the mapping itself needs no file descriptor, of which a cache of thousands of shards would use up too many.
_madvise = getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_WILLNEED") else None


class ShardReader:
    """Reads rows of the cache in `cache_dir`. Picklable: a worker process maps the shards anew.

    Attributes:
        index: the cache's index. shard_sizes: rows of each complete shard, in order. dtype: of the stored images.
        row_shape: (3, H, W).

    Raises:
        FileNotFoundError: no index. ShardError: a shard is missing, or has another size than the index says.
    """

    def __init__(self, cache_dir: str | Path):
        self.cache_dir = Path(cache_dir)
        self.index = read_index(self.cache_dir)
        entries = self.index["shards"]
        self.check_sizes()
        self.shard_sizes = tuple(entry["rows"] for entry in entries)
        self.row_shape = (3, self.index["image_size"], self.index["image_size"])
        self.dtype = STORAGE_DTYPES[self.index["storage"]]
        self._starts = np.concatenate([[0], np.cumsum(self.shard_sizes, dtype=np.int64)])
        self._row_bytes = int(np.prod(self.row_shape)) * self.dtype.itemsize
        self._open: dict[int, _Shard] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self):
        return self.__dict__ | {"_open": {}}

    def check_sizes(self):
        """Compare the size of every shard with the index's: a shard that is shortened while it is mapped ends the process
        (SIGBUS) when a page behind its end is read.

        Raises:
            ShardError: a shard is missing, or has another size.
        """
        for fault in (quick_fault(self.cache_dir, entry) for entry in self.index["shards"]):
            if fault is not None:
                raise ShardError(f"{self.cache_dir / fault.file} {fault.what}; run precompute again with the same parameters.")

    def read(self, positions: np.ndarray, images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The batch at `positions` (int64 [B]), in their order.

        Args:
            images: buffer to fill, [B, 3, H, W] of the stored dtype and contiguous; a new tensor where None.

        Returns:
            {"image": [B, 3, H, W], "id": int64 [B], "label": int64 [B] where the cache has labels}.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and (positions.min() < 0 or positions.max() >= len(self)):
            wrong = positions[(positions < 0) | (positions >= len(self))][0]
            raise IndexError(f"position {wrong} is outside the cache of {len(self)} images in {self.cache_dir}.")
        if images is None:
            images = torch.empty((len(positions), *self.row_shape), dtype=self.dtype)
        target = images.view(torch.uint8).numpy().reshape(len(positions), self._row_bytes)
        ids = np.empty(len(positions), dtype=np.int64)
        labels = np.empty(len(positions), dtype=np.int64) if self.labelled else None
        for shard, begin, end, rows in self._segments(positions):
            _copy_rows(shard.images, rows, target[begin:end])
            ids[begin:end] = shard.ids[rows]
            if labels is not None:
                labels[begin:end] = shard.labels[rows]
        batch = {"image": images, "id": torch.from_numpy(ids)}
        return batch if labels is None else batch | {"label": torch.from_numpy(labels)}

    def shard_positions(self, shard: int) -> np.ndarray:
        """Positions of the rows of the shard at place `shard` of the index, int64 [rows]."""
        return np.arange(self._starts[shard], self._starts[shard + 1])

    def shard_ids(self, shard: int) -> np.ndarray:
        """Ids of the images of the shard at place `shard` of the index, int64 [rows]."""
        return self._shard(shard).ids

    @cached_property
    def labelled(self) -> bool:
        """Whether images have labels: not where each is -1, as in the Hub's own test splits. Mostly a look into one shard."""
        return self.index["labelled"] and any((self._labels_of(entry) != -1).any() for entry in self.index["shards"])

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Labels of all images by position, int64 [N]; None where the cache has none. About a millisecond a shard, once."""
        if not self.labelled:
            return None
        parts = (self._labels_of(entry) for entry in self.index["shards"])
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def _labels_of(self, entry: dict) -> np.ndarray:
        return open_shard(self.cache_dir / entry["file"])["labels"].numpy()

    def advise(self, positions: np.ndarray):
        """Ask the kernel to read `positions` ahead, without waiting for it; costs a few per cent of a warm read."""
        if self._row_bytes < _SMALL_ROW:
            return
        for shard, _, _, rows in self._segments(np.asarray(positions, dtype=np.int64)):
            for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
                shard.advise(int(run[0]) * self._row_bytes, len(run) * self._row_bytes)

    def _segments(self, positions: np.ndarray):
        """(shard, begin, end, rows) for each stretch of the batch that lies in one shard."""
        if not len(positions):
            return
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        rows = positions - self._starts[numbers]
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(positions)]
        for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
            yield self._shard(int(numbers[begin])), begin, end, rows[begin:end]

    def _shard(self, number: int) -> "_Shard":
        if number not in self._open:
            entry = self.index["shards"][number]
            shard = _Shard(self.cache_dir / entry["file"])
            if (shard.images.shape != (entry["rows"], self._row_bytes)) or (shard.labels is None) == self.index["labelled"]:
                raise ShardError(
                    f"{shard.path} holds {shard.images.shape[0]} rows of {shard.images.shape[1]:,} bytes, the index says "
                    f"{entry['rows']} of {self._row_bytes:,}; run precompute again with the same parameters."
                )
            if self._row_bytes < _SMALL_ROW:
                shard.advise(0, shard.images.nbytes)
            self._open[number] = shard
        return self._open[number]


class _Shard:
    """One mapped shard: images as bytes [N, row bytes], ids and labels [N] in memory."""

    def __init__(self, path: Path):
        tensors = open_shard(path)
        images = tensors["images"]
        self.path = path
        self.images = images.reshape(len(images), -1).view(torch.uint8).numpy()
        self.ids = tensors["ids"].numpy().copy()
        self.labels = tensors["labels"].numpy().copy() if "labels" in tensors else None

    def advise(self, begin: int, count: int):
        """Have bytes [begin, begin + count) of the images read ahead."""
        if _madvise is not None:
            address = self.images.ctypes.data + begin
            page = address - address % mmap.PAGESIZE
            _madvise(ctypes.c_void_p(page), ctypes.c_size_t(address + count - page), mmap.MADV_WILLNEED)


def _copy_rows(source: np.ndarray, rows: np.ndarray, target: np.ndarray):
    """target[i] = source[rows[i]], in one pass and one thread (the other cores belong to training)."""
    first = int(rows[0])
    if len(rows) == 1 or (rows[-1] - first == len(rows) - 1 and (np.diff(rows) == 1).all()):
        np.copyto(target, source[first : first + len(rows)])
    else:
        np.take(source, rows, axis=0, out=target, mode="clip")  # "clip" fills `out` directly, "raise" through a buffer
