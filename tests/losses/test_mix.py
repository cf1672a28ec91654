"""Losses against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from kdnb.losses import DistillationLoss, cosine_loss, entropy, labels_fit, soft_target_loss, standardised_mse


def test_cosine_by_hand():
    student = torch.tensor([[3.0, 4.0], [1.0, 0.0], [2.0, 0.0]])
    teacher = torch.tensor([[3.0, 4.0], [0.0, 5.0], [-1.0, 0.0]])
    assert cosine_loss(student, teacher).item() == pytest.approx((0 + 1 + 2) / 3)


def test_standardised_mse_by_hand():
    """(5 - 3) / 2 = 1 and (1 - 1) / 4 = 0 are the targets; the student says 0.5 and 2."""
    loss = standardised_mse(
        torch.tensor([[0.5, 2.0]]), torch.tensor([[5.0, 1.0]]), mean=torch.tensor([3.0, 1.0]), std=torch.tensor([2.0, 4.0])
    )
    assert loss.item() == pytest.approx((0.25 + 4) / 2)


def test_a_dimension_that_never_varies_does_not_explode():
    """Means 100 and 0, std 0 and 1: the first counts as 0.005, so that rounding by 1e-4 is a target of 0.02."""
    statistics = {"mean": torch.tensor([100.0, 0.0]), "std": torch.tensor([0.0, 1.0])}
    assert standardised_mse(torch.zeros(1, 2), torch.tensor([[100.0, 1.0]]), **statistics).item() == pytest.approx(0.5)
    rounded = standardised_mse(torch.zeros(1, 2), torch.tensor([[100.0001, 1.0]]), **statistics).item()
    assert rounded == pytest.approx((0.02**2 + 1) / 2, rel=1e-3)


def test_soft_targets_by_hand():
    """T = 2: teacher softmax(ln 9 / 2, 0) = (3/4, 1/4), student (1/2, 1/2); KL = 3/4 ln 3/2 + 1/4 ln 1/2; times 4."""
    teacher, student = torch.tensor([[math.log(9), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert soft_target_loss(student, teacher, temperature=2).item() == pytest.approx(expected)
    reverse = 4 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert soft_target_loss(teacher, student, temperature=2).item() == pytest.approx(reverse) != expected


def test_soft_targets_are_a_mean_over_rows_and_the_gradient_keeps_its_size():
    torch.manual_seed(0)
    teacher = torch.randn(8, 5) * 0.01
    sizes = []
    for temperature in (1.0, 10.0):
        student = torch.zeros(8, 5, requires_grad=True)
        soft_target_loss(student, teacher, temperature=temperature).backward()
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    one = soft_target_loss(torch.zeros(1, 5), teacher[:1], temperature=3)
    assert soft_target_loss(torch.zeros(4, 5), teacher[:1].expand(4, 5), temperature=3).item() == pytest.approx(one.item())


def test_entropy_by_hand():
    assert entropy(torch.zeros(3, 4)).item() == pytest.approx(math.log(4))
    assert entropy(torch.tensor([[math.log(3), 0.0]])).item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))


def test_entropy_of_an_excluded_class_is_a_number():
    assert entropy(torch.tensor([[0.0, 0.0, -math.inf]])).item() == pytest.approx(math.log(2))


def test_the_gradient_covers_what_the_teacher_finds_possible():
    """d KL(teacher || student) / d logits = student - teacher = (1/2 - 3/4, 1/2 - 1/4); the reverse KL's is another."""
    student = torch.zeros(1, 2, requires_grad=True)
    soft_target_loss(student, torch.tensor([[math.log(3), 0.0]]), temperature=1).backward()
    assert student.grad.tolist() == [pytest.approx([-0.25, 0.25])]


def logits(*rows):
    return {"logits": torch.tensor(rows, requires_grad=True)}


def test_the_mix_of_soft_and_hard_targets():
    student, teacher, labels = logits([0.0, 0.0]), logits([math.log(9), 0.0]), torch.tensor([1])
    soft, hard = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), math.log(2)
    for alpha in (0.0, 0.3, 1.0):
        parts = DistillationLoss("soft_targets", temperature=2, alpha=alpha, log_accuracy=True)([student], [teacher], labels)
        assert parts["loss"].item() == pytest.approx(alpha * soft + (1 - alpha) * hard)
        assert parts["soft_targets"].item() == pytest.approx(soft) and parts["cross_entropy"].item() == pytest.approx(hard)
    assert parts["teacher_accuracy"] == 0 and parts["student_accuracy"] == 0
    assert set(DistillationLoss("soft_targets")([student], [teacher], None)) == {"loss", "soft_targets", "teacher_entropy"}


@pytest.mark.parametrize("label", [-1, 2, 10**6])
def test_pure_distillation_never_looks_at_labels(label):
    """Of images without a label, or of a data set with more classes than the head: an index out of range on a GPU is the end."""
    student, teacher = logits([0.0, 0.0]), logits([math.log(9), 0.0])
    parts = DistillationLoss("soft_targets")([student], [teacher], torch.tensor([label]))
    assert parts.keys() == {"loss", "soft_targets", "teacher_entropy"}
    parts["loss"].backward()


