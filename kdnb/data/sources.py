"""Raw images to read from: built-in digits, a folder of pictures, Parquet files, or a dataset of the Hugging Face Hub.

A source hands out pictures as they are stored (encoded bytes, a path, or pixels); `decode` and `resize` make pixels of
them, in this process or in workers. Opening lists the pictures and decodes none. Parquet and Hub data go through `datasets`,
which keeps an Arrow copy of the same size in its cache; `streaming=True` keeps none, and reads in order only.

Every source has: name, classes (list of names or None), num_images (None while streaming), labelled, fingerprint, and
`items(ids)`, which yields (id, encoded, label or None) for rows of the source. Where it is labelled and not streaming,
`labels()` gives all labels, int64 [num_images], without touching a picture. `note` is a sentence on what is left out, or "". What
`open_source` returns has `splits`, too, the names of all splits of the data.
"""

import contextlib
import hashlib
import itertools
import json
import os
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeGuard

import numpy as np
from PIL import Image

from kdnb.data.cache import read_index
from kdnb.data.decode import Encoded, printable
from kdnb.data.keyed import hold_out
from kdnb.data.splits import SPLITS, NoSplit, check_file_split, check_hub, find_columns, no_split, open_split
from kdnb.files import Damaged, hash_of, read_json, write_json
from kdnb.runs import anchored, local_or_hub

Item = tuple[int, Encoded, int | None]
# Short names: the Hub's name, and the column of labels where there are several.
_ALIASES = {"cifar10": ("uoft-cs/cifar10", "label"), "cifar100": ("uoft-cs/cifar100", "fine_label")}
HELD_OUT = "held_out"  # the split of what is held out of a data set that has no other
_ROWS_AT_ONCE = 256  # rows asked for together; Arrow tables are slow row by row
_LOOKED_AT = 16  # rows that tell one source from another
_PATIENCE = 5  # seconds of passing over rows without a word
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")


def open_source(
    dataset: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    held_out: float = 0.0,
) -> "DigitsSource | FolderSource | PartSource | TableSource | StreamSource":
    """Open a source of images.

    Args:
        dataset: `digits` (built in), a folder of images (subfolders are classes), a Parquet file or a folder with
            Parquet files, or a name on the Hugging Face Hub.
        split: `train`, `test`, ... as the data has it. A folder of images has the splits of which it has subfolders.
        image_column, label_column: columns of Parquet and Hub data; by default the only column of images, and the
            only one of class labels.
        streaming: read Parquet or Hub data in order without a copy on this disk.
        held_out: where labelled images have no split but `train`, that share of each class, drawn with a fixed seed, is left
            out of `train` and makes up the split `held_out`, which is then also called `test`. A stream tells its labels too
            late for that, and a note says so.

    Raises:
        ValueError: no such dataset or column. NoSplit (a ValueError): no such split. It says which there are.
    """
    table = {"image_column": image_column, "label_column": label_column, "streaming": streaming}
    require_dataset(dataset)
    dataset, path = str(dataset), anchored(dataset)
    require_there(dataset)
    listing = _list_files(path) if dataset != "digits" and path.is_dir() else None
    tabular = dataset != "digits" and (listing is None or listing.has_parquet)
    for name, value in table.items():
        if value and not tabular:
            raise ValueError(f"{name} is {value!r}, but dataset {dataset!r} has no columns and no stream; leave it out.")

    def open_whole(split: str) -> DigitsSource | FolderSource | TableSource | StreamSource:
        if tabular:
            return _open_table(local_or_hub(dataset), split, image_column, label_column, streaming)
        return DigitsSource(split) if listing is None else FolderSource(path, split, listing)

    try:
        whole = open_whole(split)
    except NoSplit as error:
        whole = open_whole("train") if held_out and split in ("test", HELD_OUT) and error.splits == ["train"] else None
        if whole is None or not _can_be_parted(whole):
            raise
    if not held_out or split not in ("train", "test", HELD_OUT) or not _can_be_parted(whole):
        return whole
    return PartSource(whole, held_out, is_held_out=split != "train")


def open_source_of(
    cache_dir: str | Path, dataset: str, *, split: str = "train", image_column: str | None = None,
    label_column: str | None = None, streaming: bool = False, held_out: float = 0.0,
) -> "DigitsSource | FolderSource | PartSource | TableSource | StreamSource":  # fmt: skip
    """`open_source` for the cache in `cache_dir`: with the share held out that the cache records, where there is one already."""
    with contextlib.suppress(FileNotFoundError, ValueError):  # no cache, or a broken index
        held_out = whole_name(read_index(anchored(cache_dir))["source"])[1]
    columns: dict = {"image_column": image_column, "label_column": label_column, "streaming": streaming}
    return open_source(dataset, split=split, held_out=held_out, **columns)


