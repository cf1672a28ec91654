"""Losses of relations between the images of a batch: the student's features [B, D] may have another width than the teacher's."""

import torch
from torch.nn import functional as F

from kdnb.losses.operands import full_precision, require_rows, unit


def relational_loss(student: torch.Tensor, teacher: torch.Tensor, *, distance_weight: float, angle_weight: float) -> torch.Tensor:
    """distance_weight * Huber of distances between images + angle_weight * Huber of angles, of features [B, D].

    Distances are divided by their mean over pairs of different rows, an angle is the cosine at row i of the triangle i, j, k;
    means over all B^2 pairs and B^3 triples. Park et al. 2019, RKD, arXiv:1904.05068, which takes weights 1 and 2. Takes memory
    for B^3 + B^2 * D numbers a few times.

    Raises:
        ValueError: other shapes, or a batch of fewer than 3 images.

    Example:
        >>> import torch
        >>> teacher = torch.randn(5, 8)
        >>> round(relational_loss(2 * teacher + 1, teacher, distance_weight=1.0, angle_weight=2.0).item(), 5)
        0.0
    """
    require_rows(student, teacher, at_least=3)
    with full_precision(student, teacher) as rows:
        (distances, angles), (teachers_distances, teachers_angles) = map(_geometry, rows)
        of_distances = F.smooth_l1_loss(distances, teachers_distances)
        return distance_weight * of_distances + angle_weight * F.smooth_l1_loss(angles, teachers_angles)


def similarity_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """||G_s - G_t||^2 / B^2, where G is the matrix F F^T of features [B, D] with rows of length 1.

    Images that excite the teacher alike are to excite the student alike. Tung & Mori 2019, SP, arXiv:1907.09682.

    Raises:
        ValueError: other shapes, or a batch of fewer than 2 images.

    Example:
        >>> import torch
        >>> teacher = torch.randn(5, 8)
        >>> similarity_loss(torch.cat([teacher, teacher], dim=1), teacher).item() < 1e-9
        True
    """
    require_rows(student, teacher, at_least=2)
    with full_precision(student, teacher) as rows:
        of_student, of_teacher = (unit(features @ features.T) for features in rows)
        return F.mse_loss(of_student, of_teacher)


def probabilistic_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of p_t log(p_t / p_s), where p are rows of (1 + cosine) / 2 of features [B, D], made to sum to 1.

    Passalis & Tefas 2018, PKT, arXiv:1803.10837; 1e-7 is added to both probabilities, as in their code. A mean over B^2 pairs is
    a small number, hence weights of 30,000.

    Raises:
        ValueError: other shapes, or a batch of fewer than 2 images.

    Example:
        >>> import torch
        >>> teacher = torch.randn(5, 8)
        >>> abs(probabilistic_loss(2 * teacher, teacher).item()) < 1e-6
        True
    """
    require_rows(student, teacher, at_least=2)
    with full_precision(student, teacher) as rows:
        of_student, of_teacher = map(_shares, rows)
        return (of_teacher * ((of_teacher + 1e-7) / (of_student + 1e-7)).log()).mean()


def _geometry(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances over their mean, [B, B], and the cosine at row i of the triangle i, j, k, [B, B, B]."""
    pairs = features[None] - features[:, None]
    distances = pairs.norm(dim=2)
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    directions = unit(pairs)
    return distances / mean.clamp_min(1e-12), directions @ directions.transpose(1, 2)


def _shares(features: torch.Tensor) -> torch.Tensor:
    """How alike each image is to each, as a distribution: [B, B], rows sum to 1."""
    rows = unit(features)
    alike = (1 + rows @ rows.T).clamp_min(0)  # rounding may have made a cosine less than -1
    return alike / alike.sum(1, keepdim=True)
