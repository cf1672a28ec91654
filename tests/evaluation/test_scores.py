"""Calibration and F1 on cases worked out by hand, and against scikit-learn."""

import math

import pytest
import torch
from torch import nn

from kdnb.evaluation.compare import calibrated_temperature, classification_scores


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


def test_macro_f1_by_hand():
    """F1 is 1/2, 4/5 and 0; the fourth class is neither true nor predicted, and is left out of the mean."""
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 1, 0]), 4).float()
    scores = classification_scores(logits, torch.tensor([0, 0, 1, 1, 2]), None)
    assert scores["macro_f1"] == pytest.approx(1.3 / 3)
