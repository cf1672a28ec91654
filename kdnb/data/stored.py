"""The folder of a cache that is being filled: what it holds already, whether it may be gone on with, who may write to it.

Comparing facts and file sizes costs next to nothing; shards that the index does not list are read once, all of them where
`verify` is asked for.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from kdnb.data.shards import (
    CACHE_KEYS,
    FORMAT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    BrokenIndex,
    ShardError,
    adopt_shard,
    check_shard,
    find_shards,
    open_shard,
    quick_fault,
    read_index,
)
from kdnb.progress import format_bytes

# What, besides the source, decides on the bytes of a shard. How many images are stored does not: a cache may grow.
_PREPROCESSING = ("format", "image_size", "resize", "storage", "mean", "std", "shard_size", "permutation_seed")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_log = logging.getLogger(__name__)


class CacheError(OSError):
    """A cache that cannot be written where it was asked for."""


def cache_facts(source, *, image_size: int, resize: str, storage: str, shard_size: int, permutation_seed: int | None) -> dict:
    """What the index and each shard say about how they were made; the fingerprint sums it up."""
    facts = {
        "format": FORMAT,
        "fingerprint": "",
        "source": source.name,
        "image_size": image_size,
        "resize": resize,
        "storage": storage,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "shard_size": shard_size,
        "permutation_seed": permutation_seed,
        "classes": source.classes,
        "labelled": source.labelled,
    }
    return facts | {"fingerprint": _fingerprint(facts, source)}


def stored_shards(
    folder: Path, source, facts: dict, *, verify: bool, mine: Callable[[int], bool] = lambda number: True
) -> tuple[dict, dict | None, dict[int, dict]]:
    """(facts, index as it is on the disk or None, entries of whole shards by number) of the cache in `folder`.

    Shards that are not `mine` are another job's, and only listed where the index lists them; but all have to be of this cache.
    The facts returned keep the name under which the source was first read, so that new shards match the old ones.

    Raises:
        ValueError: the folder holds shards of another source or of other preprocessing.
    """
    try:
        index = read_index(folder)
    except FileNotFoundError:
        index = None
    except BrokenIndex:
        _log.warning("the index in %s is broken; it is rebuilt from the shards", folder)
        index = None
    if (there := index or recorded_facts(folder)) is not None:
        _refuse_other(folder, there, facts, source)
        facts = {key: there[key] for key in CACHE_KEYS}
    entries, faults, altered = {}, {}, set()
    for entry in index["shards"] if index else []:
        number, fault = entry["number"], quick_fault(folder, entry)
        if fault is None and verify and mine(number):
            fault = check_shard(folder, entry, facts["fingerprint"])
            altered |= {number} if fault else set()
        if fault is None:
            entries[number] = entry
        else:
            faults[number] = fault
    for number, path in find_shards(folder).items():
        if number in entries or number in altered or not mine(number):
            continue
        try:  # a kill between a shard and its index leaves it unlisted, but whole
            entry, meta = adopt_shard(path)
        except ShardError as error:
            if number not in faults:
                _log.warning("not used: %s", error)
            continue
        _refuse_other(path, meta, facts, source)
        facts = {key: meta[key] for key in CACHE_KEYS}
        entries[number] = entry
    for number in faults.keys() - entries.keys():
        _log.warning("%s %s; it is made again", *faults[number])
    return facts, index, dict(sorted(entries.items()))


def recorded_facts(folder: Path) -> dict | None:
    """What the cache in `folder` says about how it was made: its index, else its first shard; None: it holds nothing."""
    with contextlib.suppress(FileNotFoundError, BrokenIndex):
        return read_index(folder)
    for path in find_shards(folder).values():
        with contextlib.suppress(ShardError):
            return open_shard(path)["meta"]
    return None


def covered(entry: dict) -> int:
    """Positions of the source that a shard accounts for: its rows, and the images that could not be read."""
    return entry["rows"] + len(entry["unreadable"])


@contextlib.contextmanager
def only_writer(folder: Path, part: int | None = None) -> Iterator[None]:
    """Make `folder`, and hold it for this process: whoever else wants to fill it waits. A killed process lets go.

    Several jobs that fill a `part` each hold nothing: they may be on different machines, whose locks do not know each other.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if part is not None:
        yield
        return
    with writing(folder):
        held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another process is filling %s; waiting for it", folder)
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:  # some network file systems have no locks
            pass
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in a sentence what the disk refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            said = "cannot be written any further: its disk is full, or a quota is used up. The shards stored so far are "
            said += "complete and stay usable; free some space and run precompute again, it goes on from there"
        elif error.errno in _READ_ONLY:
            said = "is read-only for this user; choose another cache_dir"
        elif isinstance(error, FileExistsError | NotADirectoryError):
            said = "is a file, or lies below one; choose a folder as cache_dir"
        else:
            said = f"cannot be written: {error.strerror or error}"
        raise CacheError(f"{folder} {said}.") from error


def check_space(folder: Path, needed: int, what: str) -> str:
    """A sentence on what is needed; CacheError where `folder` cannot be written, or its disk has less than that left."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CacheError(f"{folder} is read-only for this user; choose another cache_dir.")
    free = shutil.disk_usage(folder).free
    need, left = format_bytes(needed), format_bytes(free)
    if needed > free:
        raise CacheError(
            f"{folder} needs {need} for {what}, but its disk has {left} free; choose another cache_dir, or a smaller "
            "image_size or max_samples, or storage uint8."
        )
    return f"{what} will take {need}; {left} are free in {folder}"


def _refuse_other(where: Path, old: dict, new: dict, source):
    """Raise where the cache at `where` was not made with the facts `new`, naming all that differs."""
    if old["fingerprint"] == new["fingerprint"]:
        return
    differs = [f"{key} was {old[key]!r} and is now {new[key]!r}" for key in _PREPROCESSING if old[key] != new[key]]
    if not made_from(old, source):
        names = f"source was {old['source']!r} and is now {new['source']!r}"
        same_name = f"source {new['source']!r} does not hold the same images as when the cache was made"
        differs.insert(0, names if old["source"] != new["source"] else same_name)
    raise ValueError(f"{where} cannot be gone on with: {'; '.join(differs)}. Use the same settings again, or another cache_dir.")


def made_from(index: dict, source) -> bool:
    """Whether the cache that `index` describes was made from `source`, wherever it lay."""
    return _fingerprint(index, source) == index["fingerprint"]


def _fingerprint(facts: dict, source) -> str:
    decisive = [source.fingerprint, *(facts[key] for key in _PREPROCESSING)]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
