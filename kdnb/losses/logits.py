"""Losses of logits [B, C]: a distribution over classes that the student takes over from the teacher."""

import torch
from torch.nn import functional as F

from kdnb.losses.operands import full_precision, in_range, require_logits, require_same_shape, widened


def soft_target_loss(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """T^2 * KL(teacher || student) of the softened distributions, mean over rows of logits [B, C].

    Hinton, Vinyals & Dean 2015, arXiv:1503.02531; T^2 keeps the gradients' size when T changes.

    Raises:
        ValueError: different shapes, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> soft_target_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), temperature=2.0).item()
        0.0
    """
    require_same_shape(student, teacher)
    in_range("temperature", temperature, temperature > 0, "above 0")
    log_student = F.log_softmax(widened(student) / temperature, dim=-1)
    log_teacher = F.log_softmax(widened(teacher) / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")


def logit_standardised_loss(student: torch.Tensor, teacher: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """`soft_target_loss` of logits z [B, C] that are standardised per row: (z - mean(z)) / std(z).

    The student learns how the teacher's logits relate, and is free in their mean and spread. Sun et al. 2024, LSKD,
    arXiv:2403.01427; std divides by C - 1.

    Raises:
        ValueError: different shapes, fewer than 2 classes, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[1.0, 2.0, 4.0]])
        >>> abs(round(logit_standardised_loss(3 * teacher + 5, teacher, temperature=2.0).item(), 5))
        0.0
    """
    require_logits(student, teacher, temperature=temperature)
    return soft_target_loss(_standardised(student), _standardised(teacher), temperature=temperature)


def decoupled_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, *, alpha: float, beta: float, temperature: float
) -> torch.Tensor:
    """T^2 * (alpha * KL of (target, all others) + beta * KL among the others), mean over rows of logits [B, C].

    Soft targets are this with alpha = 1 and beta = the teacher's 1 - p(target), so that a sure teacher says little about the
    other classes; a beta of its own brings them back. Zhao et al. 2022, DKD, arXiv:2203.08679, which takes alpha = 1 and beta = 2
    to 8, beside cross-entropy.

    Args:
        labels: int64 [B], the target classes.

    Raises:
        ValueError: different shapes, fewer than 2 classes, labels that are no classes, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> teacher, labels = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([2])
        >>> decoupled_loss(teacher, teacher, labels, alpha=1.0, beta=8.0, temperature=4.0).item()
        0.0
    """
    require_logits(student, teacher, labels, temperature=temperature)
    (own, others), (teachers_own, teachers_others) = _split(student, labels), _split(teacher, labels)
    binary = _binary(own, others, temperature), _binary(teachers_own, teachers_others, temperature)
    among_others = soft_target_loss(others, teachers_others, temperature=temperature)
    return alpha * temperature**2 * soft_target_loss(*binary, temperature=1) + beta * among_others


def dist_loss(student: torch.Tensor, teacher: torch.Tensor, *, beta: float, gamma: float, temperature: float) -> torch.Tensor:
    """T^2 * (beta * (1 - correlation of rows) + gamma * (1 - correlation of columns)) of softmax(logits [B, C] / T).

    Pearson's correlation, mean over rows (the classes of an image) and over columns (the images of a batch for a class): only
    relations count. Huang et al. 2022, DIST, arXiv:2205.10536, which takes beta = gamma = 1 or 2 and T = 1 or 4.

    Raises:
        ValueError: different shapes, fewer than 2 classes or images, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 0.0]])
        >>> abs(round(dist_loss(teacher, teacher, beta=1.0, gamma=1.0, temperature=1.0).item(), 5))
        0.0
    """
    require_logits(student, teacher, temperature=temperature)
    in_range("the batch", len(student), len(student) > 1, "at least 2 images, whose columns can be correlated")
    probabilities, teachers = ((widened(logits) / temperature).softmax(1) for logits in (student, teacher))
    between, within = _uncorrelated(probabilities, teachers), _uncorrelated(probabilities.T, teachers.T)
    return temperature**2 * (beta * between + gamma * within)


def normalised_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, *, gamma: float, temperature: float
) -> torch.Tensor:
    """-p_t(target) log p_s(target) - gamma * T^2 * sum of q_t log q_s, mean over rows of logits [B, C].

    p is softmax at temperature 1, q softmax at T among the classes that are not the target. The teacher weighs the target, so a
    student equal to it is no minimum. Yang et al. 2023, NKD, arXiv:2303.13005, which takes gamma = 1.5 and T = 1 beside
    cross-entropy.

    Args:
        labels: int64 [B], the target classes.

    Raises:
        ValueError: different shapes, fewer than 2 classes, labels that are no classes, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([2])
        >>> round(normalised_loss(logits, logits, labels, gamma=1.0, temperature=1.0).item(), 4)  # ln 3 / 3 + ln 2
        1.0594
    """
    require_logits(student, teacher, labels, temperature=temperature)
    weights = widened(teacher).softmax(1).gather(1, labels[:, None])[:, 0]
    target = weights * F.cross_entropy(widened(student), labels, reduction="none")
    (_, others), (_, teachers_others) = _split(student, labels), _split(teacher, labels)
    among_others = F.cross_entropy(others / temperature, (teachers_others / temperature).softmax(1))
    return target.mean() + gamma * temperature**2 * among_others


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean entropy of softmax(logits [B, C]) in nats."""
    return torch.special.entr(widened(logits).softmax(-1)).sum(-1).mean()  # entr(0) is 0, also for a logit of -inf


def _standardised(logits: torch.Tensor) -> torch.Tensor:
    """Rows [B, C] of mean 0 and deviation 1. A row of equal logits, as of a head of zeros, gives zeros."""
    with full_precision(logits) as (logits,):
        variance, mean = torch.var_mean(logits, dim=1, keepdim=True)
        return (logits - mean) * variance.masked_fill(variance == 0, 1).rsqrt()


def _split(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the labels, [B, 1], and of all other classes, [B, C - 1]."""
    logits, own = widened(logits), labels[:, None]
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, own), logits.gather(1, others + (others >= own))


def _binary(own: torch.Tensor, others: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits [B, 2] of the softened probabilities of a label and of all other classes together."""
    return torch.cat([own / temperature, (others / temperature).logsumexp(1, keepdim=True)], dim=1)


def _uncorrelated(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - Pearson's correlation, mean over rows."""
    centred, teachers = (rows - rows.mean(1, keepdim=True) for rows in (student, teacher))
    return 1 - F.cosine_similarity(centred, teachers, dim=1).mean()
