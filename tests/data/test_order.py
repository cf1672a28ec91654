"""The order of samples: pure, complete, and dealt as a deck is."""

import numpy as np
import pytest

from kdnb.data.order import EpochPlan, Order, deal

SIZES = (5, 5, 5, 3)


def test_full_without_shuffling_is_stored_order():
    order = Order(shard_sizes=SIZES)
    assert order.epoch(0).tolist() == list(range(18)) == order.epoch(7).tolist()
    assert order.num_samples == order.size(3) == 18


@pytest.mark.parametrize("shuffle", ["within_shards", "all"])
def test_shuffling_permutes_and_depends_on_epoch_and_seed_only(shuffle):
    order = Order(shard_sizes=SIZES, shuffle=shuffle, seed=1)
    first = order.epoch(4)
    assert sorted(first) == list(range(18))
    assert np.array_equal(first, Order(shard_sizes=SIZES, shuffle=shuffle, seed=1).epoch(4))
    assert not np.array_equal(first, order.epoch(5))
    assert not np.array_equal(first, Order(shard_sizes=SIZES, shuffle=shuffle, seed=2).epoch(4))


def test_within_shards_keeps_shards_together_in_random_order():
    order = Order(shard_sizes=(50,) * 8, shuffle="within_shards")
    shards = order.epoch(0) // 50
    blocks = shards[np.r_[True, shards[1:] != shards[:-1]]]
    assert sorted(blocks) == list(range(8)) and blocks.tolist() != list(range(8))
    inside = order.epoch(0)[:50]
    assert inside.tolist() != sorted(inside)


def test_the_stream_is_pinned():
    """These numbers must never change: a run resumed after an upgrade goes on with the same samples."""
    order = Order(shard_sizes=(4, 4), regime="random", samples_per_epoch=3, random_subset_seed=3, shuffle="all", seed=5)
    assert [order.epoch(e).tolist() for e in range(3)] == [[2, 6, 0], [6, 3, 2], [7, 3, 2]]


def test_random_samples_are_distinct_and_new_each_epoch():
    order = Order(shard_sizes=(100,) * 3, regime="random", samples_per_epoch=120)
    first, second = order.epoch(0), order.epoch(1)
    assert len(set(first)) == 120 and len(set(second)) == 120
    assert 0 < len(set(first) & set(second)) < 120


def test_random_draws_are_uniform():
    order = Order(shard_sizes=(50,), regime="random", samples_per_epoch=10)
    counts = EpochPlan(order, batch_size=10).visits(2000).sum(0, dtype=int)
    assert counts.sum() == 20_000
    chi2 = ((counts - 400) ** 2 / (400 * 0.8)).sum()  # drawing without replacement: variance n p (1 - p)
    assert 20 < chi2 < 90  # 49 degrees of freedom


def test_random_shards_come_whole():
    order = Order(shard_sizes=SIZES, regime="random", shards_per_epoch=2, random_subset_seed=2)
    for epoch in range(20):
        positions = order.epoch(epoch)
        assert order.size(epoch) == len(positions) in (8, 10)
        shards = set(np.searchsorted(np.cumsum(SIZES), positions, side="right"))
        assert len(shards) == 2 and len(positions) == sum(SIZES[s] for s in shards)


@pytest.mark.parametrize("n, k", [(10, 3), (10, 7), (7, 7), (12, 4), (5, 1), (9, 8)])
def test_dealt_hands_have_no_doubles_and_exposure_stays_even(n, k):
    counts = np.zeros(n, int)
    for hand in range(40):
        cards = deal(n, k, hand, seed=0)
        assert len(set(cards)) == k
        counts[cards] += 1
        whole_decks = (hand + 1) * k // n
        assert set(counts) <= {whole_decks, whole_decks + 1}


def test_dealt_covers_everything_before_repeating():
    order = Order(shard_sizes=(6,) * 4, regime="random", samples_per_epoch=8, draw="dealt")
    assert sorted(np.concatenate([order.epoch(e) for e in range(3)])) == list(range(24))


