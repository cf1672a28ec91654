"""Which samples an epoch visits, and in which order: a pure function of (regime, seeds, epoch).

An epoch is an array of positions in the cache. Nothing is remembered between epochs, so resuming in the middle of one is an
offset into the array, splitting it over processes is a stride, and coverage is a union. 500,000 positions cost about 50 ms.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from kdnb.data.keyed import permutation, random_words
from kdnb.params import checked

REGIMES = ("full", "random", "fixed")
_DRAW, _CHOOSE, _SHUFFLE = 1, 2, 3  # separate streams: the same seed never serves two purposes


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of samples of every epoch. The arguments are the notebooks' parameters of the same names.

    Args:
        shard_sizes: rows of each shard; position p counts through them in turn.
        regime: `full` visits everything, `random` a new subset each epoch, `fixed` the same shards each epoch.
        shuffle: `none` keeps stored order; `within_shards` takes the shards in random order and shuffles the rows inside
            each; `all` shuffles across shards. The same for every regime, so that comparing regimes compares nothing else.
        samples_per_epoch, shards_per_epoch: size of a random epoch; exactly one of them for `random`. A number below 1 is a share
            of all, rounded, at least one; the attribute then says how many that is. The same for `fixed_shards`.
        draw: `independent` draws each epoch anew; `dealt` deals without replacement, so that every sample (shard) comes up
            once before any comes up twice.
        fixed_shards: number of shards of `fixed`; `fixed_choice` takes the `first` ones or a `seeded` choice.
        random_subset_seed: seed of draws and choices. seed: of the shuffling.

    Raises:
        ValueError: a value outside what is allowed, or more shards or samples than there are.

    Example:
        >>> order = Order(shard_sizes=(4, 4, 2), regime="fixed", fixed_shards=2, shuffle="all", seed=1)
        >>> order.epoch(0).tolist(), order.epoch(1).tolist()
        ([0, 5, 1, 2, 6, 7, 4, 3], [0, 4, 3, 7, 6, 2, 5, 1])
    """

    shard_sizes: tuple[int, ...]
    regime: str = "full"
    shuffle: str = "none"
    samples_per_epoch: int | None = None
    shards_per_epoch: int | None = None
    draw: str = "independent"
    fixed_shards: int | None = None
    fixed_choice: str = "first"
    random_subset_seed: int = 0
    seed: int = 0

    def __post_init__(self):
        if self.regime not in REGIMES:
            raise ValueError(f"regime is {self.regime!r}; allowed are {', '.join(REGIMES)}.")
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in checked(given, "train_random", "train_fixed").items():
            object.__setattr__(self, name, value)  # which a frozen dataclass does so in its own __post_init__
        if self.regime == "fixed":
            self._check_count("fixed_shards", len(self.shard_sizes), "shards")
        if self.regime == "random":
            if (self.samples_per_epoch is None) == (self.shards_per_epoch is None):
                raise ValueError(
                    f"samples_per_epoch is {self.samples_per_epoch} and shards_per_epoch is {self.shards_per_epoch}; "
                    "a random epoch needs exactly one of them."
                )
            if self.draws_shards:
                self._check_count("shards_per_epoch", len(self.shard_sizes), "shards")
            else:
                self._check_count("samples_per_epoch", self.num_samples, "samples")

    def _check_count(self, name: str, available: int, unit: str):
        value = getattr(self, name)
        if value is not None and 0 < value < 1:
            value = max(round(value * available), 1)
            object.__setattr__(self, name, value)
        if value is None or not 1 <= value <= available:
            raise ValueError(
                f"{name} is {value}, but the cache holds {available} {unit}; choose 1 to {available}, or precompute more."
            )

    @cached_property
    def num_samples(self) -> int:
        """Samples in the whole cache."""
        return sum(self.shard_sizes)

    @property
    def draws_shards(self) -> bool:
        """Whether an epoch consists of whole shards, drawn anew: the sizes of epochs then differ where the shards' do."""
        return self.regime == "random" and self.shards_per_epoch is not None

    @cached_property
    def smallest_epoch(self) -> int:
        """Samples that every epoch has at least: drawn shards may be the smallest ones."""
        if self.draws_shards:
            return sum(sorted(self.shard_sizes)[: self.shards_per_epoch])
        return self.size(0)

    def size(self, epoch: int) -> int:
        """Number of samples of `epoch`."""
        if self.regime == "full":
            return self.num_samples
        if self.regime == "random" and self.samples_per_epoch is not None:
            return self.samples_per_epoch
        alike = epoch if self.draws_shards else 0
        if alike not in self._sizes:  # which training asks for several times a step
            self._sizes[alike] = sum(self.shard_sizes[shard] for shard in self._shards(epoch))
        return self._sizes[alike]

    @cached_property
    def _sizes(self) -> dict[int, int]:
        return {}

    def epoch(self, epoch: int) -> np.ndarray:
        """Positions of `epoch` in the order of their visit, int64 [size(epoch)]."""
        require_epoch(epoch)
        starts = np.concatenate([[0], np.cumsum(self.shard_sizes, dtype=np.int64)])
        if self.regime == "full":
            positions = np.arange(starts[-1])
        elif self.regime == "random" and self.samples_per_epoch is not None:
            positions = np.sort(self._draw(int(starts[-1]), self.samples_per_epoch, epoch))
        else:
            positions = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in self._shards(epoch)])
        if self.shuffle == "none":
            return positions
        if self.shuffle == "all":
            return positions[permutation(len(positions), self.seed, _SHUFFLE, epoch, 0)]
        keys = random_words(len(positions), self.seed, _SHUFFLE, epoch, 0)
        shard_keys = random_words(len(self.shard_sizes), self.seed, _SHUFFLE, epoch, 1)
        shard = np.searchsorted(starts, positions, side="right") - 1
        return positions[np.lexsort((keys, shard_keys[shard]))]

    def _shards(self, epoch: int) -> np.ndarray:
        """Shards of `epoch`, ascending."""
        count = len(self.shard_sizes)
        if self.regime == "fixed":
            ranked = np.arange(count) if self.fixed_choice == "first" else permutation(count, self.random_subset_seed, _CHOOSE)
            return np.sort(ranked[: self.fixed_shards])
        return np.sort(self._draw(count, self.shards_per_epoch or count, epoch))

    def _draw(self, n: int, k: int, epoch: int) -> np.ndarray:
        """k of n, by `draw`."""
        if self.draw == "independent":
            return permutation(n, self.random_subset_seed, _DRAW, epoch)[:k]
        return deal(n, k, epoch, self.random_subset_seed)


