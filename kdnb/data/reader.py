"""Rows of a cache by position: memory-mapped shards, gathered straight into the batch's own buffer.

Opening a cache reads the index and compares file sizes; a shard is mapped when a batch first needs it, and its pages stay
the kernel's (they are dropped under memory pressure), so memory does not grow with the cache. A batch is one gather over all
mapped shards, whichever of them its rows lie in. Cold data is asked for ahead (`advise`); on the machines where we measured,
that beats both touching a mapping unprepared and positioned reads (tests/benchmarks/test_reader_speed.py).
"""

import ctypes
import math
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
        self._mapped = _Mapped(self._starts, self._row_bytes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self):
        return self.__dict__ | {"_mapped": _Mapped(self._starts, self._row_bytes)}

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
        numbers = self._map(positions)
        self._mapped.gather(positions, numbers, images.view(torch.uint8).view(len(positions), self._row_bytes))
        batch = {"image": images, "id": torch.from_numpy(self._mapped.ids[positions])}
        return batch | {"label": torch.from_numpy(self._mapped.labels[positions])} if self.labelled else batch

    def shard_positions(self, shard: int) -> np.ndarray:
        """Positions of the rows of the shard at place `shard` of the index, int64 [rows]."""
        return np.arange(self._starts[shard], self._starts[shard + 1])

    def shard_ids(self, shard: int) -> np.ndarray:
        """Ids of the images of the shard at place `shard` of the index, int64 [rows]."""
        positions = self.shard_positions(shard)
        self._map(positions)
        return self._mapped.ids[positions]

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
        """Ask the kernel to read `positions` ahead, without waiting for it. Costs a third of a warm read: for cold data."""
        if self._row_bytes < _SMALL_ROW:  # such shards were asked for whole when they were mapped
            return
        ordered = np.sort(positions)
        if (np.diff(ordered) == 1).all():  # the kernel reads ahead by itself there, and does it better
            return
        addresses = self._mapped.addresses(ordered, self._map(ordered))
        for run in np.split(addresses, np.flatnonzero(np.diff(addresses) != self._row_bytes) + 1):  # also from shard to shard
            _advise(int(run[0]), int(run[-1] - run[0]) + self._row_bytes)

    def _map(self, positions: np.ndarray) -> np.ndarray:
        """The number of the shard of each of `positions`; those that are not mapped yet are now."""
        numbers = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(numbers[~self._mapped.is_mapped[numbers]]).tolist():
            entry = self.index["shards"][number]
            path = self.cache_dir / entry["file"]
            shard = open_shard(path)
            rows = shard["images"].flatten(1).view(torch.uint8)
            if rows.shape != (entry["rows"], self._row_bytes) or ("labels" in shard) != self.index["labelled"]:
                raise ShardError(
                    f"{path} holds {rows.shape[0]} rows of {rows.shape[1]:,} bytes, the index says {entry['rows']} of "
                    f"{self._row_bytes:,}; run precompute again with the same parameters."
                )
            if self._row_bytes < _SMALL_ROW:
                _advise(rows.data_ptr(), rows.nbytes)
            self._mapped.add(number, rows, shard["ids"], shard.get("labels"))
        return numbers


class _Mapped:
    """The mapped shards of a cache, as one table of rows.

    The table is a strided view over the process's own addresses, from the first mapping to the end of the last: its row i begins
    i * step bytes after the first. Only rows that lie in a shard are asked for; what lies between is never touched. So rows of
    any shards are one call that copies each of them once, without the interpreter's lock.

    Args:
        starts: position of the first row of each shard, and of the end. row_bytes: of an image.
    """

    def __init__(self, starts: np.ndarray, row_bytes: int):
        self.is_mapped = np.zeros(len(starts) - 1, dtype=bool)
        self.ids, self.labels = np.zeros(starts[-1], dtype=np.int64), np.full(starts[-1], -1, dtype=np.int64)
        self._starts, self._row_bytes = starts, row_bytes
        self._shards: list[torch.Tensor] = []  # kept mapped
        self._bases = np.zeros(len(starts) - 1, dtype=np.int64)  # address of each shard's first row
        self._first, self._end, self._step = 2**63, 0, row_bytes  # of the table, in bytes

    def add(self, number: int, rows: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor | None):
        """Take in a mapped shard: its images as bytes [N, row_bytes]."""
        begin, end = self._starts[number : number + 2]
        self.ids[begin:end] = ids.numpy()
        if labels is not None:
            self.labels[begin:end] = labels.numpy()
        address = rows.data_ptr()
        self._step = math.gcd(self._step, address - int(self._bases[self.is_mapped][0])) if self._shards else self._step
        self._first, self._end = min(self._first, address), max(self._end, address + rows.nbytes)
        memory = torch.frombuffer((ctypes.c_uint8 * (self._end - self._first)).from_address(self._first), dtype=torch.uint8)
        size = (len(memory) - self._row_bytes) // self._step + 1
        self._table = memory.as_strided((size, self._row_bytes), (self._step, 1))
        self._shards.append(rows)
        self._bases[number], self.is_mapped[number] = address, True

    def addresses(self, positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Where the rows at `positions`, in the shards `numbers`, lie in memory, int64 [B]."""
        return self._bases[numbers] + (positions - self._starts[numbers]) * self._row_bytes

    def gather(self, positions: np.ndarray, numbers: np.ndarray, out: torch.Tensor):
        """Copy the rows at `positions`, in the shards `numbers`, into `out`, uint8 [B, row_bytes]."""
        if len(positions):
            index = (self.addresses(positions, numbers) - self._first) // self._step
            torch.index_select(self._table, 0, torch.from_numpy(index), out=out)


def _advise(address: int, count: int):
    """Have `count` mapped bytes from `address` on read ahead."""
    if _madvise is not None:
        page = address - address % mmap.PAGESIZE
        _madvise(ctypes.c_void_p(page), ctypes.c_size_t(address + count - page), mmap.MADV_WILLNEED)
