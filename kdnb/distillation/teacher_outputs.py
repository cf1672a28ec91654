"""A teacher's answers on disk: one file per image shard and view, filled row by row, in any order, by any number of processes.

    <folder>/answers.json                            what the answers belong to
    <folder>/view_003/answers_shard_00012.bin        header, a record per row, the rows

A row counts once its record holds the checksum of its bytes, which is written after them; it is checked when it is first
read. So a process killed anywhere, a torn page, or two processes that answer the same row leave rows that are right or that do
not count, and what was stored stays. Files get their whole size when they are made: a full disk is noticed then, not later.
Reading 64 rows of 64 numbers takes 0.05 ms; storing them 0.1 ms.
"""

import json
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from kdnb.data.cache import Fault
from kdnb.data.cache_writer import CacheError, writing
from kdnb.data.reader import ShardReader
from kdnb.files import write_json

_MAGIC = b"kdnbans1"


_HEADER = 4096  # bytes, of which the records begin after


_MOST_OPEN = 400  # files mapped at a time: a process may hold 1,024 open


_PRESENT = np.uint64(1 << 32)  # above the 32 bits of the checksum, which may be 0


class TeacherCache:
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
        self._open: OrderedDict[tuple[int, int], _OutputFile] = OrderedDict()
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

    def _file(self, view: int, shard: int, *, make: bool) -> "_OutputFile | None":
        key = (view, shard)
        if key not in self._open:
            path = self._path(view, shard)
            if not path.exists() and not make:
                return None
            with writing(self.folder):
                size = self.reader.shard_sizes[shard]
                self._open[key] = _OutputFile(path, self.row, self._capacity, size, self._facts | {"view": view})
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


class _OutputFile:
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


class OutputCodec:
    """Answers as rows: pooled features, logits, features of further layers, patch tokens.

    Args:
        feature_dim, num_classes, layer_dims: widths of the answer's parts; 0 classes where there is no head.
        token_shape: (N, D) of the tokens, where the answer has some.
        storage: `float16` or `float32`.
        top_k: keep the k largest logits and the logarithm of the remaining probability, which is spread evenly over the
            other classes when read: exact for those k at temperature 1, and a fraction of the bytes for many classes.

    Attributes:
        row: NumPy's structured type.
    """

    def __init__(
        self, *, feature_dim: int, num_classes: int = 0, layer_dims: Sequence[int] = (), token_shape: Sequence[int] = (),
        storage: str = "float16", top_k: int | None = None,
    ):  # fmt: skip
        if storage not in ("float16", "float32"):
            raise ValueError(f"teacher_storage is {storage!r}; allowed are float16, float32 (bfloat16 loses too much).")
        if top_k is not None and not 1 <= top_k < num_classes:
            raise ValueError(f"teacher_top_k is {top_k}, but the teacher has {num_classes} classes; choose fewer.")
        kind = {"float16": "<f2", "float32": "<f4"}[storage]
        parts = [("features", kind, (feature_dim,))]
        if top_k is not None:
            parts += [("top", kind, (top_k,)), ("classes", "<i4", (top_k,)), ("rest", kind, (1,))]
        elif num_classes:
            parts += [("logits", kind, (num_classes,))]
        parts += [(f"layer{number}", kind, (width,)) for number, width in enumerate(layer_dims)]
        parts += [("tokens", kind, tuple(token_shape))] if token_shape else []
        self.row, self.num_classes, self.num_layers, self.top_k = np.dtype(parts), num_classes, len(layer_dims), top_k

    def encode(self, answer: dict) -> np.ndarray:
        """Rows [B] of an answer. Raises ValueError for a number that the format cannot hold."""
        parts = {"features": answer["features"]}
        if self.top_k is not None:
            parts["top"], parts["classes"] = (part.cpu() for part in answer["logits"].float().log_softmax(-1).topk(self.top_k))
            rest = (1 - parts["top"].double().exp().sum(-1, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny)
            parts["rest"] = rest.log()
        elif self.num_classes:
            parts["logits"] = answer["logits"]
        parts |= {f"layer{number}": layer for number, layer in enumerate(answer.get("layers", ()))}
        parts |= {"tokens": answer["tokens"]} if "tokens" in self.row.names else {}
        rows = np.empty(len(answer["features"]), dtype=self.row)
        for name, values in parts.items():
            given = values.cpu().numpy() if values.dtype == torch.int64 else values.float().cpu().numpy()
            with np.errstate(over="ignore"):
                rows[name] = given
            if not np.isfinite(rows[name]).all():
                why = "does not fit into float16; set teacher_storage to float32" if np.isfinite(given).all() else "is not finite"
                raise ValueError(f"{name} of the teacher {why}.")
        return rows

    def decode(self, rows: np.ndarray, device: torch.device) -> dict:
        """The answer in float32 on `device`."""

        def part(name: str) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(rows[name])).to(device, non_blocking=True).float()

        answer = {"features": part("features")}
        if self.top_k is not None:
            spread = part("rest") - math.log(self.num_classes - self.top_k)
            classes = torch.from_numpy(rows["classes"].astype(np.int64)).to(device)
            answer["logits"] = spread.expand(-1, self.num_classes).scatter(1, classes, part("top"))
        elif self.num_classes:
            answer["logits"] = part("logits")
        if self.num_layers:
            answer["layers"] = [part(f"layer{number}") for number in range(self.num_layers)]
        if "tokens" in self.row.names:
            answer["tokens"] = part("tokens")
        return answer
