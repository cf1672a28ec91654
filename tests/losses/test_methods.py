"""What holds for every loss: the reference's number, gradients, permuted batches, the identity, precision, a row in the docs."""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fixed_numbers import numbers

from kdnb import losses
from kdnb.losses.methods import METHODS, table

LABELS = torch.tensor([0, 4, 2, 2, 1, 3])
IDS = torch.tensor([3, 0, 29, 7, 11, 12])


@dataclass
class Case:
    """How a loss is called in these tests, and what torchdistill 1.1.5 says of `numbers`, where it has such a loss."""

    call: Callable
    reference: float | None = None
    shape: tuple = (6, 5)
    teacher_shape: tuple | None = None  # None: the student's
    minimal: bool = True  # student equal to teacher gives the smallest loss, 0
    permutes: bool = True  # called with nothing but student and teacher, so that rows can be exchanged
    layers: bool = False
    steepest: float = 1e4  # gradient of a collapsed student


def review(student_maps, teacher_maps):
    """With weights from `numbers`, and in eval mode, so that the numbers of a batch stay apart."""
    loss, first = losses.ReviewLoss([3], [4], width=6).double().eval(), 5000
    with torch.no_grad():
        for weights in loss.parameters():
            if weights.ndim > 1:
                weights.copy_(numbers(*weights.shape, start=first) / 4)
                first += weights.numel()
    return loss(student_maps, teacher_maps)


def contrastive(student, teacher):
    loss = losses.ContrastiveLoss(numbers(30, 5, start=7000), negatives=8, temperature=0.5)
    loss.normaliser = 3.0  # not of the first batch, on which the value then depends
    torch.manual_seed(0)
    return loss(student, teacher, IDS)


def queue(student, teacher):
    loss = losses.QueueLoss(queue_size=9, width=5, num_images=9, temperature=0.5)
    loss = loss.double() if student.dtype == torch.float64 else loss
    loss(numbers(4, 5, start=7000), numbers(4, 5, start=7000))
    return loss(student, teacher)


def hints(student_maps, teacher_maps):
    torch.manual_seed(0)
    return losses.hint_loss(student_maps, teacher_maps, [losses.hint_regressor(3, 4).double().eval()])


PHI_S = losses.fit_phi_s(numbers(40, 4, start=1))
STATISTICS = {"mean": numbers(5, start=70).float(), "std": numbers(5, start=80).float().abs() + 0.5}
MAPS = {"shape": (2, 3, 4, 4), "layers": True}

CASES = {
    "soft_target_loss": Case(lambda s, t: losses.soft_target_loss(s, t, temperature=3.0), 1.9961926),
    "logit_standardised_loss": Case(lambda s, t: losses.logit_standardised_loss(s, t, temperature=2.0), 0.9043476),
    "decoupled_loss": Case(
        lambda s, t: losses.decoupled_loss(s, t, LABELS, alpha=1.0, beta=8.0, temperature=4.0), permutes=False
    ),
    "dist_loss": Case(lambda s, t: losses.dist_loss(s, t, beta=2.0, gamma=0.5, temperature=4.0), 48.593124, steepest=1e9),
    "normalised_loss": Case(
        lambda s, t: losses.normalised_loss(s, t, LABELS, gamma=1.5, temperature=2.0), minimal=False, permutes=False
    ),
    "cosine_loss": Case(losses.cosine_loss),
    "standardised_mse": Case(lambda s, t: losses.standardised_mse(s, t, **STATISTICS), minimal=False),
    "PhiS": Case(lambda s, t: torch.nn.functional.mse_loss(s, PHI_S.standardise(t)), shape=(6, 4), minimal=False),
    "cosine_smooth_l1_loss": Case(lambda s, t: losses.cosine_smooth_l1_loss(s, t, weight=0.5)),
    "relational_loss": Case(
        lambda s, t: losses.relational_loss(s, t, distance_weight=25.0, angle_weight=50.0), 6.6504898, teacher_shape=(6, 7)
    ),
    "similarity_loss": Case(losses.similarity_loss, teacher_shape=(6, 7)),
    "probabilistic_loss": Case(losses.probabilistic_loss, 0.031499155, teacher_shape=(6, 7)),
    "ContrastiveLoss": Case(contrastive, minimal=False, permutes=False),
    "QueueLoss": Case(queue),
    "attention_transfer_loss": Case(losses.attention_transfer_loss, teacher_shape=(2, 4, 4, 4), **MAPS),
    "hint_loss": Case(hints, teacher_shape=(2, 4, 4, 4), minimal=False, **MAPS),
    "ReviewLoss": Case(review, teacher_shape=(2, 4, 4, 4), minimal=False, **MAPS),
    "patch_relation_loss": Case(
        lambda s, t: losses.patch_relation_loss(s, t, temperature=0.5), shape=(2, 4, 3), teacher_shape=(2, 4, 5)
    ),
}  # fmt: skip


