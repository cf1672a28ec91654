"""The teacher: frozen; a stored output is the live one, belongs to one view, and needs no teacher to be loaded."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kdnb.data.cache import read_index
from kdnb.data.cache_writer import CacheError
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.reader import ShardReader
from kdnb.data.views import RepeatedViews, SimpleTransform
from kdnb.distillation import device_memory, teacher, teacher_model
from kdnb.distillation.build import build_views
from kdnb.distillation.device_memory import DeviceLoader
from kdnb.distillation.run import distill_parameters, store_teacher_outputs
from kdnb.distillation.teacher import CachedTeacher, LiveTeacher
from kdnb.distillation.teacher_outputs import OutputCodec, TeacherCache
from kdnb.models.vision import FeatureModel, build_model, freeze
from kdnb.params import arguments_of
from kdnb.runs import Run


def run(p, tmp_path, name, **changes):
    """(losses of every step, student) of a training run."""
    p = SimpleNamespace(**vars(p) | changes)
    run = Run(name, vars(p), outputs=tmp_path)
    student = distill_parameters(p, run)
    return [record["loss"] for record in run.read("history.json")["steps"]], student.state_dict()


def opened(p, **changes) -> teacher.Teacher:
    return teacher.open_teacher(**arguments_of(teacher.open_teacher, vars(p) | changes))


def pieces(p):
    """(loader, views, teacher) of the parameters `p`."""
    views = build_views(read_index(p.cache_dir), **arguments_of(build_views, p))
    return build_pretraining_dataloader(**arguments_of(build_pretraining_dataloader, p)), views, opened(p)


@pytest.mark.parametrize("kind", ["simple", "clean", "multicrop"])
def test_stored_outputs_train_as_the_live_teacher_does(p, tmp_path, kind):
    """50 steps: 1e-6 relative while the store fills, and again when all of it is read."""
    p.augmentation, p.use_local_crops = kind, kind == "multicrop"
    expected, weights = run(p, tmp_path, "live")
    for name in ("filling", "reading"):
        losses, got = run(p, tmp_path, name, cache_teacher_features=True)
        assert len(losses) == 50 and losses == pytest.approx(expected, rel=1e-6)
        assert all(torch.allclose(got[key].float(), weights[key].float(), rtol=1e-4, atol=1e-6) for key in weights)


def test_stored_patch_tokens_train_as_live_ones_do(p, tmp_path):
    """2 x 2 positions of the last feature map, 16 wide: their loss is a part of its own, live and stored."""
    p.teacher_tokens = True
    expected, _ = run(p, tmp_path, "live")
    losses, _ = run(p, tmp_path, "stored", cache_teacher_features=True)
    assert losses == pytest.approx(expected, rel=1e-6)
    known = opened(p, cache_teacher_features=True)
    assert known.token_shape == (4, 16) and known.model is None
    without, _ = run(p, tmp_path, "without", teacher_tokens=False)
    assert all(a > b for a, b in zip(expected[:1], without[:1], strict=True))


def test_float16_outputs_deviate_a_little(p, tmp_path):
    expected, _ = run(p, tmp_path, "live")
    losses, _ = run(p, tmp_path, "half", cache_teacher_features=True, teacher_storage="float16")
    assert losses != expected and losses == pytest.approx(expected, rel=5e-3)


def test_where_all_outputs_are_there_no_teacher_is_loaded(p, tmp_path, monkeypatch):
    first, _ = run(p, tmp_path, "first", cache_teacher_features=True)
    monkeypatch.setattr(teacher_model, "build_teacher", lambda **p: pytest.fail("the teacher was loaded"))
    again, _ = run(p, tmp_path, "second", cache_teacher_features=True)
    assert again == first


def test_outputs_written_ahead_are_all_that_training_needs(p, tmp_path, monkeypatch, capsys):
    class Silent:
        def update(self, done):
            self.done = done

    p.cache_teacher_features = True
    display = Silent()
    ahead = {name: value for name, value in vars(p).items() if name not in ("use_local_crops", "local_crops_number", "loss")}
    store = store_teacher_outputs(SimpleNamespace(**ahead), display)
    assert display.done == 120 and store.verify() == []
    assert "60 images x 2 views x " in capsys.readouterr().out
    monkeypatch.setattr(teacher_model, "build_teacher", lambda **p: pytest.fail("the teacher was loaded"))
    run(p, tmp_path, "after")


def test_another_teacher_preprocessing_or_seed_has_another_folder(p, tmp_path):
    changes = [
        {}, {"seed": 1}, {"crop_scale_min": 0.4}, {"teacher_views": 3}, {"teacher_storage": "float16"}, {"augmentation": "clean"},
        {"feature_layers": [0]}, {"teacher_args": p.teacher_args | {"mean": [0.5, 0.5, 0.5]}},
        {"teacher_args": {"num_classes": 3, "width": 8}, "teacher_checkpoint": str(tmp_path / "b.pth")},
    ]  # fmt: skip
    torch.save(build_model("cifar_resnet8", num_classes=3, width=8).state_dict(), tmp_path / "b.pth")
    p.cache_teacher_features, folders = True, set()
    for change in changes:
        q = SimpleNamespace(**vars(p) | change)
        loader, views, frozen = pieces(q)
        folders.add(teacher.build_teacher_call(frozen, loader, views).store.folder)
    assert len(folders) == len(changes)


def test_outputs_of_a_teacher_normalised_as_imagenet_are_found_where_older_versions_stored_them(p):
    """The folder's name is a hash over these facts: when views normalised, mean and std were theirs."""
    p.cache_teacher_features = True
    loader, views, frozen = pieces(p)
    facts = json.loads((teacher.build_teacher_call(frozen, loader, views).store.folder / "answers.json").read_text())
    assert facts["views"] == {
        "class": "SimpleTransform", "size": 8, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "seed": 0,
        "scale": [0.5, 1.0], "ratio": [3 / 4, 4 / 3], "horizontal_flip": True, "repeats": 2,
    }  # fmt: skip


