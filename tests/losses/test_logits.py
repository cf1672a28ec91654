"""Losses of logits against numbers worked out by hand, and against their formulas in NumPy."""

import math

import numpy as np
import pytest
import torch

from kdnb.losses import decoupled_loss, dist_loss, logit_standardised_loss, normalised_loss, soft_target_loss

SHARES = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
LABELS = torch.tensor([0, 2])
generator = np.random.default_rng(0)
STUDENT, TEACHER, TARGETS = generator.normal(size=(7, 4)), generator.normal(size=(7, 4)), generator.integers(0, 4, size=7)


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(logits / temperature)
    return powers / powers.sum(-1, keepdims=True)


def kl(teacher, student) -> float:
    return float((np.asarray(teacher) * np.log(np.asarray(teacher) / np.asarray(student))).sum())


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def test_standardised_logits_by_hand():
    """(1, 2, 3) and (-4, 0, 4) are both (-1, 0, 1); (1, 3) becomes (-1, 1) / sqrt(2), as does (0, 1)."""
    assert logit_standardised_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[-4.0, 0.0, 4.0]]), temperature=2).item() == 0
    half = 1 / math.sqrt(2)
    expected = soft_target_loss(torch.tensor([[half, -half]]), torch.tensor([[-half, half]]), temperature=2).item()
    found = logit_standardised_loss(torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 1.0]]), temperature=2).item()
    assert found == pytest.approx(expected) and found > 0.1


def test_decoupled_by_hand():
    """Student (1/3, 1/3, 1/3), so target and others (1/3, 2/3); the teacher's are (1/2, 1/2) and (3/5, 2/5), its others alike."""
    student, teacher = torch.zeros(2, 3), SHARES.log()
    target = (kl([0.5, 0.5], [1 / 3, 2 / 3]) + kl([0.6, 0.4], [1 / 3, 2 / 3])) / 2
    loss = decoupled_loss(student, teacher, LABELS, alpha=3.0, beta=8.0, temperature=1.0)
    assert loss.item() == pytest.approx(3 * target)
    teacher = torch.tensor([[0.5, 0.375, 0.125]]).log()  # among the others (3/4, 1/4), the student (1/2, 1/2)
    loss = decoupled_loss(torch.zeros(1, 3), teacher, LABELS[:1], alpha=0.0, beta=8.0, temperature=1.0)
    assert loss.item() == pytest.approx(8 * kl([0.75, 0.25], [0.5, 0.5]))


def test_decoupled_is_its_formula():
    """With masks and probabilities, as the paper writes it, at T = 4."""
    student, teacher = softmax(STUDENT, 4), softmax(TEACHER, 4)
    target, others = [], []
    for s, t, label in zip(student, teacher, TARGETS, strict=True):
        target.append(kl([t[label], 1 - t[label]], [s[label], 1 - s[label]]))
        rest = np.arange(4) != label
        others.append(kl(t[rest] / t[rest].sum(), s[rest] / s[rest].sum()))
    found = decoupled_loss(*tensors(STUDENT, TEACHER, TARGETS), alpha=1.5, beta=8.0, temperature=4.0)
    assert found.item() == pytest.approx(16 * (1.5 * np.mean(target) + 8 * np.mean(others)), rel=1e-9)


def test_decoupled_makes_soft_targets_where_beta_is_the_teachers_doubt():
    """KD = KL of the target + (1 - p(target)) * KL among the others, image by image."""
    for row in range(len(TARGETS)):
        student, teacher, labels = tensors(STUDENT[[row]], TEACHER[[row]], TARGETS[[row]])
        doubt = 1 - softmax(TEACHER[row], 3.0)[TARGETS[row]]
        decoupled = decoupled_loss(student, teacher, labels, alpha=1.0, beta=doubt, temperature=3.0).item()
        assert decoupled == pytest.approx(soft_target_loss(student, teacher, temperature=3.0).item(), rel=1e-9)


def test_dist_by_hand():
    """Two classes: rows of probabilities always correlate by 1 or -1, as do columns of two images."""
    teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert dist_loss(3 * teacher, teacher, beta=1.0, gamma=1.0, temperature=1.0).item() == pytest.approx(0, abs=1e-6)
    assert dist_loss(-teacher, teacher, beta=1.0, gamma=0.0, temperature=2.0).item() == pytest.approx(4 * 2)
    assert dist_loss(-teacher, teacher, beta=0.0, gamma=1.0, temperature=3.0).item() == pytest.approx(9 * 2)


def test_normalised_by_hand():
    """Student (1/3, 1/3, 1/3): -p_t log(1/3), mean of p_t (.5 + .6) / 2, and the others' cross-entropy is ln 2."""
    loss = normalised_loss(torch.zeros(2, 3), SHARES.log(), LABELS, gamma=1.5, temperature=2.0)
    assert loss.item() == pytest.approx(0.55 * math.log(3) + 1.5 * 4 * math.log(2))


def test_normalised_is_its_formula():
    target, others = [], []
    for s, t, label in zip(STUDENT, TEACHER, TARGETS, strict=True):
        target.append(-softmax(t, 1)[label] * np.log(softmax(s, 1)[label]))
        rest = np.arange(4) != label
        others.append(-(softmax(t[rest], 2) * np.log(softmax(s[rest], 2))).sum())
    found = normalised_loss(*tensors(STUDENT, TEACHER, TARGETS), gamma=1.5, temperature=2.0)
    assert found.item() == pytest.approx(np.mean(target) + 1.5 * 4 * np.mean(others), rel=1e-9)


@pytest.mark.parametrize("loss, weights", [(decoupled_loss, {"alpha": 1.0, "beta": 8.0}), (normalised_loss, {"gamma": 1.5})])
def test_labels_go_with_their_rows(loss, weights):
    student, teacher, labels = tensors(STUDENT, TEACHER, TARGETS)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    whole = loss(student, teacher, labels, **weights, temperature=2.0).item()
    assert loss(student[order], teacher[order], labels[order], **weights, temperature=2.0).item() == pytest.approx(whole)
    assert loss(student, teacher, labels.flip(0), **weights, temperature=2.0).item() != pytest.approx(whole, rel=1e-3)


WITH_LABELS = {"alpha": 1.0, "beta": 1.0, "temperature": 1.0}


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: decoupled_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 3]), **WITH_LABELS),
         "labels go from 0 to 3, but the logits have 3 classes"),
        (lambda: decoupled_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([-1, 0]), **WITH_LABELS), "labels go from -1"),
        (lambda: decoupled_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0]), **WITH_LABELS), "labels are .* of .1."),
        (lambda: decoupled_loss(torch.zeros(2, 3), torch.zeros(2, 3), LABELS, **WITH_LABELS | {"temperature": 0}),
         "temperature is 0; allowed is above 0"),
        (lambda: logit_standardised_loss(torch.zeros(2, 1), torch.zeros(2, 1), temperature=1), "at least 2 classes"),
        (lambda: dist_loss(torch.zeros(1, 3), torch.zeros(1, 3), beta=1.0, gamma=1.0, temperature=1.0), "at least 2 images"),
        (lambda: dist_loss(torch.zeros(2, 3), torch.zeros(2, 4), beta=1.0, gamma=1.0, temperature=1.0), "must be the same"),
    ],
)  # fmt: skip
def test_wrong_logits_and_labels_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
