"""A relative path is taken from the project's root, wherever in the project a notebook or a script is started."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from kdnb.models.vision import build_model

FIND = """
    import json
    from types import SimpleNamespace
    import kdnb
    from kdnb.data.prepare import held_out_batches
    from kdnb.data.reader import ShardReader
    from kdnb.distillation.teacher import open_teacher
    from kdnb.evaluation.trained_run import find_runs
    from kdnb.runs import anchored
    cache = kdnb.precompute("photos", "outputs/cache", image_size=8, held_out=0.2, progress=False)
    named = {"teacher": "cifar_resnet8", "teacher_checkpoint": "weights/teacher.pth", "teacher_args": {"width": 4}}
    stored = {"cache_teacher_features": True, "teacher_feature_dir": "outputs/answers"}
    teacher = open_teacher(**named, **stored, image_size=8)
    student = kdnb.build_student("cifar_resnet8", teacher, width=2)
    small = {"epochs": 1, "batch_size": 2, "augmentation": "clean", "dataset": "photos"}
    run = kdnb.distill(student, teacher, "outputs/cache", run_name="r", **stored, **small)
    (found,) = find_runs(checkpoint_dir="outputs/r")
    data = {"image_column": None, "label_column": None, "image_size": 8, "resize": "crop", "cache_dir": "outputs/cache"}
    judged = held_out_batches(dataset="photos", eval_split="test", **data)
    folders = cache, found.folder, teacher.cache_dir, judged.dataset.reader.cache_dir
    print(json.dumps([found.checkpoints[-1].step, *map(str, folders)]))
"""


@pytest.fixture
def project(tmp_path):
    for name in ("notebooks", "outputs", "weights", "photos/a/deep", "photos/b"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/0", "a/deep/1", "b/0", "b/1"):
        Image.new("RGB", (8, 8), 30).save(tmp_path / f"photos/{name}.png")
    torch.save(build_model("cifar_resnet8", num_classes=2, width=4).state_dict(), tmp_path / "weights/teacher.pth")
    return tmp_path


def test_the_same_files_are_found_from_any_folder(project):
    found, files = set(), set()
    for folder in (".", "notebooks", "photos/a/deep"):
        command = [sys.executable, "-c", "\n".join(line[4:] for line in FIND.splitlines())]
        done = subprocess.run(
            command, cwd=project / folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.add(done.stdout.splitlines()[-1])
        files.add(json.dumps(sorted(str(path.relative_to(project)) for path in project.rglob("*") if path.is_file())))
    assert len(found) == len(files) == 1
    step, *folders = json.loads(*found)
    names = ["outputs/cache", "outputs/r", "outputs/answers"]
    assert step == 1 and folders[:3] == [str(project / name) for name in names]
    assert folders[3].startswith(str(project / "outputs/cache_evaluation/"))
