"""One split of a data set that `datasets` reads (Parquet, tar files, the Hub), and no file of another.

`datasets.load_dataset(..., split=...)` fetches and converts every split before it hands out one: whoever judges on ImageNet's
validation images would wait for its 150 GB of training images. Here the other splits' files are taken from the list first.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdnb.hub import WITHOUT_NETWORK, is_offline

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev")
LABEL_NAMES = ("label", "labels", "class", "classes", "target", "targets", "category", "cls")  # the last in tar files
Columns = Callable[[dict], Sequence[str]]


class NoSplit(ValueError):
    """A data set has no split of this name; `splits` are those that it has."""

    def __init__(self, message: str, splits):
        super().__init__(message)
        self.splits = [str(name) for name in splits]


def open_split(dataset: str, load: str, split: str, *, streaming: bool = False, columns: Columns | None = None, **files) -> tuple:
    """(`datasets.Dataset`, or `datasets.IterableDataset` with its features; what tells its files; the names of all splits).

    Args:
        dataset: the data set's name, for messages. load, files: arguments of `datasets.load_dataset_builder`.
        streaming: read in order without an Arrow copy. columns: from the features to the columns wanted; of Parquet files that
            are streamed, the bytes of the others are not read.

    Raises:
        ValueError: no such data set. NoSplit: no such split (says which there are).
    """
    import datasets

    if is_offline() and not files and not Path(load).exists():
        table = prepared_before(load, split)
        if table is None:
            offline = f"split is {split!r}, which is not here of dataset {dataset}, and HF_HUB_OFFLINE is set; {WITHOUT_NETWORK}."
            raise NoSplit(offline, _splits_before(load))
        table = table.to_iterable_dataset() if streaming else table
        return _select(table, columns), None, _splits_before(load)
    builder = ask(dataset, datasets.load_dataset_builder, load, **files)
    splits = builder.config.data_files or builder.info.splits or {}
    if split not in splits:
        raise NoSplit(no_split(dataset, split, splits), splits)
    whole, file_facts = Path(builder.cache_dir), None
    if builder.config.data_files and (streaming or not (whole / "dataset_info.json").exists()):
        mine = splits[split]
        file_facts = [list(mine), list(mine.origin_metadata)]
        builder.config.data_files = type(splits)({split: mine})
        builder.info.size_in_bytes = None  # of all splits, for which the disk may have no room
        if len(splits) > 1:  # beside the copy that `datasets` makes of all splits
            whole = whole.parents[1].with_name(f"{whole.parents[1].name}-{split}") / whole.parent.name / whole.name
    if streaming:
        return ask(dataset, _stream, builder, split, columns), file_facts, list(splits)
    ask(dataset, builder.download_and_prepare, str(whole), verification_mode="no_checks")
    return _select(ask(dataset, builder.as_dataset, split), columns), file_facts, list(splits)


def no_split(dataset: str, split: str, splits) -> str:
    """What to say when `dataset` has no `split`."""
    return f"split is {split!r}, but dataset {dataset} has {', '.join(map(str, splits))}."


def ask(dataset: str, function: Callable, *args, **kwargs):
    """Call into `datasets`, whose errors are of many kinds, some pages long."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"dataset {dataset} could not be loaded: {reason or type(error).__name__}.") from error


def check_file_split(path: Path, split: str):
    """Refuse another split than the one that a single file has by its name; `train`, the default, stands for it: NoSplit."""
    splits = [name for name in SPLITS if path.name.startswith(name)] or ["train"]
    if split not in (*splits, "train"):
        raise NoSplit(no_split(str(path), split, splits), splits)