def test_a_float_cache_trains_as_the_uint8_one(p, tmp_path, make_cache):
    """The cache's own normalisation is undone: 8 bits are all that is lost."""
    expected, _ = run(p, tmp_path, "uint8")
    with pytest.raises(AssertionError):
        assert run(p, tmp_path, "other", crop_scale_min=0.9)[0] == pytest.approx(expected, rel=1e-3)
    make_cache(tmp_path / "floats", (20, 20, 20), size=8, dtype=torch.float32)  # of the same images
    losses, _ = run(p, tmp_path, "float32", cache_dir=str(tmp_path / "floats"))
    assert losses == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"student_args": {"img_size": 16}}, "takes images of 16 pixels a side alone, but image_size is 8"),
        ({"augmentation": "multicrop", "use_local_crops": True}, "8 pixels a side alone, but local_crop_size is 4"),
    ],
)
def test_a_student_that_cannot_take_the_views_is_refused(p, tmp_path, changes, sentence):
    vit = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    p.student, p.student_args, p.student_layers, p.feature_layers = "vit_tiny_patch16_224", vit, [], []
    p = SimpleNamespace(**vars(p) | changes | {"student_args": vit | changes.get("student_args", {})})
    with pytest.raises(ValueError, match=sentence):
        distill_parameters(p, Run("refused", vars(p), outputs=tmp_path))


def test_teacher_and_student_may_differ_in_normalisation_and_size(p, tmp_path):
    """A ViT that takes 16 pixels and one half as mean, imitated by a ResNet at 8 pixels, normalised as ImageNet."""
    vit = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    torch.save(build_model("vit_tiny_patch16_224", **vit).state_dict(), tmp_path / "vit.pt")
    changes = {"teacher": "vit_tiny_patch16_224", "teacher_args": vit, "teacher_checkpoint": str(tmp_path / "vit.pt")}
    changes |= {"learning_rate": 1e-2, "feature_layers": [], "student_layers": []}
    losses, _ = run(p, tmp_path, "other", **changes)
    assert losses[-1] < losses[0]
    known = opened(p, **changes)
    assert known.normalisation["mean"] == (0.5, 0.5, 0.5) and known.model.input_size == 16


