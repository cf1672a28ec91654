"""The figures of the notebooks: plain data in, a matplotlib Figure out, with a title that says what was found.

What a figure shows can be asserted on its axes' data. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from collections.abc import Sequence

import numpy as np
import torch

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _figure(rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (7.0, 3.6), **settings):
    """A figure and its axes; closed at once for pyplot, so that a notebook shows it once and nothing keeps it alive."""
    import matplotlib.pyplot as plt  # in a notebook, this import is what makes figures show as pictures

    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **settings)
    plt.close(figure)
    return figure, axes


def loss_curves(histories: dict[str, list[dict]], *, name: str = "loss"):
    """A named loss over the steps, one line a run: a running median, the single steps faint behind it.

    Args:
        histories: run name -> step records with "step" and `name`.
    """
    figure, axes = _figure()
    changes = []
    for (run, records), colour in zip(histories.items(), _colours(len(histories)), strict=True):
        steps = np.array([record["step"] for record in records])
        values = np.array([record[name] for record in records], dtype=float)
        smooth = _running_median(values, max(1, len(values) // 20))
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth, color=colour, linewidth=2, label=run)
        changes.append(f"from {smooth[0]:.3g} to {smooth[-1]:.3g}" if len(histories) == 1 else f"{run}: {smooth[-1]:.3g}")
    axes.set(xlabel="optimizer step", ylabel=name, title=f"{name} {'; '.join(changes)}")
    if len(histories) > 1:
        axes.legend(frameon=False)
        axes.set_title(f"{name} at the end: " + "; ".join(changes), wrap=True)
    return figure


def image_grid(images: torch.Tensor, *, titles: Sequence[str] | None = None, columns: int = 8):
    """Images uint8 [N, 3, H, W] as they are stored."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure, grid = _figure(rows, columns, size=(columns * 0.9, rows * (1.1 if titles else 0.9)), squeeze=False)
    for number, axes in enumerate(grid.flat):
        axes.axis("off")
        if number < len(images):
            axes.imshow(images[number].permute(1, 2, 0).numpy())
            if titles is not None:
                axes.set_title(titles[number], fontsize=9)
    return figure


def view_grid(images: torch.Tensor, views: Sequence[torch.Tensor], *, mean, std, titles: Sequence[str] | None = None):
    """Cached images uint8 [N, 3, H, W] in the first row, below each of them its views [N, 3, h, w], without normalisation.

    Args:
        titles: one for each row of views.
    """
    scale, shift = torch.tensor(std).view(3, 1, 1), torch.tensor(mean).view(3, 1, 1)
    shown = [images.float() / 255 if images.dtype == torch.uint8 else images.float() * scale + shift]
    shown += [view.float() * scale + shift for view in views]
    names = ["cached", *(titles or [f"view {number + 1}" for number in range(len(views))])]
    figure, grid = _figure(len(shown), len(images), size=(len(images) + 0.8, len(shown) * 1.0), squeeze=False)
    for row, (name, pictures) in enumerate(zip(names, shown, strict=True)):
        for axes, picture in zip(grid[row], pictures, strict=True):
            axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid[row][0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def visit_map(visits: np.ndarray, *, shard_sizes: Sequence[int]):
    """Which samples the epochs visited (above: epoch by position in the cache), and how often each was seen (below).

    Args:
        visits: counts [epochs, samples], see `kdnb.data.order.count_visits`. shard_sizes: rows of each shard.
    """
    epochs, samples = visits.shape
    exposure = visits.sum(0, dtype=int)
    edges = np.linspace(0, samples, min(samples, 600) + 1).astype(int)
    share = np.add.reduceat(visits, edges[:-1], axis=1, dtype=float) / np.diff(edges)
    figure, (above, below) = _figure(2, size=(7.0, 4.6), height_ratios=(3, 2))
    picture = above.imshow(
        share, aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(0, samples, epochs + 0.5, 0.5), interpolation="nearest"
    )
    if len(shard_sizes) <= 64:
        for border in np.cumsum(shard_sizes)[:-1]:
            above.axvline(border, color="0.5", linewidth=0.3)
    figure.colorbar(picture, ax=above, label="share visited")
    seen = (exposure > 0).sum()
    often = exposure[exposure > 0].mean() if seen else 0.0
    title = f"{seen:,} of {samples:,} images seen ({seen / samples:.0%}), each {often:.1f} times on average"
    above.set(xlabel="position in the cache (lines: shards)", ylabel="epoch", title=title)
    above.yaxis.get_major_locator().set_params(integer=True)
    counts = np.bincount(exposure)
    below.bar(np.arange(len(counts)), counts, color=COLOURS[0], width=0.9)
    below.set(xlabel="how often an image was seen", ylabel="images")
    below.xaxis.get_major_locator().set_params(integer=True)
    return figure


def step_time(records: Sequence[dict]):
    """Seconds that each epoch waited for data, and seconds of its steps, stacked.

    Args:
        records: epoch records with "epoch", "data_wait_s" and "step_s".
    """
    epochs = np.array([record["epoch"] + 1 for record in records])
    wait, step = (np.array([record[name] for record in records]) for name in ("data_wait_s", "step_s"))
    figure, axes = _figure()
    axes.bar(epochs, step, color=COLOURS[0], label="step")
    axes.bar(epochs, wait, bottom=step, color=COLOURS[1], label="data wait")
    share = wait.sum() / (wait.sum() + step.sum())
    axes.set(xlabel="epoch", ylabel="seconds", title=f"Waiting for data took {share:.1%} of the training time")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 1.18 * (wait + step).max())
    axes.legend(frameon=False, ncols=2, loc="upper right")
    return figure


def bars(values: dict[str, float], *, xlabel: str, title: str, errors: dict[str, float] | None = None):
    """One horizontal bar a name, the first on top, with its number beside it; `errors` are half-widths of intervals."""
    names = list(values)
    figure, axes = _figure(size=(7.0, 0.9 + 0.45 * len(names)))
    widths = [values[name] for name in names]
    whiskers = None if errors is None else [errors.get(name, 0.0) for name in names]
    axes.barh(names, widths, xerr=whiskers, color=_colours(len(names)), height=0.7)
    for row, width in enumerate(widths):
        end = width + (whiskers[row] if whiskers else 0)
        axes.annotate(f"{width:.3f}", (end, row), xytext=(4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(widths))
    axes.set(xlabel=xlabel, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _running_median(values: np.ndarray, half: int) -> np.ndarray:
    """Median over up to `half` neighbours on either side."""
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
