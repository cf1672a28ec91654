"""Milliseconds of `train()` itself in a step: everything but reading, views, teacher and student, which do nothing here.

    pytest -m benchmark -s tests/benchmarks/test_host_time.py

A cache of 245 shards of 2,048 images that is only an order; epochs of 500 steps of 64, the 1st and the 101st; some seconds.
One weight, so backward and update are theirs at their least.
"""

import numpy as np
import pytest
import torch
from torch import nn

from kdnb.data.order import EpochPlan, Order
from kdnb.distillation.train import train
from kdnb.runs import Run

pytestmark = pytest.mark.benchmark
REGIMES = {
    "full": {},
    "fixed": {"regime": "fixed", "fixed_shards": 25, "fixed_choice": "seeded"},
    "random": {"regime": "random", "samples_per_epoch": 50_000},
    "dealt": {"regime": "random", "samples_per_epoch": 50_000, "draw": "dealt"},
}


class Positions(EpochPlan):
    """A loader that reads nothing; `first` is added to the number of every epoch."""

    device, data_fingerprint, unit, first = torch.device("cpu"), "positions", "image", 0

    def batches(self, epoch: int, start: int = 0):
        image = torch.zeros(64, 1)
        for ids in self.local_batches(self.order.epoch(epoch + self.first), epoch, start):
            yield {"image": image, "id": ids}


class OneWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, view):
        return {"features": self.weight}


class NoViews:
    num_global = 1

    def __call__(self, images, ids: np.ndarray, epoch: int):
        return [images]


@pytest.mark.parametrize("regime", REGIMES)
def test_milliseconds_of_a_step_that_computes_nothing(regime, tmp_path):
    for first in (0, 100):
        order = Order(shard_sizes=(2048,) * 245, shuffle="within_shards", **REGIMES[regime])
        loader = Positions(order, batch_size=64, max_steps_per_epoch=500)
        loader.first = first
        history = train(
            OneWeight(), lambda views, batch: [{}], loader, NoViews(), lambda outputs, *_: {"loss": outputs[0]["features"].sum()},
            Run(f"{regime}_{first}", {}, outputs=tmp_path), epochs=2, learning_rate=1e-3, clip_grad_norm=1.0,
        )  # fmt: skip
        record = history["epochs"][-1]  # the first one also starts what starts once
        step, order_ms = 2 * record["step_s"], 2 * record["data_wait_s"]
        print(f"\n{regime}, epoch {first + 1}: {step:.3f} ms a step, and {order_ms:.3f} ms of drawing the epoch's order")
        assert record["num_steps"] == 500
