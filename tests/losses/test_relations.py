"""Losses of relations between images, worked out by hand and in NumPy."""

import math

import numpy as np
import pytest
import torch

from kdnb.losses import probabilistic_loss, relational_loss, similarity_loss

RIGHT = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # a triangle with sides 3, 4 and 5
FLAT = torch.tensor([[0.0], [1.0], [3.0]])  # on a line: 1, 3 and 2


def test_distances_by_hand():
    """Over their means 4 and 2: 3/4, 1, 5/4 against 1/2, 3/2, 1; half the squares, twice each, over 9 pairs."""
    expected = 2 * 0.5 * ((3 / 4 - 1 / 2) ** 2 + (1 - 3 / 2) ** 2 + (5 / 4 - 1) ** 2) / 9
    assert relational_loss(FLAT, RIGHT, distance_weight=2.0, angle_weight=0.0).item() == pytest.approx(2 * expected)


def test_angles_by_hand():
    """At the corners 0, 3/5 and 4/5; on the line 1, -1 and 1. Each twice in 27 triples, and as many ones on both sides."""
    angles = sum(difference**2 / 2 if difference < 1 else difference - 0.5 for difference in (1 - 0, 3 / 5 + 1, 1 - 4 / 5))
    assert relational_loss(FLAT, RIGHT, distance_weight=0.0, angle_weight=3.0).item() == pytest.approx(3 * 2 * angles / 27)


def test_the_same_image_twice_in_a_batch():
    """Distances of 0 are left out of the mean and have no direction; the gradient stays a number."""
    student = torch.cat([FLAT, FLAT]).requires_grad_()
    loss = relational_loss(student, torch.cat([RIGHT, RIGHT]), distance_weight=1.0, angle_weight=1.0)
    loss.backward()
    assert 0 < loss.item() < 1 and student.grad.abs().max() < 10


def test_similarity_by_hand():
    """F F^T of (1, 0) and (0, 2) is diagonal: rows (1, 0) and (0, 1). Of 1 and 1: rows of 1 / sqrt(2)."""
    half = 1 / math.sqrt(2)
    expected = (2 * (1 - half) ** 2 + 2 * half**2) / 4
    found = similarity_loss(torch.ones(2, 1), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    assert found.item() == pytest.approx(expected)


def test_similarity_divides_rows_by_their_length():
    """As the paper and its authors do; torchdistill 1.1.5 divides by the sum of absolute values, and is no reference here."""
    generator = np.random.default_rng(0)
    grams = []
    student, teacher = generator.normal(size=(6, 5)), generator.normal(size=(6, 8))
    for features in (student, teacher):
        gram = features @ features.T
        grams.append(gram / np.sqrt((gram**2).sum(1, keepdims=True)))
    found = similarity_loss(torch.from_numpy(student), torch.from_numpy(teacher)).item()
    assert found == pytest.approx(((grams[0] - grams[1]) ** 2).sum() / 36, rel=1e-9)


def test_probabilities_by_hand():
    """Right angles give rows (1, 1/2) / 1.5, the same direction (1/2, 1/2)."""
    right, same = torch.tensor([[1.0, 0.0], [0.0, 7.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    expected = (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 2
    assert probabilistic_loss(same, right).item() == pytest.approx(expected, rel=1e-5)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # no likeness at all: not the logarithm of 0
    assert math.isfinite(probabilistic_loss(opposite, same).item()) and math.isfinite(probabilistic_loss(same, opposite).item())


@pytest.mark.parametrize("loss", [similarity_loss, probabilistic_loss])
def test_only_relations_count(loss):
    """Features that are turned, scaled and of another width have the same relations."""
    teacher = torch.randn(6, 4)
    turned = torch.linalg.qr(torch.randn(7, 7))[0][:4] * 3
    assert loss(teacher @ turned, teacher).item() == pytest.approx(0, abs=1e-6)
    both = {"distance_weight": 1.0, "angle_weight": 1.0}
    assert relational_loss(teacher @ turned + 5, teacher, **both).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: similarity_loss(torch.zeros(1, 3), torch.zeros(1, 3)), "the batch has 1 images; .* at least 2"),
        (lambda: probabilistic_loss(torch.zeros(1, 3), torch.zeros(1, 3)), "at least 2"),
        (lambda: relational_loss(torch.zeros(2, 3), torch.zeros(2, 3), distance_weight=1.0, angle_weight=2.0), "at least 3"),
        (
            lambda: similarity_loss(torch.zeros(4, 3), torch.zeros(5, 3)),
            r"student's output is \[4, 3\] and the teacher's \[5, 3\]",
        ),
        (lambda: similarity_loss(torch.zeros(4, 3, 2), torch.zeros(4, 3, 2)), r"allowed are \[B, D\] of the same images"),
    ],
)
def test_batches_without_relations_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