def cases(fits: Callable = lambda case: True):
    """The test's `case` is each that `fits`."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items() if fits(case)])


def operands(case: Case, *, same_width: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    wanted = case.shape if same_width or case.teacher_shape is None else case.teacher_shape
    return numbers(*case.shape, start=1), numbers(*wanted, start=1000)


def value(case: Case, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return case.call([student], [teacher]) if case.layers else case.call(student, teacher)


@cases(lambda case: case.reference is not None)
def test_the_number_is_that_of_torchdistill(case):
    student, teacher = (tensor.float() for tensor in operands(case, same_width=True))
    assert value(case, student, teacher).item() == pytest.approx(case.reference, rel=1e-5)


@cases()
def test_the_gradient_is_that_of_the_value(case):
    """In float64, against differences. No gradient goes to the teacher where the loss does not need it."""
    student, teacher = operands(case)
    assert torch.autograd.gradcheck(lambda tensor: value(case, tensor, teacher), student.requires_grad_())


@cases(lambda case: case.permutes)
def test_a_permuted_batch_has_the_same_loss(case):
    student, teacher = operands(case)
    order = torch.arange(len(student)).flip(0)
    assert value(case, student[order], teacher[order]).item() == pytest.approx(value(case, student, teacher).item(), rel=1e-9)


@cases(lambda case: case.minimal)
def test_the_teacher_itself_is_the_minimum_where_it_should_be(case):
    student, teacher = operands(case, same_width=True)
    exact = teacher.clone().requires_grad_()
    at_teacher = value(case, exact, teacher)
    (gradient,) = torch.autograd.grad(at_teacher, exact)
    assert abs(at_teacher.item()) < 1e-6 < value(case, student, teacher).item()
    assert gradient.abs().max() < 1e-5
    for step in range(5):
        near = teacher + 0.05 * numbers(*teacher.shape, start=100 * step + 3)
        assert value(case, near, teacher) > at_teacher - 1e-9


@cases(lambda case: case.call not in (review, hints))  # whose weights are float64 here
def test_half_precision_is_compared_in_float32_also_under_autocast(case):
    student, teacher = (tensor.bfloat16() for tensor in operands(case))
    expected = value(case, student.float(), teacher.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value(case, student, teacher)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=1e-6)


@cases()
def test_collapsed_students_have_a_finite_gradient(case):
    """All images alike, and all zeros, as a dead layer gives them. NaN is not below anything."""
    student, teacher = operands(case)
    for collapsed in (torch.zeros_like(student), torch.ones_like(student)):
        (gradient,) = torch.autograd.grad(value(case, collapsed.requires_grad_(), teacher), collapsed)
        assert gradient.abs().max() < case.steepest


def test_every_loss_has_a_row_and_a_case():
    folder = Path(losses.__file__).parent
    modules = [ast.parse(path.read_text()) for path in folder.glob("*.py") if path.name != "mix.py"]
    defined = {node.name for module in modules for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    known = {name for name in defined if name.lower().endswith(("_loss", "loss", "_mse"))}
    assert known - {"hierarchical_context_loss"} == {method.name for method in METHODS} - {"PhiS"}
    assert CASES.keys() == {method.name for method in METHODS}


def test_the_documentation_shows_the_table():
    page = (Path(__file__).resolve().parents[2] / "docs/losses.md").read_text(encoding="utf-8")
    assert table() in page, "docs/losses.md: put what kdnb.losses.methods.table() returns in the table's place"
