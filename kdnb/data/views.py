"""Augmentation of whole batches, on the batch's device, keyed by (seed, epoch, sample id, view).

The same key gives bitwise the same view on one type of device, in whatever batch, order, process or resumed run: random
numbers are hashes of the key, not draws from a generator that has a state, and every image operation treats samples apart
(`kdnb.data.augment`). Only boxes and factors, a few dozen numbers a sample, go from the host to the device.
Processor time for 64 uint8 images (AMD EPYC, one core): crop and flip 16 ms at 224x224 (4,000 images/s) and 0.7 ms at 32x32
(90,000); without a crop 2.4 ms at 224; two global views at 224 and six local ones at 96 with colours 290 ms, without 90.

Every transform is called as `views(images, ids, epoch)` with images [B, 3, H, W] and ids int64 [B] on the host, and returns a
list of float32 views in [0, 1], which teacher and student normalise each for itself (`kdnb.models.vision.FeatureModel`); the
teacher sees the first `num_global` of `num_views`. Images are uint8, or float: in [0, 1], or normalised with the `mean` and
`std` that the transform was given (those of a float cache stand in its index).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kdnb.data.augment import Resampler, change_colours, parts, unit_range, unit_range_
from kdnb.data.keyed import uniform
from kdnb.data.memory import empty

_TRIES = 10  # boxes tried before the centre is taken, as in torchvision
# Streams of random numbers of one view.
_FLIP = 2 * _TRIES + 2  # after area and ratio of each try, top and left
_STREAMS = _FLIP + 10  # 9 for colours


def _random_boxes(u: np.ndarray, height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> np.ndarray:
    """Boxes of torchvision's RandomResizedCrop: int64 [B, 4], top, left, height and width, from u [B, 22] in [0, 1).

    Area uniform in `scale`, log of width over height uniform in `ratio`; the first of 10 tries that fits, else the largest
    box in the centre whose ratio is allowed.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[:, :_TRIES])
    log_ratio = np.log(ratio)
    aspect = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * u[:, _TRIES : 2 * _TRIES])
    tried = np.stack([np.round(np.sqrt(area / aspect)), np.round(np.sqrt(area * aspect))], -1).astype(np.int64)
    fits = np.all((tried > 0) & (tried <= (height, width)), axis=-1)
    sides = tried[np.arange(len(u)), fits.argmax(1)]
    room = (height, width) - sides + 1
    corner = np.floor(u[:, 2 * _TRIES :] * room).astype(np.int64)
    whole = min(max(width / height, ratio[0]), ratio[1])  # ratio of the fallback
    centred = np.array([min(height, round(width / whole)), min(width, round(height * whole))]).clip(1)
    none = ~fits.any(1)
    sides[none] = centred
    corner[none] = ((height, width) - centred) // 2
    return np.concatenate([corner, sides], 1)


