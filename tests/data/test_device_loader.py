"""Batches from the device's memory are bitwise those from the shards, and only what is visited is copied."""

import pytest
import torch

from kdnb.data.device_loader import DeviceLoader, bytes_on_device, fits, step_bytes, visited_shards
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.views import CleanTransform

REGIMES = [
    {"regime": "full"}, {"regime": "full", "max_steps_per_epoch": 2}, {"regime": "random", "samples_per_epoch": 11},
    {"regime": "random", "shards_per_epoch": 2}, {"regime": "fixed", "fixed_shards": 2, "fixed_choice": "seeded"},
]  # fmt: skip


@pytest.mark.parametrize("settings", REGIMES, ids=str)
@pytest.mark.parametrize("shuffle", ["none", "within_shards", "all"])
def test_the_same_batches_bitwise(cache, settings, shuffle):
    loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4, shuffle=shuffle, seed=3, **settings)
    there = DeviceLoader(loader, epochs=3)
    for epoch, start in ((0, 0), (1, 1), (2, 0)):
        pairs = list(zip(loader.batches(epoch, start), there.batches(epoch, start), strict=True))
        assert len(pairs) == loader.num_batches(epoch) - start > 0
        for a, b in pairs:
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_only_visited_shards_are_copied(cache):
    """Shards of 10, 10 and 7 rows of 48 bytes and a label."""
    fixed = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4, regime="fixed", fixed_shards=2)
    assert visited_shards(fixed, 5) == [0, 1] and bytes_on_device(fixed, 5) == 20 * (48 + 8)
    capped = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4, shuffle="none", max_steps_per_epoch=2)
    assert visited_shards(capped, 5) == [0]  # in stored order, 8 images an epoch never leave the first shard
    assert visited_shards(build_pretraining_dataloader(cache_dir=cache[0], batch_size=4), 1) == [0, 1, 2]


def test_room_is_left_for_the_step():
    gigabyte = 10**9
    assert fits(10 * gigabyte, free=20 * gigabyte, peak=5 * gigabyte)[0]
    enough, said = fits(10 * gigabyte, free=14 * gigabyte, peak=5 * gigabyte)
    assert not enough and said.endswith("read from the shards") and "a step may take 5" in said


def test_a_trial_step_leaves_the_student_as_it_was(cache, monkeypatch):
    """With stand-ins for the GPU's counters: 100 bytes before, 700 at the peak, and AdamW's two moments of each weight."""
    for name, value in {"memory_allocated": 100, "max_memory_allocated": 700}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4)
    student = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(48, 2))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    asked = []

    def loss(outputs, answers, labels):
        asked.append((len(outputs), answers, len(labels)))
        return {"loss": outputs[0].square().mean()}

    views = CleanTransform(size=4)
    taken = step_bytes(student, loader, lambda views, batch: len(views), views, loss)
    assert taken == 600 + 2 * 4 * (6 + 98) and asked == [(1, 1, 4)]
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(weight.grad is None for weight in student.parameters())