def _can_be_parted(source) -> TypeGuard["FolderSource | TableSource"]:
    """Whether images can be held out of `source`, by class; the note of a stream says that they cannot."""
    if [*source.splits] != ["train"]:
        return False
    if source.num_images is None:
        source.note = f"{source.name} is streamed, so no images of it can be held out; set streaming to false for that"
    return source.num_images is not None and source.labelled


def require_dataset(dataset: str | Path | None):
    """Refuse what names no images: ValueError."""
    if not dataset or (anchored(dataset).is_file() and anchored(dataset).suffix != ".parquet"):
        raise ValueError(
            f"dataset is {dataset!r}; allowed are 'digits', a folder of images, a Parquet file (.parquet) or a folder "
            "with such files, or a name on the Hugging Face Hub."
        )


def require_there(dataset: str):
    """Refuse a path, which cannot be a name on the Hub, where nothing lies: ValueError."""
    path = dataset.startswith((".", "/", "~")) or dataset.endswith("/") or dataset.count("/") > 1
    if path and not anchored(dataset).exists():
        raise ValueError(
            f"dataset is {dataset!r}, but there is no file or folder {anchored(dataset)}; give one that is there, or 'digits', "
            "or a name on the Hugging Face Hub."
        )


def is_local(dataset: str) -> bool:
    """Whether `dataset` can be opened without a network: the digits, or what is on this disk."""
    return dataset == "digits" or anchored(dataset).exists()


def is_table(dataset: str) -> bool:
    """Whether `dataset` is not the digits and no folder of images."""
    folder = anchored(dataset)
    return dataset != "digits" and (not folder.is_dir() or _list_files(folder).has_parquet)


def source_names(dataset: str, split: str) -> set[str]:
    """Names that the source of `open_source(dataset, split=split)` may have: a cache's source is known without opening it.

    What is not on this disk may be a name on the Hub, or a path that is there on another machine.
    """
    path = anchored(dataset)
    if dataset == "digits":
        return {f"digits/{split}"}
    if path.suffix == ".parquet" and not path.is_dir():
        return {path.stem}
    name = path.resolve().name
    names = {f"{name}/{split}"} | ({name} if split == "train" else set())
    return names if path.exists() else names | {f"{hub_name(dataset)}/{split}"}


def hub_name(dataset: str) -> str:
    """The Hub's name of `dataset`, which may be a short one."""
    return _ALIASES.get(dataset, (dataset, None))[0]


def whole_name(name: str) -> tuple[str, float]:
    """(name of the data set's own split, share held out of it) of a source by its name, which a cache records."""
    whole, _, share = name.partition(f" without {HELD_OUT} ")
    return whole, float(share or 0)


