"""Losses of feature maps [B, C, H, W], layer by layer, and of patch tokens [B, N, D]."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from kdnb.losses.operands import full_precision, in_range, unit, widened

Maps = Sequence[torch.Tensor]


def attention_transfer_loss(student_maps: Maps, teacher_maps: Maps) -> torch.Tensor:
    """Sum over layers of the mean of (a_s - a_t)^2, where a is a layer's attention map: mean of x^2 over channels, of length 1.

    Zagoruyko & Komodakis 2017, AT, arXiv:1612.03928, as their code has it (the paper's formula has no square). Of maps of two
    sizes, the larger is averaged to the smaller one.

    Args:
        student_maps, teacher_maps: one [B, C, H, W] a layer; channels and sizes may differ.

    Raises:
        ValueError: another number of layers, or maps of other images.

    Example:
        >>> import torch
        >>> maps = [torch.randn(2, 8, 4, 4), torch.randn(2, 16, 2, 2)]
        >>> attention_transfer_loss([2 * map for map in maps], maps).item() < 1e-12
        True
    """
    _require_maps(student_maps, teacher_maps)
    pairs = [_of_one_size(student, teacher) for student, teacher in zip(student_maps, teacher_maps, strict=True)]
    return torch.stack([F.mse_loss(_attention(student), _attention(teacher)) for student, teacher in pairs]).sum()


def hint_loss(student_maps: Maps, teacher_maps: Maps, regressors: Sequence[nn.Module]) -> torch.Tensor:
    """Mean over layers of the mean squared error of regressor(student map) and teacher map.

    Romero et al. 2015, FitNets, arXiv:1412.6550. Of maps of two sizes, the larger is averaged to the smaller one.

    Args:
        student_maps, teacher_maps: one [B, C, H, W] a layer. regressors: one a layer, trained with the student, from the
            student's channels to the teacher's: `hint_regressor`.

    Raises:
        ValueError: another number of layers or regressors, maps of other images, or a regressor for other channels.

    Example:
        >>> import torch
        >>> student, teacher = torch.randn(2, 8, 4, 4), torch.randn(2, 16, 4, 4)
        >>> hint_loss([student], [teacher], [hint_regressor(8, 16)]).shape
        torch.Size([])
    """
    _require_maps(student_maps, teacher_maps)
    if len(regressors) != len(student_maps):
        raise ValueError(f"there are {len(regressors)} regressors for {len(student_maps)} layers; give one for each.")
    errors = []
    for student, teacher, regress in zip(student_maps, teacher_maps, regressors, strict=True):
        with full_precision(*_of_one_size(student, teacher)) as (own, wanted):
            mapped = regress(own)
            if mapped.shape != wanted.shape:
                raise ValueError(f"a regressor gives {list(mapped.shape)}, but the teacher's map is {list(wanted.shape)}; make "
                                 "it for the teacher's channels.")  # fmt: skip
            errors.append(F.mse_loss(mapped, wanted))
    return torch.stack(errors).mean()


def hint_regressor(student_channels: int, teacher_channels: int) -> nn.Module:
    """A linear map of the channels at every position, for `hint_loss`: a 1x1 convolution and batch norm."""
    convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher_channels))


class ReviewLoss(nn.Module):
    """Every layer of the teacher, from what the student has at that layer and all deeper ones.

    From the deepest layer up, the student's map is brought to `width` channels and mixed with what came from below by weights in
    (0, 1) at every position; a 3x3 convolution makes of it what is compared with the teacher's map (`hierarchical_context_loss`).
    The loss is the sum over layers. Chen et al. 2021, ReviewKD, arXiv:2104.09044.

    Args:
        student_channels, teacher_channels: of each layer, the shallowest first. width: channels of the mix.

    Called as `loss(student_maps, teacher_maps)` with one [B, C, H, W] a layer, the shallowest first. Its weights are trained with
    the student.

    Raises:
        ValueError: another number of layers; when called: maps of other layers, images or channels.

    Example:
        >>> import torch
        >>> loss = ReviewLoss([8, 16], [16, 32], width=8)
        >>> student_maps = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
        >>> teacher_maps = [torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)]
        >>> loss(student_maps, teacher_maps).shape
        torch.Size([])
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int], *, width: int):
        super().__init__()
        if len(student_channels) != len(teacher_channels) or not student_channels:
            counts = f"student_channels has {len(student_channels)} layers, teacher_channels {len(teacher_channels)}"
            raise ValueError(f"{counts}; give as many of each, and at least one.")
        self.entries = nn.ModuleList(_convolution(own, width, kernel_size=1) for own in student_channels)
        self.exits = nn.ModuleList(_convolution(width, wanted, kernel_size=3, padding=1) for wanted in teacher_channels)
        self.mixes = nn.ModuleList(nn.Conv2d(2 * width, 2, kernel_size=1) for _ in student_channels[1:])
        self.channels = list(student_channels), list(teacher_channels)

    def forward(self, student_maps: Maps, teacher_maps: Maps) -> torch.Tensor:
        """See the class."""
        _require_maps(student_maps, teacher_maps)
        found = [map.shape[1] for map in student_maps], [map.shape[1] for map in teacher_maps]
        if found != self.channels:
            raise ValueError(f"the maps have {found[0]} channels of the student and {found[1]} of the teacher, but the loss was "
                             f"made for {self.channels[0]} and {self.channels[1]}.")  # fmt: skip
        below, terms = None, []
        for layer in reversed(range(len(student_maps))):
            with full_precision(student_maps[layer], teacher_maps[layer]) as (own, wanted):
                mixed = self.entries[layer](own)
                if below is not None:
                    below = F.interpolate(below, mixed.shape[2:], mode="nearest")
                    weights = self.mixes[layer](torch.cat([mixed, below], dim=1)).sigmoid()
                    mixed = mixed * weights[:, :1] + below * weights[:, 1:]
                below = F.interpolate(mixed, wanted.shape[2:], mode="nearest")
                terms.append(hierarchical_context_loss(self.exits[layer](below), wanted))
        return torch.stack(terms).sum()


