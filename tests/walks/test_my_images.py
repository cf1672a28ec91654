"""Any folder of pictures, three commands: precompute, train and evaluate with params/my_images.yaml, in a copy of the project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from kdnb.data.precompute import precompute
from kdnb.data.reader import ShardReader
from kdnb.distillation.checks import check_run
from kdnb.fetch import read_params

SIZES = {"image_size": 32, "epochs": 2}  # smaller than in the file
TEACHER = {"teacher": "resnet10t", "teacher_checkpoint": "teacher.pt"}


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


def test_three_commands_and_no_failure(project, bring_photos, walk):
    bring_photos(project)
    mine = ["-f", "params/my_images.yaml", *options(dataset="photos/", **TEACHER, **SIZES)]
    commands = {"precompute": mine, "train_fixed": mine, "evaluate": options(checkpoint_dir="outputs/my_images")}
    printed = {}
    for name, arguments in commands.items():
        printed[name] = papermill(project, name, *arguments)
        walk.count()

    # a fifth of each class is held out and judges
    reader = ShardReader(project / "outputs/cache_my_images")
    assert np.bincount(reader.labels).tolist() == [16, 20, 24] and reader.index["source"] == "photos without held_out 0.2"
    assert "15 more are held out" in printed["precompute"]
    for name in ("train_fixed", "evaluate"):
        assert "photos/ has no split test; the 20% of each class that outputs/cache_my_images holds out" in printed[name]
    assert "fitted on 60 images, tested on 15" in printed["evaluate"]
    assert re.findall(r"(\d+) of 15 test images are among", printed["evaluate"]) == ["0", "0"]

    # sizes that are shares say what they became, and are left to the training where there is no cache yet
    assert "left to the training: " in printed["precompute"] and "fixed_shards" in printed["precompute"]
    assert "fixed_shards 0.5 is 2 of 4 shards" in printed["train_fixed"]

    # raw pixels tell these classes apart, and a teacher with random weights does no better
    for name in ("train_fixed", "evaluate"):
        assert "WARNING: a probe of the teacher's features is right on" in printed[name]
    assert "better than raw pixels: False" in printed["evaluate"]


@pytest.mark.parametrize("counts", [(4, 4, 4), (1, 2, 40)], ids=str)
def test_a_dozen_pictures_are_enough_and_classes_may_be_uneven(project, monkeypatch, counts):
    """What the first cells of precompute and of the training check, with the file as it is."""
    monkeypatch.chdir(project)
    for number, count in enumerate(counts):
        (project / f"photos/{number}").mkdir(parents=True)
        for picture in range(count):
            Image.new("L", (20, 30), 60 * number).save(project / f"photos/{number}/{picture}.jpg")
    given = {"dataset": "photos", "teacher": "resnet10t", "image_size": 8}
    for notebook in ("precompute", "train_fixed"):
        _, p = read_params(project / "params/my_images.yaml", notebook=notebook, changes=given)
        check_run(p, notebook)
        if notebook == "precompute":
            precompute("photos", p.cache_dir, progress=False, **p.of(precompute))
