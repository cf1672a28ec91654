"""A teacher's outputs on disk: one file per image shard and view, filled row by row, in any order, by any number of processes.

    <folder>/answers.json                            what the outputs belong to
    <folder>/view_003/answers_shard_00012.bin        header, a record per row, the rows

A row counts once its record holds the checksum of its bytes, which is written after them; it is checked when it is first
read. So a process killed anywhere, a torn page, or two processes that write the same row leave rows that are right or that do
not count, and what was stored stays. Files get their whole size when they are made: a full disk is noticed then, not later.
Reading 64 rows of 64 numbers takes 0.05 ms; storing them 0.1 ms.

The format is ours, not `np.lib.format.open_memmap`'s: that one leaves holes in the file, in which a full disk kills the process
that writes, its header fixes the number of rows while shards grow, and files of this format would have to be read all the same.
"""

import json
import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from kdnb.data.cache import Fault
from kdnb.data.cache_writer import CacheError, only_writer, writing
from kdnb.data.reader import ShardReader
from kdnb.files import Damaged, read_json, set_aside, write_atomically, write_json

_MAGIC = b"kdnbans1"
_HEADER = 4096  # bytes, of which the records begin after
_PRESENT = np.uint64(1 << 32)  # above the 32 bits of the checksum, which may be 0
_MOST_OPEN = 400  # files mapped at a time: a process may hold 1,024 open


class TeacherCache:
    """Outputs for `num_views` views of the images of a cache, stored as rows of a structured type.

    Args:
        folder: belongs to these `facts` alone; made where it is missing.
        reader: of the image shards, whose ids and layout the outputs share.
        row: NumPy's structured dtype of an output, such as [("features", "<f2", (384,))].
        facts: plain values that tell these outputs from all others.

    Raises:
        CacheError: a folder that cannot be written, or a disk that is full. ValueError: a folder with other outputs.
    """

    def __init__(self, folder: str | Path, reader: ShardReader, *, row: np.dtype, num_views: int, facts: dict):
        self.folder, self.reader, self.row, self.num_views = Path(folder), reader, np.dtype(row), num_views
        self._facts = json.loads(json.dumps(facts | {"row": self.row.descr, "num_views": num_views}))
        self._ids = np.concatenate([reader.shard_ids(shard) for shard in range(len(reader.shard_sizes))])
        self._order = np.argsort(self._ids, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(reader.shard_sizes, dtype=np.int64)])
        self._open: OrderedDict[tuple[int, int], _OutputFile] = OrderedDict()
        about = self.folder / "answers.json"
        try:
            if read_json(about) != self._facts:
                raise ValueError(
                    f"{about} says that its folder holds other outputs; give another teacher_feature_dir, or delete it."
                )
        except (FileNotFoundError, Damaged):  # then each file of outputs says what it belongs to
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_json(about, self._facts)

    def read(self, ids: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows [B] of the structured type, present bool [B]) for images by id; what is absent is not filled in."""
        rows, present = np.empty(len(ids), dtype=self.row), np.zeros(len(ids), dtype=bool)
        for shard, at, inside in self._by_shard(self._positions_of(ids)):
            if file := self._file(view, shard):
                present[at], rows[at] = file.valid(inside), file.rows[inside]
        return rows, present

    def write(self, ids: np.ndarray, view: int, rows: np.ndarray):
        """Store the rows [B] of the images `ids`; a row that is there already is written over with the same output."""
        for shard, at, inside in self._by_shard(self._positions_of(ids)):
            self._open_file(view, shard).put(inside, rows[at])

    def present(self, positions: np.ndarray, view: int) -> np.ndarray:
        """Which positions of the image cache have an output for `view`, bool [N]; records only, no row is read."""
        present = np.zeros(len(positions), dtype=bool)
        for shard, at, inside in self._by_shard(positions):
            if file := self._file(view, shard):
                present[at] = file.records[inside] != 0
        return present

    def bytes_needed(self, positions: np.ndarray) -> int:
        """Bytes that files not made yet will take, for all views of the shards that `positions` touch."""
        needed = 0
        for shard, _, _ in self._by_shard(positions):
            size = _layout(self.reader.index["shard_size"], self.row.itemsize, self.reader.shard_sizes[shard])[1]
            needed += size * sum(not self._path(view, shard).exists() for view in range(self.num_views))
        return needed

    def verify(self) -> list[Fault]:
        """Every file that is not what it says, and every row whose bytes do not fit its checksum: all is read."""
        faults = []
        for view in range(self.num_views):
            for shard in range(len(self.reader.shard_sizes)):
                name = str(self._path(view, shard).relative_to(self.folder))
                try:
                    if (file := self._file(view, shard)) and (wrong := file.recheck()):
                        faults.append(Fault(name, f"has {wrong} rows that do not fit their checksum; they are computed again"))
                except CacheError as error:
                    faults.append(Fault(name, str(error)))
        return faults

    def _positions_of(self, ids: np.ndarray) -> np.ndarray:
        """Positions in the image cache of images by id."""
        place = np.searchsorted(self._ids, ids, sorter=self._order).clip(max=len(self._ids) - 1)
        positions = self._order[place]
        if len(wrong := ids[self._ids[positions] != ids]):
            raise ValueError(f"image {wrong[0]} is not in the cache {self.reader.cache_dir}, so no output belongs to it.")
        return positions

    def _by_shard(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(shard, places in `positions`, rows inside the shard) for each shard that holds some of the positions."""
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        for shard in np.unique(shards):
            at = np.flatnonzero(shards == shard)
            yield int(shard), at, positions[at] - self._starts[shard]

    def _path(self, view: int, shard: int) -> Path:
        number = self.reader.index["shards"][shard]["number"]
        return self.folder / f"view_{view:03d}" / f"answers_shard_{number:05d}.bin"

    def _file(self, view: int, shard: int) -> "_OutputFile | None":
        """The file, where it is there."""
        there = (view, shard) in self._open or self._path(view, shard).exists()
        return self._open_file(view, shard) if there else None

    def _open_file(self, view: int, shard: int) -> "_OutputFile":
        """The file, made where it is missing."""
        key = (view, shard)
        if key not in self._open:
            path = self._path(view, shard)
            capacity, count = self.reader.index["shard_size"], self.reader.shard_sizes[shard]
            with writing(self.folder):
                self._open[key] = _OutputFile(path, self.row, capacity, count, self._facts | {"view": view})
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


