"""Columns of text sets: CSV files as the classification sets of Zhang et al. are distributed, Parquet, the Hub, docstrings.

A split is read whole: a text set is small beside pictures. Parquet and Hub data go through `datasets`, which keeps an Arrow copy
of the same size in its cache.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdnb.data.docstrings import read_docstrings
from kdnb.data.splits import LABEL_NAMES, SPLITS, check_hub, no_split, open_split

ALIASES = {"dbpedia": "fancyzhx/dbpedia_14", "ag_news": "fancyzhx/ag_news"}
WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")


@dataclass(frozen=True)
class Columns:
    """A split as columns.

    Attributes:
        name: for people. cells: each column's cells, in the order of the rows. label: the column that looks like the label's.
        classes: class names by column, where there are any. first: the number of the first class in `label`, 0 or 1.
    """

    name: str
    cells: dict[str, Sequence]
    label: str | None = None
    classes: dict[str, list[str]] = field(default_factory=dict)
    first: int = 0


def read_columns(dataset: str, split: str) -> Columns:
    """One split of `dataset`: a path that exists, else `docstrings`, an alias, or a name on the Hub.

    Raises:
        ValueError: no such dataset or split (says which there are), a broken file.
        FileNotFoundError: a folder without CSV or Parquet files, or a file that is not there.
    """
    path = Path(dataset).expanduser()
    if dataset and path.is_dir():
        return _read_folder(path, split)
    if dataset and path.is_file():
        return _read_file(path, split)
    if path.suffix in (".csv", ".parquet"):  # no Hub name ends so
        raise FileNotFoundError(f"dataset is {dataset!r}, but there is no such file.")
    if dataset == "docstrings":
        texts, labels, classes = read_docstrings(split)
        return Columns(f"docstrings/{split}", {"text": texts, "label": labels}, "label", {"label": classes})
    name = ALIASES.get(dataset, dataset)
    try:
        check_hub(name)
    except ValueError as error:
        reason = " ".join(str(error.__cause__).split())[:120] or type(error.__cause__).__name__
        short = f" (short for {name})" if name != dataset else ""
        raise ValueError(
            f"dataset is {dataset!r}{short}, which is no file or folder here, and it could not be found on the Hugging Face "
            f"Hub ({reason}); give an existing path, a Hub name (owner/name) and a network that reaches huggingface.co, or "
            "'docstrings', which needs neither."
        ) from error.__cause__
    return _read_table(f"{dataset}/{split}", dataset, name, split)


def _read_folder(path: Path, split: str) -> Columns:
    name = f"{path.resolve().name}/{split}"
    files = {file.stem: file for file in sorted(path.glob("*.csv"))}
    if files:
        if split not in files:
            raise ValueError(no_split(str(path), split, files))
        return _read_csv(name, files[split])
    if not any(path.rglob("*.parquet")):
        raise FileNotFoundError(f"{path} has neither CSV nor Parquet files; put train.csv and test.csv there.")
    return _read_table(name, str(path), str(path), split)


def _read_file(path: Path, split: str) -> Columns:
    """The one split that a file has; `train`, the default, is taken for not having said."""
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"dataset is {str(path)!r}; allowed are a folder, a CSV file (.csv) or a Parquet file (.parquet).")
    splits = [name for name in SPLITS if path.name.startswith(name)] or ["train"]
    if split not in (*splits, "train"):
        raise ValueError(no_split(str(path), split, splits))
    if path.suffix == ".csv":
        return _read_csv(path.stem, path)
    return _read_table(path.stem, str(path), "parquet", split, data_files={split: str(path)})


def _read_csv(name: str, path: Path) -> Columns:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}).") from error
    if not rows:
        raise ValueError(f"{path} is empty; a row has a class and a text at least.")
    header = None if WHOLE.fullmatch(rows[0][0]) else [cell.strip() for cell in rows.pop(0)]
    names = header or (["label", "title", "content"] + [f"column {n}" for n in range(4, len(rows[0]) + 1)])[: len(rows[0])]
    if len(set(names)) < len(names):
        raise ValueError(f"the header of {path} names a column twice: {', '.join(names)}.")
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise ValueError(f"row {number} (from 0) of {path} has {len(row)} cells, but there are {len(names)} columns.")
    cells = dict(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True))
    likely = [column for column in names if column.lower() in LABEL_NAMES]
    beside = path.with_name("classes.txt")
    lines = beside.read_text(encoding="utf-8-sig").splitlines() if beside.is_file() else []
    classes = [line.strip() for line in lines if line.strip()]
    by_column = dict.fromkeys(names, classes) if classes else {}
    return Columns(name, cells, _only(likely, str(path)), by_column, first=0 if header else 1)


def _read_table(name: str, dataset: str, load: str, split: str, **files) -> Columns:
    """The columns of single values; those of lists, pictures and the like are left out."""
    import datasets

    table, _ = open_split(dataset, load, split, **files)
    classes = {column: kind.names for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    plain = [column for column, kind in table.features.items() if isinstance(kind, datasets.Value) or column in classes]
    likely = [column for column in classes or plain if column.lower() in LABEL_NAMES]
    label = likely[0] if classes and likely else _only(likely or list(classes), dataset)
    return Columns(name, {column: table[column][:] for column in plain}, label, classes)


def _only(likely: list[str], where: str) -> str | None:
    """The only column that may hold labels."""
    if len(likely) > 1:
        raise ValueError(f"{where} has several columns of labels; set label_column to one of {', '.join(likely)}.")
    return likely[0] if likely else None
