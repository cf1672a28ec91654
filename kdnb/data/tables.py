"""Images in Parquet files and in datasets of the Hugging Face Hub, through `datasets.load_dataset`.

Rows stay encoded: decoding is left to whoever asks, possibly another process. `load_dataset` converts Parquet to Arrow
files of the same size in its own cache (a second for 50,000 small pictures); streaming does not, and reads in order only.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from kdnb.data.decode import Encoded

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev")
Item = tuple[int, Encoded, int | None]
_LABEL_NAMES = ("label", "labels", "class", "classes", "target", "targets", "category")
# Short names: the Hub's name, and the column of labels where there are several.
_ALIASES = {"cifar10": ("uoft-cs/cifar10", "label"), "cifar100": ("uoft-cs/cifar100", "fine_label")}
_ROWS_AT_ONCE = 256  # rows asked for together; Arrow tables are slow row by row


class TableSource:
    """Rows of a `datasets.Dataset` with an image column, by number."""

    def __init__(self, table, name: str, image_column: str, label_column: str | None, folder: Path | None):
        self._table, self._image, self._label, self._folder = table, image_column, label_column, folder
        self.name, self.num_images = name, len(table)
        self.labelled = label_column is not None
        self.classes = getattr(table.features[label_column], "names", None) if self.labelled else None

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self, [self._image, self._label])

    def labels(self) -> np.ndarray:
        return np.array([_whole(label) for label in self._table.select_columns([self._label])[:][self._label]], dtype=np.int64)

    def items(self, ids: Sequence[int] | None = None) -> Iterator[Item]:
        ids = range(self.num_images) if ids is None else ids
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            numbers = [int(i) for i in ids[start : start + _ROWS_AT_ONCE]]
            rows = self._table[numbers]
            labels = rows[self._label] if self.labelled else [None] * len(numbers)
            for i, cell, label in zip(numbers, rows[self._image], labels, strict=True):
                yield i, _encoded(cell, self._folder), _whole(label) if self.labelled else None


class StreamSource:
    """Rows of a `datasets.IterableDataset`, in order; their number is known only at the end."""

    num_images = None

    def __init__(self, stream, name: str, image_column: str, label_column: str | None, folder: Path | None):
        self._stream, self._image, self._label, self._folder = stream, image_column, label_column, folder
        self.name, self.labelled = name, label_column is not None
        self.classes = getattr(stream.features[label_column], "names", None) if self.labelled else None

    @cached_property
    def fingerprint(self) -> str:
        """Of the first 16 pictures: the number of rows is unknown."""
        return fingerprint_of(self, [self._image, self._label, "streaming"])

    def items(self, ids: range | None = None) -> Iterator[Item]:
        """Rows `ids`, a range of step 1; what lies before it is skipped, what lies beyond the end is not there."""
        if ids is not None and (not isinstance(ids, range) or ids.step != 1):
            raise ValueError(f"{self.name} is streamed, so its rows come in order; pick rows without streaming.")
        rows = self._stream if ids is None else self._stream.skip(ids.start).take(len(ids))
        for i, row in enumerate(rows, start=ids.start if ids else 0):
            label = _whole(row[self._label]) if self.labelled else None
            yield i, _encoded(row[self._image], self._folder), label


def open_table(
    dataset: str, *, split: str, image_column: str | None, label_column: str | None, streaming: bool
) -> TableSource | StreamSource:
    """Images in the Parquet file or in the folder `dataset`, or on the Hub where there is neither.

    Raises:
        ValueError: no such dataset, split or column; says which there are.
    """
    import datasets

    path = Path(dataset).expanduser()
    if path.is_file():  # it has one split; `train`, the default, is taken for not having said
        splits = [name for name in SPLITS if path.name.startswith(name)] or ["train"]
        load, files, name = "parquet", {split: str(path)}, path.stem
        splits += ["train"] * (split == "train")
    else:
        if not path.is_dir():
            dataset, usual = _ALIASES.get(dataset, (dataset, None))
            label_column = label_column or usual
            _check_hub(dataset)
        load, files, name = str(path) if path.is_dir() else dataset, None, path.resolve().name
        name = f"{name if path.is_dir() else dataset}/{split}"
        splits = _ask(dataset, datasets.get_dataset_split_names, load)
    if split not in splits:
        raise ValueError(no_split(dataset, split, splits))
    table = _ask(dataset, datasets.load_dataset, load, data_files=files, split=split, streaming=streaming)
    if table.features is None:  # some formats tell only after the first rows
        table = table._resolve_features()
    image_column, label_column = _find_columns(dataset, table.features, image_column, label_column)
    table = table.select_columns([image_column] + ([label_column] if label_column else []))
    table = table.cast_column(image_column, datasets.Image(decode=False))
    folder = path.parent if path.is_file() else path if path.is_dir() else None
    return (StreamSource if streaming else TableSource)(table, name, image_column, label_column, folder)


def hub_name(dataset: str) -> str:
    """The Hub's name of `dataset`, which may be a short one."""
    return _ALIASES.get(dataset, (dataset, None))[0]


