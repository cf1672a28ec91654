"""The fit is scikit-learn's logistic regression, to the digits that float32 has."""

import math

import pytest
import torch

from kdnb.evaluation import probe
from kdnb.evaluation.features import Features
from kdnb.evaluation.probe import fit_logistic


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
