"""Delivered images/s of the cache reader against memcpy, a plain np.memmap, the original design and decoding on the fly.

    pytest -m benchmark -s tests/benchmarks/test_reader_speed.py

One interleaved run, medians. 4,096 random images at 224x224 and 50,000 at 32x32, shards of 2,048; about 5 GB of disk and
5 minutes. Cold means: the shard files' pages were dropped first.
"""

import io
import os
import statistics
import time

import numpy as np
import pytest
import torch
from caches import images_offset
from PIL import Image

from kdnb.data.augment import normalise
from kdnb.data.cache import IMAGENET_MEAN, IMAGENET_STD, read_index
from kdnb.data.datasets import CachedTensorDataset, RandomSubsetCachedDataset
from kdnb.data.decode import decode, resize
from kdnb.data.loader import BatchReader
from kdnb.data.reader import ShardReader

pytestmark = pytest.mark.benchmark
BATCH, ROUNDS = 64, 15


def consume(batches, limit=None) -> int:
    """Iterate, touching nothing: delivering is what is measured. Returns the number of images."""
    images = 0
    for number, batch in enumerate(batches):
        images += len(batch["image"])
        if number + 1 == limit:
            break
    return images


def original_design(folder, index):
    """float32 shards loaded whole, items taken from them one by one and stacked."""
    for entry in index["shards"]:
        images = torch.load(folder / entry["file"], weights_only=True)["images"]
        for k in range(0, len(images) - BATCH + 1, BATCH):
            yield {"image": torch.stack([images[i] for i in range(k, k + BATCH)])}


def decoding(encoded, size):
    """JPEGs decoded, resized and normalised on the fly, in this process."""
    for k in range(0, len(encoded) - BATCH + 1, BATCH):
        pixels = np.stack([resize(decode(data), size, "crop") for data in encoded[k : k + BATCH]])
        yield {"image": normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), IMAGENET_MEAN, IMAGENET_STD)}


def positioned_reads(folder, index, batches):
    """os.preadv at each row's offset straight into the batch's buffer."""
    row = 3 * index["image_size"] ** 2
    files = [open(folder / entry["file"], "rb") for entry in index["shards"]]  # noqa: SIM115 - they end with this generator
    offsets = [images_offset(folder / entry["file"]) for entry in index["shards"]]
    buffer = np.empty((BATCH, row), dtype=np.uint8)
    for positions in batches:
        runs = np.split(np.arange(BATCH), np.flatnonzero(np.diff(positions) != 1) + 1)
        for run in runs:
            shard, first = divmod(int(positions[run[0]]), index["shard_size"])
            os.preadv(files[shard].fileno(), [buffer[run[0] : run[-1] + 1].data], offsets[shard] + first * row)
        yield {"image": buffer}


def plain_mapping(folder, batches):
    """The reader without asking ahead."""
    reader = ShardReader(folder)
    buffer = torch.empty((BATCH, *reader.row_shape), dtype=torch.uint8)
    for positions in batches:
        yield reader.read(positions, buffer)


