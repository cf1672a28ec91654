"""What a selection of images holds: the classes that a subset covers, and the test images that training has seen."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdnb.data.reader import ShardReader
from kdnb.files import hash_of, memoize

_RARE = 3e-7  # probability below which chance is no explanation: one in three million random samples
_ROWS = 256  # read at a time


@dataclass(frozen=True)
class ClassCoverage:
    """Images of each class in a subset and in the whole data set.

    Attributes:
        seen: int64 [classes], different images of each class in the subset. total: the same of the whole data set; 0 for a class
            that is known by name and does not occur. Both are empty where there are no labels.
    """

    seen: np.ndarray
    total: np.ndarray

    @property
    def num_seen(self) -> int:
        """Classes of which the subset holds an image."""
        return int((self.seen > 0).sum())

    @property
    def shares(self) -> tuple[float, float]:
        """Smallest and largest share of a class's images that the subset holds, of the classes that it covers."""
        covered = self.seen > 0
        shares = self.seen[covered] / self.total[covered]
        return (float(shares.min()), float(shares.max())) if len(shares) else (0.0, 0.0)

    @property
    def fair(self) -> bool:
        """False where a random choice of as many images would hardly ever be spread so unevenly over the classes.

        Pearson's chi-squared test against the proportions of the whole, corrected for drawing without replacement. Subsets of an
        order that knows nothing of classes are fair.
        """
        from scipy.special import chdtrc

        total = self.total[self.total > 0]
        share, freedom = self.seen.sum() / max(total.sum(), 1), len(total) - 1
        if freedom < 1 or not 0 < share < 1:
            return True
        squares = ((self.seen[self.total > 0] - share * total) ** 2 / (share * total)).sum() / (1 - share)
        return bool(chdtrc(freedom, squares) > _RARE)

    def __str__(self) -> str:
        if not len(self.total):
            return "images without labels, whose classes are not known"
        low, high = (f"{share:.0%}" if share >= 0.01 or not share else f"{share:.1%}" for share in self.shares)
        text = f"{self.num_seen} of {len(self.total)} classes, {low if low == high else f'{low} to {high}'} of each"
        return text if self.fair else f"{text}: no fair sample of the classes (permutation_seed of precompute gives one)"


def class_coverage(labels: np.ndarray | None, seen: np.ndarray, *, classes: list[str] | None = None) -> ClassCoverage:
    """The classes that the images `seen` cover, of all images.

    Args:
        labels: int64 [N], negative where an image has none; None for images without labels.
        seen: bool or counts, [N] or [epochs, N] (see `kdnb.data.order.EpochPlan.visits`): what is not 0 anywhere was seen.
        classes: names of the classes where they are known; without, those that occur count.
    """
    if labels is None or not (labels >= 0).any():
        return ClassCoverage(*np.zeros((2, 0), dtype=np.int64))
    seen = np.any(np.atleast_2d(seen), axis=0)
    size = max(len(classes or ()), int(labels.max()) + 1)
    held, total = (np.bincount(part[part >= 0], minlength=size) for part in (labels[seen], labels))
    known = np.ones(size, dtype=bool) if classes else total > 0
    return ClassCoverage(held[known], total[known])


def image_digests(cache_dir: str | Path, folder: str | Path) -> np.ndarray:
    """Digests of all images of a cache, in stored order, bytes [N] of 16 each; kept in a file in `folder` (see `memoize`)."""
    reader = ShardReader(cache_dir)

    def compute() -> torch.Tensor:
        rows = np.arange(len(reader))
        batches = (reader.read(rows[at : at + _ROWS])["image"].numpy() for at in range(0, len(rows), _ROWS))
        digests = b"".join(hashlib.blake2b(image, digest_size=16).digest() for images in batches for image in images)
        return torch.frombuffer(bytearray(digests), dtype=torch.uint8)

    content = hash_of([shard["sha256"] for shard in reader.index["shards"]])
    digests = memoize(Path(folder) / f"digests_{content}.pt", compute).numpy()
    return digests.view("S16")  # which drops zeros at the end, on both sides of a comparison alike


def overlap(held_out: np.ndarray, training: np.ndarray) -> int:
    """How many of the `held_out` digests are among those of `training`."""
    return int(np.isin(held_out, training).sum())
