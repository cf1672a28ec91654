"""Nothing on a device is float64, which Apple's MPS does not have: the way of the README's first command, and evaluation."""

import contextlib

import pytest
import torch
from fake_device import device_without_float64
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import mse, run_training

from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.loader import BatchReader
from kdnb.data.views import CleanTransform, FastMultiCropTransform, SimpleTransform
from kdnb.distillation.teacher import LiveTeacher
from kdnb.distillation.teacher_check import feature_statistics, measure_teacher
from kdnb.distillation.teacher_outputs import OutputCodec
from kdnb.evaluation.features import extract_features
from kdnb.evaluation.knn import knn_classify
from kdnb.evaluation.probe import fit_logistic, linear_probe
from kdnb.models.vision import FeatureModel, build_model, freeze

VIEWS = [
    CleanTransform(size=8),
    SimpleTransform(size=6),
    FastMultiCropTransform(global_size=8, local_size=4, use_local_crops=True),
]


@pytest.fixture
def small(make_cache, tmp_path, monkeypatch):
    """(model, batches of 60 images of 8x8) on the CPU."""
    # The stand-in for a device knows neither of these two, which change nothing here.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    monkeypatch.setattr(torch, "autocast", lambda *device, **settings: contextlib.nullcontext())
    make_cache(tmp_path / "cache", (30, 30), size=8)
    model = freeze(FeatureModel(build_model("cifar_resnet8", num_classes=3, width=4)))
    return model, list(BatchReader(CachedTensorDataset(tmp_path / "cache"), batch_size=20))


def there(batches: list[dict], device) -> list[dict]:
    return [{name: value if name == "id" else value.to(device) for name, value in batch.items()} for batch in batches]


def test_the_stand_in_refuses_what_the_device_refuses():
    with device_without_float64() as device:
        x = torch.arange(3.0).to(device)
        assert x.device == device and (x * 2).sum().item() == 6 and x.cpu().tolist() == [0, 1, 2]
        refused = [
            lambda: x.double(),
            lambda: torch.zeros(1, dtype=torch.float64, device=device),
            lambda: torch.ones(1).double().to(device),
        ]
        for call in refused:
            with pytest.raises(TypeError, match="does not have float64"):
                call()
        with pytest.raises(RuntimeError, match="on the device and on the CPU"):
            x + torch.ones(3)


@torch.no_grad()
@pytest.mark.parametrize("views", VIEWS, ids=lambda views: type(views).__name__)
def test_views_and_a_teacher_need_no_float64(small, views):
    model, batches = small
    expected = [model(view)["features"] for view in views(batches[0]["image"], batches[0]["id"], 1)]
    with device_without_float64() as device:
        teacher = LiveTeacher(model.to(device))
        (batch, *_) = there(batches, device)
        result = teacher(views(batch["image"], batch["id"], 1), batch)
        assert all(torch.allclose(a["features"].cpu(), b, atol=1e-5) for a, b in zip(result, expected, strict=True))


@torch.no_grad()
def test_what_is_measured_of_a_teacher_needs_no_float64_on_the_device(small):
    model, batches = small
    expected = feature_statistics(LiveTeacher(model), batches, VIEWS[0])
    known = measure_teacher(LiveTeacher(model), batches, VIEWS[0])
    with device_without_float64() as device:
        teacher, moved = LiveTeacher(model.to(device)), there(batches, device)
        result = feature_statistics(teacher, moved, VIEWS[0])
        assert all(torch.allclose(a, b) for a, b in zip(result, expected, strict=True))
        assert measure_teacher(teacher, moved, VIEWS[0]) == pytest.approx(known)
        for top_k in (None, 2):
            codec = OutputCodec(feature_dim=16, num_classes=3, top_k=top_k)
            answer = teacher(VIEWS[0](moved[0]["image"], moved[0]["id"], 0), moved[0])[0]
            stored = codec.decode(codec.encode(answer), device)
            assert stored["logits"].device == device
            assert torch.allclose(stored["features"].cpu(), answer["features"].cpu(), rtol=1e-3)


@torch.no_grad()
def test_probe_and_neighbours_are_computed_where_there_is_float64(small):
    model, batches = small
    expected = extract_features(model, batches, transform=VIEWS[0])
    probe, neighbours = linear_probe(expected, expected), knn_classify(expected, expected, k=3)
    weight, bias = fit_logistic(expected.features, expected.labels, num_classes=3)
    with device_without_float64() as device:
        result = extract_features(model.to(device), batches, transform=VIEWS[0], device=device)
        assert torch.allclose(result.features, expected.features, atol=1e-6)
        again = linear_probe(expected, expected, device=device)
        assert again.l2 == probe.l2 and torch.equal(again.weight, probe.weight)
        assert torch.equal(knn_classify(expected, expected, k=3, device=device).predictions, neighbours.predictions)
        assert torch.equal(fit_logistic(expected.features, expected.labels, num_classes=3, device=device)[0], weight)


class NoFloat64(TorchDispatchMode):
    """Notes every operation of PyTorch that makes a float64."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in tree_leaves(result)):
            self.made.append(function.name())
        return result


def test_training_makes_no_float64_at_all(cache, tmp_path):
    """Gradients are beyond the stand-in: here the whole loop runs on the CPU, and nothing in it is float64 there either."""
    with NoFloat64() as watch:
        run_training(cache[0], tmp_path, "full", mse, clip_grad_norm=1.0, epochs=2)
        assert not watch.made
        torch.zeros(1).double()
    assert watch.made == ["aten::_to_copy"]
