"""Batched image operations on float32 [n, 3, H, W], each sample with its own parameters.

Everything is built from gathers, element-by-element arithmetic and sums of integers, whose result is fixed bit by bit. There
is no matrix product, convolution or sum of floats, whose kernels choose their order of summation by the batch's shape. What
a sample becomes is therefore bitwise independent of the samples beside it, of the number of threads, of TF32 and of autocast.
On a CPU this is the fastest way as well, as long as what is worked on fits into the processor's cache: cut a batch with
`parts`. Half of a crop's time goes into gathering columns, pixel by pixel.

Functions whose name ends in an underscore change their argument and return it. Colours are in [0, 1].
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import torch

from kdnb.data.memory import empty, upload

_CPU_ELEMENTS = 2**19  # float32 elements (2 MB) that stay in the processor's cache, and are worth being shared by two threads
_ELEMENTS = 2**26  # on other devices, which then need a few times 256 MB
_GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, as in torchvision


def parts(images: int, elements: int, device: torch.device) -> Iterator[slice]:
    """Slices of a batch small enough for the processor's cache, or for another device's memory.

    Args:
        images: samples in the batch. elements: values per sample that are worked on at a time.
    """
    step = max(1, (_CPU_ELEMENTS if device.type == "cpu" else _ELEMENTS) // elements)
    return (slice(start, start + step) for start in range(0, images, step))


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Images [B, 3, H, W] to normalised float32.

    uint8 gives bitwise what torchvision's ToDtype(float32, scale=True) and Normalize give; float images are taken as
    normalised already (as float caches are): float32 is returned as it is, other kinds are cast.
    """
    if images.is_floating_point():
        return images.float()
    out = empty(images.shape, torch.float32, images.device)
    mean, std = per_channel(mean, images.device), per_channel(std, images.device)
    for part in parts(len(images), max(1, images[:1].numel()), images.device):
        out[part].copy_(images[part]).mul_(1 / 255).sub_(mean).div_(std)
    return out


