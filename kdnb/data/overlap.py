"""Do held-out images lie in the training data? Found by a checksum of the pixels as they are stored.

Only exact copies are found: the same picture encoded anew, or resized in another way, has other pixels.
Cost: about 1 GB/s a core, once for a cache: the digests of a complete cache are kept beside what is measured on it.
"""

import hashlib
from pathlib import Path

import numpy as np

from kdnb.data.reader import ShardReader
from kdnb.files import write_atomically

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