class _Transform:
    """What the transforms share: checks, and how a view is made. Subclasses are dataclasses with these fields."""

    mean: Sequence[float] | None
    std: Sequence[float] | None
    seed: int
    horizontal_flip: bool
    num_global = 1

    @property
    def num_views(self) -> int:
        """Views of an image."""
        return 1

    def __post_init__(self):
        for name, value in vars(self).items():
            if name.endswith("size") and value < 1:
                raise ValueError(f"{name} is {value}; a view has at least 1 pixel a side.")
            if name.endswith("scale") and not 0 < value[0] <= value[1] <= 1:
                raise ValueError(f"{name} is {value}; a crop's share of the area lies in (0, 1], the smaller bound first.")
            if name == "ratio" and not 0 < value[0] <= value[1]:
                raise ValueError(f"{name} is {value}; width over height is positive, the smaller bound first.")

    def __call__(self, images: torch.Tensor, ids: torch.Tensor, epoch: int) -> list[torch.Tensor]:
        """The `num_views` views of each image in `epoch`: float32 [B, 3, size, size] in [0, 1]."""
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"images has shape {list(images.shape)}; views are made from batches [B, 3, H, W].")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images is {images.dtype}; views are made from uint8 or float images.")
        if not isinstance(ids, torch.Tensor) or ids.dtype != torch.int64 or ids.device.type != "cpu":
            kind = f"{ids.dtype} on {ids.device}" if isinstance(ids, torch.Tensor) else type(ids).__name__
            raise ValueError(f"ids is {kind}; views are keyed by an int64 tensor on the host: keep batch['id'] on the CPU.")
        if ids.shape != images.shape[:1]:
            raise ValueError(f"ids has shape {list(ids.shape)} for {len(images)} images; each image needs one id.")
        return self._views(images.contiguous(), ids.numpy(), epoch)

    def _views(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> list[torch.Tensor]:
        """The views of contiguous images."""
        raise NotImplementedError

    def _random_crops(self, images, ids, epoch, views: range, *, size, scale, ratio, colours=None) -> list[torch.Tensor]:
        """Boxes of `_random_boxes`, mirrored half of the time: all `views` at once, float32 [B, 3, size, size] each.

        `colours` is called with crops [n, 3, size, size], their dice and the numbers of their views, and changes them.
        """
        (height, width), numbers = images.shape[2:], np.repeat(views, len(ids))
        u = uniform(self.seed, epoch, np.tile(ids, len(views)), numbers, range(_FLIP + 1 if colours is None else _STREAMS))
        boxes = _random_boxes(u[:, :_FLIP], height, width, scale, ratio)
        mirror = (u[:, _FLIP] < 0.5) & self.horizontal_flip
        change = colours and (lambda x, part: colours(x, u[part, _FLIP + 1 :], numbers[part]))
        return list(self._render(images, boxes, mirror, size, change).unflatten(0, (len(views), len(ids))))

    def _render(self, images, boxes, mirror, size, change=None) -> torch.Tensor:
        """Crop, resize, mirror and `change`, box i from image i modulo B: float32 [N, 3, size, size] in [0, 1]."""
        resample = Resampler(boxes, mirror, size, images.device)
        out = empty((len(boxes), 3, size, size), torch.float32, images.device)
        for part in parts(len(boxes), 3 * size * size, images.device):
            # Resizing commutes with normalising, changing colours does not.
            unit_range_(resample(images, part, out[part]), images.dtype, self.mean, self.std)
            if change:
                change(out[part], part)
        return out


@dataclass(kw_only=True)
class CleanTransform(_Transform):
    """The un-augmented view: resized where `size` differs from the images'. Called as the module says.

    Args:
        size: pixels a side of the view. mean, std: of float images that were stored normalised.

    Raises:
        ValueError: a size below 1; when called: bad images or ids.

    Example:
        >>> import kdnb, torch
        >>> images, ids = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8), torch.arange(2)
        >>> (view,) = kdnb.CleanTransform(size=4)(images, ids, epoch=0)
        >>> view.shape, round(view.mean().item(), 3)
        (torch.Size([2, 3, 4, 4]), 0.2)
    """

    size: int
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def _views(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> list[torch.Tensor]:
        height, width = images.shape[2:]
        if height == width == self.size:
            return [unit_range(images, self.mean, self.std)]
        boxes = np.tile([0, 0, height, width], (len(images), 1))
        return [self._render(images, boxes, np.zeros(len(images), dtype=bool), self.size)]


@dataclass(kw_only=True)
class SimpleTransform(_Transform):
    """One view: random resized crop, mirrored half of the time. Called as the module says.

    Args:
        size: pixels a side of the view.
        scale, ratio: bounds of the crop's share of the area and of its width over height.
        mean, std: of float images that were stored normalised.

    Raises:
        ValueError: a size below 1, a scale outside (0, 1], a bad ratio; when called: bad images or ids.

    Example:
        >>> import kdnb, torch
        >>> views = kdnb.SimpleTransform(size=4, seed=1)
        >>> images, ids = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8), torch.tensor([17])
        >>> (first,), (again,), (later,) = views(images, ids, 0), views(images, ids, 0), views(images, ids, 1)
        >>> first.shape, torch.equal(first, again), torch.equal(first, later)
        (torch.Size([1, 3, 4, 4]), True, False)
    """

    size: int
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    seed: int = 0
    scale: Sequence[float] = (0.25, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    horizontal_flip: bool = True

    def _views(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> list[torch.Tensor]:
        return self._random_crops(images, ids, epoch, range(1), size=self.size, scale=self.scale, ratio=self.ratio)


@dataclass(kw_only=True)
class FastMultiCropTransform(_Transform):
    """Two global views and, with `use_local_crops`, `local_crops_number` small ones, augmented as for DINO.

    Caron et al. 2021, section 3, after BYOL: colour jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8, in the fixed order
    brightness, contrast, saturation, hue (the original shuffles them); grey 0.2; Gaussian blur of 0.1 to 2 pixels with
    probability 1 and 0.1 for the global views and 0.5 for local ones; solarise 0.2 for the second global view.

    Args:
        global_size, local_size: pixels a side of the views.
        photometric: False leaves colours alone: crop and flip only.
        global_scale, local_scale: bounds of the crops' share of the area; width over height is 3/4 to 4/3.
        mean, std: of float images that were stored normalised.

    Raises:
        ValueError: a size below 1, a scale outside (0, 1]; when called: bad images or ids.

    Example:
        >>> import kdnb, torch
        >>> views = kdnb.FastMultiCropTransform(global_size=16, local_size=8, use_local_crops=True, local_crops_number=4)
        >>> crops = views(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2), epoch=0)
        >>> [crop.shape[-1] for crop in crops], views.num_global
        ([16, 16, 8, 8, 8, 8], 2)
    """

    global_size: int
    local_size: int
    local_crops_number: int = 6
    use_local_crops: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    seed: int = 0
    horizontal_flip: bool = True
    photometric: bool = True
    global_scale: Sequence[float] = (0.4, 1.0)
    local_scale: Sequence[float] = (0.05, 0.4)
    num_global = 2

    def __post_init__(self):
        super().__post_init__()
        if self.use_local_crops and self.local_crops_number < 1:
            raise ValueError(f"local_crops_number is {self.local_crops_number}; use_local_crops needs at least 1.")

    @property
    def num_views(self) -> int:
        """2, or with local crops 2 + local_crops_number."""
        return 2 + self.use_local_crops * self.local_crops_number

    def _views(self, images: torch.Tensor, ids: np.ndarray, epoch: int) -> list[torch.Tensor]:
        crop = {"ratio": (3 / 4, 4 / 3), "colours": self._colours if self.photometric else None}
        views = self._random_crops(images, ids, epoch, range(2), size=self.global_size, scale=self.global_scale, **crop)
        if self.use_local_crops:
            local = range(2, self.num_views)
            views += self._random_crops(images, ids, epoch, local, size=self.local_size, scale=self.local_scale, **crop)
        return views

    @staticmethod
    def _colours(x: torch.Tensor, u: np.ndarray, views: np.ndarray):
        p_blur, p_solarise = np.array([(1.0, 0.0), (0.1, 0.2), (0.5, 0.0)])[views.clip(max=2)].T
        change_colours(x, u, p_blur=p_blur, p_solarise=p_solarise)


@dataclass(kw_only=True)
class RepeatedViews:
    """`repeats` keyed views per image in turn: epoch e sees those of epoch e modulo `repeats` of `transform`.

    Few enough to store a teacher's outputs for each (Shen & Xing 2021, arXiv:2112.01528), and no image is seen the same way
    in every epoch.
    """

    transform: SimpleTransform | FastMultiCropTransform
    repeats: int

    def __post_init__(self):
        if self.repeats < 1:
            raise ValueError(f"teacher_views is {self.repeats}; an image has at least 1 view.")
        self.num_global, self.num_views = self.transform.num_global, self.transform.num_views
        self.mean, self.std = self.transform.mean, self.transform.std

    def __call__(self, images: torch.Tensor, ids: torch.Tensor, epoch: int) -> list[torch.Tensor]:
        """The views of `transform`."""
        return self.transform(images, ids, epoch % self.repeats)
