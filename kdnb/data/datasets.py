"""Map-style datasets over a cache, or over raw images: item i is the i-th sample of the current epoch.

They differ in their `Order` and in where an image is read. A plain `torch.utils.data.DataLoader` works on each, with worker
processes that persist or not: the epoch number lies in shared memory, so that `set_epoch` in the main process reaches workers
that are already running. Call it between epochs.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from kdnb.data.augment import normalise as normalise_images
from kdnb.data.decode import UnreadableImage, decode, resize
from kdnb.data.keyed import permutation
from kdnb.data.order import Order, require_epoch
from kdnb.data.reader import ShardReader


class ImageDataset(Dataset):
    """The samples of the epochs of `order`; a subclass says where they are read.

    Attributes:
        order: regime and seeds. classes: names of the classes; None where they are not known. fingerprint: tells the images from
            others.
    """

    def __init__(self, order: Order, *, classes: list[str] | None, fingerprint: str):
        self.order, self.classes, self.fingerprint = order, classes, fingerprint
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._positions: tuple[int, np.ndarray] | None = None

    def read(self, positions: np.ndarray, images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The batch at `positions` (int64 [B]), in their order.

        Args:
            images: buffer that a cache's images are read into (see `ShardReader.read`).

        Returns:
            {"image": [B, 3, H, W], "id": int64 [B], "label": int64 [B] where there are labels}.
        """
        raise NotImplementedError

    @property
    def labels(self) -> np.ndarray | None:
        """Labels of all images by position, int64 [N]; None where there are none."""
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The epoch whose samples the items are."""
        return int(self._epoch)

    def set_epoch(self, epoch: int):
        """Choose the epoch (0, 1, ...); takes effect in running worker processes as well."""
        require_epoch(epoch)
        self._epoch.fill_(epoch)

    def positions(self) -> np.ndarray:
        """Positions of the current epoch's samples, int64 [len(self)]."""
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