class DigitsSource:
    """scikit-learn's handwritten digits, 8x8 in 17 greys, scaled up to 32x32 RGB: 1,500 to train on, 297 to test."""

    labelled, note = True, ""

    def __init__(self, split: str):
        rows = {"train": range(1500), "test": range(1500, 1797)}
        if split not in rows:
            raise NoSplit(no_split("digits", split, rows), rows)
        self.name, self.splits = f"digits/{split}", list(rows)
        self.classes = [str(digit) for digit in range(10)]
        self.num_images = len(rows[split])
        self._rows = rows[split]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self, [])

    @cached_property
    def _digits(self) -> tuple[np.ndarray, np.ndarray]:
        """Greys uint8 [N, 8, 8] and labels; loaded when somebody looks, as importing scikit-learn takes a second."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        return np.rint(digits.images[self._rows] * (255 / 16)).astype(np.uint8), digits.target[self._rows]

    def labels(self) -> np.ndarray:
        return self._digits[1].astype(np.int64)

    def items(self, ids: Sequence[int] | None = None) -> Iterator[Item]:
        greys, labels = self._digits
        for i in range(self.num_images) if ids is None else ids:
            grey = Image.fromarray(greys[i]).resize((32, 32), Image.Resampling.BICUBIC)
            yield int(i), np.asarray(grey.convert("RGB")), int(labels[i])


class FolderSource:
    """Image files below a folder, by path; the first level of subfolders names the classes where every file is in one."""

    def __init__(self, folder: Path, split: str, listing: "_Listing"):
        files, folders = [name for name in listing.files if name.lower().endswith(_EXTENSIONS)], listing.folders
        skipped = ", ".join(f"{count:,} {what}" for what, count in listing.skipped.items())
        self.note = f"{folder}: left out are {skipped}" if skipped else ""
        if not files:
            raise ValueError(
                f"dataset {folder} holds no Parquet files and no images ({', '.join(_EXTENSIONS)}). {self.note}".strip()
            )
        self.name = folder.resolve().name
        tops = {name.split("/")[0] for name in files}
        if not tops <= set(SPLITS):  # `train` beside `boat` and `plane` is a class
            tops = set()
        self.splits = sorted(tops) or ["train"]
        if split in tops:
            files, folders = (
                [name.removeprefix(f"{split}/") for name in names if name.startswith(f"{split}/")] for names in (files, folders)
            )
            folder, self.name = folder / split, f"{self.name}/{split}"
        elif tops or split != "train":
            raise NoSplit(no_split(str(folder), split, self.splits), self.splits)
        self._folder = folder
        self._files = sorted(files)
        self.num_images = len(self._files)
        self.labelled = all("/" in name for name in self._files)
        # Empty ones too: a class may be absent from one split.
        own = sorted(name for name in folders if name and "/" not in name) if self.labelled else []
        self.classes = [printable(name) for name in own] or None
        self._class = {name: number for number, name in enumerate(own)}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self, [[name, os.stat(f"{self._folder}/{name}").st_size] for name in self._files])

    def labels(self) -> np.ndarray:
        return np.array([self._class[name.split("/")[0]] for name in self._files], dtype=np.int64)

    def items(self, ids: Sequence[int] | None = None) -> Iterator[Item]:
        for i in range(self.num_images) if ids is None else ids:
            name = self._files[i]
            yield int(i), self._folder / name, self._class[name.split("/")[0]] if self.labelled else None


class PartSource:
    """The held-out images of a labelled source, or the others: of each class the same share (see `kdnb.data.keyed.hold_out`).

    The fingerprint is of all images of the source.
    """

    labelled = True

    def __init__(self, whole: "FolderSource | TableSource", share: float, *, is_held_out: bool):
        held_out = hold_out(whole.labels(), share, seed=0)
        self._share, self._is_held_out, self.splits = share, is_held_out, [*whole.splits, HELD_OUT]
        self._whole, self._rows = whole, np.flatnonzero(held_out == is_held_out)
        self._facts = [whole.fingerprint, share, is_held_out]
        self.name = f"{whole.name} {'' if is_held_out else 'without '}{HELD_OUT} {share}"
        self.classes, self.num_images, self.note = whole.classes, len(self._rows), whole.note
        self.num_others = len(held_out) - self.num_images

    @property
    def others(self) -> "PartSource":
        """The images that are not in this part."""
        return PartSource(self._whole, self._share, is_held_out=not self._is_held_out)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self, self._facts)

    def labels(self) -> np.ndarray:
        return self._whole.labels()[self._rows]

    def items(self, ids: Sequence[int] | None = None) -> Iterator[Item]:
        ids = range(self.num_images) if ids is None else ids
        rows = self._rows[np.asarray(ids, dtype=np.int64)].tolist()
        for i, (_, encoded, label) in zip(ids, self._whole.items(rows), strict=True):
            yield int(i), encoded, label


class _Listing(NamedTuple):
    """Files and folders below a folder, by relative path with forward slashes, hidden ones left out, and how many of what kind
    are left out as well."""

    files: list[str]
    folders: list[str]
    skipped: Counter[str]

    @property
    def has_parquet(self) -> bool:
        return any(name.endswith(".parquet") for name in self.files)


def _list_files(folder: Path) -> _Listing:
    """Links are followed, but every folder is visited once, by its own name sooner than by a link's, and none above `folder`: a
    link upwards has no end."""
    listing, visited = _Listing([], [], Counter()), {_identity(above) for above in folder.resolve().parents}
    to_visit, linked = deque([""]), deque[str]()
    while to_visit or linked:
        where = (to_visit or linked).popleft()
        path = f"{folder}/{where}"  # plain text: half a million of `Path` would take two seconds
        try:
            if (identity := _identity(path)) in visited:
                listing.skipped["folders that a link leads to once more"] += 1
                continue
            visited.add(identity)
            listing.folders.append(where)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError:
            listing.skipped["folders that cannot be read"] += 1
            continue
        for entry in entries:
            name = f"{where}/{entry.name}" if where else entry.name
            if entry.name.startswith("."):
                continue
            is_folder = is_file = False
            with contextlib.suppress(OSError):  # links in a circle are neither
                is_folder, is_file = entry.is_dir(), entry.is_file()
            if is_folder:
                (linked if entry.is_symlink() else to_visit).append(name)
            elif is_file:
                listing.files.append(name)
            else:
                listing.skipped["broken links, pipes or devices"] += 1
    return listing


def _identity(path: str | Path) -> tuple[int, int]:
    """What tells a folder from others, whatever it is called."""
    about = os.stat(path)
    return about.st_dev, about.st_ino


def _open_table(
    dataset: str, split: str, image_column: str | None, label_column: str | None, streaming: bool
) -> "TableSource | StreamSource":
    """Images in the Parquet file or in the folder `dataset`, or on the Hub where there is neither."""
    import datasets

    path = Path(dataset).expanduser()
    if path.is_file():
        check_file_split(path, split)
        load, files, name = "parquet", {"data_files": {split: str(path)}}, path.stem
    else:
        if not path.is_dir():
            alias, (dataset, usual) = dataset, _ALIASES.get(dataset, (dataset, None))
            label_column = label_column or usual
            check_hub(dataset, alias=alias)
        load, files = str(path) if path.is_dir() else dataset, {}
        name = f"{path.resolve().name if path.is_dir() else dataset}/{split}"

    def columns(features) -> list[str]:
        return [column for column in find_columns(dataset, features, image_column, label_column) if column]

    rows, file_facts, splits = open_split(dataset, load, split, streaming=streaming, columns=columns, **files)
    image_column, label_column = find_columns(dataset, rows.features, image_column, label_column)
    rows = rows.cast_column(image_column, datasets.Image(decode=False))
    folder = path.parent if path.is_file() else path if path.is_dir() else None
    if streaming:
        return StreamSource(rows, name, image_column, label_column, folder, splits, files=file_facts)
    return TableSource(rows, name, image_column, label_column, folder, splits)


class _Rows:
    """Rows with a column of images, and perhaps one of labels."""

    note = ""

    def __init__(
        self, rows, name: str, image_column: str, label_column: str | None, folder: Path | None, splits: Sequence[str]
    ):  # fmt: skip
        self._rows, self.name, self._image, self._label, self._folder = rows, name, image_column, label_column, folder
        self.splits = splits
        self.classes = getattr(rows.features[label_column], "names", None) if label_column else None

    def _item(self, number: int, cells: dict) -> Item:
        label = None if self._label is None else _whole(cells[self._label])
        return number, _encoded(cells[self._image], self._folder), label


class TableSource(_Rows):
    """Rows of a `datasets.Dataset` with an image column, by number."""

    @property
    def num_images(self) -> int:
        return len(self._rows)

    @cached_property
    def labelled(self) -> bool:
        """Not where every label is missing, or -1, as in the Hub's own test splits."""
        import pyarrow.compute

        return self._label is not None and pyarrow.compute.max(self._rows.data.column(self._label)).as_py() not in (None, -1)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self, [self._image, self._label])

    def labels(self) -> np.ndarray:
        return np.array([_whole(label) for label in self._rows.select_columns([self._label])[:][self._label]], dtype=np.int64)

    def items(self, ids: Sequence[int] | None = None) -> Iterator[Item]:
        ids = range(self.num_images) if ids is None else ids
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            numbers = [int(i) for i in ids[start : start + _ROWS_AT_ONCE]]
            columns = self._rows[numbers]
            for place, number in enumerate(numbers):
                yield self._item(number, {name: cells[place] for name, cells in columns.items()})


