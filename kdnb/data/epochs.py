"""How an epoch is cut into batches, and a batch into the parts of several processes: numbers only, nothing is read here."""

from collections.abc import Iterator

import numpy as np
import torch

from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.order import Order


class EpochPlan:
    """How the epochs of an order are cut into batches; several processes share each of them.

    Sample i of a batch belongs to process i modulo their number, so that the same samples make up step k at any number of
    processes. A plan needs no data: it can be made, and refused, before anything is opened.

    Args:
        max_batches: batches after which an epoch ends; None for no cap. drop_last: leave out a last, short batch.

    Raises:
        ValueError: a batch that some epoch cannot fill. Every epoch of a plan has at least one batch.
    """

    rank, world = 0, 1

    def __init__(self, order: Order, *, batch_size: int, max_batches: int | None = None, drop_last: bool = True):
        least = order.smallest_epoch
        if least < 1 or batch_size < 1 or (drop_last and batch_size > least):
            drawn = order.regime == "random" and order.shards_per_epoch is not None
            epoch = "the smallest shards that an epoch may draw hold" if drawn else "an epoch has"
            ways = [f"choose 1 to {least}"] if least else []
            ways += ["raise shards_per_epoch"] if drawn and order.shards_per_epoch < len(order.shard_sizes) else []
            advice = " or ".join(ways) or "there is nothing to read"
            raise ValueError(f"batch_size is {batch_size}, but {epoch} {least} samples; {advice}.")
        if max_batches is not None and max_batches < 1:
            raise ValueError(f"max_batches is {max_batches}; an epoch needs at least one batch (None for no cap).")
        self.order, self.batch_size, self.max_batches, self.drop_last = order, batch_size, max_batches, drop_last

    def num_batches(self, epoch: int) -> int:
        """Batches of `epoch`, after the cap."""
        samples = self.order.size(epoch)
        count = samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)
        return count if self.max_batches is None else min(count, self.max_batches)

    def num_samples(self, epoch: int) -> int:
        """Samples that the batches of `epoch` hold."""
        return min(self.num_batches(epoch) * self.batch_size, self.order.size(epoch))

    def samples_of(self, epoch: int, number: int) -> int:
        """Samples in batch `number` of `epoch`. Raises IndexError where there is no such batch."""
        if not 0 <= number < self.num_batches(epoch):
            raise IndexError(f"batch {number} of an epoch of {self.num_batches(epoch)}")
        return min(self.batch_size, self.num_samples(epoch) - number * self.batch_size)

    def split(self, rank: int, world: int):
        """Read from now on only this process' part of each batch: its samples `rank`, `rank + world`, ...

        Raises:
            ValueError: processes that cannot share a batch equally.
        """
        require_equal_shares(self.batch_size, world)
        self.rank, self.world = rank, world

    def share(self, epoch: int, number: int) -> int:
        """How many of the samples in batch `number` of `epoch` are this process' own."""
        return len(range(self.rank, self.samples_of(epoch, number), self.world))


def require_equal_shares(batch_size: int, processes: int):
    """Refuse a batch that so many processes cannot share equally: ValueError."""
    if batch_size % processes:
        raise ValueError(
            f"batch_size is {batch_size}, but {processes} processes share a batch equally; choose a multiple of {processes}."
        )


def batch_cap(max_steps_per_epoch: int | None, gradient_accumulation_steps: int) -> int | None:
    """`max_batches` for an epoch of so many optimizer steps; None for no cap."""
    return None if max_steps_per_epoch is None else max_steps_per_epoch * gradient_accumulation_steps


def part_of(batch, rank: int, world: int):
    """This process' samples of a batch; of one that is too short for all, its first sample, which then counts for nothing."""
    return batch[rank::world] if len(batch) > rank else batch[:1]


class EpochLoader(EpochPlan):
    """The plan of a data set's epochs, which a loader then reads: see `EpochPlan` for the other arguments."""

    def __init__(self, dataset: CachedTensorDataset, *, device: str | torch.device = "cpu", **plan):
        super().__init__(dataset.order, **plan)
        self.dataset, self.device = dataset, torch.device(device)

    @property
    def identity(self) -> str:
        """What tells the data: the same on every process that reads the same."""
        source = getattr(self.dataset, "source", None)
        fingerprint = self.dataset.reader.index["fingerprint"] if source is None else source.fingerprint
        return f"{fingerprint} {self.dataset.order}"

    def set_epoch(self, epoch: int):
        """Choose the epoch that iterating gives."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return self.num_batches(self.dataset.epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self.batches(self.dataset.epoch)

    def _positions(self, epoch: int, start: int) -> list[np.ndarray]:
        self.dataset.set_epoch(epoch)
        positions = self.dataset.positions()
        whole = (positions[k * self.batch_size :][: self.batch_size] for k in range(start, self.num_batches(epoch)))
        return [part_of(batch, self.rank, self.world) for batch in whole]
