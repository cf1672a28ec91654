"""Batches follow the order exactly, whoever reads them: thread, workers that persist or not, from the start or midway."""

import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kdnb.data.datasets import CachedTensorDataset, FixedShardSubsetCachedDataset, RandomSubsetCachedDataset
from kdnb.data.loader import BatchReader, WorkerLoader, build_pretraining_dataloader
from kdnb.data.order import EpochPlan
from kdnb.distillation.optim import count_steps


def ids(batches) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def kinds(folder):
    shuffled = {"shuffle": "within_shards", "seed": 3}
    return {
        "full": CachedTensorDataset(folder, **shuffled),
        "random samples": RandomSubsetCachedDataset(folder, samples_per_epoch=12, **shuffled),
        "random shards": RandomSubsetCachedDataset(folder, shards_per_epoch=2, random_subset_seed=1, **shuffled),
        "dealt": RandomSubsetCachedDataset(folder, samples_per_epoch=12, draw="dealt", **shuffled),
        "fixed": FixedShardSubsetCachedDataset(folder, fixed_shards=2, **shuffled),
    }


KINDS = ["full", "random samples", "random shards", "dealt", "fixed"]


@pytest.mark.parametrize("kind", KINDS)
def test_reader_and_workers_and_plain_dataloader_agree(cache, kind):
    folder, images = cache
    data = kinds(folder)[kind]
    reader = BatchReader(data, batch_size=4)
    for epoch in (0, 1):
        expected = data.order.epoch(epoch)
        got = list(reader.batches(epoch))
        assert len(got) == reader.num_batches(epoch) == len(expected) // 4
        assert np.concatenate(ids(got)).tolist() == (expected[: len(got) * 4] + 100).tolist()
        assert torch.equal(torch.cat([b["image"] for b in got]), images[expected[: len(got) * 4]])
        assert ids(WorkerLoader(data, batch_size=4).batches(epoch)) == ids(got)
        plain = DataLoader(data, batch_size=4, drop_last=True)
        data.set_epoch(epoch)
        assert ids(plain) == ids(got)


@pytest.mark.parametrize("persistent", [False, True])
def test_set_epoch_reaches_workers(cache, persistent):
    data = kinds(cache[0])["random samples"]
    plain = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=persistent)
    workers = WorkerLoader(data, batch_size=4, num_workers=2, persistent_workers=persistent)
    for epoch in (0, 1, 5):
        data.set_epoch(epoch)
        expected = (data.order.epoch(epoch) + 100).tolist()
        assert np.concatenate(ids(plain)).tolist() == expected
        assert np.concatenate(ids(workers.batches(epoch))).tolist() == expected


@pytest.mark.parametrize("make", [BatchReader, WorkerLoader])
def test_reading_takes_no_random_numbers_from_training(cache, make):
    """A run that is resumed begins an epoch once more often than one that was not."""
    before = torch.get_rng_state()
    assert len(list(make(CachedTensorDataset(cache[0]), batch_size=4).batches(0, 1))) == 5
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [BatchReader, WorkerLoader])
def test_an_epoch_can_be_taken_up_midway_and_capped(cache, make):
    data = kinds(cache[0])["full"]
    whole = ids(make(data, batch_size=4).batches(2))
    assert ids(make(data, batch_size=4).batches(2, start=3)) == whole[3:]
    capped = make(data, batch_size=4, max_steps_per_epoch=2)
    assert ids(capped.batches(2)) == whole[:2] and capped.num_batches(2) == 2 and capped.num_samples(2) == 8
    assert ids(capped.batches(2, start=2)) == []


@pytest.mark.parametrize("make", [BatchReader, WorkerLoader])
def test_a_short_last_batch_is_left_out_or_kept(cache, make):
    data = CachedTensorDataset(cache[0])
    assert [len(b) for b in ids(make(data, batch_size=10).batches(0))] == [10, 10]
    kept = make(data, batch_size=10, drop_last=False)
    assert [len(b) for b in ids(kept.batches(0))] == [10, 10, 7] and kept.num_samples(0) == 27


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_a_batch_that_is_kept_never_changes(cache, prefetch):
    data = CachedTensorDataset(cache[0])
    kept = list(BatchReader(data, batch_size=4, prefetch=prefetch).batches(0))
    assert torch.equal(torch.cat([b["image"] for b in kept]), cache[1][:24])


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_reused_buffers_hold_each_batch_while_it_is_current(cache, prefetch):
    data = CachedTensorDataset(cache[0])
    reader = BatchReader(data, batch_size=2, prefetch=prefetch, reuse_buffers=True)
    pointers = set()
    for number, batch in enumerate(reader.batches(0)):
        assert torch.equal(batch["image"], cache[1][2 * number : 2 * number + 2])
        pointers.add(batch["image"].data_ptr())
    assert len(pointers) == prefetch + 1  # those that are ready, and the caller's


def test_leaving_an_epoch_early_ends_the_thread(cache):
    for reuse in (False, True):
        batches = BatchReader(CachedTensorDataset(cache[0]), batch_size=2, prefetch=1, reuse_buffers=reuse).batches(0)
        next(batches)
        batches.close()
        assert not [t for t in threading.enumerate() if t.name == "kdnb-batches"]


