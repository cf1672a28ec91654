"""Batches from images that lie in the device's memory: a batch is one gather there, and nothing is waited for.

The shards that a run visits are copied once, as they are stored (500,000 uint8 images: 14 GB at 96x96, 75 GB at 224x224). Order
and batches are bitwise those of `kdnb.data.loader.BatchReader`.
"""

from collections.abc import Iterator

import numpy as np
import torch

from kdnb.data.epochs import EpochLoader
from kdnb.data.loader import BatchReader


class DeviceLoader(EpochLoader):
    """The batches of a `CachedTensorDataset` from the device's memory.

    Args:
        loader: reads the same batches from the disk; its data set, device, batch size and cap are taken over.
        epochs: how many epochs the run has: only shards that they visit are copied.
    """

    def __init__(self, loader: BatchReader, *, epochs: int):
        settings = {name: getattr(loader, name) for name in ("batch_size", "device", "max_batches", "drop_last")}
        super().__init__(loader.dataset, **settings)
        reader, shards = loader.dataset.reader, visited_shards(loader, epochs)
        starts = np.concatenate([[0], np.cumsum(reader.shard_sizes, dtype=np.int64)])
        count = sum(reader.shard_sizes[shard] for shard in shards)
        self._place = np.full(len(reader), -1, dtype=np.int64)  # of each position of the cache, among the rows here
        self._ids = np.empty(count, dtype=np.int64)
        self._images = torch.empty((count, *reader.row_shape), dtype=reader.dtype, device=self.device)
        self._labels = torch.empty(count, dtype=torch.int64, device=self.device) if reader.labelled else None
        row = 0
        for shard in shards:
            batch = reader.read(np.arange(starts[shard], starts[shard + 1]))
            part = slice(row, row + len(batch["id"]))
            self._images[part].copy_(batch["image"])
            self._ids[part] = batch["id"].numpy()
            if self._labels is not None:
                self._labels[part].copy_(batch["label"])
            self._place[starts[shard] : starts[shard + 1]] = np.arange(part.start, part.stop)
            row = part.stop

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `epoch` from batch number `start` on; each owns its memory."""
        plan = self._positions(epoch, start)
        # All of the epoch's rows go over at once: a copy per batch would be waited for.
        rows = torch.from_numpy(self._place[np.concatenate(plan)] if plan else np.empty(0, np.int64)).to(self.device)
        at = 0
        for positions in plan:
            chosen = rows[at : at + len(positions)]
            batch = {"image": self._images.index_select(0, chosen), "id": torch.from_numpy(self._ids[self._place[positions]])}
            if self._labels is not None:
                batch["label"] = self._labels.index_select(0, chosen)
            at += len(positions)
            yield batch


def visited_shards(loader: BatchReader, epochs: int) -> list[int]:
    """Places in the index of the shards that the first `epochs` epochs visit, ascending."""
    order = loader.dataset.order
    starts = np.cumsum(order.shard_sizes)
    seen = np.zeros(len(order.shard_sizes), dtype=bool)
    for epoch in range(1 if order.regime in ("full", "fixed") and loader.max_batches is None else epochs):
        positions = order.epoch(epoch)[: loader.num_samples(epoch)]
        seen[np.unique(np.searchsorted(starts, positions, side="right"))] = True
        if seen.all():
            break
    return np.flatnonzero(seen).tolist()


def bytes_on_device(loader: BatchReader, epochs: int) -> int:
    """Bytes of the images and labels that `DeviceLoader` would copy."""
    reader = loader.dataset.reader
    rows = sum(reader.shard_sizes[shard] for shard in visited_shards(loader, epochs))
    return rows * (int(np.prod(reader.row_shape)) * reader.dtype.itemsize + 8 * reader.labelled)
