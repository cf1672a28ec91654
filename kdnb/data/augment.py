"""Batched image operations on float32 [n, 3, H, W], each sample with its own parameters.

Everything is built from gathers, element-by-element arithmetic and sums of integers, whose result is fixed bit by bit. There
is no matrix product, convolution or sum of floats, whose kernels choose their order of summation by the batch's shape. What
a sample becomes is therefore bitwise independent of the samples beside it, of the number of threads, of TF32 and of autocast.
On a CPU this is the fastest way as well, as long as what is worked on fits into the processor's cache: cut a batch with
`parts`. Crop, resize and normalise 64 images at 224x224 on 2 threads: 36 ms.

Functions whose name ends in an underscore change their argument and return it. Colours are in [0, 1].
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import torch

_CACHED_ELEMENTS = 2**18  # elements (1 MB) that fit into a core's cache several times over
_GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as in torchvision


def parts(images: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Slices of a batch small enough for the processor's cache; the whole batch on any other device.

    Args:
        images: samples in the batch. elements: values per sample that are worked on at a time.
    """
    step = max(1, _CACHED_ELEMENTS // elements) if device.type == "cpu" else max(1, images)
    return (slice(start, start + step) for start in range(0, images, step))


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Images [B, 3, H, W] to normalised float32.

    uint8 gives bitwise what torchvision's ToDtype(float32, scale=True) and Normalize give; float images are taken as
    normalised already (as float caches are): float32 is returned as it is, other kinds are cast.
    """
    if images.is_floating_point():
        return images.float()
    out = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    mean, std = per_channel(mean, images.device), per_channel(std, images.device)
    for part in parts(len(images), max(1, images[:1].numel()), images.device):
        out[part].copy_(images[part]).mul_(1 / 255).sub_(mean).div_(std)
    return out


def unit_range(images: torch.Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> torch.Tensor:
    """Images [B, 3, H, W] as float32 in [0, 1]: uint8 divided by 255; float images without their normalisation by `mean` and
    `std` (None: they have none)."""
    return unit_range_(images.to(torch.float32, copy=mean is not None), images.dtype, mean, std)


def unit_range_(x: torch.Tensor, dtype: torch.dtype, mean: Sequence[float] | None, std: Sequence[float] | None) -> torch.Tensor:
    """`unit_range` of images of `dtype` whose values, cast or resized, are in the float32 `x`."""
    if dtype == torch.uint8:
        return x.mul_(1 / 255)
    return x if mean is None or std is None else x.mul_(per_channel(std, x.device)).add_(per_channel(mean, x.device)).clamp_(0, 1)


def per_channel(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Three numbers as float32 [3, 1, 1] on `device`."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


class Resampler:
    """Crop, antialiased bilinear resize and mirroring, prepared for a batch.

    Each row (column) of the output is a weighted sum of few rows (columns) of the image, 2 of them when enlarging; mirroring
    is folded into the order of the columns. Same numbers as torchvision's resized_crop(antialias=True) on float images.

    Args:
        boxes: int64 [B, 4], top, left, height and width of the crops. mirror: bool [B]. size: side of the output.
    """

    def __init__(self, boxes: np.ndarray, mirror: np.ndarray, size: int, device: torch.device):
        self.size, self.extents = size, boxes[:, 2:]
        top, left, height, width = torch.from_numpy(boxes.T.astype(np.float32)).to(device).unsqueeze(-1)  # each [B, 1]
        place = torch.arange(size, dtype=torch.float32, device=device)
        mirrored = torch.where(torch.from_numpy(mirror).to(device)[:, None], size - 1 - place, place)
        num_rows, num_columns = self._num_taps(slice(None))
        self.rows = _taps(place, top, height, size, num_rows)
        self.columns = _taps(mirrored, left, width, size, num_columns)

    def _num_taps(self, part: slice) -> list[int]:
        """How many rows, and how many columns, of an image make up one of the output, at most, in the samples `part`."""
        return np.ceil(2 * np.maximum(1, self.extents[part].max(0, initial=0) / self.size)).astype(int).tolist()

    def __call__(self, images: torch.Tensor, part: slice) -> torch.Tensor:
        """The samples `part` of the batch `images` [B, 3, H, W] as float32 [n, 3, size, size], values in the same units."""
        images, (num_rows, num_columns) = images[part], self._num_taps(part)
        n, channels, height, width = images.shape
        first = torch.arange(n * channels, device=images.device).view(n, channels, 1) * height  # row 0 of each plane
        planes, (index, weight) = images.reshape(-1, width), self.rows
        taps = (planes.index_select(0, (first + index[part, k, None]).view(-1)) for k in range(num_rows))
        taps = (tap.view(n, channels, -1, width).float().mul_(weight[part, k, None, :, None]) for k, tap in enumerate(taps))
        rows = reduce(torch.Tensor.add_, taps)
        index, weight = self.columns
        taps = (rows.gather(3, index[part, k, None, None].expand(-1, channels, self.size, -1)) for k in range(num_columns))
        return reduce(torch.Tensor.add_, (tap.mul_(weight[part, k, None, None]) for k, tap in enumerate(taps)))


def _taps(place: torch.Tensor, start: torch.Tensor, extent: torch.Tensor, size: int, count: int):
    """Which places of the image, with which weights, make up `place` of the output: int64 and float32 [B, count, size].

    A triangle of half width `reach` around each output pixel's centre, cut off at the box and normalised. Taps that a sample
    does not need have weight 0, so that it does not matter how many its neighbours need.
    """
    ratio = extent / size
    reach = ratio.clamp(min=1)
    centre = (place + 0.5) * ratio  # [B, size], in pixels from the box's edge
    lowest = (centre - reach + 0.5).clamp_(min=0).floor_()
    index, weight = [], []
    for k in range(count):
        at = lowest + k
        weight.append((1 - ((at + 0.5 - centre) / reach).abs()).clamp_(min=0) * (at < extent))
        index.append((at.minimum(extent - 1) + start).long())
    return torch.stack(index, 1), torch.stack(weight, 1).div_(reduce(torch.add, weight)[:, None])


def change_colours(x: torch.Tensor, u: np.ndarray, *, p_blur: float, p_solarise: float) -> torch.Tensor:
    """DINO's jitter, grey, blur and solarise, each on those samples of x [n, 3, H, W] that the dice u [n, 9] in [0, 1) select.

    Samples that are left out cost nothing, and what becomes of the others does not depend on them.
    """
    x = _where(u[:, 0] < 0.8, _jitter, x, u[:, 1:5])
    x = _where(u[:, 5] < 0.2, greyscale_, x)
    x = _where(u[:, 6] < p_blur, gaussian_blur, x, 0.1 + 1.9 * u[:, 7])
    return _where(u[:, 8] < p_solarise, solarise, x)


def _jitter(x: torch.Tensor, u: np.ndarray) -> torch.Tensor:
    """Brightness, contrast, saturation and hue by u [n, 4] in [0, 1)."""
    factors = np.array([1, 1, 1, 0]) + np.array([0.4, 0.4, 0.2, 0.1]) * (2 * u - 1)
    factors = torch.from_numpy(factors.T.astype(np.float32)).to(x.device).view(4, -1, 1, 1, 1)
    brightness, contrast, saturation, hue = factors
    return shift_hue(saturation_(contrast_(brightness_(x, brightness), contrast), saturation), hue)


def _where(mask: np.ndarray, operation, x: torch.Tensor, *parameters: np.ndarray) -> torch.Tensor:
    """`operation` on the samples of x where `mask` is true, the others as they are."""
    if mask.all():
        return operation(x, *parameters)
    if not mask.any():
        return x
    rows = torch.from_numpy(np.flatnonzero(mask)).to(x.device)
    return x.index_copy_(0, rows, operation(x.index_select(0, rows), *(values[mask] for values in parameters)))


def brightness_(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Scale by `factor` [n, 1, 1, 1]."""
    return x.mul_(factor).clamp_(0, 1)


def contrast_(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the mean grey of each image: factor * x + (1 - factor) * grey."""
    grey = _mean(luma(x)).mul_(1 - factor)
    return x.mul_(factor).add_(grey).clamp_(0, 1)


def saturation_(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the grey image."""
    grey = luma(x).mul_(1 - factor)
    return x.mul_(factor).add_(grey).clamp_(0, 1)


def shift_hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Turn the hue by `shift` [n, 1, 1, 1] of a full circle; a new tensor."""
    red, green, blue = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    low, high = torch.minimum(red, green).minimum(blue), torch.maximum(red, green).maximum(blue)
    chroma = high - low
    # Hue in sixths of a circle, times chroma: 0 is red, 2 green, 4 blue.
    angle = torch.where(green == high, (blue - red).add_(2 * chroma), (red - green).add_(4 * chroma))
    angle = torch.where(red == high, green - blue, angle)
    angle = angle.div_(chroma.clamp(min=1e-12)).add_(6 * shift)  # without chroma the hue is of no consequence
    angle.sub_((angle / 6).floor_().mul_(6))
    # Green (blue) stays at full height up to one sixth from 2 (4) and falls to the bottom over the next; red rises from 3.
    out = angle - torch.tensor((3.0, 2.0, 4.0), device=x.device).view(3, 1, 1)
    out = out.abs_().sub_(1).clamp_(0, 1).mul_(chroma)
    out[:, :1].add_(low)
    torch.sub(high, out[:, 1:], out=out[:, 1:])
    return out


def greyscale_(x: torch.Tensor) -> torch.Tensor:
    """All three channels become the grey image."""
    return x.copy_(luma(x).expand_as(x))


def solarise(x: torch.Tensor) -> torch.Tensor:
    """Invert what is brighter than one half: 1 - x there is the smaller of the two; a new tensor."""
    return torch.minimum(x, 1 - x)


def luma(x: torch.Tensor) -> torch.Tensor:
    """Grey image [n, 1, H, W] of RGB [n, 3, H, W]."""
    red, green, blue = (x[:, c : c + 1] * weight for c, weight in enumerate(_GREY))
    return red.add_(green).add_(blue)


def _mean(x: torch.Tensor) -> torch.Tensor:
    """Mean of each sample of x [n, 1, H, W] in [0, 1], as [n, 1, 1, 1]: integers add up to the same in any order."""
    total = (x * 2**24).int().flatten(1).sum(1)
    return (total.float() / (x[0].numel() * 2**24)).view(-1, 1, 1, 1)


def gaussian_blur(x: torch.Tensor, sigma: np.ndarray) -> torch.Tensor:
    """Blur each sample with its own `sigma` (float64 [n], in pixels), borders reflected; a new tensor.

    The bell is cut off at 4 sigma, which changes a value by less than 1e-4 of its neighbours' range.
    """
    n, _, height, width = x.shape
    reach = np.ceil(4 * sigma)[:, None]
    radius = int(reach.max(initial=0))
    distance = np.arange(radius + 1)
    bell = np.exp(-0.5 * (distance / sigma[:, None]) ** 2) * (distance <= reach)
    bell /= 2 * bell.sum(1, keepdims=True) - bell[:, :1]
    bell = torch.from_numpy(bell.T.astype(np.float32).copy()).to(x.device).view(radius + 1, n, 1, 1, 1)
    for dim, side in ((2, height), (3, width)):
        wide = x.index_select(dim, _reflected(side, radius, x.device))
        out = x * bell[0]
        for d in range(1, radius + 1):
            pair = wide.narrow(dim, radius - d, side) + wide.narrow(dim, radius + d, side)
            out.add_(pair.mul_(bell[d]))
        x = out
    return x


def _reflected(side: int, radius: int, device: torch.device) -> torch.Tensor:
    """Places -radius ... side - 1 + radius, reflected at the first and last pixel into 0 ... side - 1."""
    period = max(1, 2 * (side - 1))
    at = torch.arange(-radius, side + radius, device=device).remainder(period)
    return at.minimum(period - at) if side > 1 else torch.zeros_like(at)
