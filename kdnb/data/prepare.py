"""The data that parameters name: the cache of a run, and the labelled images that its models are judged on."""

import contextlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

from kdnb import distributed
from kdnb.data.cache import BrokenIndex, read_index
from kdnb.data.cache_writer import covered, made_from, missing
from kdnb.data.datasets import CachedTensorDataset, RandomSubsetCachedDataset
from kdnb.data.loader import BatchReader
from kdnb.data.precompute import precompute
from kdnb.data.reader import ShardReader
from kdnb.data.sources import hub_name, open_source, source_names
from kdnb.distributed import find_device
from kdnb.progress import Display
from kdnb.runs import anchored, local_or_hub

STORE = "outputs/cache_evaluation"


_QUICK = 5000  # images that are decoded without a display


def source_arguments(p: SimpleNamespace, split: str | None = None) -> dict:
    """Arguments of `open_source` for the notebook's data, or for another split of it."""
    if p.dataset is None:
        raise ValueError("dataset is None; give digits, cifar10, an image folder, Parquet, or a data set on the Hub.")
    names = {"split": split or p.split, "image_column": p.image_column, "label_column": p.label_column}
    names |= {"streaming": getattr(p, "streaming", False)}  # which an older run's parameters do not know
    return {"dataset": p.dataset if p.dataset == "digits" else local_or_hub(p.dataset), **names}


def held_out_batches(p: SimpleNamespace) -> BatchReader | None:
    """All images of `p.eval_split`, labelled, as `p.image_size` and `p.resize` say; None without a split or without labels."""
    return None if p.eval_split is None else _cached(p, p.eval_split)


def training_batches(p: SimpleNamespace, count: int, *, classes: list[str] | None) -> BatchReader | None:
    """`count` labelled training images at most, with the names `classes`, at random: from the cache in `p.cache_dir` where it
    holds them, else cached now; None where `p.split` has no labels."""
    folder = anchored(p.cache_dir)
    try:
        index = read_index(folder)
    except (FileNotFoundError, ValueError):  # none, or a broken one
        index = None
    if index is not None and index["classes"] == classes and _holds(index, p, count):
        return drawn_batches(folder, count)
    return _cached(p, p.split, most=count)


def drawn_batches(cache_dir: Path, count: int) -> BatchReader:
    """`count` images of a cache at most, at random: the same in every call."""
    count = min(count, len(ShardReader(cache_dir)))
    return _batches(RandomSubsetCachedDataset(cache_dir, samples_per_epoch=count))


def class_names(*readers: ShardReader) -> list[str]:
    """Names of the classes in labelled caches; numbers where the data has none."""
    names = readers[0].index["classes"]
    return names or [str(number) for number in range(1 + max(int(reader.labels.max()) for reader in readers))]


def _holds(index: dict, p: SimpleNamespace, count: int) -> bool:
    """Whether a cache holds `count` labelled images of `p.split` (or all that there are), as `p` wants them."""
    wanted = {"labelled": True, "storage": "uint8", "image_size": p.image_size, "resize": p.resize}
    rows = sum(shard["rows"] for shard in index["shards"])
    everything = sum(map(covered, index["shards"])) == index["num_images"] == index.get("source_images")
    fair = index["permutation_seed"] is not None or getattr(p, "streaming", False)  # the first of a source may be few classes
    enough = everything or (fair and rows >= count)
    if not enough or any(index[name] != value for name, value in wanted.items()):
        return False
    arguments = source_arguments(p)
    if arguments["dataset"] == "digits" or Path(arguments["dataset"]).expanduser().exists():
        return made_from(index, open_source(**arguments))
    return index["source"] == f"{hub_name(arguments['dataset'])}/{p.split}"  # opening it might fetch it all


