"""What several test files need."""

import os
from pathlib import Path

import pytest
import torch

from kdnb.data.shards import FORMAT, IMAGENET_MEAN, IMAGENET_STD, write_index, write_shard

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images, teachers and texts; tests that need it are skipped, and say so, where it is absent."""
    folder = Path(os.environ.get("KDNB_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.name}/: set KDNB_REAL_DATA to a folder with cifar10/, cifar_resnet/, ...")
    return folder.resolve()


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every test, whatever ran before it."""
    torch.manual_seed(0)


def write_cache(folder: Path, sizes=(10, 10, 7), *, size=4, dtype=torch.uint8, labelled=True) -> torch.Tensor:
    """A cache with shards of `sizes` rows in `folder`; returns its images [N, 3, size, size]. Ids are 100, 101, ..."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (sum(sizes), 3, size, size), dtype=torch.uint8, generator=generator).to(dtype)
    cache = {
        "format": FORMAT, "fingerprint": "f", "source": "test", "image_size": size, "resize": "crop",
        "storage": str(dtype).removeprefix("torch."), "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD),
        "shard_size": max(sizes), "permutation_seed": None, "classes": ["a", "b", "c"], "labelled": labelled,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    entries, start = [], 0
    for number, rows in enumerate(sizes):
        ids = torch.arange(start, start + rows)
        labels = ids % 3 if labelled else None
        part = images[start : start + rows]
        entries.append(write_shard(folder, number, images=part, labels=labels, ids=ids + 100, meta=cache))
        start += rows
    write_index(folder, cache | {"num_images": start, "shards": entries})
    return images


@pytest.fixture
def make_cache():
    """The function `write_cache`."""
    return write_cache


@pytest.fixture
def cache(tmp_path) -> tuple[Path, torch.Tensor]:
    """(folder, images [27, 3, 4, 4]) of a cache with shards of 10, 10 and 7 labelled images."""
    return tmp_path / "cache", write_cache(tmp_path / "cache")