class _OutputFile:
    """One mapped file: records uint64 [capacity], 0 where there is no output, and rows [count]."""

    def __init__(self, path: Path, row: np.dtype, capacity: int, count: int, facts: dict):
        start, size = _layout(capacity, row.itemsize, count)
        if not path.is_file():
            if os.path.lexists(path):
                set_aside(path)
            _create(path, facts, size)
        with open(path, "r+b") as file:
            if not _belongs(file.read(_HEADER), facts):
                raise CacheError(f"{path} does not hold the outputs that its folder says; delete it, they are computed again.")
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
        """Which rows hold an output that is whole, bool [n]."""
        good = self.records[inside] != 0
        new = np.flatnonzero(good & ~self.checked[inside])
        if len(new):
            rows = inside[new]
            good[new] = self.records[rows] == _checksums(self.rows[rows]) | _PRESENT
            self.checked[rows] = good[new]
        return good

    def recheck(self) -> int:
        """How many rows with a record do not fit it, all of them read."""
        self.checked[:] = False
        return int((~self.valid(np.flatnonzero(self.records))).sum())


def _layout(capacity: int, row_bytes: int, count: int) -> tuple[int, int]:
    """(offset of the rows, size of the file): room for the records of a full shard, so that a shard may grow."""
    start = _HEADER + 8 * capacity
    start += -start % 4096
    return start, start + row_bytes * count