class StreamSource(_Rows):
    """Rows of a `datasets.IterableDataset`, in order; their number is known only at the end.

    Args:
        files: what tells the files that the stream goes through, one after another; None where that is not known.
    """

    num_images = None

    def __init__(self, *rows, files: list | None):
        super().__init__(*rows)
        self._files = files
        self._notes: Path | None = None
        self._rest: Iterator[Item] | None = None  # behind the first items

    @property
    def labelled(self) -> bool:
        """As far as the first rows tell."""
        return self._label is not None and any(label != -1 for _, _, label in self._first)

    @cached_property
    def fingerprint(self) -> str:
        """Of the first 16 pictures: the number of rows is unknown."""
        return fingerprint_of(self, [self._image, self._label, "streaming"], self._first)

    @cached_property
    def _first(self) -> list[Item]:
        """The first items; whoever reads from the start goes on behind them, so that nothing is fetched twice."""
        self._rest = self._read(0)
        return list(itertools.islice(self._rest, _LOOKED_AT))

    def remember_files(self, path: Path):
        """Keep in `path` how many rows each file has, as far as they were read, and skip whole files by what is there already."""
        self._notes = path

    def items(self, ids: range | None = None) -> Iterator[Item]:
        """Rows `ids`, a range of step 1; what lies before it is skipped, what lies beyond the end is not there."""
        if ids is not None and (not isinstance(ids, range) or ids.step != 1):
            raise ValueError(f"{self.name} is streamed, so its rows come in order; pick rows without streaming.")
        start, count = (0, None) if ids is None else (ids.start, len(ids))
        if start == 0 and self._first and self._rest is not None:
            rest, self._rest = self._rest, None
            return itertools.islice(itertools.chain(self._first, rest), count)
        return itertools.islice(self._read(start), count)

    def _read(self, start: int) -> Iterator[Item]:
        """Rows from `start` on. Files that end before it are skipped where it is known how many rows they have."""
        known = self._known_rows() if start else []
        whole, first = 0, 0  # files to skip, and the row that the next one begins with
        while whole < len(known) and first + known[whole] <= start:
            first, whole = first + known[whole], whole + 1
        files = self._rows.num_shards
        if start:
            again = f"; {start - first:,} images before it are read again" if start > first else ""
            print(f"{self.name}: going on at image {start:,}, {whole:,} of {files:,} files are skipped{again}", flush=True)
        begun, announced = time.monotonic(), False
        for number in range(whole, files):
            row = first
            for row, cells in enumerate(self._rows.shard(num_shards=files, index=number), first + 1):  # rows so far
                if row > start:
                    yield self._item(row - 1, cells)
                elif not announced and time.monotonic() - begun > _PATIENCE:
                    passed, announced = row - first, True
                    minutes = (start - row) * (time.monotonic() - begun) / passed / 60
                    print(f"{self.name}: about {minutes:.0f} minutes until image {start:,}", flush=True)
            self._note(number, row - first)
            first = row

    def _known_rows(self) -> list[int]:
        """Rows of the first files, as far as they were read before."""
        if self._notes is None or self._files is None or self._rows.num_shards != len(self._files[0]):
            return []
        try:
            notes = read_json(self._notes)
            return notes["rows"] if notes["files"] == hash_of(self._files, length=64) else []
        except (FileNotFoundError, Damaged, KeyError, TypeError):
            return []

    def _note(self, number: int, rows: int):
        """Write down that file `number`, the next after those that are known, has so many rows."""
        if self._notes is not None and self._files is not None and number == len(known := self._known_rows()):
            write_json(self._notes, {"files": hash_of(self._files, length=64), "rows": [*known, rows]})


