"""Models: built by name, checked against their checkpoints, frozen for good, and the same after saving."""

import copy
import json
import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from kdnb.data.decode import resize
from kdnb.data.views import CleanTransform
from kdnb.distillation.build import save_student
from kdnb.files import SUMS
from kdnb.models.folder import load_model, save_model
from kdnb.models.vision import FeatureModel, Student, build_model, count_parameters, freeze, required_size

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
    config = json.loads((tmp_path / "best_model" / "config.json").read_text())
    assert model.kdnb_args == {key: value for key, value in settings.items() if key != "num_classes"}
    sizes = model.kdnb_args.keys() - {"img_size"}  # which timm notes as a pair
    assert all(config["model_args"][key] == settings[key] for key in sizes)
    assert {path.name for path in (tmp_path / "best_model").iterdir()} == {"config.json", "model.safetensors", "README.md", SUMS}
    assert not load_model(tmp_path / "best_model").head_is_random


def test_saving_again_replaces_the_whole_folder(tmp_path):
    for settings in (SMALL_VIT, SMALL_VIT | {"depth": 2}):
        save_model(build_model("vit_tiny_patch16_224", **settings), tmp_path / "m")
    assert len(load_model(tmp_path / "m").blocks) == 2 and [path.name for path in tmp_path.iterdir()] == ["m"]
    save_model(load_model(tmp_path / "m"), tmp_path / "again")
    assert len(load_model(tmp_path / "again").blocks) == 2


def test_a_save_that_fails_leaves_the_older_folder(tmp_path, monkeypatch):
    """Killed between its two renames, a save leaves only the .old folder; a failed one after it must not remove that."""
    save_model(build_model("cifar_resnet8"), tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / ".m.old")

    def full(*args, **settings):
        raise OSError("no space left")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(timm.models, "save_for_hf", full)
        save_model(build_model("cifar_resnet8"), tmp_path / "m")
    assert load_model(tmp_path / "m").num_classes == 10


