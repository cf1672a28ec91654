"""A cache of decoded images: shards, and the index that lists them.

`index.json` says what was done to make the cache and lists, per complete shard, its file, rows, bytes and checksum. A
shard is on the disk before the index names it, and both appear whole or not at all. A lost index is rebuilt from the
shards alone. Reading the index costs next to nothing; `verify` and `rebuild_index` read every shard, about 1 GB/s.
"""

import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

from kdnb.data.shardfile import (
    CACHE_KEYS,
    STORAGE_DTYPES,
    ShardError,
    adopt_shard,
    images_offset,
    open_shard,
    shard_name,
    write_shard,
)
from kdnb.files import sha256_of, write_json

__all__ = [  # the whole format can be had from here
    "CACHE_KEYS", "FORMAT", "IMAGENET_MEAN", "IMAGENET_STD", "STORAGE_DTYPES", "BrokenIndex", "Fault", "ShardError",
    "adopt_shard", "check_shard", "find_shards", "images_offset", "open_shard", "quick_fault", "read_index",
    "rebuild_index", "shard_name", "verify", "write_index", "write_shard",
]  # fmt: skip

FORMAT = 1
INDEX_FILE = "index.json"
# Mean and standard deviation of ImageNet's training images, for RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_ENTRY_KEYS = {"number", "file", "rows", "bytes", "sha256", "unreadable"}
_SHARD_NAME = re.compile(r"images_shard_(\d{5,})\.pt")
_log = logging.getLogger(__name__)


class BrokenIndex(ValueError):
    """An index that is there, but is not one."""


class Fault(NamedTuple):
    """What is wrong with one file of a cache."""

    file: str
    what: str


def find_shards(folder: str | Path) -> dict[int, Path]:
    """Shard files in `folder` by number, ascending, whether the index lists them or not."""
    found = {int(m[1]): path for path in Path(folder).iterdir() if (m := _SHARD_NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def read_index(folder: str | Path) -> dict:
    """The index of the cache in `folder`; its "shards" are entries of complete shards, ascending.

    Raises:
        FileNotFoundError: no index. BrokenIndex: it is broken. ValueError: a format that this version cannot read.
    """
    path = Path(folder) / INDEX_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Index file not found: {path}. Make the cache with notebooks/precompute.ipynb: give it this cache_dir, and the "
            "dataset, split, image_size and cache_shard_size that the cache is to have."
        ) from None
    except UnicodeDecodeError:
        text = ""
    try:
        index = json.loads(text)
    except json.JSONDecodeError:
        index = None
    if isinstance(index, dict) and isinstance(index.get("format"), int) and index["format"] != FORMAT:
        raise ValueError(f"{path} has format {index['format']}, but this kdnb reads {FORMAT}; make the cache anew.")
    if not _index_is_whole(index):
        raise BrokenIndex(
            f"{path} is broken; run precompute again with the same parameters, or "
            f"kdnb.data.shards.rebuild_index({str(folder)!r}): both rebuild it from the shards."
        )
    return index


def write_index(folder: str | Path, index: dict):
    """Replace the index of the cache in `folder`, atomically."""
    write_json(Path(folder) / INDEX_FILE, index)


def rebuild_index(folder: str | Path) -> dict:
    """Write the index anew from the shards alone, and return it. Damaged shards are left out and logged.

    `num_images` becomes what the shards cover; running precompute again sets it to what was planned.

    Raises:
        FileNotFoundError: no usable shard. ValueError: shards of different caches lie in the folder.
    """
    cache, entries = None, []
    for path in find_shards(folder).values():
        try:
            entry, meta = adopt_shard(path)
        except ShardError as error:
            _log.warning("left out of the index: %s", error)
            continue
        if cache is not None and meta["fingerprint"] != cache["fingerprint"]:
            raise ValueError(
                f"{path} was made with another source or other preprocessing than {entries[0]['file']}; "
                "move the shards that do not belong here to another folder."
            )
        cache = cache or {key: meta[key] for key in CACHE_KEYS}
        entries.append(entry)
    if cache is None:
        raise FileNotFoundError(f"No usable shard ({shard_name(0)} ...) in {folder}; make the cache with precompute.")
    last = entries[-1]
    covered = last["number"] * cache["shard_size"] + last["rows"] + len(last["unreadable"])
    index = {**cache, "num_images": covered, "shards": entries}
    write_index(folder, index)
    return index


def verify(folder: str | Path) -> list[Fault]:
    """Every fault of the cache in `folder`: reads all of it and compares checksums, rows and fingerprints.

    Where several jobs still fill it and there is no index yet, what they have not made.
    """
    from kdnb.data.parts import missing  # which needs this module

    if (unmade := missing(folder)) is not None:
        return unmade
    index = read_index(folder)
    checks = (check_shard(folder, entry, index["fingerprint"]) for entry in index["shards"])
    return [fault for fault in checks if fault is not None]


def quick_fault(folder: str | Path, entry: dict) -> Fault | None:
    """What is wrong with a shard as far as its size tells; costs one look at the folder."""
    try:
        size = (Path(folder) / entry["file"]).stat().st_size
    except FileNotFoundError:
        return Fault(entry["file"], "is missing")
    if size != entry["bytes"]:
        return Fault(entry["file"], f"has {size:,} bytes where the index says {entry['bytes']:,}")
    return None


def check_shard(folder: str | Path, entry: dict, fingerprint: str) -> Fault | None:
    """What is wrong with the shard of `entry`, reading all of it; None where it is whole."""
    fault = quick_fault(folder, entry)
    if fault is not None:
        return fault
    path = Path(folder) / entry["file"]
    if sha256_of(path) != entry["sha256"]:
        return Fault(entry["file"], "was altered: its SHA-256 is not the index's")
    try:
        shard = open_shard(path)
    except ShardError as error:
        return Fault(entry["file"], str(error))
    if len(shard["images"]) != entry["rows"]:
        return Fault(entry["file"], f"has {len(shard['images'])} rows where the index says {entry['rows']}")
    if shard["meta"]["fingerprint"] != fingerprint:
        return Fault(entry["file"], "belongs to another cache: its fingerprint is not the index's")
    return None


def _index_is_whole(index: object) -> bool:
    if not isinstance(index, dict) or not {*CACHE_KEYS, "num_images", "shards"} <= index.keys():
        return False
    entries = index["shards"]
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.keys() >= _ENTRY_KEYS for e in entries):
        return False
    numbers = [entry["number"] for entry in entries]
    # The name follows from the number, so that an edited index cannot lead to a file outside the folder.
    named = all(isinstance(n, int) and e["file"] == shard_name(n) for n, e in zip(numbers, entries, strict=True))
    return named and numbers == sorted(set(numbers))