def test_a_teacher_that_changed_behind_its_name_is_refused(p, tmp_path):
    p.cache_teacher_features = True
    opened(p)
    (path,) = (tmp_path / "outputs/known_teachers").iterdir()
    torch.save(torch.load(path) | {"fingerprint": "0" * 64}, path)
    with pytest.raises(ValueError, match="has other weights than when its outputs were stored"):
        opened(p).load()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"teacher_views": None}, "cache_teacher_features is true, but with augmentation simple every epoch has new views"),
        ({"use_cached": False}, "cache_teacher_features is true, but use_cached is false"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_the_ways_out(p, tmp_path, changes, sentence):
    p = SimpleNamespace(**vars(p) | {"cache_teacher_features": True} | changes)
    with pytest.raises(ValueError, match=sentence):
        run(p, tmp_path, "refused")


def test_a_disk_without_room_is_said_before_anything_is_asked(p, monkeypatch):
    p.cache_teacher_features = True
    monkeypatch.setattr(teacher.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    loader, views, frozen = pieces(p)
    with pytest.raises(CacheError, match="but its disk has 1 kB free; choose another teacher_feature_dir"):
        teacher.build_teacher_call(frozen, loader, views)


def test_images_on_the_device_train_to_the_same_weights(p, tmp_path, monkeypatch):
    expected, weights = run(p, tmp_path, "shards")
    made = []
    monkeypatch.setattr(device_memory, "DeviceLoader", lambda *a, **k: made.append(1) or DeviceLoader(*a, **k))
    losses, got = run(p, tmp_path, "device", cache_on_device="true")
    assert made and losses == expected and all(torch.equal(got[name], weights[name]) for name in weights)


def test_one_output_a_view_without_gradients():
    live = LiveTeacher(freeze(FeatureModel(build_model("cifar_resnet8", num_classes=3))))
    outputs = live([torch.randn(2, 3, 8, 8), torch.randn(2, 3, 12, 12)], {})
    assert [output["features"].shape for output in outputs] == [(2, 64)] * 2
    assert not any(output["logits"].requires_grad for output in outputs)


def test_a_teacher_that_is_not_frozen_is_refused():
    with pytest.raises(ValueError, match="not frozen"):
        LiveTeacher(FeatureModel(build_model("cifar_resnet8")))


class Counting(nn.Module):
    """Features: mean of each channel of a view, and a count of the images that it was called with."""

    def __init__(self):
        super().__init__()
        self.images = 0

    def forward(self, images):
        self.images += len(images)
        return {"features": images.mean((2, 3))}


def test_each_output_is_computed_once_and_the_model_is_loaded_for_what_is_missing(cache, tmp_path):
    reader, pair = ShardReader(cache[0]), OutputCodec(feature_dim=3, storage="float32")
    store = TeacherCache(tmp_path / "a", reader, row=pair.row, num_views=2, facts={})
    views = RepeatedViews(transform=SimpleTransform(size=4), repeats=2)
    model, loads = Counting().eval(), []

    def load():
        loads.append(1)
        return model

    cached, live = CachedTeacher(store, pair, load, repeats=2), LiveTeacher(model)
    calls = [(0, range(8), 8), (2, range(8), 8), (1, range(4), 12), (0, range(6, 10), 14), (4, range(10), 14)]
    for epoch, positions, computed in calls:
        batch = reader.read(np.array(positions)) | {"epoch": epoch}
        seen = views(batch["image"], batch["id"], epoch)
        (output,), before = cached(seen, batch), model.images
        assert model.images == computed == cached.misses
        (expected,) = live(seen, batch)
        model.images = before
        assert torch.allclose(output["features"], expected["features"], atol=1e-6)
    assert len(loads) == 3 and cached.hits == 8 + 2 + 10
