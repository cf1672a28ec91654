"""Calibration and F1 on cases worked out by hand, and against scikit-learn."""

import math

import pytest
import torch
from torch import nn

from kdnb.evaluation.scores import calibrated_temperature, macro_f1


def test_temperature_by_hand():
    # Logits (z, 0), three of four right: softmax(z / T) must be 3/4, so z / T = log 3.
    for z in (0.5, 2.0, 40.0):
        logits, labels = torch.tensor([[z, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
        assert calibrated_temperature(logits, labels) == pytest.approx(z / math.log(3), rel=1e-5)
    assert calibrated_temperature(logits, torch.zeros(4, dtype=torch.int64)) == 0.01  # all right: as sure as allowed
    assert calibrated_temperature(logits, torch.tensor([0, 1, 1, 1])) == 100  # worse than guessing
    assert calibrated_temperature(torch.zeros(4, 2), labels) == 1  # makes no difference


def test_temperature_undoes_a_scale_and_is_the_minimum_of_the_loss():
    z = 2 * torch.randn(20_000, 5)
    labels = torch.distributions.Categorical(logits=z).sample()
    assert calibrated_temperature(z, labels) == pytest.approx(1, abs=0.03)
    found = calibrated_temperature(3 * z + 7, labels)  # a shift of all logits does nothing
    assert found == pytest.approx(3, abs=0.1)

    def loss(temperature):
        return nn.functional.cross_entropy(3 * z.double() / temperature, labels)

    assert loss(found) < min(loss(found * 1.001), loss(found / 1.001))


@pytest.mark.parametrize("true, predicted, classes", [
    ([0, 0, 1, 1, 2], [0, 1, 1, 1, 0], 3),
    ([0, 0, 1], [0, 0, 3], 5),  # 2 and 4 in neither; 1 never right; 3 only predicted
    ([1, 1], [1, 1], 4),
    ([0], [1], 2),
])  # fmt: skip
def test_macro_f1_is_scikit_learns(true, predicted, classes):
    from sklearn.metrics import f1_score

    expected = f1_score(true, predicted, average="macro", zero_division=0)
    assert macro_f1(torch.tensor(predicted), torch.tensor(true), classes) == pytest.approx(expected)


def test_macro_f1_by_hand():
    # Class 0: TP 1, FP 1, FN 1 -> 1/2. Class 1: TP 2, FP 1, FN 0 -> 4/5. Class 2: missed -> 0. Class 3 is nowhere.
    assert macro_f1(torch.tensor([0, 1, 1, 1, 0]), torch.tensor([0, 0, 1, 1, 2]), 4) == pytest.approx(1.3 / 3)
