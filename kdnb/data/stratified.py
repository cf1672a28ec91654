"""Seeded choices of texts that keep every class by its share."""

import numpy as np
import torch

from kdnb.data.keyed import random_words
from kdnb.data.text import Texts

_CHOOSE, _HOLD_OUT = 11, 12  # separate random streams, apart from those of the order of samples


def stratified_rows(
    labels: torch.Tensor | None,
    count: int,
    *,
    seed: int,
    on_short: str = "refuse",
    name: str = "max_train_samples",
    num_rows: int | None = None,
) -> torch.Tensor:
    """Choose `count` rows, each class by its share of all rows; int64 [count], ascending.

    Shares are rounded by the largest remainder (ties by the seed); where `count` is at least the number of classes that
    occur, every one keeps a row. A class's rows are taken in one seeded order: choices of two sizes share what they can.

    Args:
        labels: int64 [N], or None: then any rows of `num_rows`.
        on_short: what to do when `count` exceeds N: `refuse`, or `take_all` and print a line. name: what `count` is called.

    Raises:
        ValueError: a count below 1 or, where refused, above N.
    """
    total = num_rows if labels is None else len(labels)
    if total is None:
        raise ValueError("num_rows is None; without labels it must say how many rows there are.")
    if on_short not in ("refuse", "take_all"):
        raise ValueError(f"on_short is {on_short!r}; allowed are refuse, take_all.")
    if count < 1 or (count > total and on_short == "refuse"):
        raise ValueError(f"{name} is {count}, but there are {total} texts; choose 1 to {total}.")
    if count > total:
        print(f"{name} is {count}, but there are {total} texts; all of them are taken.")
        count = total
    labels = np.zeros(total, dtype=np.int64) if labels is None else labels.numpy()
    sizes = np.bincount(labels)
    take = _apportion(sizes, count, _words(len(sizes), seed, _CHOOSE, 1))
    return torch.from_numpy(np.flatnonzero(_ranks(labels, _words(total, seed, _CHOOSE, 0)) < take[labels]))


def split_validation(texts: Texts, *, fraction: float, seed: int) -> tuple[Texts, Texts]:
    """(train, validation): `fraction` of each class is held out, rounded, but at least one row and never the last one.

    A class with a single row stays with train. Unlabelled texts are one class.

    Raises:
        ValueError: a fraction that is not between 0 and 1, or no class with two rows.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; the part held out for validation lies between 0 and 1, such as 0.1.")
    labels = np.zeros(len(texts), dtype=np.int64) if texts.labels is None else texts.labels.numpy()
    sizes = np.bincount(labels)
    take = np.where(sizes > 1, np.clip(np.rint(fraction * sizes), 1, np.maximum(sizes - 1, 1)), 0)
    held_out = _ranks(labels, _words(len(labels), seed, _HOLD_OUT)) < take[labels]
    if not held_out.any():
        raise ValueError(f"{texts.name} has {len(texts)} texts and no class with two, so none can be held out for validation.")
    return texts.take(np.flatnonzero(~held_out)), texts.take(np.flatnonzero(held_out))


def _words(n: int, seed: int, *stream: int) -> np.ndarray:
    if seed < 0:
        raise ValueError(f"seed is {seed}; a seed must be 0 or larger.")
    return random_words(n, seed, *stream)


def _ranks(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Place of each row among the rows of its class, by `keys`."""
    order = np.lexsort((keys, labels))
    starts = np.searchsorted(labels[order], labels[order])
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - starts
    return ranks


def _apportion(sizes: np.ndarray, count: int, ties: np.ndarray) -> np.ndarray:
    """`count` in whole parts proportional to `sizes`; whoever would get less than one gets one, if that can be."""
    take = np.zeros(len(sizes), dtype=np.int64)
    open_ = sizes > 0
    while count >= open_.sum() > 0:  # those below one get theirs first, and the others share what is left
        small = open_ & (sizes * count < sizes[open_].sum())
        if not small.any():
            break
        take[small], open_ = 1, open_ & ~small
        count -= int(small.sum())
    if not open_.any():
        return take
    whole, rest = np.divmod(np.where(open_, sizes, 0) * count, sizes[open_].sum())
    first = np.lexsort((ties, -rest))[: count - int(whole.sum())]
    whole[first] += 1
    return take + whole