def check_hub(name: str, *, alias: str | None = None, builtin: str = "digits"):
    """Refuse a name that is not on the Hub, or cannot be looked up.

    `datasets` itself would go on with any data that it once loaded under the same name, a local folder's included.

    Args:
        alias: the value of `dataset`, where `name` is what it is short for. builtin: a data set that needs no network.
    """
    from huggingface_hub import HfApi

    if is_offline() and name.count("/") == 1:
        return  # the user's own choice: owner/name is taken from the cache of `datasets`, or is not there
    try:
        HfApi().dataset_info(name, timeout=10)
    except Exception as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        short = f"{alias!r} (short for {name})" if alias not in (None, name) else repr(name)
        raise ValueError(
            f"dataset is {short}, which is no file or folder here, and it could not be found on the Hugging Face Hub ({reason}); "
            f"give an existing path, or {builtin!r}{f'; {WITHOUT_NETWORK}' if '/' in name else ''}."
        ) from error


def find_columns(where: str, features, image: str | None, label: str | None) -> tuple[str, str | None]:
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
            count = "several columns" if images else "no column"
            raise ValueError(f"{where} has {count} of type Image; set image_column to one of its columns: {there}.")
        image = images[0]
    if kinds[image].removeprefix("large_") not in ("Image", "string", "binary"):
        raise ValueError(f"image_column is {image!r}, which holds no images, bytes or paths; {where} has {there}.")
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    whole = [name for name, kind in kinds.items() if kind.lstrip("u").startswith("int")]
    if label and label not in classes + whole:
        raise ValueError(f"label_column is {label!r}, but labels are ClassLabel or whole numbers; {where} has {there}.")
    return image, label or find_label_column(where, classes, whole)


def find_label_column(where: str, classes: Sequence[str], others: Sequence[str]) -> str | None:
    """The only column of class labels, or the one called label, class, target or the like; None where there is none.

    Args:
        classes: columns of type ClassLabel. others: columns that hold labels where their name says so.

    Raises:
        ValueError: several such columns.
    """
    named = [name for name in classes or others if name.lower() in LABEL_NAMES]
    likely = named[:1] if classes and named else named or list(classes)
    if len(likely) > 1:
        raise ValueError(f"{where} has several columns of labels; set label_column to one of {', '.join(likely)}.")
    return likely[0] if likely else None


def _stream(builder, split: str, columns: Columns | None):
    stream = builder.as_streaming_dataset(split)
    if stream.features is None:  # some formats tell only after the first rows
        stream = stream._resolve_features()
    if columns is not None and builder.name == "parquet":
        builder.config.columns = list(columns(stream.features))
        stream = builder.as_streaming_dataset(split)
    return _select(stream, columns)


def _select(table, columns: Columns | None):
    return table if columns is None else table.select_columns(list(columns(table.features)))


def prepared_before(name: str, split: str):
    """The newest copy of a split of the Hub's data set `name` that was made here, of all splits or of this one; None: none."""
    import datasets

    for folder, splits in sorted(_copies(name), key=lambda copy: copy[0].stat().st_mtime, reverse=True):
        if split in splits:
            mine = re.compile(rf".*-{re.escape(split)}(-\d+-of-\d+)?\.arrow")
            files = sorted(path for path in folder.iterdir() if mine.fullmatch(path.name))
            return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in files])
    return None


def _copies(name: str) -> Iterator[tuple[Path, list[str]]]:
    """(folder, splits) of every Arrow copy of the Hub's data set `name` that was made here."""
    for info in copies_folder(name).glob("*/*/*/dataset_info.json"):
        yield info.parent, list(json.loads(info.read_text(encoding="utf-8"))["splits"] or ())


def _splits_before(name: str) -> list[str]:
    """The splits of which there are copies, and "others" where a copy's folder is called as one of several: see `open_split`."""
    copies = list(_copies(name))
    others = any(folder.parents[1].name.endswith(f"-{split}") for folder, splits in copies for split in splits)
    return sorted({split for _, splits in copies for split in splits}) + ["others"] * others


def copies_folder(name: str) -> Path:
    """Where `datasets` keeps its Arrow copies of the Hub's data set `name`."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    owner, _, short = name.rpartition("/")
    return Path(datasets.config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(short)}"
