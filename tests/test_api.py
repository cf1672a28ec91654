"""The library in five calls: a script's way from images to a judged student, and its errors in one sentence."""

import os
import subprocess
import sys

import pytest
import timm
import torch

import kdnb
from kdnb.distillation.teacher import open_teacher
from kdnb.models.vision import build_model

SMALL = {"epochs": 2, "max_steps_per_epoch": 3, "batch_size": 10, "mixed_precision": "no", "crop_scale_min": 0.5}


@pytest.fixture
def models(make_cache, tmp_path, monkeypatch):
    """(cache, teacher) in a folder that is no project: 60 images of 8x8 in 3 shards, a small teacher from a checkpoint."""
    monkeypatch.chdir(tmp_path)
    make_cache(tmp_path / "cache", (20, 20, 20), size=8)
    torch.manual_seed(3)
    torch.save(build_model("cifar_resnet8", num_classes=3, width=4).state_dict(), "teacher.pth")
    return tmp_path / "cache", kdnb.load_teacher("cifar_resnet8", teacher_checkpoint="teacher.pth", num_classes=3, width=4)


@pytest.mark.parametrize(
    "changes",
    [
        {"regime": "full"},
        {"regime": "random", "samples_per_epoch": 30},
        {"regime": "fixed", "fixed_shards": 2, "augmentation": "clean", "cache_teacher_features": True},
        {"loss": "soft_targets", "alpha": 0.5},
    ],
    ids=str,
)
def test_every_kind_of_run_distils_and_is_timms_afterwards(models, changes):
    cache, teacher = models
    student = kdnb.build_student("cifar_resnet8", teacher, num_classes=3 if "loss" in changes else 0, width=2)
    run = kdnb.distill(student, teacher, cache, **SMALL | changes)
    assert run.finished and len(run.read("history.json")["epochs"]) == 2
    model = timm.create_model(f"local-dir:{run.folder / 'final_model'}", pretrained=True)
    weights = student.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert "## Scores" in (run.folder / "final_model/README.md").read_text()


@pytest.mark.parametrize("loss", ["mse", "cosine", "soft_targets"])
@pytest.mark.parametrize("stored", [False, True])
def test_a_teacher_that_was_never_trained_is_said_under_every_loss(models, loss, stored, capsys):
    cache, _ = models
    named = {"teacher": "cifar_resnet8", "teacher_checkpoint": "teacher.pth", "teacher_args": {"width": 4}, "image_size": 8}
    kept = {"augmentation": "clean", "cache_teacher_features": stored}
    for _ in range(2):  # the second time, what is stored is known without loading the teacher
        teacher = open_teacher(**named, cache_teacher_features=stored)
        student = kdnb.build_student("cifar_resnet8", teacher, num_classes=3 if loss == "soft_targets" else 0, width=2)
        kdnb.distill(student, teacher, cache, **SMALL | kept, loss=loss)
        assert capsys.readouterr().out.count("WARNING: the teacher cifar_resnet8 was never trained") == 1
    weights = torch.load("teacher.pth") | {"bn1.bias": torch.full((4,), 0.1)}
    torch.save(weights, "teacher.pth")
    open_teacher(**named)
    assert "never trained" not in capsys.readouterr().out


def test_the_same_name_goes_on_and_the_seed_decides_the_weights(models):
    cache, teacher = models
    weights = []
    for name in ("a", "b", "a"):
        student = kdnb.build_student("cifar_resnet8", teacher, width=2, seed=4)
        kdnb.distill(student, teacher, cache, run_name=name, **SMALL)
        weights.append(torch.cat([value.flatten().float() for value in student.state_dict().values()]))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"regime": "fixd"}, "did you mean fixed"),
        ({"regime": "fixed", "fixed_shards": 9}, "fixed_shards is 9, but the cache holds 3 shards"),
        ({"epochs": 0, "alpha": 2}, "epochs is 0; allowed is a whole number from 1 to 10,000"),
        ({"epochs": 0, "alpha": 2}, "alpha is 2; allowed is a number from 0 to 1"),
        ({"loss": "soft_targets"}, "the student has no classification head"),
        ({"cache_teacher_features": True}, "set teacher_views"),
    ],
)
def test_wrong_use_is_a_sentence(models, changes, sentence):
    cache, teacher = models
    with pytest.raises(ValueError, match=sentence):
        kdnb.distill(kdnb.build_student("cifar_resnet8", teacher, width=2), teacher, cache, **SMALL | changes)


def test_models_of_other_makes_are_refused(models):
    cache, teacher = models
    with pytest.raises(ValueError, match=r"student is a Linear that kdnb\.build_student did not make"):
        kdnb.distill(torch.nn.Linear(2, 2), teacher, cache, **SMALL)


def test_public_names_load_where_they_are_used():
    code = "import sys, kdnb; print('torch' in sys.modules, kdnb.__all__); [getattr(kdnb, name) for name in dir(kdnb)]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False") and "'distill'" in done.stdout
    assert all(getattr(kdnb, name).__doc__ for name in kdnb.__all__)
    with pytest.raises(AttributeError, match="its public names are .*precompute"):
        kdnb.no_such_name  # noqa: B018


def test_threads_soon_sleep_unless_the_user_says_otherwise():
    for given, expected in (({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")):
        environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
        code = "import os, kdnb; print(os.environ.get('GOMP_SPINCOUNT'))"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