def no_split(dataset: str, split: str, splits) -> str:
    """What to say when `dataset` has no `split`."""
    return f"split is {split!r}, but dataset {dataset} has {', '.join(splits)}."


def fingerprint_of(source, facts: list) -> str:
    """What tells `source` from others, wherever it lies: its size, classes, `facts`, and 16 evenly spaced items."""
    n = source.num_images
    rows = range(16) if n is None else sorted({i * (n - 1) // 15 for i in range(16)}) if n else []
    seen = hashlib.sha256(json.dumps([n, source.classes, facts]).encode())
    for row, encoded, label in source.items(rows):
        if isinstance(encoded, Path):
            encoded = encoded.read_bytes() if encoded.is_file() else b""
        content = hashlib.sha256(b"" if encoded is None else encoded).hexdigest()
        seen.update(f"{row} {label} {content} ".encode())
    return seen.hexdigest()


def _ask(dataset: str, function: Callable, *args, **kwargs):
    """Call into `datasets`, whose errors are of many kinds, some pages long."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"dataset {dataset} could not be loaded: {reason or type(error).__name__}.") from error


def _check_hub(name: str):
    """Refuse a name that is not on the Hub, or cannot be looked up.

    `datasets` itself would go on with any data that it once loaded under the same name, a local folder's included.
    """
    from huggingface_hub import HfApi, constants

    said = f"dataset is {name!r}, which is no file or folder here"
    if constants.HF_HUB_OFFLINE and name.count("/") == 1:
        return  # the user's own choice: `datasets` takes owner/name from its cache, or says that it is not there
    try:
        HfApi().dataset_info(name, timeout=10)
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{said}, and it could not be found on the Hugging Face Hub ({reason}); give an existing path, a Hub name "
            "(owner/name) and a network that reaches huggingface.co, or 'digits', which needs neither."
        ) from error


def _find_columns(where: str, features, image: str | None, label: str | None) -> tuple[str, str | None]:
    """Names of the image column and of the label column (None where the data has no labels)."""
    import datasets

    kinds = {n: f.dtype if isinstance(f, datasets.Value) else type(f).__name__ for n, f in features.items()}
    there = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    for parameter, column in (("image_column", image), ("label_column", label)):
        if column and column not in kinds:
            raise ValueError(f"{parameter} is {column!r}, but the columns of {where} are {there}.")
    if not image:
        images = [name for name, kind in kinds.items() if kind == "Image"]
        if len(images) != 1:
            found = "several columns" if images else "no column"
            raise ValueError(f"{where} has {found} of type Image; set image_column to one of its columns: {there}.")
        image = images[0]
    if kinds[image].removeprefix("large_") not in ("Image", "string", "binary"):
        raise ValueError(f"image_column is {image!r}, which holds no images, bytes or paths; {where} has {there}.")
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    whole = [name for name, kind in kinds.items() if kind.lstrip("u").startswith("int")]
    if label and label not in classes + whole:
        raise ValueError(f"label_column is {label!r}, but labels are ClassLabel or whole numbers; {where} has {there}.")
    if not label:
        found = classes or [name for name in whole if name in _LABEL_NAMES]
        found = [name for name in found if name in _LABEL_NAMES][:1] or found
        if len(found) > 1:
            raise ValueError(f"{where} has several columns of labels; set label_column to one of {', '.join(found)}.")
        label = found[0] if found else None
    return image, label


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