def _cached(p: SimpleNamespace, split: str, *, most: int | None = None) -> BatchReader | None:
    """The labelled images of a split, or `most` of them, from a cache that is made now where there is none."""
    source = open_source(**source_arguments(p, split))
    if not source.labelled:
        return None
    name = re.sub(r"\W+", "_", f"{source.name}_{p.image_size}_{p.resize}_{most or 'all'}_{source.fingerprint[:8]}")
    folder, streamed = anchored(STORE) / name, source.num_images is None
    settings = {"image_size": p.image_size, "resize": p.resize, "max_samples": most, "num_workers": getattr(p, "num_workers", 0)}
    settings["permutation_seed"] = None if streamed else 0  # a source may be sorted by class
    if streamed and most:
        print(f"{source.name} is streamed: its first {most:,} images are taken, not any {most:,}", flush=True)
    with distributed.rank_0_first(), contextlib.ExitStack() as watched:
        lines = None
        if streamed or min(most or source.num_images, source.num_images) > _QUICK:
            lines = watched.enter_context(Display(most or source.num_images, title=f"cache {source.name}", unit="image"))
        precompute(source, folder, progress=lines, **settings)
    return _batches(CachedTensorDataset(folder))


def _batches(data: CachedTensorDataset) -> BatchReader:
    return BatchReader(data, batch_size=100, device=find_device(), drop_last=False)


# Parameters of precompute that a training notebook has as well, and those of them that have to be the cache's.
_NEEDED = (
    "dataset", "split", "image_column", "label_column", "streaming", "cache_dir", "cache_shard_size", "image_size", "resize",
)  # fmt: skip


_RECORDED = ("image_size", "resize")  # how the images were cut into shards does not matter to training


def ensure_cache(p: SimpleNamespace) -> dict:
    """The index of the cache in `p.cache_dir`; the built-in digits are cached now where they are not, in a second.

    Raises:
        ValueError: the cache holds other images, or others of their sizes, than the parameters say.
        FileNotFoundError: no cache, with the command that makes one.
    """
    folder, source = anchored(p.cache_dir), source_arguments(p)
    builtin = source["dataset"] == "digits"
    try:
        index = read_index(folder)
    except FileNotFoundError:
        index = None
    except BrokenIndex:
        if not builtin:  # whose index is mended below
            raise
        index = None
    if index is not None:
        _refuse_other(p, index, source_names(source["dataset"], source["split"]))
    if builtin:  # also where there is an index: it may not list all shards yet
        sizes = {"image_size": p.image_size, "shard_size": p.cache_shard_size, "resize": p.resize}
        with distributed.rank_0_first():
            precompute(open_source(**source), folder, **sizes)
        return read_index(folder)
    if index is None:
        raise FileNotFoundError(f"Index file not found: {folder / 'index.json'}. {_what_to_do(p, folder)}")
    return index


def precompute_command(p: SimpleNamespace, **changes) -> str:
    """The papermill command, quoted for a shell, that makes the cache which `p` asks for."""
    values = {name: getattr(p, name, None) for name in _NEEDED} | changes
    given = [f"-p {name} {shlex.quote(str(value))}" for name, value in values.items() if value is not None and value is not False]
    return " ".join(["papermill notebooks/precompute.ipynb out.ipynb", *given])


def _refuse_other(p: SimpleNamespace, index: dict, names: set[str]):
    """Raise where the cache of `index` is not the one that the parameters describe, naming all that differs."""
    differs = []
    if index["source"] not in names:
        differs.append(f"dataset is {p.dataset!r} (split {p.split}), the cache holds {index['source']}")
    for name in _RECORDED:
        if getattr(p, name) != index[name]:
            differs.append(f"{name} is {getattr(p, name)!r}, the cache has {index[name]!r}")
    if differs:
        what = re.sub(r"\W+", "_", f"{Path(p.dataset).name}_{p.split}_{p.image_size}_{p.resize}_{p.cache_shard_size}")
        other = str(Path(p.cache_dir).with_name(f"cache_{what}"))
        raise ValueError(
            f"cache_dir {p.cache_dir} is not the cache that the parameters describe: {'; '.join(differs)}. Give what the cache "
            f"holds, or cache_dir {other}, which this command makes: {precompute_command(p, cache_dir=other)}"
        )


def _what_to_do(p: SimpleNamespace, folder: Path) -> str:
    if unmade := missing(folder):
        return f"Several jobs fill this cache, and {len(unmade)} of its shards are missing; wait for them, or start them again."
    return f"Make the cache with: {precompute_command(p)}"
