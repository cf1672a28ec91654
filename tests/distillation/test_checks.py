"""What does not go together is said before anything is built, all of it at once, in the sentences that the work itself has."""

import shutil
from types import SimpleNamespace

import datasets
import pytest
import torch
from PIL import Image

from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.precompute import precompute
from kdnb.distillation import build, checks
from kdnb.params import ParameterError, arguments_of
from kdnb.text.text_data import TextData
from kdnb.text.texts import Texts

SUBSET = {"processes": 1, "fixed_shards": 2, "fixed_choice": "first", "samples_per_epoch": None, "shards_per_epoch": 2}
SUBSET |= {"draw": "independent", "random_subset_seed": 0, "tour_steps": 0, "streaming": False}
SUBSET |= {"held_out": 0.2, "max_samples": None, "storage": "uint8"}  # of precompute
COMPARISON = {"regimes": "full,fixed", "baseline": "fixed", "seeds": [0, 1], "subset_shards": 2, "eval_split": "test"}
COMPARISON |= {"probe_samples": 100}


@pytest.fixture
def p(p, tmp_path, monkeypatch):
    """A run on 60 cached images that nothing speaks against; the current folder is empty but for what the fixture made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "build_model", lambda *a, **k: pytest.fail("a model was built"))
    return SimpleNamespace(**vars(p) | SUBSET)


def faults(p, notebook: str, **changes) -> list[str]:
    try:
        checks.check_run(SimpleNamespace(**vars(p) | changes), notebook)
    except ParameterError as error:
        return str(error).split("\n")
    return []


@pytest.mark.parametrize("notebook", ["train_optimized", "train_random", "train_fixed", "precompute"])
def test_nothing_is_said_where_nothing_is_wrong(p, notebook, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert faults(p, notebook) == []
    assert sorted(tmp_path.rglob("*")) == before


def test_one_error_names_every_fault(p):
    changes = {
        "warmup_steps": 50, "processes": 3, "student": "cifar_resnet9", "feature_layers": [0, 1], "use_local_crops": True,
        "teacher_checkpoint": "nowhere.pth", "cache_teacher_features": True, "teacher_views": None, "dataset": None,
        "run_name": "../elsewhere",
    }  # fmt: skip
    if not torch.cuda.is_available():
        changes["mixed_precision"] = "fp16"
        changes["batch_norm"] = "sync"
    found = faults(p, "train_fixed", **changes)
    words = [
        "run_name is '../elsewhere'", "dataset is None",
        "cache_teacher_features is true, but with augmentation simple", "nowhere.pth does not exist",
        "cifar_resnet9 is no model", "student_layers has 1 layers, feature_layers 2", "use_local_crops is true, but",
        "mixed_precision is fp16", "batch_norm is sync", "batch_size is 10, but 3 processes", "warmup_steps is 50, but training",
    ]  # fmt: skip
    if torch.cuda.is_available():
        words = [word for word in words if "fp16" not in word and "sync" not in word]
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True)), found


@pytest.mark.parametrize(
    "notebook, changes, sentence",
    [
        ("train_fixed", {"fixed_shards": 4}, "fixed_shards is 4, but the cache holds 3 shards"),
        ("train_fixed", {"fixed_shards": 1, "batch_size": 21}, "batch_size is 21, but an epoch has 20 samples"),
        ("train_random", {"shards_per_epoch": None}, "a random epoch needs exactly one of them"),
        ("train_random", {"shards_per_epoch": None, "samples_per_epoch": 61}, "samples_per_epoch is 61, but the cache holds 60"),
        ("train_optimized", {"batch_size": 64}, "batch_size is 64, but an epoch has 60 samples"),
        ("train_fixed", {"warmup_steps": 40, "epochs": 10, "max_steps_per_epoch": None}, "training has 40 steps; choose 0 to 39"),
        ("train_fixed", {"warmup_steps": 20, "gradient_accumulation_steps": 2, "max_steps_per_epoch": None}, "has 20 steps"),
    ],
)
def test_a_subset_is_held_against_the_cache_as_the_loader_will(p, notebook, changes, sentence):
    (found,) = faults(p, notebook, **changes)
    assert sentence in found
    if "warmup_steps" not in changes:
        regime, _ = checks.SUBSETS[notebook]
        q = SimpleNamespace(**vars(p) | changes)
        with pytest.raises(ValueError) as error:
            build_pretraining_dataloader(**arguments_of(build_pretraining_dataloader, vars(q) | {"regime": regime}))
        assert str(error.value) == found


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"student": "resnet18"}, "resnet18 cannot be built with {'width': 2}: "),
        ({"student_args": {"num_classes": 3}}, "student_args"),
        ({"student_layers": [9]}, "student: layers [9] are not in CifarResNet"),
        ({"student": "vit_tiny_patch16_224", "student_args": {}}, "takes images of 224 pixels a side alone, but "),
        ({"teacher_args": {"depth": 3}}, "teacher: cifar_resnet8 cannot be built with {'depth': 3}: "),
        ({"feature_layers": [7]}, "teacher: layers [7] are not in CifarResNet"),
        (
            {"teacher_checkpoint": None, "teacher_args": {}},
            "teacher: there are no pretrained weights of cifar_resnet8; give teacher",
        ),
        ({"eval_split": "val"}, "eval_split is 'val', but dataset digits has train, test; name one that is there"),
    ],
)
def test_models_and_splits_are_asked_what_they_take(p, changes, sentence):
    (found,) = faults(p, "train_fixed", **changes)
    assert sentence in found


def test_images_that_are_not_there_are_missed_by_whoever_reads_them(p):
    assert faults(p, "train_fixed", dataset="gone/") == []  # the cache is there
    for notebook in ("precompute", "train_fixed"):
        (found,) = faults(p, notebook, dataset="gone/", eval_split="test")
        assert found.startswith("dataset is 'gone/', but there is no file or folder ")


def test_images_and_outputs_need_room(p, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    (found,) = faults(p, "precompute", cache_dir="nowhere", cache_teacher_features=True)
    assert "for 1,500 images of 8x8 in uint8, but its disk has 1 kB free; choose another cache_dir" in found
    (found,) = faults(p, "train_optimized", cache_teacher_features=True)
    assert " images x 2 views x " in found and "but its disk has 1 kB free; choose another teacher_feature_dir" in found
    assert faults(p, "precompute") == faults(p, "train_optimized") == []


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_her_own_images_have_the_splits_that_she_gave_them_or_a_part_that_is_held_out(p, tmp_path, kind):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    data = {"dataset": "photos", "cache_dir": "none", "max_steps_per_epoch": None}
    if kind == "parquet":
        images = datasets.load_dataset("imagefolder", data_dir="photos", split="train")
        images.to_parquet("as_table/all.parquet")
        data["dataset"] = "as_table"
    assert faults(p, "precompute", **data) == faults(p, "train_fixed", **data, eval_split="test") == []
    assert not (tmp_path / "none").exists()
    (found,) = faults(p, "precompute", **data, split="val")
    assert found.startswith("split is 'val', but dataset ") and "train" in found
    (found,) = faults(p, "train_fixed", **data, eval_split="val")
    assert found.startswith("eval_split is 'val', but dataset ")
    precompute(data["dataset"], tmp_path / "all", image_size=8, progress=False)  # holds nothing out
    run = {"cache_dir": "all", "fixed_shards": 1, "batch_size": 2, "warmup_steps": 0}
    (found,) = faults(p, "train_fixed", **data | run, eval_split="test")
    assert "eval_split is 'test', but dataset " in found and "held_out" in found


def test_a_warm_up_given_as_a_share_fits_a_run_of_any_length(p):
    for epochs in (1, 2, 50):
        assert faults(p, "train_fixed", warmup_steps=0.1, epochs=epochs, max_steps_per_epoch=1) == []
    assert faults(p, "train_fixed", warmup_steps=1, epochs=1, max_steps_per_epoch=1)


def test_labels_are_asked_for_where_the_loss_needs_them(p, make_cache, tmp_path):
    make_cache(tmp_path / "none", (20, 20), size=8, labels=torch.full((40,), -1))
    assert faults(p, "train_fixed", alpha=0.5) == []
    assert faults(p, "train_fixed", cache_dir="none", alpha=1.0, fixed_shards=1) == []
    (found,) = faults(p, "train_fixed", cache_dir="none", alpha=0.5, fixed_shards=1)
    assert found.startswith("alpha is 0.5, but the images have no labels")


def test_without_a_cache_what_is_known_is_checked(p):
    """The digits' number is known; of other data only that there are no more steps than the cap allows."""
    digits = {"cache_dir": "not/yet", "dataset": "digits", "cache_shard_size": 48, "max_steps_per_epoch": None}
    assert faults(p, "train_fixed", **digits, fixed_shards=32) == []
    assert faults(p, "train_fixed", **digits, fixed_shards=33) == [
        "fixed_shards is 33, but the cache holds 32 shards; choose 1 to 32, or precompute more."
    ]
    (found,) = faults(p, "train_fixed", **digits, fixed_shards=2, epochs=1, warmup_steps=10)
    assert "training has 9 steps" in found
    other = digits | {"dataset": "somewhere/else", "student": "cifar_resnet9", "fixed_shards": 10_000}
    assert len(faults(p, "train_fixed", **other)) == 1
    assert len(faults(p, "train_fixed", **other | {"max_steps_per_epoch": 3, "epochs": 2, "warmup_steps": 6})) == 2


