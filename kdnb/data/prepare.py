"""The data that parameters name: the cache of a run, and the labelled images that its models are judged on."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdnb import distributed
from kdnb.data.cache import BrokenIndex, covered, made_from, missing, read_index
from kdnb.data.datasets import CachedTensorDataset, RandomSubsetCachedDataset
from kdnb.data.loader import BatchReader
from kdnb.data.precompute import precompute
from kdnb.data.reader import ShardReader
from kdnb.data.sources import HELD_OUT, PartSource, hub_name, is_local, open_source, open_source_of, source_names, whole_name
from kdnb.data.splits import NoSplit
from kdnb.distributed import find_device
from kdnb.files import Damaged, hash_of, read_json, write_json
from kdnb.hub import is_offline
from kdnb.progress import Display
from kdnb.runs import anchored

STORE = "outputs/cache_evaluation"
_QUICK = 5000  # images that are decoded without a display
_RECORDED = ("image_size", "resize")  # how the images were cut into shards does not matter to training


def held_out_batches(
    *, dataset: str, eval_split: str | None, image_column: str | None, label_column: str | None, streaming: bool = False,
    image_size: int, resize: str, num_workers: int = 0, cache_dir: str | Path | None = None,
) -> BatchReader | None:  # fmt: skip
    """All images of `eval_split`, labelled, of the size of the cache; None without a split or without labels.

    `held_out`, or `test` where there is none, are the images that the cache of the run in `cache_dir` leaves out for this.

    Raises:
        ValueError: no such split, or images that were added or removed since the cache was made.
    """
    if eval_split is None:
        return None
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "streaming": streaming}
    source: dict[str, Any] = {"dataset": dataset, "split": eval_split, **columns}
    if eval_split in ("test", HELD_OUT) and (share := held_out_share(cache_dir, dataset)):
        source["held_out"] = share
        with naming_eval_split():
            part = open_source(**source)
        if isinstance(part, PartSource) and not made_from(read_index(anchored(cache_dir or "")), part.others):
            raise ValueError(
                f"dataset {dataset} does not hold the same images as when {cache_dir} was made, and those that were held out are "
                "not known any more; make the cache anew, with another cache_dir, and train again."
            )
        if isinstance(part, PartSource) and eval_split == "test":
            print(f"{dataset} has no split test; the {share:.0%} of each class that {cache_dir} holds out take its place")
    with naming_eval_split():
        return _cached_batches(source, None, image_size=image_size, resize=resize, num_workers=num_workers)


def training_batches(
    count: int, *, classes: list[str] | None, dataset: str, split: str, image_column: str | None, label_column: str | None,
    streaming: bool = False, cache_dir: str | Path, image_size: int, resize: str, num_workers: int = 0,
) -> BatchReader | None:  # fmt: skip
    """`count` labelled training images at most, with the names `classes`, at random: from the cache in `cache_dir` where it
    holds them, else cached now; None where `split` has no labels."""
    source: dict[str, Any] = {"dataset": dataset, "split": split, "image_column": image_column, "label_column": label_column}
    source |= {"streaming": streaming}
    sizes: dict[str, Any] = {"image_size": image_size, "resize": resize}
    if holds_training_part(count, classes=classes, cache_dir=cache_dir, **source, **sizes):
        return drawn_batches(anchored(cache_dir), count)
    if share := held_out_share(cache_dir, dataset):
        source["held_out"] = share
    return _cached_batches(source, count, **sizes, num_workers=num_workers)


def holds_training_part(
    count: int, *, classes: list[str] | None, dataset: str, split: str, image_column: str | None, label_column: str | None,
    streaming: bool = False, cache_dir: str | Path, image_size: int, resize: str,
) -> bool:  # fmt: skip
    """Whether `training_batches` finds its images in `cache_dir`, so that `split` need not be read."""
    try:
        index = read_index(anchored(cache_dir))
    except (FileNotFoundError, ValueError):  # none, or a broken one
        return False
    wanted = {"classes": classes, "labelled": True, "storage": "uint8", "image_size": image_size, "resize": resize}
    if any(index[name] != value for name, value in wanted.items()):
        return False
    if is_local(dataset):
        columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "streaming": streaming}
        same = made_from(index, open_source_of(cache_dir, dataset, split=split, **columns))
    else:  # opening a data set of the Hub might fetch it all: its name has to do
        same = whole_name(index["source"])[0] == f"{hub_name(dataset)}/{split}"
    return same and _enough(index, count, permuted=streaming or index["permutation_seed"] is not None)


def drawn_batches(cache_dir: Path, count: int) -> BatchReader:
    """`count` images of a cache at most, at random: the same in every call."""
    count = min(count, len(ShardReader(cache_dir)))
    return _batches(RandomSubsetCachedDataset(cache_dir, samples_per_epoch=count))


def class_names(*readers: ShardReader) -> list[str]:
    """Names of the classes in labelled caches; numbers where the data has none."""
    names = readers[0].index["classes"]
    return names or [str(n) for n in range(1 + max(int(reader.labels.max()) for reader in readers if reader.labels is not None))]


@contextlib.contextmanager
def naming_eval_split() -> Iterator[None]:
    """Inside, a split that is not there is called by the parameter that names it, with what to do."""
    try:
        yield
    except NoSplit as error:
        ways = "name one that is there, or null for none, or make a new cache with held_out, the share of each class that judges"
        raise NoSplit(f"eval_{str(error).rstrip('.')}; {ways}.", error.splits) from None


def held_out_share(cache_dir: str | Path | None, dataset: str) -> float:
    """The share of `dataset` that the cache in `cache_dir` holds out; 0 for no cache, or one of other images."""
    try:
        name, share = whole_name(read_index(anchored(cache_dir or ""))["source"])
    except (FileNotFoundError, ValueError):
        return 0.0
    return share if name in source_names(dataset, "train") else 0.0


def _enough(index: dict, count: int, *, permuted: bool) -> bool:
    """Whether a cache holds `count` images that are a fair sample of its source (the first of it may be few classes), or all."""
    if sum(map(covered, index["shards"])) == index["num_images"] == index.get("source_images"):
        return True
    return permuted and sum(shard["rows"] for shard in index["shards"]) >= count


def _cached_batches(
    source_arguments: dict, most: int | None, *, image_size: int, resize: str, num_workers: int
) -> BatchReader | None:
    """The labelled images of a source, or `most` of them, from a cache that is made now where there is none.

    A stream cannot be opened without a network, not even to see that its images are cached: a note says which cache is its.
    """
    note = anchored(STORE) / "streamed" / f"{hash_of([source_arguments, most, image_size, resize])}.json"
    if source_arguments["streaming"] and is_offline():
        with contextlib.suppress(FileNotFoundError, Damaged):
            folder = anchored(STORE) / read_json(note)["folder"]
            if (folder / "index.json").exists():
                return _batches(CachedTensorDataset(folder))
    source = open_source(**source_arguments)
    if not source.labelled:
        return None
    name = re.sub(r"\W+", "_", f"{source.name}_{image_size}_{resize}_{most or 'all'}_{source.fingerprint[:8]}")
    folder, streamed = anchored(STORE) / name, source.num_images is None
    seed = None if streamed else 0  # a source may be sorted by class
    if streamed and most:
        print(f"{source.name} is streamed: its first {most:,} images are taken, not any {most:,}", flush=True)
    with distributed.rank_0_first(), contextlib.ExitStack() as watched:
        lines: Display | bool = False
        if streamed or min(most or source.num_images, source.num_images) > _QUICK:
            lines = watched.enter_context(Display(most or source.num_images, title=f"cache {source.name}", unit="image"))
        precompute(
            source, folder, image_size=image_size, max_samples=most, resize=resize, permutation_seed=seed,
            num_workers=num_workers, parts=1, progress=lines,
        )  # fmt: skip
        if streamed and distributed.rank() == 0:
            note.parent.mkdir(exist_ok=True)
            write_json(note, {"folder": name})
    return _batches(CachedTensorDataset(folder))


def _batches(data: CachedTensorDataset) -> BatchReader:
    return BatchReader(data, batch_size=100, device=find_device(), drop_last=False)


def ensure_cache(
    *, dataset: str, split: str, image_column: str | None, label_column: str | None, streaming: bool = False,
    cache_dir: str | Path, cache_shard_size: int, image_size: int, resize: str,
) -> dict:  # fmt: skip
    """The index of the cache in `cache_dir`; the built-in digits are cached now where they are not, in a second.

    Raises:
        ValueError: the cache holds other images, or others of their sizes, than the parameters say.
        FileNotFoundError: no cache, with the command that makes one.
    """
    wanted = dict(locals())
    folder, builtin, index = anchored(cache_dir), dataset == "digits", {}
    try:
        index = read_index(folder)
        _refuse_other(index, wanted)
    except FileNotFoundError:
        if not builtin:
            raise FileNotFoundError(f"Index file not found: {folder / 'index.json'}. {_what_to_do(folder, wanted)}") from None
    except BrokenIndex:
        if not builtin:
            raise
    if builtin:  # also where there is an index: it may not list all shards yet, or be broken
        with distributed.rank_0_first():
            precompute(
                dataset, folder, split=split, image_size=image_size, cache_shard_size=cache_shard_size, resize=resize,
                parts=1, progress=False,
            )  # fmt: skip
        return read_index(folder)
    return index


def precompute_command(**parameters) -> str:
    """The papermill command, quoted for a shell, that makes the cache which the parameters describe."""
    meant = {name: str(value) for name, value in parameters.items() if value is not None and value is not False}
    words = [f"-p {name} {shlex.quote(value)}" for name, value in meant.items()]
    return " ".join(["papermill notebooks/precompute.ipynb out.ipynb", *words])


def _refuse_other(index: dict, wanted: dict):
    """Raise where the cache of `index` is not the one that the parameters describe, naming all that differs."""
    dataset, split, cache_dir = wanted["dataset"], wanted["split"], wanted["cache_dir"]
    differs = []
    if whole_name(index["source"])[0] not in source_names(dataset, split):
        differs.append(f"dataset is {dataset!r} (split {split}), the cache holds {index['source']}")
    differs += [f"{name} is {wanted[name]!r}, the cache has {index[name]!r}" for name in _RECORDED if wanted[name] != index[name]]
    if differs:
        facts = [Path(dataset).name, split, *(wanted[name] for name in (*_RECORDED, "cache_shard_size"))]
        other = str(Path(cache_dir).with_name("cache_" + re.sub(r"\W+", "_", "_".join(map(str, facts)))))
        raise ValueError(
            f"cache_dir {cache_dir} is not the cache that the parameters describe: {'; '.join(differs)}. Give what the cache "
            f"holds, or cache_dir {other}, which this command makes: {precompute_command(**wanted | {'cache_dir': other})}"
        )


def _what_to_do(folder: Path, wanted: dict) -> str:
    if unmade := missing(folder):
        return f"Several jobs fill this cache, and {len(unmade)} of its shards are missing; wait for them, or start them again."
    return f"Make the cache with: {precompute_command(**wanted)}"
