"""Map-style datasets over a cache (or over raw images), one for each way of choosing an epoch's samples.

They differ in nothing but their `Order`: item i of a dataset is the i-th sample of the current epoch. A plain
`torch.utils.data.DataLoader` works on each, with worker processes that persist or not: the epoch number lies in shared memory,
so that `set_epoch` in the main process reaches workers that are already running. Call it between epochs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from kdnb.data.augment import normalise as normalise_images
from kdnb.data.decode import UnreadableImage, decode, resize
from kdnb.data.keyed import permutation
from kdnb.data.order import Order
from kdnb.data.reader import ShardReader


class CachedTensorDataset(Dataset):
    """Every sample of a cache, each epoch.

    Args:
        cache_dir: folder that `kdnb.data.precompute.precompute` filled. A partial cache is usable: the complete shards count.
        shuffle: `none`, `within_shards` or `all` (see `Order`); a DataLoader's own `shuffle=True` works, too.
        seed: seed of the shuffling.
        normalise: return float32 normalised with the cache's mean and std; a uint8 cache then gives bitwise what a
            float32 cache holds.

    Items are {"image": [3, H, W], "id": int64 (), "label": int64 ()}, the label only where the cache has labels.
    """

    def __init__(self, cache_dir: str | Path, *, shuffle: str = "none", seed: int = 0, normalise: bool = False):
        self._build(cache_dir, normalise, shuffle=shuffle, shuffle_seed=seed)

    def _build(self, cache_dir, normalise, **order):
        self.reader = ShardReader(cache_dir)
        if not self.reader.shard_sizes:
            raise ValueError(f"{cache_dir} holds no complete shard yet; let precompute finish at least one.")
        self.order = Order(shard_sizes=self.reader.shard_sizes, **order)
        self.normalise = normalise
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._positions: tuple[int, np.ndarray] | None = None

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of all images by position, int64 [N]; None where there are none."""
        return self.reader.labels

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, where they are known."""
        return self.reader.index["classes"]

    @property
    def epoch(self) -> int:
        """The epoch whose samples the items are."""
        return int(self._epoch)

    def set_epoch(self, epoch: int):
        """Choose the epoch (0, 1, ...); takes effect in running worker processes as well."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; epochs count from 0.")
        self._epoch.fill_(epoch)

    def positions(self) -> np.ndarray:
        """Positions in the cache of the current epoch's samples, int64 [len(self)]."""
        epoch = self.epoch
        if self._positions is None or self._positions[0] != epoch:
            self._positions = (epoch, self.order.epoch(epoch))
        return self._positions[1]

    def __len__(self) -> int:
        return self.order.size(self.epoch)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """The items at `indices`, read as one batch (a DataLoader calls this)."""
        batch = self.read(self.positions()[np.asarray(indices, dtype=np.int64)])
        return [{name: values[i] for name, values in batch.items()} for i in range(len(indices))]

    def read(self, positions: np.ndarray, images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The batch at `positions` of the cache; `images` is an optional buffer (see `ShardReader.read`)."""
        batch = self.reader.read(positions, images)
        if self.normalise and batch["image"].dtype == torch.uint8:
            batch["image"] = normalise_images(batch["image"], self.reader.index["mean"], self.reader.index["std"])
        return batch


class RandomSubsetCachedDataset(CachedTensorDataset):
    """A new random subset of the cache each epoch.

    Args:
        samples_per_epoch, shards_per_epoch: the subset's size, in samples or in whole shards; exactly one of them.
        draw: `independent` draws each epoch anew, `dealt` deals without replacement until everything came up.
        random_subset_seed: seed of the draws. The others as for `CachedTensorDataset`.
    """

    def __init__(
        self,
        cache_dir: str | Path,
        *,
        samples_per_epoch: int | None = None,
        shards_per_epoch: int | None = None,
        draw: str = "independent",
        random_subset_seed: int = 0,
        shuffle: str = "none",
        seed: int = 0,
        normalise: bool = False,
    ):
        subset = {"samples_per_epoch": samples_per_epoch, "shards_per_epoch": shards_per_epoch, "draw": draw}
        self._build(
            cache_dir,
            normalise,
            regime="random",
            subset_seed=random_subset_seed,
            shuffle=shuffle,
            shuffle_seed=seed,
            **subset,
        )


class FixedShardSubsetCachedDataset(CachedTensorDataset):
    """The same shards of the cache, each epoch.

    Args:
        fixed_shards: how many shards. fixed_choice: the `first` ones, or a `seeded` choice by `random_subset_seed`.
            The others as for `CachedTensorDataset`.
    """

    def __init__(
        self,
        cache_dir: str | Path,
        *,
        fixed_shards: int,
        fixed_choice: str = "first",
        random_subset_seed: int = 0,
        shuffle: str = "none",
        seed: int = 0,
        normalise: bool = False,
    ):
        subset = {"fixed_shards": fixed_shards, "fixed_choice": fixed_choice, "subset_seed": random_subset_seed}
        self._build(cache_dir, normalise, regime="fixed", shuffle=shuffle, shuffle_seed=seed, **subset)


class RawImageDataset(CachedTensorDataset):
    """The same interface without a cache: each image is decoded and resized when it is asked for.

    Args:
        source: from `kdnb.data.sources.open_source`, not streaming. image_size, resize, permutation_seed: as in precompute.
        order: regime and seeds; its `shard_sizes` cut the source as precompute would.
    """

    def __init__(self, source, *, image_size: int, resize: str, order: Order, permutation_seed: int | None = None):
        self.source, self.image_size, self.resize_mode, self.order = source, image_size, resize, order
        n = source.num_images
        self._rows = np.arange(n) if permutation_seed is None else permutation(n, permutation_seed)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._positions = None

    @property
    def labels(self) -> np.ndarray | None:
        """As of a cache; the images are not read for it."""
        return self.source.labels()[self._rows] if self.source.labelled else None

    @property
    def classes(self) -> list[str] | None:
        return self.source.classes

    def read(self, positions: np.ndarray, images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The batch at `positions` of the source's order, decoded now. Raises UnreadableImage with the row's number."""
        pixels, ids, labels = [], [], []
        for row, encoded, label in self.source.items(self._rows[positions].tolist()):
            try:
                pixels.append(resize(decode(encoded), self.image_size, self.resize_mode))
            except UnreadableImage as error:
                raise UnreadableImage(
                    f"image {row} of {self.source.name} cannot be read ({error}); precompute skips such images "
                    "(on_unreadable=skip), reading raw images cannot."
                ) from error
            ids.append(row)
            labels.append(label)
        batch = {"image": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()}
        batch["id"] = torch.tensor(ids, dtype=torch.int64)
        return batch | {"label": torch.tensor(labels, dtype=torch.int64)} if self.source.labelled else batch
