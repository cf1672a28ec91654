"""What a newcomer starts with, and what is counted on the way."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class Walk:
    """Commands (a line in a terminal, a notebook that is run), those of them that failed, and seconds."""

    commands: int = 0
    failures: int = 0
    begun: float = field(default_factory=time.monotonic)

    def count(self, *, failed: bool = False):
        self.commands += 1
        self.failures += failed


@pytest.fixture
def walk(record_property):
    """Counts, for the table that ../../conftest.py prints at the end."""
    walk = Walk()
    yield walk
    record_property("walk", (walk.commands, walk.failures, time.monotonic() - walk.begun))


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what git holds of the project, or nearly."""
    for name in ("kdnb", "notebooks", "params"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "project"


@pytest.fixture
def bring_photos():
    """A function that puts photos/ with three folders of pictures and teacher.pt, a ResNet-10, into a folder."""

    def bring(folder: Path):
        dice = np.random.default_rng(0)
        for number, name in enumerate(("boat", "cat", "tree")):
            (folder / "photos" / name).mkdir(parents=True)
            for picture in range(20 + 5 * number):
                pixels = dice.integers(0, 90 + 80 * number, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / name / f"{picture}.png")
        torch.manual_seed(0)
        torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), folder / "teacher.pt")

    return bring
