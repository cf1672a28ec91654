"""What several test files need."""

import os
from pathlib import Path

import pytest
import torch
from caches import write_cache

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


@pytest.fixture
def make_cache():
    """The function `write_cache`."""
    return write_cache


@pytest.fixture
def cache(tmp_path) -> tuple[Path, torch.Tensor]:
    """(folder, images [27, 3, 4, 4]) of a cache with shards of 10, 10 and 7 labelled images."""
    return tmp_path / "cache", write_cache(tmp_path / "cache")
