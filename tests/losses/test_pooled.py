"""Losses of pooled features, and PHI-S."""

import numpy as np
import pytest
import torch

from kdnb.losses import cosine_smooth_l1_loss, fit_phi_s
from kdnb.losses.pooled import _hadamard


def features(rows: int, width: int) -> torch.Tensor:
    """Of very different scales, correlated, off the origin."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=generator) * torch.logspace(-2, 2, width)
    return torch.randn(rows, width, generator=generator) @ mix.T + 7


def test_cosine_and_smooth_l1_by_hand():
    """Right angle: 1. Differences 0.5 and 3 give 0.125 and 2.5, in the mean 1.3125."""
    student, teacher = torch.tensor([[0.5, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert cosine_smooth_l1_loss(student, teacher, weight=0.25).item() == pytest.approx(0.75 * 1 + 0.25 * 1.3125)
    with pytest.raises(ValueError, match="weight is 1.5; allowed is from 0 to 1"):
        cosine_smooth_l1_loss(student, teacher, weight=1.5)


@pytest.mark.parametrize("width", [1, 2, 4, 12, 20, 24, 36 * 2, 384])
def test_phi_s_gives_every_dimension_the_same_variance(width):
    """And keeps all ratios of distances: a rotation and one scale."""
    whole = features(width + 200, width).double()
    phi_s = fit_phi_s(whole)
    assert torch.allclose(phi_s.rotation @ phi_s.rotation.T, torch.eye(width), atol=1e-5)
    targets = phi_s.standardise(whole)
    assert torch.allclose(targets.mean(0), torch.zeros(width).double(), atol=1e-3)
    assert torch.allclose(targets.var(0, correction=0), torch.ones(width).double(), atol=1e-3)
    ratio = torch.pdist(targets[:20]) / torch.pdist(whole[:20])
    assert torch.allclose(ratio, (1 / phi_s.scale).expand_as(ratio).double(), rtol=1e-4)
    assert torch.allclose(phi_s.restore(targets), whole, rtol=1e-4, atol=1e-4)


def test_phi_s_is_its_formula():
    """Rows of H take the same share of each principal direction: y = H U^T (t - mean) / sqrt(mean eigenvalue), in NumPy."""
    whole = features(60, 4).double()
    values, vectors = np.linalg.eigh(np.cov(whole.numpy().T, bias=True))
    hadamard = np.array([[1, 1, 1, 1], [-1, 1, -1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1]]) / 2
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), range(4)])
    expected = (whole.numpy() - whole.numpy().mean(0)) @ vectors @ hadamard.T / np.sqrt(values.mean())
    found = fit_phi_s(whole).standardise(whole).numpy()
    order = [int(np.abs(np.corrcoef(found.T, expected.T)[row, 4:]).argmax()) for row in range(4)]
    assert sorted(order) == [0, 1, 2, 3]  # the same rows of H, in an order and with signs of their own
    assert np.abs(found) == pytest.approx(np.abs(expected[:, order]), abs=1e-3)


def test_phi_s_does_not_hang_on_the_signs_of_a_decomposition(monkeypatch):
    whole, decompose = features(60, 4), torch.linalg.eigh
    first = fit_phi_s(whole)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (decompose(matrix)[0], -decompose(matrix)[1]))
    assert torch.equal(fit_phi_s(whole).rotation, first.rotation)


@pytest.mark.parametrize("width", [2, 4, 8, 12, 20, 768, 1152])
def test_hadamard_matrices(width):
    matrix = _hadamard(width)
    assert matrix.abs().eq(1).all() and torch.equal(matrix @ matrix.T, width * torch.eye(width).double())


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (torch.randn(4, 4), r"features is \[4, 4\]; PHI-S needs \[N, D\] with more rows than dimensions"),
        (torch.ones(9, 4), "9 rows of features are all the same"),
        (torch.randn(20, 10), "no Hadamard matrix for this width"),
    ],
)
def test_features_without_phi_s_are_refused(rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        fit_phi_s(rows)
