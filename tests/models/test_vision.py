"""Models: built by name, checked against their checkpoints, frozen for good, and the same after saving."""

import pickle

import pytest
import timm
import torch

from kdnb.models.vision import (
    FeatureModel,
    Student,
    build_model,
    count_parameters,
    freeze,
    load_model,
    save_model,
)

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4, "num_classes": 0}
MODELS = [
    ("vit_tiny_patch16_224", SMALL_VIT, 32),
    ("cifar_resnet8", {"num_classes": 10, "width": 8}, 32),
    ("resnet10t", {"num_classes": 5}, 64),
    ("mobilenetv3_small_050", {"num_classes": 5}, 64),
]
each_model = pytest.mark.parametrize("name, settings, size", MODELS, ids=[name for name, *_ in MODELS])


@each_model
def test_a_saved_model_gives_the_same_outputs_through_timm(tmp_path, name, settings, size):
    model = build_model(name, **settings).eval()
    save_model(model, tmp_path / "best_model", card="# A student\n")
    again = timm.create_model(f"local-dir:{tmp_path / 'best_model'}", pretrained=True).eval()
    images = torch.randn(2, 3, size, size)
    assert torch.equal(model(images), again(images))
    assert {path.name for path in (tmp_path / "best_model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert not load_model(tmp_path / "best_model").head_is_random


def test_saving_again_replaces_the_whole_folder(tmp_path):
    for settings in (SMALL_VIT, SMALL_VIT | {"depth": 2}):
        save_model(build_model("vit_tiny_patch16_224", **settings), tmp_path / "m")
    assert len(load_model(tmp_path / "m").blocks) == 2 and [path.name for path in tmp_path.iterdir()] == ["m"]


@each_model
def test_answers_have_the_documented_shapes(name, settings, size):
    model = FeatureModel(build_model(name, **settings), layers=(0, 1)).eval()
    images = torch.randn(2, 3, size, size)
    answer = model(images)
    assert answer["features"].shape == (2, model.feature_dim)
    assert [layer.shape for layer in answer["layers"]] == [(2, dim) for dim in model.layer_dims]
    assert ("logits" in answer) == (settings["num_classes"] > 0)
    if "logits" in answer:
        assert torch.allclose(answer["logits"], model.model(images), atol=1e-6)
    plain = FeatureModel(model.model).eval()(images)
    assert torch.allclose(plain["features"], answer["features"], atol=1e-6) and "layers" not in plain


def test_the_student_is_projected_to_the_teachers_widths():
    student = Student(build_model("vit_tiny_patch16_224", **SMALL_VIT), teacher_dim=7, layers=(0, 2), layer_dims=(3, 5))
    answer = student(torch.randn(2, 3, 32, 32))
    assert answer["features"].shape == (2, 7) and answer["embedding"].shape == (2, 64)
    assert [layer.shape for layer in answer["layers"]] == [(2, 3), (2, 5)]
    assert count_parameters(student) == count_parameters(student.model) + 65 * (7 + 3 + 5)


def test_a_frozen_model_stays_frozen():
    model = freeze(FeatureModel(build_model("cifar_resnet8")))
    parent = torch.nn.ModuleList([model, torch.nn.Dropout()]).train()
    assert parent[1].training and not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not pickle.loads(pickle.dumps(model)).train().model.bn1.training


def test_a_head_that_no_checkpoint_filled_is_noticed(tmp_path):
    model = build_model("cifar_resnet8", num_classes=10)
    assert model.head_is_random and not build_model("cifar_resnet8", num_classes=0).head_is_random
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    torch.save({n: v for n, v in model.state_dict().items() if not n.startswith("fc.")}, tmp_path / "body.pt")
    assert not build_model("cifar_resnet8", checkpoint=tmp_path / "whole.pt").head_is_random
    assert build_model("cifar_resnet8", num_classes=10, checkpoint=tmp_path / "body.pt").head_is_random
    assert build_model("cifar_resnet8", num_classes=3, checkpoint=tmp_path / "whole.pt").head_is_random
    assert build_model("cifar_resnet8", checkpoint=tmp_path / "body.pt").num_classes == 0


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{n}": v for n, v in s.items()}}])
def test_wrapped_checkpoints_are_unwrapped(tmp_path, wrap):
    model = build_model("cifar_resnet8", num_classes=4).eval()
    torch.save(wrap(model.state_dict()), tmp_path / "a.pth")
    again = build_model("cifar_resnet8", checkpoint=tmp_path / "a.pth").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), again(images))


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(ValueError, match="vit_tiny_patch16_244 is no model that timm knows; near names are vit_tiny_patch16_224"):
        build_model("vit_tiny_patch16_244")


def test_a_checkpoint_of_another_architecture_names_the_keys(tmp_path):
    torch.save(build_model("cifar_resnet20").state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt is of another architecture than CifarResNet: 72 unexpected: layer1.1.bn1.bias"):
        build_model("cifar_resnet8", checkpoint=tmp_path / "a.pt")
    with pytest.raises(ValueError, match="missing: blocks.0"):
        build_model("vit_tiny_patch16_224", checkpoint=tmp_path / "a.pt", **SMALL_VIT)


@pytest.mark.parametrize(
    "settings, error, sentence",
    [
        ({"checkpoint": "no/such.pt"}, FileNotFoundError, "checkpoint no/such.pt does not exist"),
        ({"colour": "red"}, ValueError, "cifar_resnet8 cannot be built with {'colour': 'red'}"),
    ],
)
def test_other_bad_input(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        build_model("cifar_resnet8", **settings)


def test_weights_that_cannot_be_fetched_are_a_clear_error(monkeypatch):
    def offline(name, pretrained, **settings):
        raise OSError("cannot locate the file on the Hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConnectionError, match="the pretrained weights of resnet18 cannot be fetched .*pass the path"):
        build_model("resnet18", pretrained=True)


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"text")
    with pytest.raises(ValueError, match="a.pt cannot be read as weights"):
        build_model("cifar_resnet8", checkpoint=tmp_path / "a.pt")


def test_the_projections_count_must_fit():
    with pytest.raises(ValueError, match="student_layers has 1 layers and feature_layers 2"):
        Student(build_model("cifar_resnet8"), teacher_dim=3, layers=(0,), layer_dims=(3, 4))
