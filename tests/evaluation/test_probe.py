"""The fit is scikit-learn's logistic regression, the choice of strength is seeded, and the test part is only looked at."""

import math

import numpy as np
import pytest
import torch

from kdnb.evaluation import probe
from kdnb.evaluation.features import Features
from kdnb.evaluation.probe import fit_logistic, linear_probe


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float(), torch.from_numpy(y).long()


def as_features(x, y):
    return Features(x, y, torch.arange(len(x)))


def objective(x, y, weight, bias, C):
    """The definition, in float64."""
    loss = torch.nn.functional.cross_entropy(x.double() @ weight.double().T + bias.double(), y)
    return (loss + weight.double().square().sum() / (2 * C * len(x))).item()


def blobs(rows=600, classes=4, width=6, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    return as_features(centres[labels] + spread * torch.randn(rows, width, generator=generator), labels)


def test_a_solution_worked_out_by_hand():
    # Two points x = 1 (class 1) and x = -1 (class 0): by symmetry the weights are +-w and the bias 0, and the objective is
    # log(1 + exp(-2w)) + l2 w^2, whose slope is zero at w = 1 for l2 = 1 / (1 + exp(2)).
    l2 = 1 / (1 + math.exp(2))
    weight, bias = fit_logistic(torch.tensor([[1.0], [-1.0]]), torch.tensor([1, 0]), num_classes=2, C=1 / (2 * l2))
    assert weight.flatten().tolist() == pytest.approx([-1, 1], abs=2e-3)
    assert bias.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_gradient_is_the_one_autograd_finds():
    x, y = torch.randn(50, 4), torch.randint(0, 3, (50,))
    rows = probe.Rows(x, y, mean=torch.zeros(4), std=torch.ones(4), device="cpu")
    parameters = torch.randn(3, 5, requires_grad=True)
    value = torch.nn.functional.cross_entropy(x @ parameters[:, :4].T + parameters[:, 4], y)
    value = value + 0.5 * 0.1 * parameters[:, :4].square().sum()
    value.backward()
    found, gradient = rows.objective(parameters.detach(), torch.tensor([0.1, 0.1, 0.1, 0.1, 0]))
    assert found == pytest.approx(value.item(), rel=1e-6)
    assert torch.allclose(gradient, parameters.grad, atol=1e-6)
    assert rows.objective(torch.zeros(3, 5), torch.zeros(5))[0] == pytest.approx(math.log(3))


@pytest.mark.parametrize("C", [100.0, 1.0, 0.01])
@pytest.mark.parametrize("standardised", [True, False])
def test_agrees_with_scikit_learn(digits, C, standardised):
    from sklearn.linear_model import LogisticRegression

    x, y = digits
    if standardised:
        x = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
    train, test = slice(0, 1500), slice(1500, None)
    weight, bias = fit_logistic(x[train], y[train], num_classes=10, C=C)
    assert weight.shape == (10, 64) and bias.shape == (10,) and weight.dtype == bias.dtype == torch.float32
    reference = LogisticRegression(C=C, solver="newton-cg", tol=1e-9, max_iter=500)
    reference.fit(x[train].double().numpy(), y[train].numpy())
    theirs = objective(x[train], y[train], torch.tensor(reference.coef_), torch.tensor(reference.intercept_), C)
    assert objective(x[train], y[train], weight, bias, C) == pytest.approx(theirs, rel=1e-4)
    agree = (x[test] @ weight.T + bias).argmax(1).numpy() == reference.predict(x[test].double().numpy())
    assert agree.mean() >= 0.995


def test_a_far_away_origin_and_linearly_dependent_features_do_no_harm():
    part = blobs()
    x = torch.cat([part.features, part.features[:, :2], torch.ones(len(part.ids), 1)], 1)
    weight, bias = fit_logistic(x, part.labels, num_classes=4)
    moved, moved_bias = fit_logistic(x + 1000, part.labels, num_classes=4)
    assert torch.allclose(weight, moved, atol=2e-3)
    assert torch.allclose(moved_bias, bias - 1000 * moved.sum(1), atol=0.1)
    assert weight[:, -1].abs().max() == 0
    assert torch.allclose(weight[:, :2], weight[:, 6:8], atol=1e-3)  # the penalty shares the weight out evenly


def test_features_of_very_different_scale_are_fitted_as_well():
    part = blobs(spread=2.0)
    scale, C = torch.logspace(-4, 4, 6), 1e12  # so weak a penalty that scaling does not change the problem
    weight, bias = fit_logistic(part.features, part.labels, num_classes=4, C=C)
    scaled = fit_logistic(part.features * scale, part.labels, num_classes=4, C=C)
    value = objective(part.features, part.labels, weight, bias, C)
    assert 0.1 < value < 1
    assert objective(part.features * scale, part.labels, *scaled, C) == pytest.approx(value, rel=1e-4)


def test_blocks_do_not_change_the_fit(monkeypatch):
    part = blobs()
    whole = fit_logistic(part.features, part.labels, num_classes=4)
    monkeypatch.setattr(probe, "_CHUNK", 4 * 7)
    cut = fit_logistic(part.features, part.labels, num_classes=4)
    assert torch.allclose(whole[0], cut[0], atol=1e-3) and not torch.equal(whole[0], cut[0])


def test_a_class_without_rows_is_never_predicted():
    part = blobs()
    weight, bias = fit_logistic(part.features, part.labels * 2, num_classes=9)
    predicted = (part.features @ weight.T + bias).argmax(1)
    assert weight.isfinite().all() and bias.isfinite().all() and (predicted % 2 == 0).all() and predicted.max() <= 6


def test_stopping_early_is_said():
    part = blobs()
    with pytest.warns(UserWarning, match="stopped at max_iter=2"):
        fit_logistic(part.features, part.labels, num_classes=4, max_iter=2)


def test_gradients_and_the_matmul_precision_are_left_alone():
    part = blobs()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        weight, _ = fit_logistic(part.features.clone().requires_grad_(), part.labels, num_classes=4)
        assert torch.get_float32_matmul_precision() == "high" and not weight.requires_grad
    finally:
        torch.set_float32_matmul_precision(before)


def test_bad_input_of_fit_logistic_is_refused():
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 2, 1])
    with pytest.raises(ValueError, match="C is 0; allowed is any number above 0"):
        fit_logistic(x, y, num_classes=3, C=0)
    with pytest.raises(ValueError, match="the labels are all 1"):
        fit_logistic(x, torch.ones(4, dtype=torch.int64), num_classes=3)
    with pytest.raises(ValueError, match="the labels go from 0 to 2; allowed is 0 to 1"):
        fit_logistic(x, y, num_classes=2)
    with pytest.raises(ValueError, match="not finite in 1 of 4 rows"):
        fit_logistic(x.index_fill(0, torch.tensor([2]), torch.nan), y, num_classes=3)


# --- the probe


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
    assert found.top1 > 0.9
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
