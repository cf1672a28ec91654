"""The texts of a run, every class in proportion: what a teacher may learn from, the student's part, validation and test.

Choices are seeded, and nested but for rounding: 1,000 texts hold the 200 that the same seed gives, so that two such runs compare
amounts. scikit-learn's `train_test_split(stratify=)` chooses anew for each size, and refuses a class with a single text.
"""

from dataclasses import dataclass

import numpy as np
import torch

from kdnb.data.keyed import hold_out, random_words, ranks_in_class
from kdnb.runs import local_or_hub
from kdnb.text.texts import Texts, open_texts

_CHOOSE = 11  # a random stream of its own, apart from those of the order of samples and of what is held out


@dataclass(frozen=True)
class TextData:
    """Texts of a run: `train` teaches the student, `validation` chooses, `test` judges; a teacher may learn from the `pool`."""

    pool: Texts
    train: Texts
    validation: Texts
    test: Texts

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.test.classes or []


def load_data(
    *,
    dataset: str,
    split: str = "train",
    eval_split: str = "test",
    text_columns: str = "",
    label_column: str | None = None,
    validation_split: float,
    max_train_samples: int | None = None,
    max_val_samples: int | None = None,
    on_short: str = "refuse",
    seed: int = 0,
) -> TextData:
    """Open, split and draw the texts, classes kept in proportion.

    Validation texts are split off the training texts, or off the held-out ones where the training texts have no labels.

    Args:
        dataset, split, eval_split, text_columns, label_column: see `kdnb.text.texts.open_texts`; columns are separated by spaces.
        validation_split: share of each class that is held out for validation.
        max_train_samples, max_val_samples: how many texts are drawn; None: all. on_short: see `stratified_rows`.

    Raises:
        ValueError: a class that is missing from a split, more samples wanted than there are, held-out texts without labels.
    """
    name, columns = local_or_hub(dataset), text_columns.replace(",", " ").split()
    pool = open_texts(name, split=split, text_columns=columns, label_column=label_column)
    test = open_texts(name, split=eval_split, text_columns=columns, label_column=label_column, classes=pool.classes)
    if test.labels is None:
        raise ValueError(f"dataset {dataset}, split {eval_split}, has no labels to judge by; set label_column or eval_split.")
    if pool.labels is None:
        test, validation = split_validation(test, fraction=validation_split, seed=seed)
    else:
        pool, validation = split_validation(pool, fraction=validation_split, seed=seed)

    def draw(texts: Texts, name: str, count: int | None) -> Texts:
        if count is None:
            return texts
        return texts.take(stratified_rows(_strata(texts), count, seed=seed, on_short=on_short, name=name))

    train = draw(pool, "max_train_samples", max_train_samples)
    validation = draw(validation, "max_val_samples", max_val_samples)
    for texts, name in ((train, "training"), (validation, "validation"), (test, "test")):
        if missing := texts.missing_classes:
            raise ValueError(f"{', '.join(missing)} has no {name} text; draw more samples, or choose another seed.")
    return TextData(pool, train, validation, test)


def require_labels(texts: Texts, *, teacher: str = "", teacher_head: str = "keep", alpha: float = 1.0):
    """Refuse parameters that need labels where the training texts have none: ValueError."""
    needs = [f"alpha is {alpha}"] if alpha < 1 else []
    needs += ["the built-in teacher learns from labels"] if teacher == "builtin" else []
    needs += [f"teacher_head is {teacher_head}"] if teacher_head in ("linear", "finetune") else []
    if texts.labels is None and needs:
        raise ValueError(f"the training texts, {texts.name}, have no labels, but {' and '.join(needs)}; set label_column, or "
                         "alpha to 1 with a trained teacher and teacher_head keep or labels.")  # fmt: skip


def stratified_rows(
    labels: torch.Tensor, count: int, *, seed: int, on_short: str = "refuse", name: str = "max_train_samples"
) -> torch.Tensor:
    """Choose `count` rows, each class by its share of all rows; int64 [count], ascending.

    Shares are rounded by the largest remainder (ties by the seed); where `count` is at least the number of classes that
    occur, every one keeps a row. A class's rows are taken in one seeded order: choices of two sizes share what they can.

    Args:
        labels: int64 [N].
        on_short: what to do when `count` exceeds N: `refuse`, or `take_all` and print a line. name: what `count` is called.

    Raises:
        ValueError: a count below 1 or, where refused, above N.
    """
    total = len(labels)
    if count < 1 or (count > total and on_short == "refuse"):
        raise ValueError(f"{name} is {count}, but there are {total} texts; choose 1 to {total}.")
    if count > total:
        print(f"{name} is {count}, but there are {total} texts; all of them are taken.")
        count = total
    strata = labels.numpy()
    sizes = np.bincount(strata)
    take = _apportion(sizes, count, random_words(len(sizes), seed, _CHOOSE, 1))
    return torch.from_numpy(np.flatnonzero(ranks_in_class(strata, random_words(total, seed, _CHOOSE, 0)) < take[strata]))


def split_validation(texts: Texts, *, fraction: float, seed: int) -> tuple[Texts, Texts]:
    """(train, validation): `fraction` of each class is held out, rounded, but at least one row and never the last one.

    A class with a single row stays with train. Unlabelled texts are one class.

    Raises:
        ValueError: a fraction that is not between 0 and 1, or no class with two rows.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_split is {fraction}; it is a share between 0 and 1, such as 0.1.")
    held_out = torch.from_numpy(hold_out(_strata(texts).numpy(), fraction, seed=seed))
    if not held_out.any():
        raise ValueError(f"{texts.name} has {len(texts)} texts and no class with two, so none can be held out for validation.")
    return texts.take((~held_out).nonzero()[:, 0]), texts.take(held_out.nonzero()[:, 0])


def _strata(texts: Texts) -> torch.Tensor:
    """Labels; of unlabelled texts, one class for all."""
    return torch.zeros(len(texts), dtype=torch.int64) if texts.labels is None else texts.labels


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
