"""Decode a source of images once, into shards that training reads.

Shard k holds positions k * shard_size and following of a seeded permutation of the source, so that any few shards are a fair
sample of its classes: folders are sorted by class. A stream comes in its own order. A run that was killed at any moment goes
on where it stopped, and ends with the bytes that an undisturbed run gives. Cost: decoding, about 0.1 ms for a
32x32 JPEG and 3 ms for a photograph at 224x224, divided by `num_workers`; memory of about three shards.
"""

import contextlib
import itertools
import re
from pathlib import Path

from kdnb.data.cache import STORAGE_DTYPES
from kdnb.data.cache_writer import (
    CacheError,
    CacheWriter,
    cache_facts,
    check_parts,
    covered,
    only_writer,
    recorded_facts,
    stored_shards,
    writing,
)
from kdnb.data.decode import RESIZE_MODES, decode_all
from kdnb.files import remove_temporary

__all__ = ["CacheError", "precompute"]

_REPORT_EVERY = 64  # images between two calls of progress


def precompute(
    source,
    cache_dir: str | Path,
    *,
    image_size: int,
    shard_size: int = 2048,
    storage: str = "uint8",
    resize: str = "crop",
    max_samples: int | None = None,
    permutation_seed: int | None = 0,
    num_workers: int = 0,
    on_unreadable: str = "skip",
    verify: bool = False,
    part: int = 0,
    parts: int = 1,
    progress=None,
) -> dict:
    """Fill `cache_dir` with the images of `source`, or go on filling it, and return the cache's index.

    Args:
        source: from `kdnb.data.sources.open_source`.
        image_size, resize: side of the stored square, and how an image becomes one (see `kdnb.data.decode.resize`).
        storage: `uint8` loses nothing; `float32` and `float16` hold images normalised with ImageNet's mean and std.
        max_samples: images to store, None for all; a larger number later extends the cache.
        permutation_seed: store the source in a random order, the same for the same seed; None keeps its order. The default, 0,
            goes on in whatever order `cache_dir` holds already, and stores a stream as it comes (with a printed line).
        num_workers: processes that decode; 0 decodes in this one. The bytes do not depend on it.
        on_unreadable: `skip` leaves out images that cannot be decoded, logs them and lists their ids in the index;
            `refuse` stops at the first.
        verify: compare the checksums of all stored shards and make altered ones again; sizes are always compared.
        part, parts: make only every `parts`-th shard, from number `part` on; other jobs make the others, at any time and on
            any machine that shares the folder (see `kdnb.data.cache_writer`).
        progress: object with `update(done, total=, bytes_written=)`, a `kdnb.progress.Display` say.

    Raises:
        ValueError: a parameter out of range, an empty source, or a cache that was made from another source or with
            other preprocessing. UnreadableImage: see `on_unreadable`. CacheError: a disk that is full, or a folder that
            cannot be written; the shards stored so far stay usable.
    """
    _check_count("image_size", image_size, 1)
    _check_count("shard_size", shard_size, 1)
    _check_count("num_workers", num_workers, 0)
    _check_count("max_samples", max_samples, 1, none="all")
    _check_count("permutation_seed", permutation_seed, 0, none="the source's own order")
    check_parts(Path(cache_dir), part, parts)
    _check_choice("storage", storage, tuple(STORAGE_DTYPES))
    _check_choice("resize", resize, RESIZE_MODES)
    _check_choice("on_unreadable", on_unreadable, ("skip", "refuse"))
    if source.num_images is None and permutation_seed:
        raise ValueError(f"permutation_seed is {permutation_seed}, but {source.name} is streamed in its own order; leave it out.")
    if source.num_images is None and parts > 1:
        raise ValueError(
            f"parts is {parts}, but {source.name} is streamed, and its shards are made in turn, by one job; leave parts out (no "
            "array of jobs, no several ranks), or set streaming to false."
        )
    settings = {"image_size": image_size, "resize": resize, "storage": storage, "shard_size": shard_size}
    folder = Path(cache_dir)
    with only_writer(folder, part if parts > 1 else None):
        with writing(folder):
            remove_temporary(folder, of=lambda name: parts == 1 or _owner(name, parts) == part)
        seed, why = _stored_order(source, folder, permutation_seed)
        facts = cache_facts(source, permutation_seed=seed, **settings)
        facts, index, entries = stored_shards(folder, source, facts, verify=verify, mine=lambda n: n % parts == part)
        cache = CacheWriter(source, folder, facts, index, entries, max_samples, part, parts)
        if cache.total is None or cache.missing():
            space = cache.check_space()
            if why:
                print(why, flush=True)
            if progress is not None:  # somebody watches
                print(space, flush=True)
            cache.save()  # before the work: shards that are made again must not be listed meanwhile
            report = _Report(cache, progress)
            with contextlib.closing(decode_all(cache.items(), image_size, resize, num_workers=num_workers)) as decoded:
                for number, images in itertools.groupby(decoded, key=lambda image: image[0][0] // shard_size):
                    cache.store(number, images, on_unreadable, report)
            if parts == 1:
                cache.note_end()
        cache.save()
        cache.complete()
    if parts == 1 and not any(entry["rows"] for entry in cache.entries.values()):
        none = "none of which could be read; the log says why" if cache.total else "so there is nothing to store"
        raise ValueError(f"{source.name} holds {cache.total} images, {none}.")
    return cache.index()


def _stored_order(source, folder: Path, asked: int | None) -> tuple[int | None, str]:
    """(permutation_seed to store with, a sentence where the default, 0, gives way to something else)."""
    if asked != 0:
        return asked, ""
    if source.num_images is None:
        return None, (
            f"{source.name} is streamed, so it is stored in the order in which it comes (permutation_seed None): where that is "
            "sorted by class, any few shards hold few of the classes; read without streaming it would be permuted."
        )
    there = recorded_facts(folder)
    if there is None or there["permutation_seed"] == asked:
        return asked, ""
    seed = there["permutation_seed"]
    return seed, f"{folder} was begun with permutation_seed {seed}, and goes on with it."


class _Report:
    """Calls progress every few images."""

    def __init__(self, cache: CacheWriter, progress):
        self._cache, self._progress = cache, progress
        self._before = sum(covered(entry) for entry in cache.entries.values())
        self._made = self._written = 0

    def one(self):
        self._made += 1
        if self._made % _REPORT_EVERY == 0:
            self._update()

    def shard(self, size: int):
        self._written += size
        self._update()

    def _update(self):
        if self._progress is None:
            return
        self._progress.update(self._before + self._made, total=self._cache.total, bytes_written=self._written)


def _owner(name: str, parts: int) -> int | None:
    """The job that writes the file `name`; None for what is nobody's own."""
    found = re.search(r"_(?:shard|part)_(\d+)", name)
    return int(found[1]) % parts if found else None


def _check_count(name: str, value: object, low: int, *, none: str | None = None):
    if value is None and none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        also = f", or None for {none}" if none else ""
        raise ValueError(f"{name} is {value!r}; allowed are whole numbers from {low}{also}.")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]):
    if value == "bfloat16":
        raise ValueError("storage is 'bfloat16', which loses almost half an 8-bit level; use uint8 (nothing is lost).")
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}.")
