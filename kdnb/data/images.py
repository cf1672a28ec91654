"""Raw images to read from: built-in digits, a folder of pictures, Parquet files, or a dataset of the Hugging Face Hub.

A source hands out pictures as they are stored (encoded bytes, a path, or pixels); `decode` and `resize` make pixels of
them, in this process or in workers. Opening lists the pictures and decodes none. Parquet and Hub data go through `datasets`,
which keeps an Arrow copy of the same size in its cache; `streaming=True` keeps none, and reads in order only.

Every source has: name, classes (list of names or None), num_images (None while streaming), labelled, fingerprint, and
`items(ids)`, which yields (id, encoded, label or None) for rows of the source. Where it is labelled and not streaming,
`labels()` gives all labels, int64 [num_images], without touching a picture.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from kdnb.data.decode import RESIZE_MODES, UnreadableImage, decode, resize
from kdnb.data.splits import SPLITS, no_split
from kdnb.data.tables import Item, StreamSource, TableSource, fingerprint_of, hub_name, open_table

__all__ = ["RESIZE_MODES", "UnreadableImage", "decode", "open_source", "resize", "source_names"]

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif")


def open_source(
    dataset: str,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
) -> "DigitsSource | FolderSource | TableSource | StreamSource":
    """Open a source of images.

    Args:
        dataset: `digits` (built in), a folder of images (subfolders are classes), a Parquet file or a folder with
            Parquet files, or a name on the Hugging Face Hub.
        split: `train`, `test`, ... as the data has it. A folder of images has the splits of which it has subfolders.
        image_column, label_column: columns of Parquet and Hub data; by default the only column of images, and the
            only one of class labels.
        streaming: read Parquet or Hub data in order without a copy on this disk.

    Raises:
        ValueError: no such dataset, split or column; says which there are.
    """
    table = {"image_column": image_column, "label_column": label_column, "streaming": streaming}
    dataset = str(dataset)
    path = Path(dataset).expanduser()
    files = _list_files(path) if path.is_dir() else []
    if not dataset or (path.is_file() and path.suffix != ".parquet"):
        raise ValueError(
            f"dataset is {dataset!r}; allowed are 'digits', a folder of images, a Parquet file (.parquet) or a folder "
            "with such files, or a name on the Hugging Face Hub."
        )
    if dataset != "digits" and (not path.is_dir() or any(name.endswith(".parquet") for name in files)):
        return open_table(dataset, split=split, **table)
    for name, value in table.items():
        if value:
            raise ValueError(f"{name} is {value!r}, but dataset {dataset!r} has no columns and no stream; leave it out.")
    return DigitsSource(split) if dataset == "digits" else FolderSource(path, split, files)


def source_names(dataset: str, split: str) -> set[str]:
    """Names that the source of `open_source(dataset, split=split)` may have: a cache's source is told without opening it.

    What is not on this disk may be a name on the Hub, or a path that is there on another machine.
    """
    path = Path(dataset).expanduser()
    if dataset == "digits":
        return {f"digits/{split}"}
    if path.suffix == ".parquet" and not path.is_dir():
        return {path.stem}
    name = path.resolve().name
    names = {f"{name}/{split}"} | ({name} if split == "train" else set())
    return names if path.exists() else names | {f"{hub_name(dataset)}/{split}"}


class DigitsSource:
    """scikit-learn's handwritten digits, 8x8 in 17 greys, scaled up to 32x32 RGB: 1,500 to train on, 297 to test."""

    labelled = True

    def __init__(self, split: str):
        rows = {"train": range(1500), "test": range(1500, 1797)}
        if split not in rows:
            raise ValueError(no_split("digits", split, rows))
        self.name = f"digits/{split}"
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

    def __init__(self, folder: Path, split: str, files: list[str]):
        files = [name for name in files if name.lower().endswith(_EXTENSIONS)]
        if not files:
            raise ValueError(f"{folder} holds no Parquet files and no images ({', '.join(_EXTENSIONS)}).")
        self.name = folder.resolve().name
        tops = {name.split("/")[0] for name in files}
        if not tops <= set(SPLITS):  # `train` beside `boat` and `plane` is a class
            tops = set()
        if split in tops:
            files = [name.removeprefix(f"{split}/") for name in files if name.startswith(f"{split}/")]
            folder, self.name = folder / split, f"{self.name}/{split}"
        elif tops or split != "train":
            raise ValueError(no_split(str(folder), split, sorted(tops) or ["train"]))
        self._folder = folder
        self._files = sorted(files)
        self.num_images = len(self._files)
        self.labelled = all("/" in name for name in self._files)
        self.classes = None
        if self.labelled:  # empty ones too: a class may be absent from one split
            self.classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self, [[name, os.stat(f"{self._folder}/{name}").st_size] for name in self._files])

    def labels(self) -> np.ndarray:
        number = {name: i for i, name in enumerate(self.classes)}
        return np.array([number[name.split("/")[0]] for name in self._files], dtype=np.int64)

    def items(self, ids: Sequence[int] | None = None) -> Iterator[Item]:
        number = {name: i for i, name in enumerate(self.classes or [])}
        for i in range(self.num_images) if ids is None else ids:
            name = self._files[i]
            yield int(i), self._folder / name, number[name.split("/")[0]] if self.labelled else None


def _list_files(folder: Path) -> list[str]:
    """Every file below `folder` by relative path with forward slashes, hidden ones left out."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(where).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"  # plain text: half a million paths would take two seconds
        found += [prefix + name for name in files if not name.startswith(".")]
    return found
