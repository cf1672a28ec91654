"""Random numbers that depend on nothing but their key: no generator whose state has to be kept, saved or shared.

Orders are keyed by (seed, purpose, epoch), views by (seed, epoch, image, view): the same key gives the same numbers in every
process, after every resume, and after an upgrade of NumPy.
"""

from collections.abc import Sequence

import numpy as np

_HOLD_OUT = 12  # the stream of what is held out, apart from those of orders (data/order.py) and of texts (text/text_data.py)
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: consecutive words land far apart


def random_words(n: int, *key: int) -> np.ndarray:
    """uint64 [n] for a key of numbers that are 0 or larger.

    Raw PCG64 words: NumPy keeps that bit stream fixed across its versions, which it does not promise for a Generator's draws.

    Raises:
        ValueError: a negative number in the key.
    """
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(n)


def permutation(n: int, *key: int) -> np.ndarray:
    """0 to n - 1 in an order that the key decides, int64 [n]."""
    return np.argsort(random_words(n, *key), kind="stable")


def uniform(seed: int, epoch: int, ids: np.ndarray, view: int | np.ndarray, streams: Sequence[int]) -> np.ndarray:
    """Numbers in [0, 1) for each sample and stream: float64 [B, K] for ids int64 [B], their views (one, or [B]) and K streams.

    Each word of the key in turn is added, times an odd constant, to a 64-bit state that the finaliser of SplitMix64 then
    mixes (Steele, Lea and Flood 2014). 64 ids x 32 streams take 0.1 ms.
    """
    state = np.zeros((1, 1), dtype=np.uint64)
    for word in (seed, epoch):
        state = _mix(state + np.uint64((int(word) + 1) * _GOLDEN % 2**64))
    for word in (view, ids):
        state = _mix(state + (np.asarray(word).astype(np.uint64).reshape(-1, 1) + 1) * _GOLDEN)
    state = _mix(state + (np.asarray(streams, dtype=np.uint64) + 1) * _GOLDEN)
    return (state >> 11) * 2.0**-53


def hold_out(labels: np.ndarray, share: float, *, seed: int) -> np.ndarray:
    """Which rows are held out, bool [N]: `share` of each class, rounded, but at least one row of it and never the last one.

    Args:
        labels: int64 [N]; rows without a label (-1) are kept. A class with a single row keeps it.
    """
    sizes = np.bincount(labels + 1)
    count = np.where(sizes > 1, np.clip(np.rint(share * sizes), 1, np.maximum(sizes - 1, 1)), 0)
    count[0] = 0
    return ranks_in_class(labels, random_words(len(labels), seed, _HOLD_OUT)) < count[labels + 1]


def ranks_in_class(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Place of each row among the rows of its class, by `keys`; int64 [N]."""
    order = np.lexsort((keys, labels))
    starts = np.searchsorted(labels[order], labels[order])
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - starts
    return ranks


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: a bijection of uint64 in which each bit of the input changes half of the output."""
    words = (words ^ (words >> 30)) * 0xBF58476D1CE4E5B9
    words = (words ^ (words >> 27)) * 0x94D049BB133111EB
    return words ^ (words >> 31)
