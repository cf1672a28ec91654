"""A teacher's answers on disk: one file per image shard and view, filled row by row, in any order, by any number of processes.

    <folder>/answers.json                            what the answers belong to
    <folder>/view_003/answers_shard_00012.bin        header, a record per row, the rows

A row counts once its record holds the checksum of its bytes, which is written after them; it is checked when it is first
read. So a process killed anywhere, a torn page, or two processes that answer the same row leave rows that are right or that do
not count, and what was stored stays. Files get their whole size when they are made: a full disk is noticed then, not later.
Reading 64 rows of 64 numbers takes 0.05 ms; storing them 0.1 ms.
"""

import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kdnb.data.reader import ShardReader
from kdnb.data.shards import Fault
from kdnb.data.stored import CacheError, writing
from kdnb.files import write_json

_MAGIC = b"kdnbans1"
_HEADER = 4096  # bytes, of which the records begin after
_MOST_OPEN = 400  # files mapped at a time: a process may hold 1,024 open
_PRESENT = np.uint64(1 << 32)  # above the 32 bits of the checksum, which may be 0


class AnswerStore:
    """Answers to `num_views` views of the images of a cache, stored as rows of a structured type.

    Args:
        folder: belongs to these `facts` alone; made where it is missing.
        reader: of the image shards, whose ids and layout the answers share.
        row: NumPy's structured dtype of an answer, such as [("features", "<f2", (384,))].
        facts: plain values that tell these answers from all others.

    Raises:
        CacheError: a folder that cannot be written, or a disk that is full. ValueError: a folder with other answers.
    """

    def __init__(self, folder: str | Path, reader: ShardReader, *, row: np.dtype, num_views: int, facts: dict):
        self.folder, self.reader, self.row, self.num_views = Path(folder), reader, np.dtype(row), num_views
        self._facts = json.loads(json.dumps(facts | {"row": self.row.descr, "num_views": num_views}))
        self._ids = np.concatenate([reader.shard_ids(shard) for shard in range(len(reader.shard_sizes))])
        self._order = np.argsort(self._ids, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(reader.shard_sizes, dtype=np.int64)])
        self._open: OrderedDict[tuple[int, int], _AnswerFile] = OrderedDict()
        about = self.folder / "answers.json"
        if about.exists():
            if json.loads(about.read_text(encoding="utf-8")) != self._facts:
                raise ValueError(f"{self.folder} holds answers to something else; give another teacher_feature_dir.")
        else:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(about, self._facts)

    def read(self, ids: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows [B] of the structured type, present bool [B]) for images by id; what is absent is not filled in."""
        rows, present = np.empty(len(ids), dtype=self.row), np.zeros(len(ids), dtype=bool)
        for shard, at, inside in self._segments(ids):
            file = self._file(view, shard, make=False)
            if file is not None:
                present[at] = file.valid(inside)
                rows[at] = file.rows[inside]
        return rows, present

    def write(self, ids: np.ndarray, view: int, rows: np.ndarray):
        """Store the rows [B] of the images `ids`; a row that is there already is written over with the same answer."""
        for shard, at, inside in self._segments(ids):
            self._file(view, shard, make=True).put(inside, rows[at])

    def present(self, positions: np.ndarray, view: int) -> np.ndarray:
        """Which positions of the image cache have an answer to `view`, bool [N]; records only, no row is read."""
        found = np.zeros(len(positions), dtype=bool)
        for shard, at, inside in self._cut(positions):
            file = self._file(view, shard, make=False)
            if file is not None:
                found[at] = file.records[inside] != 0
        return found

    def bytes_needed(self, positions: np.ndarray) -> int:
        """Bytes that files not made yet will take, for all views of the shards that `positions` touch."""
        needed = 0
        for shard in np.unique(np.searchsorted(self._starts, positions, side="right") - 1):
            size = _layout(self._capacity, self.row.itemsize, self.reader.shard_sizes[shard])[1]
            needed += size * sum(not self._path(view, shard).exists() for view in range(self.num_views))
        return needed

    def verify(self) -> list[Fault]:
        """Every file that is not what it says, and every row whose bytes do not fit its checksum: all is read."""
        faults = []
        for view, shard in self._made():
            name = str(self._path(view, shard).relative_to(self.folder))
            try:
                file = self._file(view, shard, make=False)
            except CacheError as error:
                faults.append(Fault(name, str(error)))
                continue
            stored = np.flatnonzero(file.records)
            file.checked[:] = False
            wrong = int((~file.valid(stored)).sum())
            if wrong:
                faults.append(Fault(name, f"has {wrong} rows that do not fit their checksum; they are asked for again"))
        return faults

    def _made(self) -> Iterator[tuple[int, int]]:
        for view in range(self.num_views):
            for shard in range(len(self.reader.shard_sizes)):
                if self._path(view, shard).exists():
                    yield view, shard

    def _segments(self, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(shard, places in `ids`, rows inside the shard) for each shard that holds some of the images."""
        place = np.searchsorted(self._ids, ids, sorter=self._order).clip(max=len(self._ids) - 1)
        positions = self._order[place]
        if len(wrong := ids[self._ids[positions] != ids]):
            raise ValueError(f"image {wrong[0]} is not in the cache {self.reader.cache_dir}, so no answer belongs to it.")
        yield from self._cut(positions)

    def _cut(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        for shard in np.unique(shards):
            at = np.flatnonzero(shards == shard)
            yield int(shard), at, positions[at] - self._starts[shard]

    @property
    def _capacity(self) -> int:
        return self.reader.index["shard_size"]

    def _path(self, view: int, shard: int) -> Path:
        number = self.reader.index["shards"][shard]["number"]
        return self.folder / f"view_{view:03d}" / f"answers_shard_{number:05d}.bin"

    def _file(self, view: int, shard: int, *, make: bool) -> "_AnswerFile | None":
        key = (view, shard)
        if key not in self._open:
            path = self._path(view, shard)
            if not path.exists() and not make:
                return None
            with writing(self.folder):
                size = self.reader.shard_sizes[shard]
                self._open[key] = _AnswerFile(path, self.row, self._capacity, size, self._facts | {"view": view})
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


class _AnswerFile:
    """One mapped file: records uint64 [capacity], 0 where there is no answer, and rows [number of rows]."""

    def __init__(self, path: Path, row: np.dtype, capacity: int, count: int, facts: dict):
        text = _MAGIC + json.dumps(facts).encode()
        if len(text) > _HEADER:
            raise ValueError(f"what {path} belongs to takes {len(text)} bytes, more than {_HEADER}.")
        start, size = _layout(capacity, row.itemsize, count)
        if not path.exists():
            _create(path, text, size)
        with open(path, "r+b") as file:
            if file.read(_HEADER).rstrip(b"\0") != text:
                raise CacheError(f"{path} does not hold the answers that its folder says; delete it, they are asked for again.")
            if os.fstat(file.fileno()).st_size < size:  # the image shard has grown since
                _allocate(file.fileno(), size)
            whole = np.memmap(file, np.uint8, "r+", 0, (size,))  # mapped once: each mapping keeps a file open
        self.records = whole[_HEADER : _HEADER + 8 * capacity].view(np.uint64)
        self.rows = whole[start:].view(row)
        self.checked = np.zeros(count, dtype=bool)  # by this process

    def put(self, inside: np.ndarray, rows: np.ndarray):
        """The rows first, their records after."""
        self.rows[inside] = rows
        self.records[inside] = _checksums(rows) | _PRESENT
        self.checked[inside] = True

    def valid(self, inside: np.ndarray) -> np.ndarray:
        """Which rows hold an answer that is whole, bool [n]."""
        good = self.records[inside] != 0
        new = np.flatnonzero(good & ~self.checked[inside])
        if len(new):
            rows = inside[new]
            good[new] = self.records[rows] == _checksums(self.rows[rows]) | _PRESENT
            self.checked[rows] = good[new]
        return good


def _layout(capacity: int, row_bytes: int, count: int) -> tuple[int, int]:
    """(offset of the rows, size of the file): room for the records of a full shard, so that a shard may grow."""
    start = _HEADER + 8 * capacity
    start += -start % 4096
    return start, start + row_bytes * count


def _checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row, uint64 [n]."""
    data, size = memoryview(np.ascontiguousarray(rows).view(np.uint8)), rows.dtype.itemsize
    return np.fromiter((zlib.crc32(data[at : at + size]) for at in range(0, len(data), size)), np.uint64, len(rows))


def _create(path: Path, header: bytes, size: int):
    """Make the file whole under another name and link it in: of two that make it at once, both then use the first one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(header.ljust(_HEADER, b"\0"))
            file.flush()
            _allocate(file.fileno(), size)
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink(missing_ok=True)


def _allocate(descriptor: int, size: int):
    """Give the file its size with disk space behind it: writing through a mapping to a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
