"""Tensors that are the same in every version of every library: what a reference implementation said of them can be noted."""

import torch


def numbers(*shape: int, start: int) -> torch.Tensor:
    """2 sin(n^1.5) from n = start on, float64."""
    count = torch.Size(shape).numel()
    return 2 * torch.sin(torch.arange(start, start + count, dtype=torch.float64) ** 1.5).view(shape)
