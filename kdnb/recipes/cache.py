"""The cache of a training notebook: there, and the one that the parameters describe.

A cache is told by what its index says, so that training needs neither the originals nor a network. Only the built-in digits are
cached where they are not; for everything else the error holds the whole command.
"""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

from kdnb import ranks
from kdnb.data.images import open_source, source_names
from kdnb.data.parts import missing
from kdnb.data.precompute import precompute
from kdnb.data.shards import BrokenIndex, read_index
from kdnb.recipes.sources import source_arguments
from kdnb.runs import anchored

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
        with ranks.rank_0_first():
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