def test_labels_fit_where_all_of_them_are_classes_of_the_head():
    fitting, beyond, missing = np.array([0, 4, 2]), np.array([0, 5]), np.array([0, -1, 3, -1])
    assert labels_fit(fitting, 5, alpha=1.0) and labels_fit(fitting, 5, alpha=0.3)
    foreign = [beyond, missing, np.full(3, -1), np.empty(0, dtype=np.int64), None]
    assert not any(labels_fit(labels, 5, alpha=1.0) for labels in foreign)
    sentences = ["labels go up to 5 and the head has 5 classes", "2 of 4 images have no label", *["images have no labels"] * 3]
    for labels, sentence in zip(foreign, sentences, strict=True):
        with pytest.raises(ValueError, match=f"alpha is 0.3, but .*{sentence}"):
            labels_fit(labels, 5, alpha=0.3)


def test_pure_supervision_survives_a_teacher_without_sense():
    teacher = logits([math.inf, 0.0])
    parts = DistillationLoss("soft_targets", alpha=0.0)([logits([0.0, 0.0])], [teacher], torch.tensor([1]))
    assert parts["loss"].item() == pytest.approx(math.log(2))


def test_views_are_paired_as_they_should_be():
    """Two global views with their own, one local view with both: angles 0, 0, then 0 and 90 degrees."""
    right, up = {"features": torch.tensor([[1.0, 0.0]])}, {"features": torch.tensor([[0.0, 1.0]])}
    parts = DistillationLoss("cosine")([right, up, right], [right, up], None)
    assert parts["loss"].item() == pytest.approx((0 + 0 + 0 + 1) / 4)


def test_feature_losses_are_mixed_with_labels_too():
    """Cosine of a right angle is 1; the logits (ln 3, 0) give class 0 with 3/4."""
    student = {"features": torch.tensor([[1.0, 0.0]])} | logits([math.log(3), 0.0])
    teacher = {"features": torch.tensor([[0.0, 1.0]])}
    parts = DistillationLoss("cosine", alpha=0.25)([student], [teacher], torch.tensor([0]))
    assert parts["loss"].item() == pytest.approx(0.25 * 1 + 0.75 * math.log(4 / 3))
    assert set(DistillationLoss("cosine")([student], [teacher], torch.tensor([0]))) == {"loss", "cosine"}


def test_layers_are_added():
    student = {"features": torch.tensor([[1.0, 0.0]]), "layers": [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])]}
    teacher = {"features": torch.tensor([[0.0, 1.0]]), "layers": [torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])]}
    parts = DistillationLoss("cosine")([student], [teacher], None)
    assert parts["layers"].item() == pytest.approx(1.0) and parts["loss"].item() == pytest.approx(2.0)


def test_bfloat16_outputs_are_compared_in_float32():
    student, teacher = torch.randn(4, 6).bfloat16(), torch.randn(4, 6).bfloat16()
    for loss in (cosine_loss(student, teacher), soft_target_loss(student, teacher, temperature=2), entropy(student)):
        assert loss.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = soft_target_loss(student, teacher, temperature=2), cosine_loss(student, teacher)
    assert under[0].item() == soft_target_loss(student.float(), teacher.float(), temperature=2).item()
    assert under[1].item() == cosine_loss(student.float(), teacher.float()).item()


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: DistillationLoss("kl"), "loss is 'kl'; allowed is one of soft_targets, logit_standardised"),
        (lambda: DistillationLoss("cosine", temperature=0), "temperature is 0; allowed is above 0"),
        (lambda: DistillationLoss("cosine", alpha=1.5), "alpha is 1.5; allowed is from 0 to 1"),
        (lambda: DistillationLoss("mse"), "needs the mean and std"),
        (lambda: cosine_loss(torch.ones(2, 3), torch.ones(2, 4)), r"student's output is \[2, 3\] and the teacher's \[2, 4\]"),
        (lambda: DistillationLoss("soft_targets")([{}], [logits([0.0])], None), "the student has no classification head"),
        (lambda: DistillationLoss("soft_targets")([logits([0.0])], [{}], None), "the teacher has no classification head"),
        (
            lambda: DistillationLoss("cosine", alpha=0.5)([{}], [{}], torch.zeros(1)),
            "loss is cosine and alpha 0.5, which need logits, but the student",
        ),
        (lambda: DistillationLoss("cosine")([{}], [{}, {}], None), "2 teacher views and 1 student views"),
        (lambda: soft_target_loss(torch.ones(1, 2), torch.ones(1, 2), temperature=-1), "temperature is -1; allowed is above 0"),
        (
            lambda: DistillationLoss("soft_targets", alpha=0.5)([logits([0.0])], [logits([0.0])], None),
            "alpha is 0.5, but the images have no labels",
        ),
    ],
)
def test_bad_input_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
