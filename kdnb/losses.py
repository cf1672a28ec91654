"""What the student is asked to imitate. Parts are returned by name, unmixed; each mix is one readable line.

All losses are computed in float32, whatever the precision of the models.
"""

import torch
from torch.nn import functional as F

KINDS = ("mse", "cosine", "soft_targets")


def cosine_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cos(student, teacher) over rows [B, D]: 0 for the same direction, 2 for opposite ones."""
    _same_shape(student, teacher)
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def standardised_mse(
    student: torch.Tensor, teacher: torch.Tensor, *, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Mean squared error between student features [B, D] and (teacher - mean) / std.

    The statistics [D] are the teacher's over a fixed set of images, not the batch's: the loss then does not depend on how
    a batch is cut up. A dimension that never varies (std near 0) is compared with 0.
    """
    _same_shape(student, teacher)
    target = (teacher.float() - mean) / std.clamp_min(1e-6 * std.max().clamp_min(1e-12))
    return F.mse_loss(student.float(), target)


def soft_target_loss(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, mean over rows of logits [B, C].

    Hinton, Vinyals & Dean 2015, arXiv:1503.02531; T^2 keeps the gradients' size when T changes.
    """
    _same_shape(student, teacher)
    _in_range("temperature", temperature, temperature > 0, "above 0")
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean entropy of softmax(logits [B, C]) in nats."""
    log_p = F.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


class DistillationLoss:
    """The loss of one batch from the answers of student and teacher to its views.

    Args:
        kind: `mse` on standardised features, `cosine` of features, or `soft_targets`.
        temperature, alpha: of the soft targets; the mix is alpha * soft + (1 - alpha) * cross-entropy, so that alpha = 1
            needs no labels and alpha = 0 no teacher's opinion.
        mean, std: of the teacher's features [D], for `mse`.
        layer_weight: weight of the mean cosine loss over intermediate layers, where the answers hold "layers".

    Called as `loss(students, teachers, labels)` with one answer (dict) per view. Global view i of the student is compared
    with the teacher's answer to the same view (Beyer et al. 2022, arXiv:2106.05237); a local view, which the teacher does
    not see, with all of the teacher's answers (Caron et al. 2021, arXiv:2104.14294). Returns named parts; "loss" is the mix.
    """

    def __init__(
        self,
        kind: str,
        *,
        temperature: float = 2.0,
        alpha: float = 1.0,
        mean: torch.Tensor | None = None,
        std: torch.Tensor | None = None,
        layer_weight: float = 1.0,
    ):
        _in_range("loss", kind, kind in KINDS, "one of " + ", ".join(KINDS))
        _in_range("temperature", temperature, temperature > 0, "above 0")
        _in_range("alpha", alpha, 0 <= alpha <= 1, "from 0 to 1")
        if kind == "mse" and (mean is None or std is None):
            raise ValueError("loss is mse, which needs the mean and std of the teacher's features; see feature_statistics.")
        self.kind, self.temperature, self.alpha = kind, temperature, alpha
        self.mean, self.std, self.layer_weight = mean, std, layer_weight

    def __call__(self, students: list[dict], teachers: list[dict], labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        pairs = [(student, teacher) for student, teacher in zip(students, teachers, strict=False)]
        pairs += [(local, teacher) for local in students[len(teachers) :] for teacher in teachers]
        parts = self._soft(pairs, students[0], labels) if self.kind == "soft_targets" else self._features(pairs)
        if "layers" in students[0] and "layers" in teachers[0]:
            parts["layers"] = _mean(
                cosine_loss(a, b) for s, t in pairs for a, b in zip(s["layers"], t["layers"], strict=True)
            )
            parts["loss"] = parts["loss"] + self.layer_weight * parts["layers"]
        return parts

    def _features(self, pairs: list[tuple[dict, dict]]) -> dict[str, torch.Tensor]:
        if self.kind == "cosine":
            value = _mean(cosine_loss(s["features"], t["features"]) for s, t in pairs)
        else:
            statistics = {"mean": self.mean, "std": self.std}
            value = _mean(standardised_mse(s["features"], t["features"], **statistics) for s, t in pairs)
        return {"loss": value, self.kind: value}

    def _soft(self, pairs: list[tuple[dict, dict]], first: dict, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        for who, answers in (("student", first), ("teacher", pairs[0][1])):
            if "logits" not in answers:
                raise ValueError(f"loss is soft_targets, but the {who} has no classification head (num_classes is 0).")
        soft = _mean(soft_target_loss(s["logits"], t["logits"], temperature=self.temperature) for s, t in pairs)
        parts = {"soft_targets": soft, "teacher_entropy": _mean(entropy(t["logits"]) for _, t in pairs).detach()}
        if labels is None:
            if self.alpha < 1:
                raise ValueError(f"alpha is {self.alpha}, but the images have no labels; without labels alpha must be 1.")
            return {"loss": soft} | parts
        hard = _mean(F.cross_entropy(s["logits"].float(), labels) for s, _ in pairs)
        parts |= {"cross_entropy": hard, "student_accuracy": _accuracy(pairs[0][0], labels)}
        parts["teacher_accuracy"] = _accuracy(pairs[0][1], labels)
        # A term without weight is left out, not multiplied by 0: it may be infinite, and its gradient costs time.
        mix = {1.0: soft, 0.0: hard}.get(self.alpha)
        return {"loss": self.alpha * soft + (1 - self.alpha) * hard if mix is None else mix} | parts


def _accuracy(answer: dict, labels: torch.Tensor) -> torch.Tensor:
    return (answer["logits"].argmax(-1) == labels).float().mean().detach()


def _mean(values) -> torch.Tensor:
    return torch.stack(list(values)).mean()


def _same_shape(student: torch.Tensor, teacher: torch.Tensor):
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's answer is {list(student.shape)} and the teacher's {list(teacher.shape)}; they must be the same."
        )


def _in_range(name: str, value, fine: bool, allowed: str):
    if not fine:
        raise ValueError(f"{name} is {value!r}; allowed is {allowed}.")