def fingerprint_of(source, facts: list, items: Iterable[Item] | None = None) -> str:
    """What tells `source` from others, wherever it lies: its size, classes, `facts`, and `items`, by default 16 evenly spaced."""
    n = source.num_images
    if items is None:
        items = source.items(sorted({i * (n - 1) // (_LOOKED_AT - 1) for i in range(_LOOKED_AT)}) if n else [])
    seen = hashlib.sha256(json.dumps([n, source.classes, facts]).encode())
    for row, encoded, label in items:
        if isinstance(encoded, Path):
            encoded = encoded.read_bytes() if encoded.is_file() else b""
        content = encoded.tobytes() if isinstance(encoded, np.ndarray) else encoded or b""
        seen.update(f"{row} {label} {hashlib.sha256(content).hexdigest()} ".encode())
    return seen.hexdigest()


def _encoded(cell: dict | None, folder: Path | None) -> Encoded:
    """What an image cell, {"bytes", "path"}, holds: the bytes, or a path, relative ones from the Parquet file's folder."""
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        return None
    if cell["bytes"] is not None:
        return cell["bytes"]
    if "://" in cell["path"]:  # streamed from a Hub repository of plain image files
        import fsspec

        with fsspec.open(cell["path"], "rb") as file:
            return file.read()
    return Path(cell["path"]) if folder is None else folder / cell["path"]


def _whole(label: int | None) -> int:
    """-1 where the row has no label, as the Hub's own test splits have it."""
    return -1 if label is None else int(label)