def test_an_error_while_reading_is_raised_where_the_batch_is_asked_for(cache):
    batches = BatchReader(CachedTensorDataset(cache[0]), batch_size=5, prefetch=1).batches(0)
    assert len(next(batches)["id"]) == 5
    (cache[0] / "images_shard_00001.pt").unlink()
    assert len(next(batches)["id"]) == 5
    with pytest.raises(ValueError, match="images_shard_00001.pt is missing"):
        next(batches)


def test_normalising_on_load_is_bitwise_the_float_storage(cache, make_cache, tmp_path):
    from torchvision.transforms import v2

    index = CachedTensorDataset(cache[0]).reader.index
    pipeline = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(index["mean"], index["std"])])
    normalised = CachedTensorDataset(cache[0], normalise=True)
    expected = torch.stack([pipeline(image) for image in cache[1]])
    assert torch.equal(torch.stack([normalised[i]["image"] for i in range(27)]), expected)
    batches = BatchReader(normalised, batch_size=9, reuse_buffers=True).batches(0)
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), expected)


def test_the_builder_makes_each_regime(cache):
    for settings, kind in [
        ({"regime": "full"}, CachedTensorDataset),
        ({"regime": "random", "samples_per_epoch": 12}, RandomSubsetCachedDataset),
        ({"regime": "fixed", "fixed_shards": 2}, FixedShardSubsetCachedDataset),
    ]:
        loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=3, max_steps_per_epoch=2, **settings)
        assert type(loader.dataset) is kind and isinstance(loader, BatchReader) and len(list(loader)) == 2
    accumulated = build_pretraining_dataloader(
        cache_dir=cache[0], batch_size=3, max_steps_per_epoch=2, gradient_accumulation_steps=3
    )
    assert len(accumulated) == 6


def test_raw_images_give_the_batches_of_their_cache(tmp_path):
    from kdnb.data.precompute import precompute
    from kdnb.data.sources import open_source

    precompute(open_source("digits", split="test"), tmp_path, image_size=16, cache_shard_size=50)
    settings = {"regime": "random", "shards_per_epoch": 3, "batch_size": 40, "shuffle": "all", "seed": 2}
    cached = build_pretraining_dataloader(cache_dir=tmp_path, **settings)
    raw = build_pretraining_dataloader(
        use_cached=False, dataset="digits", split="test", image_size=16, cache_shard_size=50, **settings
    )
    for a, b in zip(cached.batches(1), raw.batches(1), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("image", "label", "id"))


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"batch_size": 0}, "batch_size is 0; allowed is a whole number from 1 to"),
        ({"batch_size": 28}, "batch_size is 28, but an epoch has 27 samples"),
        ({"batch_size": 2, "max_steps_per_epoch": 0}, "max_steps_per_epoch is 0"),
        (
            {"batch_size": 2, "gradient_accumulation_steps": 0},
            "gradient_accumulation_steps is 0; allowed is a whole",
        ),
        ({"regime": "fixed", "fixed_shards": 99}, "fixed_shards is 99, but the cache holds 3 shards"),
        ({"regime": "some"}, "regime is 'some'; allowed are full, random, fixed"),
    ],
)
def test_bad_settings_are_refused(cache, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_pretraining_dataloader(cache_dir=cache[0], **settings)


def short_last_shard(draw: str) -> dict:
    """One shard an epoch, of 10, 10 or 7 images."""
    return {"regime": "random", "shards_per_epoch": 1, "draw": draw}


@pytest.mark.parametrize("draw", ["independent", "dealt"])
def test_an_epoch_of_the_short_last_shard_has_a_batch_or_is_refused(cache, draw):
    loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=7, **short_last_shard(draw))
    counts = [len(list(loader.batches(epoch))) for epoch in range(12)]
    assert set(counts) == {1} and {loader.dataset.order.size(epoch) for epoch in range(12)} == {7, 10}
    with pytest.raises(ValueError, match="batch_size is 8, but the smallest shards that an epoch may draw hold 7"):
        build_pretraining_dataloader(cache_dir=cache[0], batch_size=8, **short_last_shard(draw))
    raised = short_last_shard(draw) | {"shards_per_epoch": 2}  # as the sentence says: 17 images at least
    assert len(list(build_pretraining_dataloader(cache_dir=cache[0], batch_size=8, **raised).batches(0))) >= 2


def test_an_epoch_of_a_shard_without_a_readable_image_is_refused(tmp_path, make_cache):
    make_cache(tmp_path, (4, 0))
    with pytest.raises(ValueError, match="batch_size is 1, but the smallest shards that an epoch may draw hold 0 samples; raise"):
        build_pretraining_dataloader(cache_dir=tmp_path, batch_size=1, **short_last_shard("dealt"))


def test_every_epoch_trains_a_step_when_groups_of_batches_are_short(cache):
    """One batch an epoch and groups of four: the group is as long as the epoch."""
    plan = EpochPlan(CachedTensorDataset(cache[0]).order, batch_size=20, max_steps_per_epoch=3, gradient_accumulation_steps=4)
    assert count_steps(plan, epochs=5, gradient_accumulation_steps=4) == 5
    ranks = [EpochPlan(plan.order, batch_size=4, drop_last=False) for _ in range(4)]
    for rank, part in enumerate(ranks):
        part.set_rank(rank, 4)
    assert [part.local_batch_size(0, 6) for part in ranks] == [1, 1, 1, 0]  # 27 images: the last batch has 3


def test_a_negative_epoch_is_refused(cache):
    with pytest.raises(ValueError, match="epoch is -1; epochs count from 0"):
        CachedTensorDataset(cache[0]).set_epoch(-1)