def drop_pages(folder):
    os.sync()
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work, rounds=ROUNDS, before=lambda: None) -> dict[str, float]:
    """Median images/s of each kind of work, interleaved."""
    speeds = {name: [] for name in work}
    for _ in range(rounds):
        for name, make in work.items():
            before()
            begun = time.perf_counter()
            images = consume(make())
            speeds[name].append(images / (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in speeds.items()}


def show(title, speeds, reference, row):
    print(f"\n{title}")
    for name, speed in speeds.items():
        share = f"{speed / speeds[reference]:8.3f} x {reference}"
        print(f"  {name:42s} {speed:12,.0f} images/s {speed * row / 1e9:7.2f} GB/s {share}")


@pytest.mark.parametrize("size, count", [(224, 4096), (32, 50_000)])
def test_delivered_images_per_second(make_cache, tmp_path, size, count):
    sizes = [2048] * (count // 2048) + ([count % 2048] if count % 2048 else [])
    images = make_cache(tmp_path / "uint8", sizes, size=size)
    few = sizes[:2] if size == 224 else sizes
    make_cache(tmp_path / "float32", few, size=size, dtype=torch.float32)
    folder, row = tmp_path / "uint8", 3 * size * size
    index = read_index(folder)
    # Cold first: a page that some reader still maps cannot be dropped.
    datasets = {
        "sequential": lambda: CachedTensorDataset(folder),
        "random samples": lambda: RandomSubsetCachedDataset(folder, samples_per_epoch=count, shuffle="all"),
    }
    for name, dataset in datasets.items():
        order = dataset().order.epoch(0)
        batches = [order[k : k + BATCH] for k in range(0, count - BATCH + 1, BATCH)]
        cold = {
            "reader": lambda make=dataset: BatchReader(make(), batch_size=BATCH, reuse_buffers=True).batches(0),
            "mapping, not asked ahead": lambda b=batches: plain_mapping(folder, b),
            "os.preadv into the batch": lambda b=batches: positioned_reads(folder, index, b),
        }
        show(f"cold, {size}x{size}, {name}", timed(cold, rounds=3, before=lambda: drop_pages(folder)), "reader", row)

    encoded = []
    for image in images[:256].permute(0, 2, 3, 1).numpy():
        smooth = Image.fromarray(image).resize((8, 8)).resize((max(size * 2, 32),) * 2)  # as compressible as a photograph
        smooth.save(memory := io.BytesIO(), "JPEG", quality=90)
        encoded.append(memory.getvalue())
    source, target = images.numpy().reshape(count, row), np.empty((BATCH, row), dtype=np.uint8)

    def memcpy():
        for k in range(0, count - BATCH + 1, BATCH):
            np.copyto(target, source[k : k + BATCH])
            yield {"image": target}

    images.numpy().tofile(tmp_path / "images.bin")  # what a user would write instead, with nothing but NumPy
    mapped = np.memmap(tmp_path / "images.bin", dtype=np.uint8, mode="r", shape=(count, row))
    scattered = RandomSubsetCachedDataset(folder, samples_per_epoch=count, shuffle="all").order.epoch(0)

    def indexed_mapping():
        for k in range(0, count - BATCH + 1, BATCH):
            yield {"image": mapped[scattered[k : k + BATCH]]}

    readers = {
        "reader, sequential": CachedTensorDataset(folder),
        "reader, shuffled within shards": CachedTensorDataset(folder, shuffle="within_shards"),
        "reader, random samples": RandomSubsetCachedDataset(folder, samples_per_epoch=count, shuffle="all"),
    }
    readers = {name: BatchReader(data, batch_size=BATCH, reuse_buffers=True) for name, data in readers.items()}
    kept = BatchReader(CachedTensorDataset(folder), batch_size=BATCH)
    warm = {"memcpy": memcpy, "np.memmap, random rows by index": indexed_mapping} | {
        name: lambda r=reader: r.batches(0) for name, reader in readers.items()
    }
    warm |= {"reader, sequential, batches kept valid": lambda: kept.batches(0)}
    for reader in [*readers.values(), kept]:
        consume(reader.batches(0))
    speeds = timed(warm)
    first = {"shards": index["shards"][: len(few)]}
    slow = {
        "original design (float32 shards, whole)": lambda: original_design(tmp_path / "float32", first),
        "decoding JPEGs, one process": lambda: decoding(encoded, size),
    }
    speeds |= timed(slow, rounds=3)
    show(f"warm, {size}x{size}, {count:,} images", speeds, "memcpy", row)
    original = speeds["original design (float32 shards, whole)"]
    print(f"  sequential against the original design: {speeds['reader, sequential'] / original:.0f} x")
    print(f"  sequential against random samples: {speeds['reader, sequential'] / speeds['reader, random samples']:.2f} x")

    assert all(speed > 0 for speed in speeds.values())