def unit_range(images: torch.Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> torch.Tensor:
    """Images [B, 3, H, W] as float32 in [0, 1]: uint8 divided by 255; float images without their normalisation by `mean` and
    `std` (None: they have none)."""
    if images.dtype == torch.float32 and mean is None:
        return images
    out = empty(images.shape, torch.float32, images.device)
    for part in parts(len(images), max(1, images[:1].numel()), images.device):
        unit_range_(out[part].copy_(images[part]), images.dtype, mean, std)
    return out


def unit_range_(x: torch.Tensor, dtype: torch.dtype, mean: Sequence[float] | None, std: Sequence[float] | None) -> torch.Tensor:
    """`unit_range` of images of `dtype` whose values, cast or resized, are in the float32 `x`."""
    if dtype == torch.uint8:
        return x.mul_(1 / 255)
    return x if mean is None or std is None else x.mul_(per_channel(std, x.device)).add_(per_channel(mean, x.device)).clamp_(0, 1)


def per_channel(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Three numbers as float32 [3, 1, 1] on `device`."""
    return upload(device, np.array(values, dtype=np.float32))[0].view(3, 1, 1)


class Resampler:
    """Crop, antialiased bilinear resize and mirroring, prepared for a batch.

    Each row (column) of the output is a weighted sum of few rows (columns) of the image, 2 of them when enlarging; mirroring
    is folded into the order of the columns. Same numbers as torchvision's resized_crop(antialias=True) on float images.

    Args:
        boxes: int64 [N, 4], top, left, height and width of the crops. mirror: bool [N]. size: side of the output.
    """

    def __init__(self, boxes: np.ndarray, mirror: np.ndarray, size: int, device: torch.device):
        self.size, self.extents = size, boxes[:, 2:]
        (numbers,) = upload(device, np.column_stack([boxes, mirror]).astype(np.float32))
        self.index, self.weight = _taps(numbers, size, max(self._num_taps(slice(None))))

    def _num_taps(self, part: slice) -> list[int]:
        """How many rows, and how many columns, of an image make up one of the output, at most, in the samples `part`."""
        return np.ceil(2 * np.maximum(1, self.extents[part].max(0, initial=0) / self.size)).astype(int).tolist()

    def __call__(self, images: torch.Tensor, part: slice, out: torch.Tensor | None = None) -> torch.Tensor:
        """The crops `part` of `images` [B, 3, H, W], number i from image i modulo B; values in the same units.

        Returns:
            `out`, or a new tensor: float32 [n, 3, size, size].
        """
        (num_rows, num_columns), index, weight = self._num_taps(part), self.index[:, :, part], self.weight[:, :, part]
        (batch, channels, height, width), n, device = images.shape, index.shape[2], images.device
        which = torch.arange(part.start, part.start + n, device=device).remainder_(batch)
        first = (which[:, None] * channels + torch.arange(channels, device=device))[..., None] * height  # row 0 of each plane
        planes, taken = images.reshape(-1, width), empty((n * channels * self.size, width), images.dtype, device)
        rows, tap = (empty((n, channels, self.size, width), torch.float32, device) for _ in range(2))
        for k in range(num_rows):
            torch.index_select(planes, 0, (first + index[k, 0, :, None]).view(-1), out=taken)
            (tap if k else rows).copy_(taken.view(rows.shape)).mul_(weight[k, 0, :, None, :, None])
            if k:
                rows.add_(tap)
        shape = (n, channels, self.size, self.size)
        out, tap = empty(shape, torch.float32, device) if out is None else out, empty(shape, torch.float32, device)
        for k in range(num_columns):
            column = torch.gather(rows, 3, index[k, 1, :, None, None].expand(shape), out=tap if k else out)
            column.mul_(weight[k, 1, :, None, None])
            if k:
                out.add_(tap)
        return out


def _taps(numbers: torch.Tensor, size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows and columns of the images, with which weights, make up those of the output.

    A triangle of half width `reach` around each output pixel's centre, cut off at the box and normalised. Taps that a sample
    does not need have weight 0, so that it does not matter how many its neighbours need.

    Args:
        numbers: float32 [N, 5], top, left, height and width of the crops, and 1 where they are mirrored. count: taps.

    Returns:
        int64 and float32 [count, 2, N, size]: rows first, then columns.
    """
    start, extent, mirror = numbers[:, :2].T[..., None], numbers[:, 2:4].T[..., None], numbers[:, 4:]
    place = torch.arange(size, dtype=torch.float32, device=numbers.device)
    place = torch.stack([place.expand(len(numbers), -1), place + mirror * (size - 1 - 2 * place)])
    ratio = extent / size
    reach = ratio.clamp(min=1)
    centre = (place + 0.5) * ratio  # [2, N, size], in pixels from the box's edge
    lowest = (centre - reach + 0.5).clamp_(min=0).floor_()
    at = lowest + torch.arange(count, dtype=torch.float32, device=numbers.device).view(-1, 1, 1, 1)
    weight = ((at + 0.5).sub_(centre).div_(reach).abs_().neg_().add_(1).clamp_(min=0)).mul_(at < extent)
    return at.minimum(extent - 1).add_(start).long(), weight.div_(reduce(torch.add, weight))


def change_colours(x: torch.Tensor, u: np.ndarray, *, p_blur: np.ndarray | float, p_solarise: np.ndarray | float) -> torch.Tensor:
    """DINO's jitter, grey, blur and solarise, each on those samples of x [n, 3, H, W] that the dice u [n, 9] in [0, 1) select.

    Changes x and returns it. Samples that are left out cost nothing, and what becomes of the others does not depend on them.
    """
    jittered, grey, solarised = (np.flatnonzero(chosen) for chosen in (u[:, 0] < 0.8, u[:, 5] < 0.2, u[:, 8] < p_solarise))
    blurred = np.flatnonzero(u[:, 6] < p_blur)
    blurred = blurred[np.argsort(-u[blurred, 7], kind="stable")]  # the widest first, as `_blur` likes it
    factors = np.array([1, 1, 1, 0]) + np.array([0.4, 0.4, 0.2, 0.1]) * (2 * u[jittered, 1:5] - 1)
    bell, samples = _bell(0.1 + 1.9 * u[blurred, 7])
    rows = (jittered, grey, blurred, solarised)
    *rows, factors, bell = upload(x.device, *rows, factors.T.astype(np.float32), bell)
    operations = (
        lambda chosen: _jitter(chosen, *factors.view(4, -1, 1, 1, 1)),
        greyscale_,
        lambda chosen: _blur(chosen, bell, samples),
        solarise,
    )
    for chosen, operation in zip(rows, operations, strict=True):
        if len(chosen):
            x.index_copy_(0, chosen, operation(x.index_select(0, chosen)))
    return x


def _jitter(x: torch.Tensor, brightness, contrast, saturation, hue) -> torch.Tensor:
    """All four, by factors [n, 1, 1, 1] each."""
    return shift_hue(saturation_(contrast_(brightness_(x, brightness), contrast), saturation), hue)


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
    is_red = red == high
    is_green = (green == high).logical_and_(~is_red)
    angle = (blue - red).add_(2 * chroma).mul_(is_green).add_((green - blue).mul_(is_red))
    angle.add_((red - green).add_(4 * chroma).mul_(is_red.logical_or_(is_green).logical_not_()))
    angle = angle.div_(chroma.clamp(min=1e-12)).add_(6 * shift)  # without chroma the hue is of no consequence
    angle.sub_((angle / 6).floor_().mul_(6))
    # Green (blue) stays at full height up to one sixth from 2 (4) and falls to the bottom over the next; red rises from 3.
    out = torch.cat([angle - place for place in (3, 2, 4)], 1)
    out.abs_().sub_(1).clamp_(0, 1).mul_(chroma)
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
    weights, samples = _bell(sigma)
    (bell,) = upload(x.device, weights)
    return _blur(x, bell, samples)


def _bell(sigma: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Weights at distances 0, 1, ..., float32 [radius + 1, n], and after how many samples no other reaches each distance."""
    distance = np.arange(np.ceil(4 * sigma).max(initial=0) + 1)[:, None]
    reached = distance <= np.ceil(4 * sigma)
    bell = np.exp(-0.5 * (distance / sigma) ** 2) * reached
    bell /= 2 * bell.sum(0) - bell[0]
    return bell.astype(np.float32), [np.flatnonzero(row).max(initial=-1) + 1 for row in reached]


def _blur(x: torch.Tensor, bell: torch.Tensor, samples: list[int]) -> torch.Tensor:
    """`gaussian_blur` by what `_bell` returns; costs least where the samples are sorted, the widest bell first."""
    bell, radius, pair = bell[..., None, None, None], len(bell) - 1, torch.empty_like(x)
    for dim, side in ((2, x.shape[2]), (3, x.shape[3])):
        places = _reflected(side, radius, x.device)
        margins = x.index_select(dim, places[:radius]), x.index_select(dim, places[radius + side :])
        wide = torch.cat([margins[0], x, margins[1]], dim)
        out = x * bell[0]
        for d in range(1, radius + 1):
            few = slice(0, samples[d])
            before, after = wide[few].narrow(dim, radius - d, side), wide[few].narrow(dim, radius + d, side)
            out[few].add_(torch.add(before, after, out=pair[few]).mul_(bell[d, few]))
        x = out
    return x


def _reflected(side: int, radius: int, device: torch.device) -> torch.Tensor:
    """Places -radius ... side - 1 + radius, reflected at the first and last pixel into 0 ... side - 1."""
    period = max(1, 2 * (side - 1))
    at = torch.arange(-radius, side + radius, device=device).remainder(period)
    return at.minimum(period - at) if side > 1 else torch.zeros_like(at)
