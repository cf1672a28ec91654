"""What a step costs with each loss: forward and backward on the outputs for a batch, beside a whole step with soft targets.

64 images of 32x32 (KDNB_BATCH), a ResNet-20 with 100 classes, 64 features, maps of three stages and 64 tokens; one batch of each
loss in turn, 30 times. `pytest -m benchmark -s tests/benchmarks/test_loss_speed.py` prints the table of RESULTS.md.
"""

import os
import time

import numpy as np
import pytest
import torch

from kdnb import losses
from kdnb.losses.methods import METHODS
from kdnb.models.vision import FeatureModel, build_model

pytestmark = pytest.mark.benchmark
BATCH, CLASSES, WIDTH, ROUNDS = int(os.environ.get("KDNB_BATCH", 64)), 100, 64, 30
STAGES = [(16, 32), (32, 16), (64, 8)]  # channels and side of the maps


def calls() -> dict:
    """Loss by name: a function of nothing that goes forward and back."""
    torch.manual_seed(0)
    labels, ids = torch.randint(CLASSES, (BATCH,)), torch.arange(BATCH)
    outputs = {
        "logits": torch.randn(2, BATCH, CLASSES),
        "features": torch.randn(2, BATCH, WIDTH),
        "tokens": torch.randn(2, BATCH, 64, WIDTH),
    }
    pairs = {name: (both[0].requires_grad_(), both[1].detach()) for name, both in outputs.items()}
    maps = [[torch.randn(BATCH, channels, side, side) for channels, side in STAGES] for _ in range(2)]
    pairs["maps"] = ([map.requires_grad_() for map in maps[0]], maps[1])
    channels, phi_s = [channels for channels, _ in STAGES], losses.fit_phi_s(torch.randn(1000, WIDTH))
    regressors = [losses.hint_regressor(count, count) for count in channels]
    bound = {
        "decoupled_loss": lambda s, t: losses.decoupled_loss(s, t, labels, alpha=1.0, beta=8.0, temperature=4.0),
        "normalised_loss": lambda s, t: losses.normalised_loss(s, t, labels, gamma=1.5, temperature=1.0),
        "soft_target_loss": lambda s, t: losses.soft_target_loss(s, t, temperature=4.0),
        "logit_standardised_loss": lambda s, t: losses.logit_standardised_loss(s, t, temperature=2.0),
        "dist_loss": lambda s, t: losses.dist_loss(s, t, beta=1.0, gamma=1.0, temperature=4.0),
        "standardised_mse": lambda s, t: losses.standardised_mse(s, t, mean=torch.zeros(WIDTH), std=torch.ones(WIDTH)),
        "PhiS": lambda s, t: torch.nn.functional.mse_loss(s, phi_s.standardise(t)),
        "cosine_smooth_l1_loss": lambda s, t: losses.cosine_smooth_l1_loss(s, t, weight=0.5),
        "relational_loss": lambda s, t: losses.relational_loss(s, t, distance_weight=1.0, angle_weight=2.0),
        "hint_loss": lambda s, t: losses.hint_loss(s, t, regressors),
        "ReviewLoss": losses.ReviewLoss(channels, channels, width=64),
        "QueueLoss": losses.QueueLoss(queue_size=8192, width=WIDTH, num_images=50_000),
    }
    contrast = losses.ContrastiveLoss(torch.randn(50_000, WIDTH), negatives=4096)
    bound["ContrastiveLoss"] = lambda s, t: contrast(s, t, ids)

    def step(method):
        student, teacher = pairs[method.compares]
        call = bound.get(method.name, method.loss)
        return lambda: call(student, teacher).backward()

    student, images = FeatureModel(build_model("cifar_resnet20", num_classes=CLASSES)), torch.rand(BATCH, 3, 32, 32)

    def whole_step():
        losses.soft_target_loss(student(images)["logits"], pairs["logits"][1], temperature=4.0).backward()

    return {"a whole step": whole_step} | {method.name: step(method) for method in METHODS}


def test_time_per_step_of_every_loss():
    steps = calls()
    times = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: np.median(values[3:]) for name, values in times.items()}  # the first ones allocate
    print(f"\nloss, {BATCH} images | forward and back, ms | times KD's | a step with it, against one with KD")
    for name, median in medians.items():
        whole = (medians["a whole step"] - medians["soft_target_loss"] + median) / medians["a whole step"]
        shown = "" if name == "a whole step" else f"{whole:.2f}"
        print(f"{name} | {median:.2f} | {median / medians['soft_target_loss']:.1f} | {shown}")
    assert all(np.isfinite(median) for median in medians.values())
