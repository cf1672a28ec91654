"""Texts and their classes.

A text set is read whole: 560,000 rows of 350 letters, the size of DBpedia, take about 3 s and 0.6 GB.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from kdnb.data.textfiles import WHOLE, read_columns

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
            file. Otherwise `docstrings` (built in, see `kdnb.data.docstrings`), `dbpedia`, `ag_news`, or a Hub name.
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
    columns = read_columns(dataset, split)
    text_columns = [text_columns] if isinstance(text_columns, str) else list(text_columns or [])
    for parameter, column in [("label_column", label_column)] + [("text_columns", column) for column in text_columns]:
        if column and column not in columns.cells:
            raise ValueError(f"{parameter} names {column!r}, but the columns of {dataset} are {', '.join(columns.cells)}.")
    if columns.cells and not any(columns.cells.values()):
        raise ValueError(f"{dataset} has no rows in split {split}.")
    label_column = label_column or columns.label
    text_columns = text_columns or [c for c, cells in columns.cells.items() if c != label_column and _is_text(cells)]
    if not text_columns:
        there = ", ".join(columns.cells)
        raise ValueError(f"{dataset} has no column of texts; set text_columns to one or more of its columns: {there}.")
    parts = (columns.cells[column] for column in text_columns)
    texts = [_join(row) for row in zip(*parts, strict=True)]
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


def missing_classes(texts: Texts) -> list[str]:
    """Names of the classes of which there is no text; none where the texts are unlabelled."""
    if texts.labels is None:
        return []
    counts = torch.bincount(texts.labels, minlength=len(texts.classes)).tolist()
    return [name for name, count in zip(texts.classes, counts, strict=True) if not count]


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
    if words and (first or all(WHOLE.fullmatch(word) for word in words)):
        cells = [int(cell) if isinstance(cell, str) and WHOLE.fullmatch(cell) else cell for cell in cells]
        words = []
    if words:
        names = sorted(set(words)) if names is None else names
        numbers = {name: number for number, name in enumerate(names)}
        allowed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    else:
        whole = [cell for cell in cells if isinstance(cell, int)]
        if names is None and whole:
            most = min(max(max(whole) + 1 - first, 1), _MOST_CLASSES)
            names = [str(number) for number in range(most)]
        numbers = {first + number: number for number in range(len(names or []))}
        allowed = f"whole numbers from {first} to {first + len(numbers) - 1}" if numbers else "whole numbers or strings"
    for row, cell in enumerate(cells):
        if isinstance(cell, float) or cell not in numbers:
            raise ValueError(f"row {row} (from 0) of {where} has the label {cell!r}; allowed are {allowed}.")
    return torch.tensor([numbers[cell] for cell in cells], dtype=torch.int64), list(names)