def test_stored_answers_are_checked_before_images_are_stored(p):
    assert faults(p, "precompute", cache_teacher_features=True) == []
    found = faults(p, "precompute", cache_teacher_features=True, teacher_views=None, teacher="resnet_fifty")
    assert len(found) == 2 and "set teacher_views" in found[0] and "resnet_fifty is no model that timm knows" in found[1]
    assert faults(p, "precompute", teacher="resnet_fifty") == []  # nobody asks it


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"baseline": "dealt"}, "baseline is dealt, but regimes is 'full,fixed'; it must be among them"),
        ({"eval_split": None}, "eval_split is None; evaluation needs a held-out split"),
        ({"subset_shards": 9}, "subset_shards is 9, but the cache holds 3 shards"),
        ({"warmup_steps": 40, "max_steps_per_epoch": None}, "warmup_steps is 40, but training has 40 steps"),
        ({"seeds": [0, 0]}, "give at least one seed, each at most once"),
    ],
)
def test_a_comparison_is_checked_before_its_runs_start(p, changes, sentence):
    p = SimpleNamespace(**vars(p) | COMPARISON)
    assert faults(p, "compare_regimes") == []
    (found,) = faults(p, "compare_regimes", **changes)
    assert sentence in found


def texts(rows: int, labelled: bool = True) -> TextData:
    labels = torch.arange(rows) % 3 if labelled else None
    part = Texts("t", ["x"] * rows, labels, ["a", "b", "c"], torch.arange(rows))
    return TextData(part, part, part, part)