def test_fixed_takes_the_first_or_a_seeded_choice_every_epoch():
    order = Order(shard_sizes=SIZES, regime="fixed", fixed_shards=2)
    assert order.epoch(0).tolist() == list(range(10)) == order.epoch(9).tolist()
    choices = {
        tuple(Order(shard_sizes=SIZES, regime="fixed", fixed_shards=2, fixed_choice="seeded", random_subset_seed=s).epoch(0))
        for s in range(20)
    }
    assert len(choices) > 3


def test_a_capped_epoch_in_stored_order_never_sees_the_rest():
    """25 shards of 2,048 images, 500 steps of 64: without shuffling 38 % of the subset is never seen."""
    capped = {"batch_size": 64, "max_steps_per_epoch": 500}
    stored = Order(shard_sizes=(2048,) * 25, regime="fixed", fixed_shards=25)
    shuffled = Order(shard_sizes=(2048,) * 25, regime="fixed", fixed_shards=25, shuffle="within_shards")
    assert (EpochPlan(stored, **capped).visits(4).sum(0) > 0).mean() == pytest.approx(0.625)
    assert (EpochPlan(shuffled, **capped).visits(4).sum(0) > 0).mean() > 0.95


def test_visits_are_what_the_batches_of_an_epoch_hold():
    order = Order(shard_sizes=(4, 4), shuffle="all")
    visits = EpochPlan(order, batch_size=3, max_steps_per_epoch=1).visits(2)
    assert visits.shape == (2, 8) and visits.sum(1).tolist() == [3, 3]
    assert set(np.flatnonzero(visits[1])) == set(order.epoch(1)[:3])
    assert EpochPlan(order, batch_size=3).visits(1).sum() == 6 and EpochPlan(order, batch_size=3, drop_last=False).visits(1).all()


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"regime": "fixed", "fixed_shards": 99}, "fixed_shards is 99, but the cache holds 4 shards"),
        ({"regime": "fixed"}, "fixed_shards is None, but the cache holds 4 shards"),
        ({"regime": "random", "samples_per_epoch": 0}, "samples_per_epoch is 0; allowed is a whole number above 0"),
        ({"regime": "random", "samples_per_epoch": float("nan")}, "samples_per_epoch is nan; allowed is a whole number above 0"),
        ({"regime": "fixed", "fixed_shards": 2.5}, "fixed_shards is 2.5; allowed is a whole number above 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616; allowed is a whole number from 0 to"),
        ({"regime": "random", "samples_per_epoch": 1, "shards_per_epoch": 1}, "exactly one of them"),
        ({"regime": "random"}, "exactly one of them"),
        ({"regime": "some"}, "regime is 'some'; allowed are full, random, fixed"),
        ({"shuffle": "yes"}, "shuffle is 'yes'; allowed is one of none, within_shards, all"),
        ({"seed": -1}, "seed is -1; allowed is a whole number from 0 to"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        Order(shard_sizes=SIZES, **settings)


def test_the_smallest_epoch_bounds_every_epoch():
    sizes = (5, 3, 8, 2)
    drawn = [{"shards_per_epoch": k, "draw": draw} for k in (1, 2, 3, 4) for draw in ("independent", "dealt")]
    for subset in [{"samples_per_epoch": 7}, *drawn]:
        order = Order(shard_sizes=sizes, regime="random", **subset)
        smallest = min(order.size(epoch) for epoch in range(60))
        assert order.smallest_epoch == smallest, subset  # reached as well, in so many epochs
    assert Order(shard_sizes=sizes).smallest_epoch == 18
    assert Order(shard_sizes=sizes, regime="fixed", fixed_shards=2).smallest_epoch == 8


def test_sizes_may_be_shares_of_all():
    """Rounded, at least one; what an order records is the number, so that it is the order of that number."""
    fixed, random = ({"shard_sizes": (4,) * 5, "regime": regime} for regime in ("fixed", "random"))
    assert Order(**fixed, fixed_shards=0.5) == Order(**fixed, fixed_shards=2)
    assert Order(**fixed, fixed_shards=0.01).fixed_shards == 1
    assert Order(**random, samples_per_epoch=0.3).size(0) == 6
    assert Order(**random, shards_per_epoch=0.9).size(0) == 16
