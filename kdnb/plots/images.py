"""Pictures of images and of their views. Cost: 0.1 to 0.5 s a figure, most of it in drawing the text."""

from collections.abc import Sequence

import numpy as np
import torch

from kdnb.data.augment import unit_range
from kdnb.plots.style import new_figure, set_title


def image_grid(images: torch.Tensor, *, titles: Sequence[str] | None = None, columns: int = 8):
    """Images [N, 3, H, W], uint8 or float in [0, 1], row by row, each with its title below."""
    pictures = [image.permute(1, 2, 0).numpy() for image in images.cpu()]
    columns = max(1, min(columns, len(pictures)))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    figure, axes = _mosaic(rows, gap=0.35 if titles else 0.06)
    axes.set(xticks=[], yticks=[])
    set_title(axes, f"{len(pictures)} images of {images.shape[-1]}×{images.shape[-2]}")
    for number, title in enumerate(titles or []):
        axes.text(1.06 * (number % columns) + 0.5, number // columns * 1.35 + 1.02, title, ha="center", va="top", fontsize=10)
    return figure


def view_grid(images: torch.Tensor, views: Sequence[torch.Tensor], *, mean=None, std=None, titles: Sequence[str] | None = None):
    """Cached images in the first row, and below each of them its views.

    Args:
        images: [N, 3, H, W], uint8 or float. views: float [N, 3, h, w] in [0, 1] each; h and w may differ.
        mean, std: of float images that are stored normalised. titles: one for each row of views.

    Raises:
        ValueError: views of another number of images.
    """
    for number, view in enumerate(views):
        if len(view) != len(images):
            raise ValueError(f"views[{number}] holds {len(view)} images, but images holds {len(images)}; give the same ones.")
    rows = []
    for pixels in (unit_range(images, mean, std), *views):
        rows.append([picture.permute(1, 2, 0).numpy() for picture in pixels.detach().cpu().float().clamp(0, 1)])
    names = ["cached", *(titles or [f"view {number + 1}" for number in range(len(views))])]
    sizes = [f"{part.shape[-1]}×{part.shape[-2]}" for part in (images, *views)]
    figure, axes = _mosaic(rows, gap=0.06)
    labels = [f"{name}\n{size}" for name, size in zip(names, sizes, strict=True)]
    set_title(axes, f"{len(images)} images, {len(views)} views of each")
    axes.set_xticks([])
    axes.set_yticks(0.5 + 1.06 * np.arange(len(rows)), labels)
    axes.tick_params(length=0)
    return figure


def _mosaic(rows: Sequence[Sequence[np.ndarray]], *, gap: float):
    """Pictures [h, w, 3] on one axes, cell (column, row) at (column * 1.06, row * (1 + gap)): far quicker than axes for each."""
    columns = max((len(row) for row in rows), default=1)
    width, height = 1.06 * columns, (1 + gap) * max(len(rows), 1)
    inch = min(1.1, 9 / width)
    figure, axes = new_figure(size=(width * inch + 1, height * inch))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            h, w = np.array(picture.shape[:2]) / max(picture.shape[:2])
            left, top = 1.06 * x + (1 - w) / 2, (1 + gap) * y + (1 - h) / 2
            axes.imshow(picture, extent=(left, left + w, top + h, top), interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.spines[:].set_visible(False)
    return figure, axes
