"""Choices of texts: every class by its share, the same for the same seed."""

import numpy as np
import pytest
import torch

from kdnb.text.text_data import split_validation, stratified_rows
from kdnb.text.texts import Texts


def made(labels, classes="abcdef") -> Texts:
    labels = torch.tensor(labels)
    return Texts("made", [f"text {n}" for n in range(len(labels))], labels, list(classes), torch.arange(len(labels)) + 100)


def test_stratified_rows_by_hand():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 9 + [3])
    # Shares of 10: 6, 3, 0.9 and 0.1. The last two keep one each; 8 are shared by 60 and 30: 5.33 and 2.67, so 5 and 3.
    rows = stratified_rows(labels, 10, seed=0)
    assert torch.bincount(labels[rows]).tolist() == [5, 3, 1, 1]
    assert rows.dtype == torch.int64 and rows.tolist() == sorted(set(rows.tolist()))
    # Fewer than there are classes: the largest shares only. 1.8, 0.9, 0.27, 0.03 of 3.
    assert torch.bincount(labels[stratified_rows(labels, 3, seed=0)], minlength=4).tolist() == [2, 1, 0, 0]
    assert stratified_rows(labels, 100, seed=3).tolist() == list(range(100))
    assert torch.equal(rows, stratified_rows(labels, 10, seed=0))
    assert not torch.equal(rows, stratified_rows(labels, 10, seed=1))


def test_stratified_rows_are_exact_for_any_classes():
    draw = np.random.default_rng(0)
    for _ in range(200):
        sizes = draw.integers(0, 20, size=draw.integers(1, 8)) ** draw.integers(1, 3)
        labels = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))[torch.randperm(int(sizes.sum()))]
        if not len(labels):
            continue
        count = int(draw.integers(1, len(labels) + 1))
        taken = torch.bincount(labels[stratified_rows(labels, count, seed=int(draw.integers(100)))], minlength=len(sizes)).numpy()
        assert taken.sum() == count and (taken <= sizes).all()
        if count >= (sizes > 0).sum():
            assert (taken[sizes > 0] > 0).all()
        assert (taken >= np.floor(count * sizes / sizes.sum()) - (sizes > 0).sum()).all()


def test_ties_are_seeded():
    labels = torch.arange(4).repeat(5)
    assert len({tuple(torch.bincount(labels[stratified_rows(labels, 6, seed=s)]).tolist()) for s in range(20)}) > 1


def test_more_rows_than_there_are(capsys):
    labels = torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match="max_train_samples is 4, but there are 3 texts; choose 1 to 3"):
        stratified_rows(labels, 4, seed=0)
    assert stratified_rows(labels, 4, seed=0, on_short="take_all", name="max_test_samples").tolist() == [0, 1, 2]
    assert capsys.readouterr().out == "max_test_samples is 4, but there are 3 texts; all of them are taken.\n"
    with pytest.raises(ValueError, match="max_train_samples is 0"):
        stratified_rows(labels, 0, seed=0, on_short="take_all")


def test_validation_has_every_class_that_can_be_shared():
    texts = made([0] * 20 + [1] * 2 + [2] + [3] * 10)
    train, validation = split_validation(texts, fraction=0.1, seed=0)
    assert torch.bincount(validation.labels).tolist() == [2, 1, 0, 1]
    assert torch.bincount(train.labels).tolist() == [18, 1, 1, 9]
    assert sorted(train.texts + validation.texts) == sorted(texts.texts)
    assert all(texts.texts[row - 100] == text for row, text in zip(validation.ids.tolist(), validation.texts, strict=True))
    assert validation.missing_classes == ["c", "e", "f"]
    assert split_validation(texts, fraction=0.1, seed=0)[1].texts == validation.texts
    assert split_validation(texts, fraction=0.1, seed=1)[1].texts != validation.texts
    assert torch.bincount(split_validation(texts, fraction=0.99, seed=0)[0].labels).tolist() == [1, 1, 1, 1]
    unlabelled = Texts("u", texts.texts, None, None, texts.ids)
    assert [len(part) for part in split_validation(unlabelled, fraction=0.25, seed=0)] == [25, 8]
    with pytest.raises(ValueError, match="validation_split is 1"):
        split_validation(texts, fraction=1, seed=0)
    with pytest.raises(ValueError, match="no class with two"):
        split_validation(made([0, 1, 2]), fraction=0.5, seed=0)