def test_a_model_folder_is_a_name(tmp_path):
    model = build_model("cifar_resnet8", num_classes=4, width=8).eval()
    save_model(model, tmp_path / "m")
    torch.save({n: v + 1 for n, v in model.state_dict().items()}, tmp_path / "other.pt")
    same, cut, new = (build_model(str(tmp_path / "m"), num_classes=n, pretrained=True).eval() for n in (None, 0, 3))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(same(images), model(images)) and not same.head_is_random
    assert torch.equal(cut(images), model.forward_head(model.forward_features(images), pre_logits=True))
    assert new(images).shape == (2, 3) and new.head_is_random and not cut.head_is_random
    assert torch.equal(new.conv1.weight, model.conv1.weight)
    other = build_model(f"local-dir:{tmp_path / 'm'}", checkpoint=tmp_path / "other.pt")
    assert torch.equal(other.fc.weight, model.fc.weight + 1) and not other.head_is_random
    with pytest.raises(FileNotFoundError, match="nowhere is no model folder"):
        build_model(f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(ValueError, match="do not fit {'width': 4}"):
        build_model(str(tmp_path / "m"), width=4)


def test_a_name_of_timm_is_not_a_folder_that_is_called_the_same(tmp_path, monkeypatch):
    (tmp_path / "cifar_resnet8").mkdir()
    monkeypatch.chdir(tmp_path)
    assert build_model("cifar_resnet8").head_is_random


@each_model
def test_outputs_have_the_documented_shapes(name, settings, size):
    model = FeatureModel(build_model(name, **settings), layers=(0, 1)).eval()
    images = torch.randn(2, 3, size, size)
    outputs = model(images)
    assert outputs["features"].shape == (2, model.feature_dim)
    assert [layer.shape for layer in outputs["layers"]] == [(2, dim) for dim in model.layer_dims]
    assert ("logits" in outputs) == (settings["num_classes"] > 0)
    if "logits" in outputs:
        assert torch.allclose(outputs["logits"], model.model((images - model.mean) / model.std), atol=1e-5)
    plain = FeatureModel(model.model).eval()(images)
    assert torch.allclose(plain["features"], outputs["features"], atol=1e-6) and "layers" not in plain


def test_layers_come_in_the_order_asked_for():
    model = build_model("cifar_resnet8").eval()
    images = torch.randn(2, 3, 32, 32)
    features = FeatureModel(model, layers=(-1, 0, 2)).eval()
    _, stages = model.forward_intermediates((images - features.mean) / features.std)
    for layer, dim, stage in zip(features(images)["layers"], features.layer_dims, (2, 0, 2), strict=True):
        assert torch.equal(layer, stages[stage].mean((2, 3))) and layer.shape[1] == dim
    with pytest.raises(ValueError, match=r"layers \[3, -4\] are not in CifarResNet, which has 3; allowed is 0 to 2"):
        FeatureModel(model, layers=(0, 3, -4))


def test_the_student_is_projected_to_the_teachers_widths():
    student = Student(build_model("vit_tiny_patch16_224", **SMALL_VIT), teacher_dim=7, layers=(0, 2), layer_dims=(3, 5))
    outputs = student(torch.randn(2, 3, 32, 32))
    assert outputs["features"].shape == (2, 7) and outputs["embedding"].shape == (2, 64)
    assert [layer.shape for layer in outputs["layers"]] == [(2, 3), (2, 5)]
    assert count_parameters(student) == count_parameters(student.model) + 65 * (7 + 3 + 5)


@pytest.mark.parametrize("wrap", [FeatureModel, lambda model: model], ids=["features", "plain"])
def test_a_frozen_model_stays_frozen(wrap):
    model = freeze(wrap(build_model("cifar_resnet8")))
    parent = torch.nn.ModuleList([model, torch.nn.Dropout()]).train()
    assert parent[1].training and not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.train() is again and not any(module.training for module in again.modules())


def test_a_head_that_no_checkpoint_filled_is_noticed(tmp_path):
    model = build_model("cifar_resnet8", num_classes=10)
    assert model.head_is_random and not build_model("cifar_resnet8", num_classes=0).head_is_random
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    torch.save({n: v for n, v in model.state_dict().items() if not n.startswith("fc.")}, tmp_path / "body.pt")
    assert not build_model("cifar_resnet8", checkpoint=tmp_path / "whole.pt").head_is_random
    assert build_model("cifar_resnet8", num_classes=10, checkpoint=tmp_path / "body.pt").head_is_random
    assert build_model("cifar_resnet8", num_classes=3, checkpoint=tmp_path / "whole.pt").head_is_random
    assert build_model("cifar_resnet8", checkpoint=tmp_path / "body.pt").num_classes == 0


def test_a_new_head_on_pretrained_weights_is_noticed(tmp_path):
    """The weights that the Hub would send are given as a file."""
    torch.save(build_model("cifar_resnet8", num_classes=10).state_dict(), tmp_path / "hub.pt")
    hub = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(tmp_path / "hub.pt")}}
    assert not build_model("cifar_resnet8", **hub).head_is_random
    assert build_model("cifar_resnet8", num_classes=3, **hub).head_is_random
    assert not build_model("cifar_resnet8", num_classes=0, **hub).head_is_random
    assert build_model("cifar_resnet8", **hub).kdnb_args == {}  # where weights come from is no part of the architecture


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": {f"module.{n}": v for n, v in s.items()}, "epoch": 3},
        lambda s: {"model": {f"_orig_mod.module.{n}": v for n, v in s.items()}},
        lambda s: {f"backbone.{n}": v for n, v in s.items()},
        lambda s: {"student": {f"encoder.model.{n}": v for n, v in s.items()} | {"projection.weight": torch.ones(2, 64)}},
    ],
    ids=["bare", "data-parallel", "compiled", "backbone", "run"],
)
def test_wrapped_checkpoints_are_unwrapped(tmp_path, wrap):
    model = build_model("cifar_resnet8", num_classes=4).eval()
    torch.save(wrap(model.state_dict()), tmp_path / "a.pth")
    again = build_model("cifar_resnet8", checkpoint=tmp_path / "a.pth").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), again(images))


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(ValueError, match="vit_tiny_patch16_244 is no model .* names are vit_tiny_patch16_224"):
        build_model("vit_tiny_patch16_244")
    with pytest.raises(ValueError, match=r"resnet18.a1_in2k is no model that timm knows .* resnet18.a1_in1k"):
        build_model("resnet18.a1_in2k")


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


def test_a_model_without_published_weights_is_not_random_in_silence():
    with pytest.raises(ConnectionError, match="No pretrained weights exist for cifar_resnet8"):
        build_model("cifar_resnet8", pretrained=True)


def test_a_checkpoint_with_other_shapes_names_them(tmp_path):
    """7 convolutions and 7 normalisations of 4 tensors; the head differs too, but that is head_is_random's matter."""
    torch.save(build_model("cifar_resnet8", width=8).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"35 of another shape: bn1.bias \[8\] instead of \[16\], .* \.\.\.\."):
        build_model("cifar_resnet8", checkpoint=tmp_path / "a.pt")


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"text")
    torch.save(build_model("cifar_resnet8"), tmp_path / "b.pt")  # a pickled object: loading it could run code
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=f"cannot be read as weights: .*{name}"):
            build_model("cifar_resnet8", checkpoint=tmp_path / name)


def test_the_projections_count_must_fit():
    with pytest.raises(ValueError, match="student_layers has 1 layers, feature_layers 2; give as many"):
        Student(build_model("cifar_resnet8"), teacher_dim=3, layers=(0,), layer_dims=(3, 4))