TEXT = {
    "mixed_precision": "no", "sweep_temperatures": [1.0, 4.0], "sweep_alphas": [0.5, 1.0], "sweep_epochs": 1, "epochs": 2,
    "batch_size": 16, "max_steps_per_epoch": None, "gradient_accumulation_steps": 1, "warmup_steps": 0.1, "teacher_head": "keep",
    "cache_teacher_logits": True,
}  # fmt: skip


def test_a_sweep_has_alphas():
    assert faults(p := SimpleNamespace(**TEXT), "soft_distill_text") == []
    (found,) = faults(p, "soft_distill_text", sweep_alphas=[])
    assert found.startswith("sweep_alphas is empty, but sweep_temperatures is not")


@pytest.mark.parametrize(
    "changes, rows, labelled, sentences",
    [
        ({}, 50, True, []),
        ({"warmup_steps": 7}, 50, True, ["in the sweep, of sweep_epochs: warmup_steps is 7, but training has 4 steps"]),
        ({"warmup_steps": 7, "sweep_temperatures": []}, 50, True, []),
        ({"warmup_steps": 100, "cache_teacher_logits": False}, 100, True, ["warmup_steps is 100, but training has 14 steps"]),
        ({"max_steps_per_epoch": 1, "warmup_steps": 2, "sweep_epochs": 3}, 50, True, ["but training has 2 steps"]),
        (
            {"teacher_head": "linear"},
            50,
            False,
            ["have no labels, but teacher_head is linear", "alpha is 0.5"],
        ),
    ],
)
def test_texts_are_checked_once_they_are_loaded(changes, rows, labelled, sentences):
    p, data = SimpleNamespace(**TEXT | changes), texts(rows, labelled)
    if not sentences:
        checks.check_texts(p, data)
        return
    with pytest.raises(ValueError) as error:
        checks.check_texts(p, data)
    found = str(error.value).split("\n")
    assert len(found) == len(sentences)
    assert all(part in sentence for part, sentence in zip(sentences, found, strict=True)), found
