"""Batches from the device's memory are bitwise those from the shards, and only what is visited is copied."""

import pytest
import torch

from kdnb.data.loader import DeviceLoader, build_pretraining_dataloader, bytes_on_device, visited_shards

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