def hierarchical_context_loss(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Weighted mean of squared errors of maps [B, C, H, W], whole (weight 1) and averaged to 4x4, 2x2 and 1x1 (1/2, 1/4, 1/8).

    Sizes that are not smaller than the map are left out. Chen et al. 2021, arXiv:2104.09044.

    Raises:
        ValueError: maps of different shapes.

    Example:
        >>> import torch
        >>> hierarchical_context_loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).item()
        1.0
    """
    if student_map.ndim != 4 or student_map.shape != teacher_map.shape:
        shapes = f"the student's map is {list(student_map.shape)} and the teacher's {list(teacher_map.shape)}"
        raise ValueError(f"{shapes}; allowed are two maps [B, C, H, W] of one shape.")
    student, teacher, weight = widened(student_map), widened(teacher_map), 1.0
    loss, total = F.mse_loss(student, teacher), 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size))
            total += weight
    return loss / total


def patch_relation_loss(student_tokens: torch.Tensor, teacher_tokens: torch.Tensor, *, temperature: float = 0.07) -> torch.Tensor:
    """KL(teacher || student) of softmax(cosine of two patches of an image / T), mean over all patches of tokens [B, N, D].

    How the patches of an image resemble each other is the same for features of any width. The default of lightly-train's third
    distillation method, beside `QueueLoss`.

    Raises:
        ValueError: no tokens [B, N, D], another number of images or patches, or a temperature that is not above 0.

    Example:
        >>> import torch
        >>> tokens = torch.randn(2, 9, 8)
        >>> patch_relation_loss(torch.cat([tokens, tokens], dim=2), tokens).item() < 1e-5
        True
    """
    if not student_tokens.ndim == teacher_tokens.ndim == 3 or student_tokens.shape[:2] != teacher_tokens.shape[:2]:
        raise ValueError(f"the student's tokens are {list(student_tokens.shape)} and the teacher's {list(teacher_tokens.shape)}; "
                         "allowed are [B, N, D] of the same images with as many patches.")  # fmt: skip
    in_range("temperature", temperature, temperature > 0, "above 0")
    with full_precision(student_tokens, teacher_tokens) as both:
        cosines = [tokens @ tokens.transpose(1, 2) for tokens in map(unit, both)]
        of_student, of_teacher = [F.log_softmax(cosine.flatten(0, 1) / temperature, dim=-1) for cosine in cosines]
        return F.kl_div(of_student, of_teacher, log_target=True, reduction="batchmean")


def _require_maps(student_maps: Maps, teacher_maps: Maps):
    if len(student_maps) != len(teacher_maps) or not len(student_maps):
        counts = f"the student has {len(student_maps)} maps and the teacher {len(teacher_maps)}"
        raise ValueError(f"{counts}; give as many of each, and at least one.")
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        if not student.ndim == teacher.ndim == 4 or len(student) != len(teacher):
            shapes = f"a map of the student is {list(student.shape)} and the teacher's {list(teacher.shape)}"
            raise ValueError(f"{shapes}; allowed are [B, C, H, W] of the same images.")


def _of_one_size(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both maps in full precision, the larger averaged to the height and width of the smaller."""
    student, teacher = widened(student), widened(teacher)
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def _attention(map: torch.Tensor) -> torch.Tensor:
    """Where a map [B, C, H, W] is large, [B, H * W], of length 1."""
    return unit(map.square().mean(1).flatten(1))


def _convolution(inputs: int, outputs: int, **settings) -> nn.Module:
    """A convolution and batch norm, with the first weights of the authors' code."""
    convolution = nn.Conv2d(inputs, outputs, bias=False, **settings)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))
