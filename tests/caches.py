"""A small cache of random images, and the place of the images in a shard's file, for tests."""

import struct
import zipfile
from pathlib import Path

import torch

from kdnb.data.augment import normalise
from kdnb.data.cache import FORMAT, IMAGENET_MEAN, IMAGENET_STD, write_index, write_shard


def write_cache(
    folder: Path, sizes=(10, 10, 7), *, size=4, dtype=torch.uint8, labelled=True, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """A cache with shards of `sizes` rows in `folder`; returns its images [N, 3, size, size] as stored.

    Ids are 100, 101, ...; `labels` [N] are 0, 1, 2, 0, ... where they are not given, of the classes a, b, c.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (sum(sizes), 3, size, size), dtype=torch.uint8, generator=generator)
    if dtype != torch.uint8:
        images = normalise(images, IMAGENET_MEAN, IMAGENET_STD).to(dtype)
    cache = {
        "format": FORMAT, "fingerprint": "f", "source": "test", "image_size": size, "resize": "crop",
        "storage": str(dtype).removeprefix("torch."), "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
        "shard_size": max(sizes), "permutation_seed": None, "classes": ["a", "b", "c"], "labelled": labelled,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    entries, start = [], 0
    for number, rows in enumerate(sizes):
        ids = torch.arange(start, start + rows)
        given = (ids % 3 if labels is None else labels[ids]) if labelled else None
        part = images[start : start + rows]
        entries.append(write_shard(folder, number, images=part, labels=given, ids=ids + 100, meta=cache))
        start += rows
    write_index(folder, cache | {"num_images": start, "shards": entries})
    return images


def images_offset(path: Path) -> int:
    """Where the images' data begins in the file of a shard: rows follow one another there, uncompressed, without gaps."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        record = next(item for item in archive.infolist() if item.filename.endswith("/data/0"))
        assert record.compress_type == zipfile.ZIP_STORED
        file.seek(record.header_offset)
        name, extra = struct.unpack("<26xHH", file.read(30))  # a zip file's local header: 30 bytes, a name, an extra
        return record.header_offset + 30 + name + extra
