"""What a cache of decoded images is: shards, the facts that all of them repeat, and the index that lists them.

`index.json` says what was done to make the cache and lists, per complete shard, its file, rows, bytes and checksum. A shard is
on the disk before the index names it, and both appear whole or not at all. A lost index is rebuilt from the shards alone.
Jobs that fill a cache together list their own shards in `index_part_<part>_of_<parts>.json` until all are there.
Reading the index costs next to nothing; `verify` and `rebuild_index` read every shard, about 1 GB/s.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from kdnb.files import Damaged, hash_of, read_json, read_tensors, sha256_of, write_json, write_tensors

FORMAT = 1
INDEX_FILE = "index.json"
STORAGE_DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}
# Mean and standard deviation of ImageNet's training images, for RGB in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What, besides the source, decides on the bytes of a shard.
_PREPROCESSING = ("format", "image_size", "resize", "storage", "mean", "std", "shard_size", "permutation_seed")
# Facts about the whole cache, in the index and in the meta of every shard. The number of images is not among them: a
# shard must not change when the cache grows.
CACHE_KEYS = ("format", "fingerprint", "source", *_PREPROCESSING[1:], "classes", "labelled")
_ENTRY_KEYS = {"number", "file", "rows", "bytes", "sha256", "unreadable"}
_SHARD_NAME = re.compile(r"images_shard_(\d{5,})\.pt")
_PART_INDEX_NAME = re.compile(r"index_part_\d+_of_\d+\.json")
_log = logging.getLogger(__name__)


class ShardError(ValueError):
    """A shard that is missing, truncated, altered, or not a shard."""


class BrokenIndex(ValueError):
    """An index that is there, but is not one."""


class Fault(NamedTuple):
    """What is wrong with one file of a cache."""

    file: str
    what: str


def cache_facts(source, *, image_size: int, resize: str, storage: str, shard_size: int, permutation_seed: int | None) -> dict:
    """What the index and each shard say about how they were made, by `CACHE_KEYS`; the fingerprint sums it up."""
    facts = {
        "format": FORMAT, "fingerprint": "", "source": source.name, "image_size": image_size, "resize": resize,
        "storage": storage, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "shard_size": shard_size,
        "permutation_seed": permutation_seed, "classes": source.classes, "labelled": source.labelled,
    }  # fmt: skip
    return facts | {"fingerprint": _fingerprint(facts, source)}


def made_from(index: dict, source) -> bool:
    """Whether the cache that `index` describes was made from `source`, wherever it lay."""
    return _fingerprint(index, source) == index["fingerprint"]


def preprocessing_changes(old: dict, new: dict) -> list[str]:
    """What was done otherwise for a cache with the facts `old` than for one with `new`, a phrase each."""
    return [f"{key} was {old[key]!r} and is now {new[key]!r}" for key in _PREPROCESSING if old[key] != new[key]]


def normalisation(index: Mapping) -> dict[str, tuple[float, ...]]:
    """ "mean" and "std" that the stored images were normalised with; nothing where they are uint8."""
    return {} if index["storage"] == "uint8" else {name: tuple(index[name]) for name in ("mean", "std")}


def covered(entry: dict) -> int:
    """Positions of the source that a shard accounts for: its rows, and the images that could not be read."""
    return entry["rows"] + len(entry["unreadable"])


def _fingerprint(facts: dict, source) -> str:
    return hash_of([source.fingerprint, *(facts[key] for key in _PREPROCESSING)], length=64)


def shard_name(number: int) -> str:
    return f"images_shard_{number:05d}.pt"


def find_shards(folder: str | Path) -> dict[int, Path]:
    """Shard files in `folder` by number, ascending, whether the index lists them or not."""
    return dict(sorted((int(m[1]), path) for path in Path(folder).iterdir() if (m := _SHARD_NAME.fullmatch(path.name))))


def write_shard(
    folder: str | Path, number: int, *, images: torch.Tensor, labels: torch.Tensor | None, ids: torch.Tensor, meta: dict
) -> dict:
    """Write shard `number`; the same content gives the same bytes.

    Args:
        images: [N, 3, H, W], uint8, float16 or float32. labels, ids: int64 [N].
        meta: plain values by `CACHE_KEYS`; `meta["unreadable"]` lists the ids of pictures that are missing because they could
            not be decoded.

    Returns:
        The shard's entry in the index: {"number", "file", "rows", "bytes", "sha256", "unreadable"}.
    """
    tensors = {name: values for name, values in (("images", images), ("labels", labels), ("ids", ids)) if values is not None}
    # Through JSON: it refuses what is not plain, and gives the pickle below the same objects to share every time.
    meta = json.loads(json.dumps({"unreadable": []} | meta | {"number": number}))
    if wrong := _what_is_wrong(tensors | {"meta": meta}):
        raise ValueError(f"this is no shard to write: {wrong}.")
    content = {name: _alone(values) for name, values in tensors.items()} | {"meta": meta}

    path, digest = Path(folder) / shard_name(number), hashlib.sha256()
    return _entry(path, content, write_tensors(path, content, digest=digest), digest.hexdigest())


def open_shard(path: str | Path, *, whole: bool = False) -> dict:
    """The shard at `path`, memory-mapped: no image is read before it is used, and no object is unpickled.

    Args:
        whole: compare the checksums of all bytes; otherwise of ids, labels and meta, and of up to 1 MB of images.

    Raises:
        ShardError: missing, truncated, altered, holding anything but tensors and plain values, or not a shard.
    """
    again = "run precompute again with the same parameters to make it anew"
    try:
        shard = read_tensors(path, mmap=True, whole=whole)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing; {again}.") from None
    except Damaged as error:
        raise ShardError(f"{error}; delete it, and {again}.") from None
    if wrong := _what_is_wrong(shard):
        raise ShardError(f"{path} is not an image shard: {wrong}; delete it, and {again}.")
    return shard


def adopt_shard(path: str | Path) -> tuple[dict, dict]:
    """(entry, meta) of a shard found on the disk, after all of its bytes were checked against their own checksums.

    Raises:
        ShardError: missing, truncated, altered, or not a shard.
    """
    path = Path(path)
    shard = open_shard(path, whole=True)
    if shard_name(shard["meta"]["number"]) != path.name:
        raise ShardError(f"{path} is shard {shard['meta']['number']} under another shard's name.")
    return _entry(path, shard, path.stat().st_size, sha256_of(path)), shard["meta"]


def _entry(path: Path, shard: dict, size: int, sha256: str) -> dict:
    number, unreadable = shard["meta"]["number"], shard["meta"]["unreadable"]
    rows = len(shard["images"])
    return {"number": number, "file": path.name, "rows": rows, "bytes": size, "sha256": sha256, "unreadable": unreadable}


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with a storage of its own: torch.save writes whole storages, also around a slice."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _what_is_wrong(shard: object) -> str | None:
    """Why `shard`, as loaded or to be written, is not a shard; None where it is one."""
    if not isinstance(shard, dict) or not isinstance(shard.get("images"), torch.Tensor):
        return "it has no tensor 'images'"
    images, meta = shard["images"], shard.get("meta")
    if images.dim() != 4 or images.shape[1] != 3 or images.dtype not in STORAGE_DTYPES.values():
        return f"its images are {images.dtype} {list(images.shape)}, not [N, 3, H, W] as {', '.join(STORAGE_DTYPES)}"
    for name in ("ids", "labels"):
        values = shard.get(name)
        if values is None and name == "labels":
            continue
        if not isinstance(values, torch.Tensor) or values.dtype != torch.int64 or values.shape != images.shape[:1]:
            return f"its {name} are not int64 [{len(images)}]"
    if not isinstance(meta, dict) or not {*CACHE_KEYS, "number", "unreadable"} <= meta.keys():
        return "its meta does not say how it was made"
    return None


def read_index(folder: str | Path) -> dict:
    """The index of the cache in `folder`: facts by `CACHE_KEYS`, "num_images" to be stored, "source_images" (None while nobody
    knows) and "shards", the entries of complete shards, ascending.

    Raises:
        FileNotFoundError: no index. BrokenIndex: it is broken. ValueError: a format that this version cannot read.
    """
    path = Path(folder) / INDEX_FILE
    try:
        index = read_json(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Index file not found: {path}. Make the cache with notebooks/precompute.ipynb: give it this cache_dir, and the "
            "dataset, split, image_size and cache_shard_size that the cache is to have."
        ) from None
    except Damaged:
        index = None
    if isinstance(index, dict) and isinstance(index.get("format"), int) and index["format"] != FORMAT:
        raise ValueError(f"{path} has format {index['format']}, but this kdnb reads {FORMAT}; make the cache anew.")
    if not _index_is_whole(index):
        raise BrokenIndex(
            f"{path} is broken; run precompute again with the same parameters, or "
            f"kdnb.data.cache.rebuild_index({str(folder)!r}): both rebuild it from the shards."
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
    facts: dict = {}
    entries: list[dict] = []
    for path in find_shards(folder).values():
        try:
            entry, meta = adopt_shard(path)
        except ShardError as error:
            _log.warning("left out of the index: %s", error)
            continue
        facts = facts or {key: meta[key] for key in CACHE_KEYS}
        if meta["fingerprint"] != facts["fingerprint"]:
            raise ValueError(
                f"{path} was made with another source or other preprocessing than {entries[0]['file']}; "
                "move the shards that do not belong here to another folder."
            )
        entries.append(entry)
    if not facts:
        raise FileNotFoundError(f"No usable shard ({shard_name(0)} ...) in {folder}; make the cache with precompute.")
    index = {**facts, "num_images": entries[-1]["number"] * facts["shard_size"] + covered(entries[-1]), "shards": entries}
    write_index(folder, index)
    return index


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


def part_index(folder: Path, part: int, parts: int) -> Path:
    """The file in which job `part` of `parts` lists its shards, in the form of an index."""
    return folder / f"index_part_{part:03d}_of_{parts:03d}.json"


def part_indexes(folder: Path) -> dict[Path, dict]:
    """What the jobs that fill `folder` together have listed so far, by file; {} where that is broken."""
    indexes = {}
    for path in sorted(path for path in folder.glob("index_part_*.json") if _PART_INDEX_NAME.fullmatch(path.name)):
        indexes[path] = {}
        with contextlib.suppress(FileNotFoundError, Damaged):  # the last job has just removed it
            index = read_json(path)
            indexes[path] = index if _index_is_whole(index) else {}
    return indexes


def number_of_parts(path: Path) -> int:
    """How many jobs the one that wrote `path`, from `part_index`, knew of."""
    return int(path.stem.rpartition("_")[2])


def missing(folder: str | Path) -> list[Fault] | None:
    """The shards that jobs have still to make, where the index waits for them; None where no such jobs are at work."""
    folder = Path(folder)
    lists = {path: index for path, index in part_indexes(folder).items() if index}
    if (folder / INDEX_FILE).exists() or not lists:
        return None
    path, index = next(iter(lists.items()))
    parts, count = number_of_parts(path), -(-index["num_images"] // index["shard_size"])
    made = {entry["number"] for index in lists.values() for entry in index["shards"]}
    what = "is missing: part {} of {} has not made it yet"
    return [Fault(shard_name(n), what.format(n % parts, parts)) for n in range(count) if n not in made]


def verify(folder: str | Path) -> list[Fault]:
    """Every fault of the cache in `folder`: reads all of it and compares checksums, rows and fingerprints.

    Where several jobs still fill it and there is no index yet, what they have not made.
    """
    if (unmade := missing(folder)) is not None:
        return unmade
    index = read_index(folder)
    checks = (check_shard(folder, entry, index["fingerprint"]) for entry in index["shards"])
    return [fault for fault in checks if fault is not None]


def quick_fault(folder: str | Path, entry: dict) -> Fault | None:
    """What is wrong with a shard as far as its size tells; costs one look at the folder."""
    path = Path(folder) / entry["file"]
    if not path.is_file():
        return Fault(entry["file"], "is no file" if os.path.lexists(path) else "is missing")
    if (size := path.stat().st_size) != entry["bytes"]:
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
