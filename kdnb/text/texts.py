"""Labelled texts of one split of a data set: CSV or Parquet files, the Hub, or the built-in docstrings.

A text set is read whole: 560,000 rows of 350 letters, the size of DBpedia, take about 3 s and 0.6 GB.
"""

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from kdnb.data.splits import check_file_split, check_hub, find_label_column, no_split, open_split
from kdnb.text.docstrings import read_docstrings

ALIASES = {"dbpedia": "fancyzhx/dbpedia_14", "ag_news": "fancyzhx/ag_news"}
_WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")
_MOST_CLASSES = 65536  # of numbers without names; a larger number is no class but an identifier
_ENDS = (".", "!", "?", ":", ";", ",")


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts in the order of their source.

    Attributes:
        labels: int64 [N], or None where the source has no labels. classes: their names, or None likewise.
        ids: int64 [N], the row in the source, counted from 0.
    """

    name: str
    texts: list[str]
    labels: torch.Tensor | None
    classes: list[str] | None
    ids: torch.Tensor

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the texts, the labels and the names of the classes; about 0.3 s for 100 MB."""
        seen = hashlib.sha256()
        for part in (self.texts, self.classes or []):
            encoded = [text.encode("utf-8", "surrogatepass") for text in part]
            seen.update(np.array([len(part), *map(len, encoded)], dtype=np.int64).tobytes())
            seen.update(b"".join(encoded))
        seen.update(b"unlabelled" if self.labels is None else self.labels.numpy().tobytes())
        return seen.hexdigest()

    def take(self, rows: Sequence[int] | torch.Tensor) -> "Texts":
        """The texts at `rows` (positions among these, not ids), in that order."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, texts=[self.texts[row] for row in rows.tolist()], labels=labels, ids=self.ids[rows])

    @property
    def known_labels(self) -> torch.Tensor:
        """The labels of texts that have some: int64 [N]. Raises ValueError where they have none."""
        if self.labels is None:
            raise ValueError(f"{self.name} has no labels; set label_column.")
        return self.labels

    @property
    def missing_classes(self) -> list[str]:
        """Names of the classes of which there is no text; none where the texts are unlabelled."""
        if self.labels is None or self.classes is None:
            return []
        present = set(self.labels.tolist())
        return [name for number, name in enumerate(self.classes) if number not in present]


def open_texts(
    dataset: str,
    *,
    split: str = "train",
    text_columns: str | Sequence[str] | None = None,
    label_column: str | None = None,
    classes: list[str] | None = None,
) -> Texts:
    """Read one split of a text classification set.

    A row's text is its text columns in order, each stripped, empty ones left out, joined by ". ", or by a space where the
    part before ends in punctuation: title "Stocks up" and content "Oil fell." give "Stocks up. Oil fell.".

    Args:
        dataset: a path that exists: a folder (train.csv, test.csv, perhaps classes.txt; or Parquet files), a CSV or a Parquet
            file. Otherwise `docstrings` (built in, see `kdnb.text.docstrings`), `dbpedia`, `ag_news`, or a Hub name.
            A CSV file whose first cell is a whole number has no header and the columns label, title, content, as the
            sets of Zhang et al. 2015 (arXiv:1509.01626) are distributed: classes count from 1, and classes.txt beside the file
            names them, one a line. Any other CSV file has a header, and numbers of classes count from 0.
        text_columns: by default every column of strings (not all of them numbers) but the label's, in order.
        label_column: of ClassLabel, whole numbers, or strings; by default the only ClassLabel, or the column that is called
            label, class, target or the like. Data without one is unlabelled.
        classes: class names to count by, such as another split's. By default the source's own; without any, the distinct
            strings sorted, or "0", "1", ... up to the largest number.

    Empty texts are left out, and a printed line says how many.

    Raises:
        ValueError: no such dataset, split or column (says which there are), a label that is no class, no text at all.
        FileNotFoundError: a folder without CSV or Parquet files, or a file that is not there.
    """
    dataset = str(dataset)
    columns = _read_columns(dataset, split)
    text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns or [])
    for parameter, column in [("label_column", label_column)] + [("text_columns", column) for column in text_columns]:
        if column and column not in columns.cells:
            raise ValueError(f"{parameter} names {column!r}, but the columns of {dataset} are {', '.join(columns.cells)}.")
    if columns.cells and not any(columns.cells.values()):
        raise ValueError(f"{dataset} has no rows in split {split}.")
    label_column = label_column or columns.label
    text_columns = text_columns or [c for c, cells in columns.cells.items() if c != label_column and _is_text(cells)]
    if not text_columns:
        others = ", ".join(columns.cells)
        raise ValueError(f"{dataset} has no column of texts; set text_columns to one or more of its columns: {others}.")
    texts = [_join(row) for row in zip(*(columns.cells[column] for column in text_columns), strict=True)]
    kept = [row for row, text in enumerate(texts) if text]
    if not kept:
        raise ValueError(f"{dataset} has {len(texts)} rows in split {split}, but no text in {', '.join(text_columns)}.")
    labels = names = None
    if label_column:
        names = classes or columns.classes.get(label_column)
        first = columns.first if label_column == columns.label else 0
        labels, names = _labels(columns.cells[label_column], names, f"{dataset}, column {label_column}", first)
    every = Texts(columns.name, texts, labels, names, torch.arange(len(texts)))
    if len(kept) == len(texts):
        return every
    print(f"{columns.name}: {len(texts) - len(kept)} of {len(texts)} texts are empty and left out.")
    return every.take(kept)


@dataclass(frozen=True)
class _Columns:
    """A split as columns.

    Attributes:
        name: for people. cells: each column's cells, in the order of the rows. label: the column that looks like the label's.
        classes: class names by column, where there are any. first: the number of the first class in `label`, 0 or 1.
    """

    name: str
    cells: Mapping[str, Sequence]
    label: str | None = None
    classes: dict[str, list[str]] = field(default_factory=dict)
    first: int = 0


def _read_columns(dataset: str, split: str) -> _Columns:
    """One split of `dataset`: a path that exists, else `docstrings`, an alias, or a name on the Hub."""
    path = Path(dataset).expanduser()
    if dataset and path.is_dir():
        name, files = f"{path.resolve().name}/{split}", {file.stem: file for file in sorted(path.glob("*.csv"))}
        if not files and not any(path.rglob("*.parquet")):
            raise FileNotFoundError(f"{path} has neither CSV nor Parquet files; put train.csv and test.csv there.")
        if files and split not in files:
            raise ValueError(no_split(dataset, split, files))
        return _read_csv(name, files[split]) if files else _read_table(name, dataset, str(path), split)
    if dataset and path.is_file():
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"dataset is {dataset!r}; allowed are a folder, a CSV file (.csv) or a Parquet file (.parquet).")
        check_file_split(path, split)
        if path.suffix == ".csv":
            return _read_csv(path.stem, path)
        return _read_table(path.stem, dataset, "parquet", split, data_files={split: str(path)})
    if path.suffix in (".csv", ".parquet"):  # no Hub name ends so
        raise FileNotFoundError(f"dataset is {dataset!r}, but there is no such file.")
    if dataset == "docstrings":
        texts, labels, classes = read_docstrings(split)
        return _Columns(f"docstrings/{split}", {"text": texts, "label": labels}, "label", {"label": classes})
    name = ALIASES.get(dataset, dataset)
    check_hub(name, alias=dataset, builtin="docstrings")
    return _read_table(f"{dataset}/{split}", dataset, name, split)


def _read_csv(name: str, path: Path) -> _Columns:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}).") from error
    if not rows:
        raise ValueError(f"{path} is empty; a row has a class and a text at least.")
    header = None if _WHOLE.fullmatch(rows[0][0]) else [cell.strip() for cell in rows.pop(0)]
    names = header or (["label", "title", "content"] + [f"column {n}" for n in range(4, len(rows[0]) + 1)])[: len(rows[0])]
    if len(set(names)) < len(names):
        raise ValueError(f"the header of {path} names a column twice: {', '.join(names)}.")
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(f"row {number} (from 0) of {path} has {len(row)} cells, but there are {len(names)} columns.")
    cells = dict(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True))
    beside = path.with_name("classes.txt")
    lines = beside.read_text(encoding="utf-8-sig").splitlines() if beside.is_file() else []
    classes = [line.strip() for line in lines if line.strip()]
    by_column = dict.fromkeys(names, classes) if classes else {}
    return _Columns(name, cells, find_label_column(str(path), [], names), by_column, first=0 if header else 1)


def _read_table(name: str, dataset: str, load: str, split: str, **files) -> _Columns:
    """The columns of single values; those of lists, pictures and the like are left out."""
    import datasets

    table, *_ = open_split(dataset, load, split, **files)
    classes = {column: kind.names for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    plain = [column for column, kind in table.features.items() if isinstance(kind, datasets.Value) or column in classes]
    label = find_label_column(dataset, list(classes), plain)
    return _Columns(name, {column: table[column][:] for column in plain}, label, classes)


def _is_text(cells: Sequence) -> bool:
    """Whether a column holds strings, not all of them numbers."""
    return any(isinstance(cell, str) and cell.strip() and not _is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _join(parts: Sequence) -> str:
    text = ""
    for part in parts:
        part = "" if part is None else str(part).strip()
        if text and part:
            text += " " if text.endswith(_ENDS) else ". "
        text += part
    return text


def _labels(cells: Sequence, names: list[str] | None, where: str, first: int) -> tuple[torch.Tensor | None, list[str] | None]:
    """Labels from 0 and class names; (None, None) where no row has a label, as in the Hub's own test splits."""
    cells = [cell.strip() or None if isinstance(cell, str) else cell for cell in cells]
    if all(cell is None or (first == 0 and cell == -1) for cell in cells):
        return None, None
    words = [cell for cell in cells if isinstance(cell, str)]
    if first or all(_WHOLE.fullmatch(word) for word in words):
        cells = [int(cell) if isinstance(cell, str) and _WHOLE.fullmatch(cell) else cell for cell in cells]
        words = []
    if words:
        names = names or sorted(set(words))
        numbers: dict = {name: number for number, name in enumerate(names)}
        allowed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    else:
        whole = [cell for cell in cells if isinstance(cell, int)]
        if names is None and whole:
            names = [str(number) for number in range(min(max(max(whole) + 1 - first, 1), _MOST_CLASSES))]
        numbers = {first + number: number for number in range(len(names or ()))}
        allowed = f"whole numbers from {first} to {first + len(numbers) - 1}" if numbers else "whole numbers or strings"
    for row, cell in enumerate(cells):
        if isinstance(cell, float) or cell not in numbers:
            raise ValueError(f"row {row} (from 0) of {where} has the label {cell!r}; allowed are {allowed}.")
    return torch.tensor([numbers[cell] for cell in cells], dtype=torch.int64), list(names or ())
