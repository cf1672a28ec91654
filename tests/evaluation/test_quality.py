"""Each measure on a case whose answer is known."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from kdnb.evaluation import quality
from kdnb.evaluation.features import Features
from kdnb.evaluation.quality import calibrated_temperature, classification_scores, feature_quality


def test_mean_cosine_of_known_angles_and_of_all_pairs():
    # Pairs: (e1, e2) 0, (e1, -e1) -1, (e2, -e1) 0; lengths do not matter.
    assert quality.mean_cosine(torch.tensor([[3.0, 0], [0, 2], [-1, 0]])) == pytest.approx(-1 / 3)
    assert quality.mean_cosine(torch.ones(5, 4)) == pytest.approx(1)
    x = torch.randn(30, 6)
    x[4] = 0
    cosines = normalize(x) @ normalize(x).T
    assert quality.mean_cosine(x) == pytest.approx(cosines[~torch.eye(30, dtype=torch.bool)].mean().item(), abs=1e-6)


def test_variance_and_dead_dimensions():
    x = torch.tensor([[1.0, 5, 0.001, 0], [3, 5, -0.001, 8]])
    assert quality.dimension_variance(x).tolist() == pytest.approx([1, 0, 1e-6, 16])
    assert quality.dead_dimensions(x) == 2
    assert quality.dead_dimensions(x, below=0.5) == 3  # half of the mean variance 4.25 is more than 1
    assert quality.dead_dimensions(torch.ones(4, 3)) == 3


def test_effective_rank_of_known_spectra():
    assert quality.effective_rank(torch.eye(7)) == pytest.approx(7)
    assert quality.effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-5)
    # Singular values 3 and 1: shares 3/4 and 1/4, entropy 0.5623, exp 1.7548.
    assert quality.effective_rank(torch.tensor([[3.0, 0], [0, 1], [0, 0]])) == pytest.approx(1.7547654)
    wide = torch.randn(5, 20)
    share = torch.linalg.svdvals(wide.double())
    share /= share.sum()
    expected = math.exp(-(share * share.log()).sum().item())
    assert quality.effective_rank(wide) == pytest.approx(expected)
    assert quality.effective_rank(wide.T) == pytest.approx(expected)
    assert quality.effective_rank(torch.zeros(4, 3)) == 1  # the smallest, not a division by zero


def test_alignment_of_known_angles():
    x = torch.tensor([[1.0, 0], [0, 2]])
    assert quality.alignment(x, x * 5) == 0
    assert quality.alignment(x, -x) == pytest.approx(4)
    assert quality.alignment(x, torch.tensor([[1.0, 0], [3, 0]])) == pytest.approx(1)  # (0 + 2) / 2


def test_uniformity_of_known_distances_and_in_blocks():
    # On a square d^2 is 2 for four pairs and 4 for two.
    square = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    assert quality.uniformity(square) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))
    assert quality.uniformity(torch.ones(3, 2)) == pytest.approx(0)
    x = torch.randn(50, 5)
    pairs = torch.pdist(normalize(x.double())).square().mul(-2).exp().mean().log().item()
    assert quality.uniformity(x) == pytest.approx(pairs)
    assert quality.uniformity(x, chunk=7) == pytest.approx(pairs)


def test_linear_cka_is_1_for_rotations_and_0_for_the_unrelated():
    x = torch.randn(200, 6)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))
    assert quality.linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1, abs=1e-6)
    # Orthogonal and centred columns.
    a = torch.tensor([[1.0], [1], [-1], [-1]])
    b = torch.tensor([[1.0], [-1], [1], [-1]])
    assert quality.linear_cka(a, b) == 0
    # One shared direction: |a'[a b]|^2 = 16, |a'a| = 4, |[a b]'[a b]| = 4 sqrt(2).
    assert quality.linear_cka(a, torch.cat([a, b], 1)) == pytest.approx(1 / math.sqrt(2))
    # The same from N x N matrices, as HSIC is written.
    y = torch.randn(200, 3) + x[:, :3]
    centre = torch.eye(200) - 1 / 200
    k, m = (centre @ z @ z.T @ centre for z in (x, y))
    assert quality.linear_cka(x, y) == pytest.approx(((k * m).sum() / (k.norm() * m.norm())).item(), rel=1e-4)


def test_agreement_by_hand():
    a = torch.tensor([[1.0, 0], [0, 1], [2, 1], [0, 3]])
    assert quality.agreement(a, torch.tensor([[9.0, 0], [1, 0], [0, 1], [0, 1]])) == 0.5
    with pytest.raises(ValueError, match=r"shapes \[4, 2\] and \[4, 3\]"):
        quality.agreement(a, torch.zeros(4, 3))


def test_calibration_error_by_hand():
    def logits(*confidences):
        return torch.tensor([[math.log(p / (1 - p)), 0.0] for p in confidences], dtype=torch.float64)

    # Ten sure at 0.8 of which eight are right: calibrated. All right: a gap of 0.2.
    ten = logits(*[0.8] * 10)
    assert quality.expected_calibration_error(ten, torch.tensor([0] * 8 + [1] * 2)) == pytest.approx(0, abs=1e-7)
    assert quality.expected_calibration_error(ten, torch.zeros(10, dtype=torch.int64)) == pytest.approx(0.2)
    # Two bins: 0.9 and wrong weighs 1/4, three at 0.6 of which one is right weigh 3/4.
    mixed = logits(0.9, 0.6, 0.6, 0.6)
    error = quality.expected_calibration_error(mixed, torch.tensor([1, 0, 1, 1]))
    assert error == pytest.approx(0.25 * 0.9 + 0.75 * (0.6 - 1 / 3))
    # In one and the same bin gaps of both signs cancel: -0.1 and 0.9 leave |0.8| / 2.
    assert quality.expected_calibration_error(logits(0.9, 0.9), torch.tensor([0, 1])) == pytest.approx(0.4)
    # A boundary belongs to the bin below it: with two bins, 0.5 and 0.6 are in different ones.
    halves = torch.tensor([[0.0, 0.0], [math.log(1.5), 0]], dtype=torch.float64)
    assert quality.expected_calibration_error(halves, torch.tensor([0, 1]), bins=2) == pytest.approx((0.5 + 0.6) / 2)


def some_features(rows=40, width=5, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    return Features(x, torch.arange(rows) % classes, torch.arange(rows), x[:, :classes])


def test_all_measures_in_one_flat_dict():
    features = some_features()
    plain = Features(features.features, None, features.ids)
    always = {"mean_cosine", "variance_mean", "variance_min", "dead_dimensions", "effective_rank", "uniformity"}
    assert feature_quality(plain).keys() == always
    found = feature_quality(features, second_view=features)
    added = {"accuracy", "calibration_error", "alignment"}
    assert found.keys() == always | added
    assert all(type(value) in (float, int) for value in found.values())
    assert found["alignment"] == 0
    assert found["accuracy"] == (features.logits.argmax(1) == features.labels).double().mean().item()


def test_uniformity_of_many_rows_is_taken_on_a_seeded_choice():
    features = some_features(rows=300)
    few = feature_quality(features, max_pairs_rows=50)["uniformity"]
    assert few == feature_quality(features, max_pairs_rows=50)["uniformity"]
    assert few != feature_quality(features, max_pairs_rows=50, seed=1)["uniformity"]
    assert few == pytest.approx(feature_quality(features)["uniformity"], abs=0.2)


def test_other_images_bad_values_and_single_rows_are_refused():
    features = some_features()
    with pytest.raises(ValueError, match="second_view has 39 rows and the features 40, and their ids differ"):
        feature_quality(features, second_view=some_features(rows=39))
    shuffled = Features(features.features, None, features.ids.flip(0))
    with pytest.raises(ValueError, match="second_view has 40 rows and the features 40, and their ids differ"):
        feature_quality(features, second_view=shuffled)
    with pytest.raises(ValueError, match="the features have one row"):
        feature_quality(some_features(rows=1))
    broken = Features(torch.full((4, 2), torch.nan), None, torch.arange(4))
    with pytest.raises(ValueError, match="the features are not finite in 4 of 4 rows"):
        feature_quality(broken)


# --- predictions


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
        return cross_entropy(3 * z.double() / temperature, labels)

    assert loss(found) < min(loss(found * 1.001), loss(found / 1.001))


def test_macro_f1_by_hand():
    """F1 is 1/2, 4/5 and 0; the fourth class is neither true nor predicted, and is left out of the mean."""
    logits = torch.eye(4)[[0, 1, 1, 1, 0]]
    scores = classification_scores(logits, torch.tensor([0, 0, 1, 1, 2]), None)
    assert scores["macro_f1"] == pytest.approx(1.3 / 3)
