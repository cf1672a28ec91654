"""What a subset leaves out, and what a test set should not hold: classes covered, and images that training has seen."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdnb.data.reader import ShardReader
from kdnb.files import write_atomically

_RARE = 5.0  # standard deviations beyond which chance is no explanation: one in three million random samples


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

        Pearson's chi-squared against the proportions of the whole, corrected for drawing without replacement and brought to
        standard deviations by Wilson and Hilferty (1931). Subsets of an order that knows nothing of classes are fair.
        """
        total = self.total[self.total > 0]
        share, freedom = self.seen.sum() / max(total.sum(), 1), len(total) - 1
        if freedom < 1 or not 0 < share < 1:
            return True
        squares = ((self.seen[self.total > 0] - share * total) ** 2 / (share * total)).sum() / (1 - share)
        spread = 2 / (9 * freedom)
        return bool(((squares / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5 < _RARE)

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
        seen: bool or counts, [N] or [epochs, N] (see `kdnb.data.order.count_visits`): what is not 0 anywhere was seen.
        classes: names of the classes where they are known; without, those that occur count.
    """
    if labels is None or not (labels >= 0).any():
        return ClassCoverage(*np.zeros((2, 0), dtype=np.int64))
    seen = np.atleast_2d(seen).any(axis=0)
    size = max(len(classes or ()), int(labels.max()) + 1)
    held, total = (np.bincount(part[part >= 0], minlength=size) for part in (labels[seen], labels))
    known = np.ones(size, dtype=bool) if classes else total > 0
    return ClassCoverage(held[known], total[known])


_ROWS = 256


def image_digests(cache_dir: str | Path, keep_in: str | Path | None = None) -> np.ndarray:
    """Digests of all images of a cache, in stored order, bytes [N] of 16 each.

    Args:
        keep_in: folder for a file with the digests; a later call for a cache of the same content reads that.
    """
    reader = ShardReader(cache_dir)
    content = hashlib.sha256(repr([shard["sha256"] for shard in reader.index["shards"]]).encode()).hexdigest()
    kept = None if keep_in is None else Path(keep_in) / f"digests_{content[:32]}.npy"
    if kept is not None and kept.exists():
        return np.load(kept)
    digests = np.empty(len(reader), dtype="S16")
    for start in range(0, len(reader), _ROWS):
        images = reader.read(np.arange(start, min(start + _ROWS, len(reader))))["image"].numpy()
        for row, image in enumerate(images, start):
            # S16 drops zeros at the end, on both sides of a comparison alike.
            digests[row] = hashlib.blake2b(image, digest_size=16).digest()
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, lambda file: np.save(file, digests))
    return digests


def overlap(held_out: np.ndarray, training: np.ndarray) -> int:
    """How many of the `held_out` digests are among those of `training`."""
    return int(np.isin(held_out, training).sum())
