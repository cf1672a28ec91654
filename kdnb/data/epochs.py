"""How an epoch is cut into batches, and a batch into the parts of several processes: numbers only, nothing is read here."""

from collections.abc import Iterator

import numpy as np
import torch

from kdnb.data.datasets import CachedTensorDataset


class SharedBatches:
    """Batches that several processes share: sample i of each belongs to process i modulo their number.

    The same samples then make up step k at any number of processes. For classes with `batch_size` and `samples_of`.
    """

    rank, world = 0, 1

    def split(self, rank: int, world: int):
        """Read from now on only this process' part of each batch: its samples `rank`, `rank + world`, ...

        Raises:
            ValueError: processes that cannot share a batch equally.
        """
        if self.batch_size % world:
            raise ValueError(
                f"batch_size is {self.batch_size}, but {world} processes share a batch equally; choose a multiple of {world}."
            )
        self.rank, self.world = rank, world

    def share(self, epoch: int, number: int) -> int:
        """How many of the samples in batch `number` of `epoch` are this process' own."""
        return len(range(self.rank, self.samples_of(epoch, number), self.world))


def part_of(batch, rank: int, world: int):
    """This process' samples of a batch; of one that is too short for all, its first sample, which then counts for nothing."""
    return batch[rank::world] if len(batch) > rank else batch[:1]


class EpochLoader(SharedBatches):
    """How an epoch of a data set is cut into batches, which a loader then reads.

    Args:
        max_batches: batches after which an epoch ends; None for no cap. drop_last: leave out a last, short batch.
    """

    def __init__(
        self,
        dataset: CachedTensorDataset,
        *,
        batch_size: int,
        device: str | torch.device = "cpu",
        max_batches: int | None = None,
        drop_last: bool = True,
    ):
        most = dataset.order.size(0)
        if batch_size < 1 or (drop_last and batch_size > most):
            raise ValueError(f"batch_size is {batch_size}, but an epoch has {most} samples; choose 1 to {most}.")
        if max_batches is not None and max_batches < 1:
            raise ValueError(f"max_batches is {max_batches}; an epoch needs at least one batch (None for no cap).")
        self.dataset, self.batch_size, self.max_batches, self.drop_last = dataset, batch_size, max_batches, drop_last
        self.device = torch.device(device)

    @property
    def identity(self) -> str:
        """What tells the data: the same on every process that reads the same."""
        source = getattr(self.dataset, "source", None)
        fingerprint = self.dataset.reader.index["fingerprint"] if source is None else source.fingerprint
        return f"{fingerprint} {self.dataset.order}"

    def num_batches(self, epoch: int) -> int:
        """Batches of `epoch`, after the cap."""
        samples = self.dataset.order.size(epoch)
        count = samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)
        return count if self.max_batches is None else min(count, self.max_batches)

    def num_samples(self, epoch: int) -> int:
        """Samples that the batches of `epoch` hold."""
        return min(self.num_batches(epoch) * self.batch_size, self.dataset.order.size(epoch))

    def samples_of(self, epoch: int, number: int) -> int:
        """Samples in batch `number` of `epoch`."""
        return min(self.batch_size, self.num_samples(epoch) - number * self.batch_size)

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
