"""The loss of a step, from the outputs for all views: parts by name, unmixed, and their mix."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from kdnb.losses.logits import entropy
from kdnb.losses.methods import CHOICES, loss_weights, needs_labels
from kdnb.losses.operands import in_range, require_same_shape, widened
from kdnb.losses.pooled import PhiS, cosine_loss, standardised


def labels_fit(labels: np.ndarray | None, num_classes: int, *, alpha: float, loss: str = "soft_targets") -> bool:
    """Whether all labels are classes of a head of `num_classes`, so that they can be compared with its logits.

    To be asked once, of all labels on the host: in a step on a GPU, a label outside the head ends the process.

    Args:
        labels: integers [N], -1 where an image has none; None: there are no labels.
        alpha: weight of the distillation term. At 1 labels are needed for nothing but the numbers that are logged, unless
            `loss`, one of CHOICES, needs them itself.

    Raises:
        ValueError: labels that do not fit, with a loss or an alpha below 1 that needs them.
    """
    low, high = (int(labels.min()), int(labels.max())) if labels is not None and len(labels) else (-1, -1)
    if low >= 0 and high < num_classes:
        return True
    if not needs_labels(loss, alpha=alpha):
        return False
    why, way = f"alpha is {alpha}", "set alpha to 1"
    if CHOICES[loss].needs_labels:
        why, way = f"loss is {loss}, which needs labels", "set loss to one that needs none, such as soft_targets"
    if high < 0:
        raise ValueError(f"{why}, but the images have no labels; {way}.")
    if low < 0:
        raise ValueError(f"{why}, but {int((labels < 0).sum()):,} of {len(labels):,} images have no label; {way}, or leave these "
                         "images out.")  # fmt: skip
    raise ValueError(f"{why}, but labels go up to {high} and the head has {num_classes} classes; {way}, another label_column, or "
                     "a teacher for these classes.")  # fmt: skip


# Those that standardise the teacher's features by their mean and std, and those of relations, which are of the student's own
# features: a projection that is thrown away could take them all upon itself.
STANDARDISED, RELATIONS = ("mse", "cosine_smooth_l1"), ("relational", "similarity", "probabilistic")


class DistillationLoss:
    """The loss of one batch from the outputs of student and teacher for its views.

    Args:
        kind: one of CHOICES, such as `mse` on standardised features, `cosine` of features, or `soft_targets`.
        temperature: of the losses of logits.
        alpha: weight of that term; the mix is alpha * term + (1 - alpha) * cross-entropy, so that alpha = 1 needs no
            labels and alpha = 0 no teacher's opinion.
        mean, std: of the teacher's features [D], for `mse` and `cosine_smooth_l1`. phi_s: from `fit_phi_s`, for `phi_s`.
        log_accuracy: with logits and alpha 1, which needs no labels, return cross-entropy and accuracies, too: for labels
            that fit the heads (`labels_fit`). Otherwise labels are not looked at.
        loss_args: weights of the loss, where they are not its paper's: `loss_weights`.

    Called as `loss(students, teachers, labels)` with one dict of outputs per view. Global view i of the student is compared
    with the teacher's outputs for the same view (Beyer et al. 2022, arXiv:2106.05237); a local view, which the teacher does
    not see, with those for all of the teacher's views (Caron et al. 2021, arXiv:2104.14294). Returns named parts: "loss" is the
    mix, plus, where the outputs hold them, the mean cosine losses of "layers" and of patch "tokens".
    """

    def __init__(
        self,
        kind: str,
        *,
        temperature: float = 2.0,
        alpha: float = 1.0,
        mean: torch.Tensor | None = None,
        std: torch.Tensor | None = None,
        phi_s: PhiS | None = None,
        log_accuracy: bool = False,
        loss_args: Mapping | None = None,
    ):
        weights = loss_weights(kind, loss_args)
        in_range("temperature", temperature, temperature > 0, "above 0")
        in_range("alpha", alpha, 0 <= alpha <= 1, "from 0 to 1")
        if kind in STANDARDISED and (mean is None or std is None):
            raise ValueError(f"loss is {kind}, which needs the mean and std of the teacher's features; see feature_statistics.")
        if kind == "phi_s" and phi_s is None:
            raise ValueError("loss is phi_s, which needs what fit_phi_s returns for the teacher's features.")
        self.kind, self.alpha, self.method = kind, alpha, CHOICES[kind]
        self.needs_logits = self.method.of_logits
        self.mean, self.std, self.phi_s = mean, std, phi_s
        compare: Callable[..., torch.Tensor] = _squared_error if kind in ("mse", "phi_s") else self.method.loss
        weights |= {"temperature": temperature} if "temperature" in inspect.signature(compare).parameters else {}
        self.scale = weights.pop("scale", 1.0)
        self.compare = partial(compare, **weights)
        self.uses_labels = needs_labels(kind, alpha=alpha) or (log_accuracy and self.needs_logits)

    def __call__(self, students: list[dict], teachers: list[dict], labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        self._check(students, teachers, labels)
        labels = labels if self.uses_labels else None
        pairs = list(zip(students, teachers, strict=False))
        pairs += [(local, teacher) for local in students[len(teachers) :] for teacher in teachers]
        term = self.scale * _mean(self._term(student, teacher, labels) for student, teacher in pairs)
        parts = {"loss": term, self.kind: term}
        if self.needs_logits:
            parts["teacher_entropy"] = _mean(entropy(teacher["logits"]) for teacher in teachers).detach()
            if labels is not None:
                parts["teacher_accuracy"] = _accuracy(teachers[0], labels)
        if labels is not None:
            hard = _mean(F.cross_entropy(student["logits"].float(), labels) for student, _ in pairs)
            parts |= {"cross_entropy": hard, "student_accuracy": _accuracy(students[0], labels)}
            # A term without weight is left out, not multiplied by 0: it may be infinite, and its gradient costs time.
            mix = {1.0: term, 0.0: hard}.get(self.alpha)
            parts["loss"] = self.alpha * term + (1 - self.alpha) * hard if mix is None else mix
        if "layers" in students[0] and "layers" in teachers[0]:
            parts["layers"] = _mean(cosine_loss(a, b) for s, t in pairs for a, b in zip(s["layers"], t["layers"], strict=True))
            parts["loss"] = parts["loss"] + parts["layers"]
        if "tokens" in students[0] and "tokens" in teachers[0]:  # of the global views: local ones have other patches
            parts["tokens"] = _mean(cosine_loss(s["tokens"], t["tokens"]) for s, t in zip(students, teachers, strict=False))
            parts["loss"] = parts["loss"] + parts["tokens"]
        return parts

    def _term(self, student: dict, teacher: dict, labels: torch.Tensor | None) -> torch.Tensor:
        """The distillation term of one pair of outputs."""
        if self.needs_logits:
            needed = (labels,) if self.method.needs_labels else ()
            return self.compare(student["logits"], teacher["logits"], *needed)
        if self.kind in RELATIONS:
            return self.compare(student["embedding"], teacher["features"])
        target = teacher["features"]
        if self.kind in STANDARDISED:
            target = standardised(target, mean=self.mean, std=self.std)
        elif self.phi_s is not None:
            target = self.phi_s.standardise(target)
        return self.compare(student["features"], target)

    def _check(self, students: list[dict], teachers: list[dict], labels: torch.Tensor | None):
        """Raise ValueError where the outputs lack something that the loss needs."""
        if not 1 <= len(teachers) <= len(students):
            raise ValueError(f"{len(teachers)} teacher views and {len(students)} student views; the teacher sees at least one, "
                             "and the student all that the teacher sees.")  # fmt: skip
        if labels is None:
            labels_fit(None, 0, alpha=self.alpha, loss=self.kind)
        needing = [("student", students[0])] if self.alpha < 1 or self.needs_logits else []
        needing += [("teacher", teachers[0])] if self.needs_logits else []
        for who, outputs in needing:
            if "logits" not in outputs:
                raise ValueError(
                    f"loss is {self.kind} and alpha {self.alpha}, which need logits, but the {who} has no classification "
                    "head (num_classes is 0)."
                )


def _squared_error(student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    require_same_shape(student, target)
    return F.mse_loss(widened(student), target)


def _accuracy(outputs: dict, labels: torch.Tensor) -> torch.Tensor:
    return (outputs["logits"].argmax(-1) == labels).float().mean().detach()


def _mean(values) -> torch.Tensor:
    return torch.stack(list(values)).mean()