def _checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row, uint64 [n]."""
    data, size = np.ascontiguousarray(rows).view(np.uint8).data, rows.dtype.itemsize
    return np.fromiter((zlib.crc32(data[at : at + size]) for at in range(0, len(data), size)), np.uint64, len(rows))


def _belongs(header: bytes, facts: dict) -> bool:
    """Whether the header of a file says these facts, in whatever order."""
    try:
        return header.startswith(_MAGIC) and json.loads(header.removeprefix(_MAGIC).rstrip(b"\0")) == facts
    except ValueError:
        return False


def _create(path: Path, facts: dict, size: int):
    """Make the file whole, unless another process has just made it, and remove what a killed one left of such a file."""
    header = _MAGIC + json.dumps(facts).encode()
    if len(header) > _HEADER:
        raise ValueError(f"what {path} belongs to takes {len(header)} bytes, more than {_HEADER}.")

    def fill(file: BinaryIO):
        file.write(header.ljust(_HEADER, b"\0"))
        file.flush()
        _allocate(file.fileno(), size)

    with only_writer(path.parent, part=0, parts=1):  # of two that make it at once, both then use the first one's
        if not path.exists():
            write_atomically(path, fill)


def _allocate(descriptor: int, size: int):
    """Give the file its size with disk space behind it: writing through a mapping to a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


class OutputCodec:
    """Outputs as rows: pooled features, logits, features of further layers, patch tokens.

    Args:
        feature_dim, num_classes, layer_dims: widths of an output's parts; 0 classes where there is no head.
        token_shape: (N, D) of the tokens, where there are some.
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
        parts: list[tuple] = [("features", kind, (feature_dim,))]
        if top_k is not None:
            parts += [("top", kind, (top_k,)), ("classes", "<i4", (top_k,)), ("rest", kind, (1,))]
        elif num_classes:
            parts += [("logits", kind, (num_classes,))]
        parts += [(f"layer{number}", kind, (width,)) for number, width in enumerate(layer_dims)]
        parts += [("tokens", kind, tuple(token_shape))] if token_shape else []
        self.row, self.names = np.dtype(parts), [name for name, *_ in parts]
        self.num_classes, self.num_layers, self.top_k = num_classes, len(layer_dims), top_k

    def encode(self, outputs: dict) -> np.ndarray:
        """Rows [B] of the outputs for B images. Raises ValueError for a number that the format cannot hold."""
        parts = {name: outputs[name] for name in ("features", "logits", "tokens") if name in self.names}
        if self.top_k is not None:
            top, classes = (part.cpu() for part in outputs["logits"].float().log_softmax(-1).topk(self.top_k))
            rest = (1 - top.double().exp().sum(-1, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny)
            parts |= {"top": top, "classes": classes, "rest": rest.log()}
        parts |= {f"layer{number}": layer for number, layer in enumerate(outputs.get("layers", ()))}
        rows = np.empty(len(outputs["features"]), dtype=self.row)
        for name, values in parts.items():
            numbers = values.cpu().numpy() if values.dtype == torch.int64 else values.float().cpu().numpy()
            with np.errstate(over="ignore"):
                rows[name] = numbers
            if not np.isfinite(rows[name]).all():
                fits = "does not fit into float16; set teacher_storage to float32"
                raise ValueError(f"{name} of the teacher {fits if np.isfinite(numbers).all() else 'is not finite'}.")
        return rows

    def decode(self, rows: np.ndarray, device: torch.device) -> dict:
        """The outputs in float32 on `device`."""

        def part(name: str) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(rows[name])).to(device, non_blocking=True).float()

        outputs: dict = {name: part(name) for name in ("features", "logits", "tokens") if name in self.names}
        if self.top_k is not None:
            spread = part("rest") - math.log(self.num_classes - self.top_k)
            classes = torch.from_numpy(rows["classes"].astype(np.int64)).to(device)
            outputs["logits"] = spread.expand(-1, self.num_classes).scatter(1, classes, part("top"))
        if self.num_layers:
            outputs["layers"] = [part(f"layer{number}") for number in range(self.num_layers)]
        return outputs
