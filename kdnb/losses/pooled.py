"""Losses of pooled features [B, D], image by image, and what makes the teacher's dimensions comparable."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from kdnb.losses.operands import full_precision, in_range, require_same_shape, unit, widened


def cosine_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cos(student, teacher) over rows [B, D]: 0 for the same direction, 2 for opposite ones.

    Raises:
        ValueError: different shapes.

    Example:
        >>> import torch
        >>> cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]])).item()
        1.0
    """
    require_same_shape(student, teacher)
    return (1 - (unit(widened(student)) * unit(widened(teacher))).sum(-1)).mean()


def standardised_mse(student: torch.Tensor, teacher: torch.Tensor, *, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Mean squared error between student features [B, D] and (teacher - mean) / std.

    The statistics [D] are the teacher's over a fixed set of images, not the batch's: the loss then does not depend on how
    a batch is cut up. std counts as at least a hundredth of its mean over dimensions: in one that hardly varies, division
    would turn rounding of the teacher's numbers into the largest targets of all.

    Raises:
        ValueError: different shapes.

    Example:
        >>> import torch
        >>> teacher, mean, std = torch.tensor([[5.0, 1.0]]), torch.tensor([3.0, 1.0]), torch.tensor([2.0, 4.0])
        >>> standardised_mse(torch.zeros(1, 2), teacher, mean=mean, std=std).item()  # the targets are 1 and 0
        0.5
    """
    require_same_shape(student, teacher)
    return F.mse_loss(widened(student), standardised(teacher, mean=mean, std=std))


def standardised(teacher: torch.Tensor, *, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """(teacher - mean) / std of features [B, D], as `standardised_mse` takes them for its targets."""
    return (widened(teacher) - mean) / std.clamp_min(0.01 * std.mean().clamp_min(1e-12))


def cosine_smooth_l1_loss(student: torch.Tensor, teacher: torch.Tensor, *, weight: float) -> torch.Tensor:
    """(1 - weight) * cosine loss + weight * smooth L1 of features [B, D]: direction and size.

    Smooth L1 is x^2 / 2 for |x| < 1, else |x| - 1/2, mean over dimensions; so the teacher's features should be standardised.
    Sariyildiz et al. 2024, UNIC, arXiv:2408.05088, with weight 0.5.

    Raises:
        ValueError: different shapes, or a weight outside 0 to 1.

    Example:
        >>> import torch
        >>> cosine_smooth_l1_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]), weight=0.5).item()
        1.25
    """
    require_same_shape(student, teacher)
    in_range("weight", weight, 0 <= weight <= 1, "from 0 to 1")
    distance = F.smooth_l1_loss(widened(student), widened(teacher))
    return (1 - weight) * cosine_loss(student, teacher) + weight * distance


@dataclass(frozen=True)
class PhiS:
    """Standardisation with one scale: rotation (t - mean) / scale, whose dimensions all have variance 1.

    Attributes:
        mean: [D]. rotation: orthogonal, [D, D]. scale: []. All float32.
    """

    mean: torch.Tensor
    rotation: torch.Tensor
    scale: torch.Tensor

    def standardise(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of the teacher as targets."""
        with full_precision(features) as (rows,):
            return (rows - self.mean) @ self.rotation.to(rows.dtype).T / self.scale

    def restore(self, targets: torch.Tensor) -> torch.Tensor:
        """The inverse: targets [B, D], or what a student says about them, as features of the teacher."""
        with full_precision(targets) as (rows,):
            return rows * self.scale @ self.rotation.to(rows.dtype) + self.mean

    def to(self, device) -> "PhiS":
        """The same on another device."""
        return PhiS(self.mean.to(device), self.rotation.to(device), self.scale.to(device))


def fit_phi_s(features: torch.Tensor) -> PhiS:
    """PHI-S of features [N, D]: y = H U^T (t - mean) / sqrt(mean eigenvalue), U and the eigenvalues of their covariance.

    H is a Hadamard matrix over sqrt(D), whose entries are all as large, so that every dimension takes the same share of each
    principal direction. Dividing each dimension by its own deviation would blow up those that hardly vary; here one number
    divides all of them, and errors keep their relative size. Ranzinger et al. 2024, arXiv:2410.01680.

    Args:
        features: at least as many rows as dimensions and one more, or the rotation is not determined. Computed in float64 on
            the CPU.

    Raises:
        ValueError: too few rows, features that do not vary, or a width without a Hadamard matrix that is built here: those are
            2^k and 2^k * (q + 1) for a prime q that leaves 3 when divided by 4 (64, 384, 768, 1024, 1152, 1280, 2048 ...).

    Example:
        >>> import torch
        >>> features = torch.randn(100, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0]) + 5
        >>> phi_s = fit_phi_s(features)
        >>> targets = phi_s.standardise(features)
        >>> targets.var(0, correction=0)
        tensor([1.0000, 1.0000, 1.0000, 1.0000])
        >>> torch.allclose(phi_s.restore(targets), features, atol=1e-4)
        True
    """
    if features.ndim != 2 or len(features) <= features.shape[1]:
        raise ValueError(f"features is {list(features.shape)}; PHI-S needs [N, D] with more rows than dimensions.")
    rows = features.detach().cpu().double()
    mean, width = rows.mean(0), rows.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0).view(width, width))
    if not eigenvalues.sum() > 0:
        raise ValueError(f"the {len(rows)} rows of features are all the same; PHI-S needs features that vary.")
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    rotation = _hadamard(width) @ (vectors * largest.sign()).T / width**0.5  # signs that another LAPACK chooses as well
    return PhiS(mean.float(), rotation.float(), eigenvalues.mean().sqrt().float())


def _hadamard(width: int) -> torch.Tensor:
    """A matrix of 1 and -1 with orthogonal rows, float64 [width, width], after Sylvester and Paley."""
    if width == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    q = width - 1
    if q % 4 == 3 and all(q % divisor for divisor in range(2, int(q**0.5) + 1)):
        squares = -torch.ones(q, dtype=torch.float64)
        squares[torch.arange(1, q) ** 2 % q], squares[0] = 1, 0
        skew = torch.ones(width, width, dtype=torch.float64)
        skew[0, 0], skew[1:, 0] = 0, -1
        skew[1:, 1:] = squares[(torch.arange(q)[:, None] - torch.arange(q)) % q]
        return torch.eye(width, dtype=torch.float64) + skew
    if width % 2:
        raise ValueError(f"PHI-S knows no Hadamard matrix for this width (what is left of it is {width}); set loss to mse or "
                         "cosine, or take a teacher of another width.")  # fmt: skip
    return torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), _hadamard(width // 2))
