"""The probe is scikit-learn's logistic regression, its choice of strength is seeded, and the test part is only looked at."""

import math

import numpy as np
import pytest
import torch

from kdnb.evaluation import probe
from kdnb.evaluation.features import Features
from kdnb.evaluation.probe import linear_probe


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float(), torch.from_numpy(y).long()


def as_features(x, y):
    return Features(x, y, torch.arange(len(x)))


def blobs(rows=600, classes=4, width=6, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return as_features(centres[labels] + spread * torch.randn(rows, width, generator=generator), labels)


def test_probe_of_digits_is_as_good_as_scikit_learn_with_the_same_strength(digits):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = digits
    train, test = as_features(x[:1500], y[:1500]), as_features(x[1500:], y[1500:])
    found = linear_probe(train, test)
    scaler = StandardScaler().fit(x[:1500].double())
    reference = LogisticRegression(C=1 / (found.l2 * 1500), solver="newton-cg", tol=1e-6, max_iter=500)
    reference.fit(scaler.transform(x[:1500].double()), y[:1500])
    theirs = reference.predict(scaler.transform(x[1500:].double()))
    assert (theirs == found.predictions.numpy()).mean() >= 0.995
    assert found.top1 > 0.9 and found.seconds > 0
    # Pixels that never change in the training part are left out, and the weights hold for the features as they are.
    assert found.weight[:, x[:1500].std(0) == 0].abs().max() == 0
    logits = test.features @ found.weight.T + found.bias
    assert (logits.argmax(1) == found.predictions).double().mean() >= 0.995


def test_counts_by_hand():
    x = torch.eye(3).repeat(20, 1)
    train = as_features(x, x.argmax(1))
    # Features that say 0, 0, 1, 2 for images of class 0, 1, 1, 0; class 2 has no test rows.
    test = as_features(torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 1, 1, 0]))
    found = linear_probe(train, test)
    assert found.predictions.tolist() == [0, 0, 1, 2]
    assert found.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]] and found.confusion.dtype == torch.int64
    assert found.top1 == 0.5
    np.testing.assert_equal(found.per_class.tolist(), [0.5, 0.5, math.nan])
    # Every strength is right on all held-out rows, so the strongest is taken, whatever the order of the grid.
    assert found.l2 == 1.0 and {accuracy for _, accuracy in found.validation} == {1.0}
    assert linear_probe(train, test, l2_grid=(1e-3, 1e-1, 1e-2)).l2 == 0.1


def test_the_strength_comes_from_the_training_part_alone():
    train, test = blobs(200, width=40, spread=12), blobs(200, width=40, spread=12, seed=1)
    found = linear_probe(train, test)
    strengths, accuracies = zip(*found.validation, strict=True)
    assert strengths == probe.L2_GRID[: len(strengths)] and len(set(accuracies)) > 1
    assert accuracies.index(max(accuracies)) == len(accuracies) - 5  # it stopped after four that were no better
    assert found.l2 == strengths[accuracies.index(max(accuracies))]
    other = linear_probe(train, as_features(test.features.flip(0), test.labels))
    assert torch.equal(other.weight, found.weight) and other.validation == found.validation
    assert linear_probe(train, test, seed=1).validation != found.validation


def test_a_single_strength_needs_no_held_out_rows():
    train = as_features(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0]))
    found = linear_probe(train, train, l2_grid=[0.1])
    assert found.validation == [] and found.l2 == 0.1 and found.top1 == 1.0
    with pytest.raises(ValueError, match="2 rows in as many classes leave none to choose"):
        linear_probe(train, train)


def test_noise_is_at_chance():
    generator = torch.Generator().manual_seed(5)
    train, test = (
        as_features(torch.randn(1000, 5, generator=generator), torch.randint(0, 4, (1000,), generator=generator))
        for _ in range(2)
    )
    assert abs(linear_probe(train, test).top1 - 0.25) < 0.06  # four standard deviations


@pytest.mark.parametrize("settings, message", [
    ({"l2_grid": []}, "l2_grid is .*at least one strength"),
    ({"l2_grid": [0.1, 0.0]}, "all above 0"),
    ({"validation_fraction": 1.0}, "validation_fraction is 1.0; allowed is between 0 and 1"),
    ({"num_classes": 3}, "train labels go from 0 to 3; allowed is 0 to 2"),
])  # fmt: skip
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(blobs(40), blobs(40), **settings)


def test_more_features_than_rows_are_fitted_exactly_in_their_span():
    """40 rows of 300 features that lie in 12 dimensions, against scikit-learn on all 300."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(12, 300, generator=generator)
    x = torch.randn(140, 12, generator=generator) @ plane
    y = (x[:, :3] + torch.randn(140, 3, generator=generator) * 5).argmax(1)
    train, test = (Features(x[s], y[s], torch.arange(len(y[s]))) for s in (slice(0, 40), slice(40, 140)))
    result = linear_probe(train, test, l2_grid=[0.01])
    scaled = (x - x[:40].mean(0)) / x[:40].std(0, correction=0)
    reference = LogisticRegression(C=1 / (0.01 * 40), tol=1e-8, max_iter=2000).fit(scaled[:40].numpy(), y[:40].numpy())
    assert (result.predictions.numpy() == reference.predict(scaled[40:].numpy())).mean() >= 0.99
    assert result.weight.shape == (3, 300)
    scores = x[40:] @ result.weight.T + result.bias
    theirs = torch.from_numpy(reference.decision_function(scaled[40:].numpy())).float()
    centred = scores - scores.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True)
    assert torch.allclose(*centred, atol=0.02)
