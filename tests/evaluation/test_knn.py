"""The vote is the paper's, against brute force; blocks and precision never change it."""

import math

import numpy as np
import pytest
import torch

from kdnb.evaluation import knn
from kdnb.evaluation.features import Features
from kdnb.evaluation.knn import knn_classify, nearest


def as_features(x, y):
    return Features(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y), torch.arange(len(x)))


def random_part(rows, width=8, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return as_features(centres[labels] + torch.randn(rows, width, generator=generator), labels)


def brute_force(train, test, k, temperature):
    """The definition, one N x M matrix."""
    a, b = (part.features.double().numpy() for part in (train, test))
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    similarity = b @ a.T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    votes = np.zeros((len(b), train.labels.max().item() + 1))
    for row, chosen in enumerate(order):
        for neighbour in chosen:
            votes[row, train.labels[neighbour]] += np.exp(similarity[row, neighbour] / temperature)
    return order, np.take_along_axis(similarity, order, 1), votes.argmax(1)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (20, 0.07), (20, 1.0), (300, 0.5)])
def test_agrees_with_brute_force(k, temperature):
    train, test = random_part(300), random_part(90, seed=1)
    order, similarity, predicted = brute_force(train, test, k, temperature)
    found = knn_classify(train, test, k=k, temperature=temperature)
    assert np.array_equal(found.predictions.numpy(), predicted)
    assert found.top1 == (predicted == test.labels.numpy()).mean()
    values, rows = nearest(train.features, test.features, k=k)
    assert np.array_equal(rows.numpy(), order)
    assert np.abs(values.numpy() - similarity).max() < 1e-6


def test_a_vote_worked_out_by_hand():
    # Cosines 1 (class 0), 0.6 and 0.6 (class 1): at temperature 1 the two win with 2 exp(0.6) = 3.64 against exp(1) = 2.72,
    # at 0.1 the one wins with exp(10) = 22026 against 2 exp(6) = 807.
    train = as_features([[5.0, 0], [3, 4], [3, -4], [-1, 0]], [0, 1, 1, 2])
    test = as_features([[2.0, 0]], [0])
    values, rows = nearest(train.features, test.features, k=3)
    assert rows.tolist() == [[0, 1, 2]] and values[0].tolist() == pytest.approx([1, 0.6, 0.6], abs=1e-7)
    assert knn_classify(train, test, k=3, temperature=1.0).predictions.tolist() == [1]
    assert knn_classify(train, test, k=3, temperature=0.1).predictions.tolist() == [0]


def test_accuracy_per_class_by_hand():
    train = as_features([[1.0, 0], [0, 1], [-1, -1]], [0, 1, 2])
    test = as_features([[1.0, 0], [0, 1], [1, 0.1]], [0, 0, 1])
    found = knn_classify(train, test, k=1)
    assert found.top1 == 1 / 3
    np.testing.assert_equal(found.per_class.tolist(), [0.5, 0.0, math.nan])


@pytest.mark.parametrize("similarities", [1, 700, 2**24])
def test_blocks_do_not_change_the_result(similarities, monkeypatch):
    train, test = random_part(150, width=37), random_part(40, width=37, seed=1)
    train.features[100:] = train.features[:50]  # equal rows
    whole = knn_classify(train, test, k=20)
    monkeypatch.setattr(knn, "_SIMILARITIES", similarities)
    assert torch.equal(knn_classify(train, test, k=20).predictions, whole.predictions)
    values, rows = nearest(train.features, test.features, k=20)
    assert all(len(set(row)) == 20 for row in rows.tolist()) and (values.diff() <= 0).all()


def test_the_precision_of_training_changes_nothing():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        train, test = random_part(300), random_part(90, seed=1)
        assert np.array_equal(nearest(train.features, test.features, k=20)[1].numpy(), brute_force(train, test, 20, 1.0)[0])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_equal_votes_go_to_the_lowest_class():
    train = as_features([[1.0, 1], [1, -1]], [1, 0])
    assert knn_classify(train, as_features([[1.0, 0]], [0]), k=2).predictions.tolist() == [0]


def test_collapsed_features_and_rows_of_zeros():
    same = as_features(torch.ones(10, 3), [2] * 6 + [1] * 4)
    assert knn_classify(same, as_features(torch.ones(2, 3), [1, 2]), k=10).predictions.tolist() == [2, 2]
    values, rows = nearest(torch.eye(3), torch.zeros(1, 3), k=2)
    assert values.tolist() == [[0, 0]] and len(set(rows[0].tolist())) == 2


def test_a_tiny_temperature_is_the_nearest_neighbour():
    train, test = random_part(60), random_part(20, seed=1)
    tiny = knn_classify(train, test, k=20, temperature=1e-5)  # exp(1 / 1e-5) overflows
    assert torch.equal(tiny.predictions, knn_classify(train, test, k=1).predictions)


def test_no_queries():
    values, rows = nearest(torch.eye(3), torch.zeros(0, 3), k=2)
    assert values.shape == rows.shape == (0, 2) and rows.dtype == torch.int64


@pytest.mark.parametrize("settings, message", [
    ({"k": 31}, "k is 31, but the bank has 30 rows; choose 1 to 30"),
    ({"k": 0}, "k is 0, but the bank has 30 rows"),
    ({"temperature": 0}, "temperature is 0; allowed is any number above 0"),
    ({"num_classes": 2}, "train labels go from 0 to 4; allowed is 0 to 1"),
])  # fmt: skip
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        knn_classify(random_part(30), random_part(5, seed=1), **settings)