@pytest.mark.parametrize(
    "name, args, shape",
    [("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}, (4, 192)), ("cifar_resnet8", {}, (64, 64))],
)
def test_tokens_are_patches_or_positions(name, args, shape):
    model = freeze(FeatureModel(build_model(name, **args), tokens=True))
    images = torch.randn(2, 3, 32, 32)
    outputs = model(images)
    assert outputs["tokens"].shape == (2, *shape) and model.token_dim == shape[1]
    if name == "cifar_resnet8":  # its features are the mean over positions
        assert torch.allclose(outputs["tokens"].mean(1), outputs["features"], atol=1e-5)
    student = Student(build_model("cifar_resnet8", width=4), teacher_dim=8, token_dim=5)
    assert student(images)["tokens"].shape == (2, 64, 5)


@pytest.mark.parametrize(
    "name, mean",
    [
        ("vit_tiny_patch16_224", (0.5, 0.5, 0.5)),  # augreg
        ("vit_base_patch32_clip_224.openai", (0.48145466, 0.4578275, 0.40821073)),
        ("vit_base_patch16_siglip_224.webli", (0.5, 0.5, 0.5)),
        ("resnet10t", (0.485, 0.456, 0.406)),
    ],
)
def test_a_model_normalises_with_its_own_mean_and_deviation(name, mean):
    """What a plain timm user computes: its transform's normalisation, then the model."""
    small = {} if name.startswith("resnet") else {"img_size": 32, "embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 0}
    model = build_model(name, **small).eval()
    config = timm.data.resolve_data_config(model=model)
    assert config["mean"] == pytest.approx(mean)
    images = torch.rand(2, 3, 32, 32)
    std, mean = (torch.tensor(config[key]).view(3, 1, 1) for key in ("std", "mean"))
    plain = model.forward_head(model.forward_features((images - mean) / std), pre_logits=True)
    assert torch.allclose(FeatureModel(model)(images)["features"], plain, atol=1e-5)
    with pytest.raises(ValueError, match=r"models take float images in \[0, 1\]"):
        FeatureModel(model)(images.to(torch.uint8))


def test_normalisation_can_be_given_with_a_checkpoint_that_does_not_say_it():
    model = build_model("cifar_resnet8", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), width=4)
    assert FeatureModel(model).normalisation == {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
    for wrong in ({"mean": 0.5}, {"std": (0.2, 0.0, 0.1)}, {"mean": (0.5, 0.5)}):
        with pytest.raises(ValueError, match="allowed are three numbers"):
            build_model("cifar_resnet8", **wrong)


def test_a_runs_checkpoint_says_what_it_was_trained_with(tmp_path):
    student = Student(build_model("cifar_resnet8", mean=(0.5, 0.4, 0.3), width=4, num_classes=0), teacher_dim=3)
    torch.save({"student": student.state_dict()}, tmp_path / "new.pt")
    assert build_model("cifar_resnet8", checkpoint=tmp_path / "new.pt", width=4).pretrained_cfg["mean"] == (0.5, 0.4, 0.3)
    old = {name: value for name, value in student.state_dict().items() if name not in ("encoder.mean", "encoder.std")}
    torch.save({"student": old}, tmp_path / "old.pt")  # as written when ImageNet's was the only one
    assert build_model("cifar_resnet8", checkpoint=tmp_path / "old.pt", width=4).pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    student.load_state_dict(old)
    assert student.encoder.normalisation["mean"] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("mode", ["crop", "squash"])
@pytest.mark.parametrize("name, settings", [("resnet10t", {}), ("vit_tiny_patch16_224", SMALL_VIT | {"img_size": 48})])
def test_a_saved_student_tells_timm_how_to_prepare_its_images(tmp_path, name, settings, mode):
    """From a photograph to features: kdnb's own way, and that of a user who knows timm and the folder alone."""
    student = Student(build_model(name, **settings | {"num_classes": 0}), teacher_dim=3).eval()
    save_student(student, tmp_path / "m", image_size=48, resize=mode)
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8))
    cached = torch.tensor(resize(photograph, 48, mode)).permute(2, 0, 1)[None]
    own = student(CleanTransform(size=48)(cached, torch.zeros(1, dtype=torch.int64), 0)[0])["embedding"]
    model = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    config = timm.data.resolve_data_config(model=model)
    assert tuple(config["input_size"]) == (3, 48, 48) and config["crop_pct"] == 1.0
    theirs = model(timm.data.create_transform(**config)(photograph)[None])
    assert torch.allclose(own, theirs, atol=1e-5)
    recorded = json.loads((tmp_path / "m" / "config.json").read_text())["pretrained_cfg"]
    assert not recorded.keys() & {"tag", "license", "origin_url", "paper_ids", "paper_name", "url", "hf_hub_id", "description"}


def test_a_model_of_one_size_resizes_what_it_is_given():
    model = build_model("vit_tiny_patch16_224", **SMALL_VIT).eval()
    assert required_size(model) == 32 and required_size(build_model("cifar_resnet8")) is None
    assert required_size(build_model("vit_tiny_patch16_224", **SMALL_VIT, dynamic_img_size=True)) is None
    teacher, images = FeatureModel(model, input_size=32), torch.rand(2, 3, 32, 32)
    large = torch.nn.functional.interpolate(images, (64, 64), mode="nearest")
    assert torch.allclose(teacher(images)["features"], FeatureModel(model)(images)["features"])
    assert teacher(large)["features"].shape == (2, 64)