class CachedTensorDataset(ImageDataset):
    """Every sample of a cache, each epoch.

    Items are {"image": [3, H, W], "id": int64 (), "label": int64 ()}, the label only where the cache has labels. Images are as
    they were stored: uint8 in [0, 255], or normalised float16 or float32.

    Args:
        cache_dir: folder that `kdnb.precompute` filled. A partial cache is usable: the complete shards count.
        shuffle: `none`, `within_shards` or `all` (see `Order`); a DataLoader's own `shuffle=True` works, too.
        seed: seed of the shuffling.
        normalise: return float32 normalised with the cache's mean and std; a uint8 cache then gives bitwise what a
            float32 cache holds.
        subset: the regime and what belongs to it (see `Order`), which the subclasses below name.

    Raises:
        FileNotFoundError: no cache there. ValueError: no complete shard, a shard that is missing or truncated (`ShardError`), or
            a value that `Order` refuses.

    Example:
        >>> import kdnb, tempfile
        >>> cache = kdnb.precompute("digits", tempfile.mkdtemp(), image_size=8)
        1,500 images of 8x8 in uint8 ...
        >>> data = kdnb.CachedTensorDataset(cache, shuffle="all", seed=0)
        >>> len(data), data[0]["image"].shape, data[0]["image"].dtype
        (1500, torch.Size([3, 8, 8]), torch.uint8)
    """

    def __init__(
        self, cache_dir: str | Path, *, shuffle: str = "none", seed: int = 0, normalise: bool = False, **subset
    ):  # fmt: skip
        self.reader = ShardReader(cache_dir)
        if not self.reader.shard_sizes:
            raise ValueError(f"{cache_dir} holds no complete shard yet; let precompute finish at least one.")
        order, index = Order(shard_sizes=self.reader.shard_sizes, shuffle=shuffle, seed=seed, **subset), self.reader.index
        super().__init__(order, classes=index["classes"], fingerprint=index["fingerprint"])
        self.normalise = normalise

    def set_epoch(self, epoch: int):
        super().set_epoch(epoch)
        self.reader.check_sizes()

    @property
    def labels(self) -> np.ndarray | None:
        return self.reader.labels

    def read(self, positions: np.ndarray, images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        batch = self.reader.read(positions, images)
        if self.normalise and batch["image"].dtype == torch.uint8:
            batch["image"] = normalise_images(batch["image"], self.reader.index["mean"], self.reader.index["std"])
        return batch


class RandomSubsetCachedDataset(CachedTensorDataset):
    """A new random subset of the cache each epoch; items as of `CachedTensorDataset`.

    Args:
        samples_per_epoch, shards_per_epoch: the subset's size, in samples or in whole shards; exactly one of them.
        draw: `independent` draws each epoch anew, `dealt` deals without replacement until everything came up.
        random_subset_seed: seed of the draws. The others as for `CachedTensorDataset`.

    Raises:
        ValueError: both sizes or none of them, or more than the cache holds; and as for `CachedTensorDataset`.

    Example:
        >>> import kdnb, tempfile
        >>> cache = kdnb.precompute("digits", tempfile.mkdtemp(), image_size=8)
        1,500 images of 8x8 in uint8 ...
        >>> data = kdnb.RandomSubsetCachedDataset(cache, samples_per_epoch=3)
        >>> data.set_epoch(1)
        >>> [item["id"].item() for item in data]
        [1470, 379, 1167]
    """

    def __init__(
        self, cache_dir: str | Path, *, samples_per_epoch: int | float | None = None, shards_per_epoch: int | float | None = None,
        draw: str = "independent", random_subset_seed: int = 0, shuffle: str = "none", seed: int = 0, normalise: bool = False,
    ):  # fmt: skip
        subset = {"samples_per_epoch": samples_per_epoch, "shards_per_epoch": shards_per_epoch, "draw": draw}
        subset |= {"regime": "random", "random_subset_seed": random_subset_seed}
        super().__init__(cache_dir, shuffle=shuffle, seed=seed, normalise=normalise, **subset)


class FixedShardSubsetCachedDataset(CachedTensorDataset):
    """The same shards of the cache, each epoch; items as of `CachedTensorDataset`.

    Args:
        fixed_shards: how many shards, or (below 1) which share of them. fixed_choice: the `first` ones, or a `seeded` choice by
            `random_subset_seed`. The others as for `CachedTensorDataset`.

    Raises:
        ValueError: more shards than the cache holds; and as for `CachedTensorDataset`.

    Example:
        >>> import kdnb, tempfile
        >>> cache = kdnb.precompute("digits", tempfile.mkdtemp(), image_size=8, cache_shard_size=100)
        1,500 images of 8x8 in uint8 ...
        >>> data = kdnb.FixedShardSubsetCachedDataset(cache, fixed_shards=3)
        >>> len(data), data.labels.shape, data.classes[:3]
        (300, (1500,), ['0', '1', '2'])
    """

    def __init__(
        self, cache_dir: str | Path, *, fixed_shards: int | float, fixed_choice: str = "first", random_subset_seed: int = 0,
        shuffle: str = "none", seed: int = 0, normalise: bool = False,
    ):  # fmt: skip
        subset = {"fixed_shards": fixed_shards, "fixed_choice": fixed_choice, "random_subset_seed": random_subset_seed}
        super().__init__(cache_dir, shuffle=shuffle, seed=seed, normalise=normalise, regime="fixed", **subset)


class RawImageDataset(ImageDataset):
    """The images of a source, decoded and resized each time that they are asked for, uint8.

    Args:
        source: from `kdnb.data.sources.open_source`, not streaming. image_size, resize, permutation_seed: as in precompute.
        order: regime and seeds; its `shard_sizes` cut the source as precompute would.
    """

    def __init__(self, source, *, image_size: int, resize: str, order: Order, permutation_seed: int | None = None):
        super().__init__(order, classes=source.classes, fingerprint=source.fingerprint)
        self.source, self.image_size, self.resize_mode = source, image_size, resize
        n = source.num_images
        self._rows = np.arange(n) if permutation_seed is None else permutation(n, permutation_seed)

    @property
    def labels(self) -> np.ndarray | None:
        return self.source.labels()[self._rows] if self.source.labelled else None

    def read(self, positions: np.ndarray, images: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        rows, encoded, labels = zip(*self.source.items(self._rows[positions].tolist()), strict=True)
        pixels = np.stack([self._decoded(*image) for image in zip(rows, encoded, strict=True)])
        batch = {"image": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), "id": torch.tensor(rows)}
        return batch | {"label": torch.tensor(labels)} if self.source.labelled else batch

    def _decoded(self, row: int, encoded) -> np.ndarray:
        try:
            return resize(decode(encoded), self.image_size, self.resize_mode)
        except UnreadableImage as error:
            raise UnreadableImage(
                f"image {row} of {self.source.name} cannot be read ({error}); precompute skips such images "
                "(on_unreadable=skip), reading raw images cannot."
            ) from error