def even_shards(num_samples: int, shard_size: int) -> tuple[int, ...]:
    """Rows of each shard when so many samples are cut into shards of `shard_size`; the last one may be shorter."""
    full, rest = divmod(num_samples, shard_size)
    return (shard_size,) * full + ((rest,) if rest else ())


def deal(n: int, k: int, hand: int, seed: int) -> np.ndarray:
    """Cards of hand number `hand` when hands of `k` are dealt from shuffled decks of `n`, int64 [k].

    A hand that straddles two decks holds no card twice: the new deck first gives cards that the hand does not hold yet.
    """
    first, last = hand * k, hand * k + k
    decks = range(first // n, (last - 1) // n + 1)
    return np.concatenate([_deck(n, k, deck, seed)[max(first - deck * n, 0) : last - deck * n] for deck in decks])


@lru_cache(maxsize=2)  # the next epoch's hand mostly comes from the same deck
def _deck(n: int, k: int, number: int, seed: int) -> np.ndarray:
    """Deck `number` in the order in which it is dealt.

    Its order depends on the last cards of the deck before it. Where a hand is at most half a deck, these are the last ones of
    that deck's shuffle, whatever came before; else they follow from the last deck that began with a hand of its own.
    """
    begin = number - number % (k // math.gcd(n, k))
    if 2 * k <= n:
        begin = max(begin, number - 1)
    deck = permutation(n, seed, _DRAW, begin)
    for later in range(begin + 1, number + 1):
        held = np.zeros(n, dtype=bool)
        held[deck[n - later * n % k :]] = True
        deck = permutation(n, seed, _DRAW, later)
        fresh = np.flatnonzero(~held[deck])[: k - held.sum()]
        deck = np.concatenate([deck[fresh], np.delete(deck, fresh)])
    return deck


class EpochPlan:
    """How the epochs of an order are cut into batches; several processes share each of them. Loaders are made from it.

    Sample i of a batch belongs to process i modulo their number, so that the same samples make up step k at any number of
    processes. A plan needs no data: it can be made, and refused, before anything is opened.

    Args:
        max_steps_per_epoch: optimizer steps, of `gradient_accumulation_steps` batches each, after which an epoch ends; None for
            no cap.
        drop_last: leave out a last, short batch.

    Raises:
        ValueError: a number below 1, or a batch that some epoch cannot fill. Every epoch of a plan has at least one batch.

    Example:
        >>> plan = EpochPlan(Order(shard_sizes=(5, 5)), batch_size=4, drop_last=False)
        >>> [plan.batch_size_at(0, number) for number in range(plan.num_batches(0))]
        [4, 4, 2]
    """

    rank, world = 0, 1
    _epoch = 0

    def __init__(
        self, order: Order, *, batch_size: int, max_steps_per_epoch: int | None = None, gradient_accumulation_steps: int = 1,
        drop_last: bool = True,
    ):  # fmt: skip
        sizes = {"batch_size": batch_size, "gradient_accumulation_steps": gradient_accumulation_steps}
        sizes = checked(sizes | {"max_steps_per_epoch": max_steps_per_epoch}, "train_fixed")
        batch_size, max_steps_per_epoch = sizes["batch_size"], sizes["max_steps_per_epoch"]
        least = order.smallest_epoch
        if least < 1 or (drop_last and batch_size > least):
            epoch = "the smallest shards that an epoch may draw hold" if order.draws_shards else "an epoch has"
            ways = [f"choose 1 to {least}"] if least else []
            ways += ["raise shards_per_epoch"] if least < order.num_samples and order.draws_shards else []
            advice = " or ".join(ways) or "there is nothing to read"
            raise ValueError(f"batch_size is {batch_size}, but {epoch} {least} samples; {advice}.")
        self.order, self.batch_size, self.drop_last = order, batch_size, drop_last
        self.max_batches = None if max_steps_per_epoch is None else max_steps_per_epoch * sizes["gradient_accumulation_steps"]

    @property
    def epoch(self) -> int:
        """The epoch whose batches iterating gives."""
        return self._epoch

    def set_epoch(self, epoch: int):
        """Choose the epoch (0, 1, ...) whose batches iterating gives."""
        require_epoch(epoch)
        self._epoch = epoch

    def __len__(self) -> int:
        return self.num_batches(self.epoch)

    def __iter__(self) -> Iterator[dict]:
        return self.batches(self.epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict]:
        """The batches of `epoch` from batch number `start` on: what a loader reads."""
        raise NotImplementedError

    def num_batches(self, epoch: int) -> int:
        """Batches of `epoch`, after the cap."""
        samples = self.order.size(epoch)
        count = samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)
        return count if self.max_batches is None else min(count, self.max_batches)

    def num_samples(self, epoch: int) -> int:
        """Samples that the batches of `epoch` hold."""
        return min(self.num_batches(epoch) * self.batch_size, self.order.size(epoch))

    def visits(self, epochs: int) -> np.ndarray:
        """Which samples each of the first `epochs` epochs visits: uint8 [epochs, samples in the whole cache], 0 or 1."""
        visits = np.zeros((epochs, self.order.num_samples), dtype=np.uint8)
        for epoch in range(epochs):
            visits[epoch, self.order.epoch(epoch)[: self.num_samples(epoch)]] = 1
        return visits

    def batch_size_at(self, epoch: int, number: int) -> int:
        """Samples in batch `number` of `epoch`. Raises IndexError where there is no such batch."""
        if not 0 <= number < self.num_batches(epoch):
            raise IndexError(f"batch {number} of an epoch of {self.num_batches(epoch)}")
        return min(self.batch_size, self.num_samples(epoch) - number * self.batch_size)

    def set_rank(self, rank: int, world: int):
        """Read from now on only this process' part of each batch: its samples `rank`, `rank + world`, ...

        Raises:
            ValueError: processes that cannot share a batch equally.
        """
        require_equal_shares(self.batch_size, world)
        self.rank, self.world = rank, world

    def local_batch_size(self, epoch: int, number: int) -> int:
        """How many of the samples in batch `number` of `epoch` are this process' own."""
        return len(range(self.rank, self.batch_size_at(epoch, number), self.world))

    def local_batches(self, samples: Sequence | np.ndarray, epoch: int, start: int = 0) -> list:
        """This process' part of each batch of `epoch` from number `start` on, where `samples` are those of the whole epoch.

        Of a batch that is too short for all processes, it is the first sample, which then counts for nothing.
        """
        size = self.batch_size
        whole = [samples[number * size : (number + 1) * size] for number in range(start, self.num_batches(epoch))]
        return [batch[self.rank :: self.world] if len(batch) > self.rank else batch[:1] for batch in whole]


def require_epoch(epoch: int):
    """Refuse a negative number of an epoch: ValueError."""
    if epoch < 0:
        raise ValueError(f"epoch is {epoch}; epochs count from 0.")


def require_equal_shares(batch_size: int, processes: int):
    """Refuse a batch that so many processes cannot share equally: ValueError."""
    if batch_size % processes:
        raise ValueError(
            f"batch_size is {batch_size}, but {processes} processes share a batch equally; choose a multiple of {processes}."
        )
