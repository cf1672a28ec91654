"""Any folder of pictures, three commands: precompute, train and evaluate with params/my_images.yaml, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from kdnb.data.reader import ShardReader

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"image_size": 32, "epochs": 2}  # smaller than in the file
TEACHER = {"teacher": "resnet10t", "teacher_checkpoint": "teacher.pt"}


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """(project's folder, what each of the three commands printed)."""
    root = tmp_path_factory.mktemp("project")
    for name in ("kdnb", "notebooks", "params"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    dice = np.random.default_rng(0)
    for number, name in enumerate(("boat", "cat", "tree")):
        for picture in range(20 + 5 * number):
            path = root / "photos" / name / f"{picture}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dice.integers(0, 90 + 80 * number, (40, 48, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), root / "teacher.pt")
    mine = ["-f", "params/my_images.yaml", *options(dataset="photos/", **TEACHER, **SIZES)]
    commands = {"precompute": mine, "train_fixed": mine, "evaluate": options(checkpoint_dir="outputs/my_images")}
    return root, {name: papermill(root, name, *arguments) for name, arguments in commands.items()}


def options(**values) -> list[str]:
    return [word for name, value in values.items() for word in ("-p", name, str(value))]


def papermill(root: Path, notebook: str, *arguments: str) -> str:
    """All that the notebook printed; it must not fail."""
    command = [sys.executable, "-m", "kdnb.papermill", f"notebooks/{notebook}.ipynb", "out.ipynb", "--no-progress-bar"]
    environment = os.environ | {"PYTHONPATH": str(root), "KDNB_PROGRESS": "text", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    outputs = [output for cell in nbformat.read(root / "out.ipynb", 4).cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs)


def test_three_commands_and_no_failure(walk):
    _, printed = walk
    assert len(printed) == 3 and "left to the training: " in printed["precompute"] and "fixed_shards" in printed["precompute"]


def test_a_fifth_of_each_class_is_held_out_and_judges(walk):
    root, printed = walk
    reader = ShardReader(root / "outputs/cache_my_images")
    assert np.bincount(reader.labels).tolist() == [16, 20, 24] and reader.index["source"] == "photos without held_out 0.2"
    assert "15 more are held out" in printed["precompute"]
    for name in ("train_fixed", "evaluate"):
        assert "photos/ has no split test; the 20% of each class that outputs/cache_my_images holds out" in printed[name]
    assert "fitted on 60 images, tested on 15" in printed["evaluate"]
    assert re.findall(r"(\d+) of 15 test images are among", printed["evaluate"]) == ["0", "0"]


def test_sizes_that_are_shares_say_what_they_became(walk):
    assert "fixed_shards 0.5 is 2 of 4 shards" in walk[1]["train_fixed"]


def test_a_teacher_that_is_no_better_than_a_floor_is_said_loudly(walk):
    """Raw pixels tell these classes apart, and a teacher with random weights does no better."""
    for name in ("train_fixed", "evaluate"):
        assert "WARNING: a probe of the teacher's features is right on" in walk[1][name]
    assert "better than raw pixels: False" in walk[1]["evaluate"]
