"""The CIFAR ResNets: published sizes, published weights, timm's protocol."""

import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from kdnb.data.augment import unit_range
from kdnb.models.vision import FeatureModel, build_model, count_parameters


@pytest.mark.parametrize("depth, millions", [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.73)])
def test_the_number_of_weights_is_the_published_one(depth, millions):
    model = build_model(f"cifar_resnet{depth}")
    assert round(count_parameters(model) / 1e6, 2) == pytest.approx(millions, abs=0.005)
    convolutions = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert len(convolutions) == depth


def test_the_protocol_of_timm():
    model = build_model("cifar_resnet8", num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    last, stages = model.forward_intermediates(images)
    assert [stage.shape[1:] for stage in stages] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert torch.equal(last, stages[-1]) and torch.equal(last, model.forward_features(images))
    assert torch.equal(model.forward_intermediates(images, indices=[-1], intermediates_only=True)[0], last)
    assert torch.equal(model.forward_intermediates(images, indices=[0], stop_early=True)[1][0], stages[0])
    assert torch.equal(model.get_classifier()(model.forward_head(last, pre_logits=True)), model(images))
    by_timm = timm.create_model("cifar_resnet8", features_only=True).eval()
    by_timm.model.load_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("fc.")}, strict=False)
    assert all(torch.equal(*pair) for pair in zip(by_timm(images), stages, strict=True))
    model.reset_classifier(0)
    assert model(images).shape == (2, 64)


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    model, images = build_model("cifar_resnet8").train(), torch.randn(4, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().mean().backward()
        gradients.append(model.conv1.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)


def test_published_weights_classify_real_images(real_data):
    """resnet20 reaches 0.810 on all 10,000 of these re-encoded images; 500 leave room for chance."""
    import pyarrow.parquet

    path = real_data / "cifar_resnet" / "resnet20-12fca82f.th"
    rows = pyarrow.parquet.read_table(real_data / "cifar10" / "test-00000-of-00001.parquet").slice(0, 500).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows])
    model = FeatureModel(build_model("cifar_resnet20", checkpoint=path)).eval()
    assert model.num_classes == 10 and not model.head_is_random
    images = unit_range(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    with torch.no_grad():
        right = model(images)["logits"].argmax(1) == torch.tensor([row["label"] for row in rows])
    assert right.float().mean() > 0.75
