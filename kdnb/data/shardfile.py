"""One shard of a cache as a file: writing it, opening it memory-mapped, telling whether it is whole.

`images_shard_00000.pt` is `torch.save` of {"images": [N, 3, H, W], "labels": int64 [N] (where the source has them),
"ids": int64 [N] (row of each image in the source), "meta": what was done to make it}. Opening unpickles no objects and
takes a millisecond whatever the size. Writing costs one pass; the checksum is taken on the way.
"""

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from kdnb.files import HashingFile, sha256_of, write_atomically

STORAGE_DTYPES = {"uint8": torch.uint8, "float16": torch.float16, "float32": torch.float32}
# Facts about the whole cache, in the index and in the meta of every shard. The number of images is not among them: a
# shard must not change when the cache grows.
CACHE_KEYS = (
    "format", "fingerprint", "source", "image_size", "resize", "storage", "mean", "std", "shard_size",
    "permutation_seed", "classes", "labelled",
)  # fmt: skip


class ShardError(ValueError):
    """A shard that is missing, truncated, altered, or not a shard."""


def shard_name(number: int) -> str:
    return f"images_shard_{number:05d}.pt"


def write_shard(
    folder: str | Path,
    number: int,
    *,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    ids: torch.Tensor,
    meta: dict,
) -> dict:
    """Write shard `number`; the same content gives the same bytes.

    Args:
        images: [N, 3, H, W], uint8, float16 or float32. labels, ids: int64 [N].
        meta: plain values only; `meta["unreadable"]` lists the ids of pictures that are missing because they could not
            be decoded.

    Returns:
        The shard's entry in the index: {"number", "file", "rows", "bytes", "sha256", "unreadable"}.
    """
    if images.dtype not in STORAGE_DTYPES.values() or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images is {images.dtype} {list(images.shape)}; stored is [N, 3, H, W] as {', '.join(STORAGE_DTYPES)}.")
    # Through JSON: it refuses what is not plain, and gives the pickle below the same objects to share every time.
    meta = json.loads(json.dumps({"unreadable": []} | meta | {"number": number}))
    content = {"images": _alone(images)}  # first, so that its bytes are record data/0: see images_offset
    for name, values in (("labels", labels), ("ids", ids)):
        if values is not None:
            if values.dtype != torch.int64 or values.shape != (len(images),):
                raise ValueError(f"{name} is {values.dtype} {list(values.shape)}; needed is int64 [{len(images)}].")
            content[name] = _alone(values)
    content["meta"] = meta

    def save(file: BinaryIO) -> HashingFile:
        hashing = HashingFile(file)
        try:
            # A file object, not a path: the path's name would become part of the bytes.
            torch.save(content, hashing)
        except Exception:
            if hashing.error is not None:  # torch reports a full disk as trouble with its zip file
                raise hashing.error from None
            raise
        return hashing

    path = Path(folder) / shard_name(number)
    hashing = write_atomically(path, save)
    return {
        "number": number, "file": path.name, "rows": len(images), "bytes": hashing.size,
        "sha256": hashing.sha256.hexdigest(), "unreadable": meta["unreadable"],
    }  # fmt: skip


def open_shard(path: str | Path) -> dict:
    """The shard at `path`, memory-mapped: nothing is read before it is used, and no object is unpickled.

    Raises:
        ShardError: missing, truncated, holding anything but tensors and plain values, or not a shard.
    """
    path = Path(path)
    again = "run precompute again with the same parameters to make it anew"
    try:
        shard = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise ShardError(f"{path} is missing; {again}.") from None
    except pickle.UnpicklingError:
        raise ShardError(
            f"{path} holds a pickled object, which could run code when loaded and was refused; a shard holds tensors "
            f"only. Delete the file if you do not trust it, and {again}."
        ) from None
    except OSError:
        raise
    except Exception as error:  # torch raises RuntimeError, ValueError, EOFError ... depending on where the bytes end
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise ShardError(f"{path} is truncated or damaged ({reason}); {again}.") from None
    wrong = _what_is_wrong(shard)
    if wrong:
        raise ShardError(f"{path} is not an image shard: {wrong}; {again}.")
    return shard


def images_offset(path: str | Path) -> int:
    """Byte offset of the images' data in the file, for positioned reads (rows follow one another, without gaps)."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        record = next(item for item in archive.infolist() if item.filename.endswith("/data/0"))
        if record.compress_type != zipfile.ZIP_STORED:
            raise ShardError(f"{path} is compressed; shards are stored plainly.")
        file.seek(record.header_offset)
        name, extra = struct.unpack("<26xHH", file.read(30))  # a zip file's local header: 30 bytes, a name, an extra
        return record.header_offset + 30 + name + extra


def adopt_shard(path: str | Path) -> tuple[dict, dict]:
    """(entry, meta) of a shard found on the disk, after all of its bytes were checked against their own checksums.

    Raises:
        ShardError: missing, truncated, altered, or not a shard.
    """
    path = Path(path)
    shard = open_shard(path)
    meta = shard["meta"]
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()  # torch.save stores a CRC-32 with every tensor
    except Exception as error:  # BadZipFile, UnicodeDecodeError, NotImplementedError ... depending on the altered byte
        bad = str(error)[:80]
    if bad is not None:
        raise ShardError(f"{path} was altered: its checksum does not fit ({bad}).")
    if shard_name(meta["number"]) != path.name:
        raise ShardError(f"{path} is shard {meta['number']} under another shard's name.")
    entry = {
        "number": meta["number"], "file": path.name, "rows": len(shard["images"]), "bytes": path.stat().st_size,
        "sha256": sha256_of(path), "unreadable": meta["unreadable"],
    }  # fmt: skip
    return entry, meta


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with a storage of its own: torch.save writes whole storages, also around a slice."""
    tensor = tensor.contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _what_is_wrong(shard: object) -> str | None:
    """Why `shard`, as loaded, is not a shard; None where it is one."""
    if not isinstance(shard, dict) or not isinstance(shard.get("images"), torch.Tensor):
        return "it has no tensor 'images'"
    images, meta = shard["images"], shard.get("meta")
    if images.dim() != 4 or images.shape[1] != 3 or images.dtype not in STORAGE_DTYPES.values():
        return f"its images are {images.dtype} {list(images.shape)}"
    for name in ("ids", "labels"):
        values = shard.get(name)
        if values is None and name == "labels":
            continue
        if not isinstance(values, torch.Tensor) or values.dtype != torch.int64 or values.shape != images.shape[:1]:
            return f"its {name} are not int64 [{len(images)}]"
    if not isinstance(meta, dict) or not {*CACHE_KEYS, "number", "unreadable"} <= meta.keys():
        return "its meta does not say how it was made"
    return None
