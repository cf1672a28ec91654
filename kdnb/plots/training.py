"""Figures of training: views, visited images, times. Cost: 0.1 to 0.5 s a figure, most of it in drawing the text."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from kdnb.data.augment import unit_range
from kdnb.plots.style import COLOURS, new_figure, set_title
from kdnb.progress import format_duration, format_number

_MAX_BINS = 600  # columns of a visit map: about one a pixel


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


def visit_map(visits: np.ndarray, *, shard_sizes: Sequence[int]):
    """Which samples the epochs visited (above: epoch by position in the cache), and how often each was seen (below).

    Args:
        visits: counts [epochs, samples], see `kdnb.data.order.EpochPlan.visits`. shard_sizes: rows of each shard.
    """
    epochs, samples = visits.shape
    exposure = visits.sum(0, dtype=np.int64)
    bins = min(samples, _MAX_BINS)
    edges = np.arange(bins + 1) * samples // bins
    share = np.add.reduceat(visits, edges[:-1], axis=1, dtype=float) / np.diff(edges)
    figure, (above, below) = new_figure(2, size=(7.0, 5.0), height_ratios=(3, 2))
    look = {"cmap": "Blues", "vmin": 0, "vmax": max(1, share.max()), "interpolation": "nearest"}
    picture = above.imshow(share, aspect="auto", extent=(0, samples, epochs + 0.5, 0.5), **look)
    if len(shard_sizes) <= 64:
        above.vlines(np.cumsum(shard_sizes)[:-1], 0.5, epochs + 0.5, color="0.5", linewidth=0.4)
    figure.colorbar(picture, ax=above, pad=0.01).set_label("visits per image", size=11)
    seen = int((exposure > 0).sum())
    often = exposure.sum() / max(seen, 1)
    alike = (exposure[exposure > 0] == often).all()
    times = f"{often:.1f} times on average" if not alike else "once" if often == 1 else f"{often:.0f} times"
    set_title(above, f"{seen:,} of {samples:,} images seen ({_percent(seen, samples)})" + (f", each {times}" if seen else ""))
    above.set(xlabel=f"position in the cache, {len(shard_sizes):,} shards", ylabel="epoch")
    above.xaxis.set_major_formatter("{x:,.0f}")
    above.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    counts = np.bincount(exposure)
    drawn = below.bar(np.arange(len(counts)), counts, color=[COLOURS[1], *[COLOURS[0]] * (len(counts) - 1)], width=0.9)
    if len(counts) <= 12:
        below.bar_label(drawn, [f"{count:,}" if count else "" for count in counts], fontsize=10)
        below.margins(y=0.2)
    below.set(xlabel="how often an image was seen (never: orange)", ylabel="images")
    below.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    below.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def step_time(records: Sequence[dict]):
    """Seconds that each epoch waited for data, and seconds of its steps, stacked.

    Args:
        records: epoch records with "epoch" (from 0), "data_wait_s" and "step_s".
    """
    epochs = np.array([record["epoch"] + 1 for record in records])
    wait, step = (np.array([record[part] for record in records], dtype=float) for part in ("data_wait_s", "step_s"))
    total = wait.sum() + step.sum()
    figure, axes = new_figure()
    axes.bar(epochs, step, color=COLOURS[0], label="step")
    axes.bar(epochs, wait, bottom=step, color=COLOURS[4], label="data wait")
    set_title(axes, f"Waiting for data took {wait.sum() / (total or 1):.1%} of {format_duration(total)}")
    axes.set(xlabel="epoch", ylabel="time (s)")
    axes.set_ylim(0, 1.2 * (wait + step).max(initial=0) or 1)  # room for the legend
    axes.set_xlim(min(epochs, default=1) - 0.8, max(epochs, default=1) + 0.8)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.yaxis.set_major_formatter(lambda value, _: format_number(value))
    axes.legend(frameon=False, ncols=2, loc="upper right", reverse=True)
    return figure


def step_parts(rows: dict[str, dict[str, float]]):
    """One horizontal bar a way of training: milliseconds of its step, and of waiting for data behind it.

    Args:
        rows: by name, {"step_ms", "wait_ms"} each, the first on top.
    """
    step, wait = (np.array([row[part] for row in rows.values()], dtype=float) for part in ("step_ms", "wait_ms"))
    places, total = np.arange(len(rows)), step + wait
    figure, axes = new_figure(size=(7.5, 1.6 + 0.45 * max(len(rows), 1)))
    axes.barh(places, step, color=COLOURS[0], height=0.7, label="step")
    axes.barh(places, wait, left=step, color=COLOURS[4], height=0.7, label="data wait")
    for place, width, share in zip(places, total, wait / total, strict=True):
        said = f"{width:.3g} ms, {share:.0%} waiting"
        axes.annotate(said, (width, place), xytext=(4, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * total.max())
    best = int(total.argmin())
    set_title(axes, f"{list(rows)[best]}: {total[0] / total[best]:.1f} times as fast as {list(rows)[0]}")
    axes.set(xlabel="time of a step (ms)")
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.5 / (0.5 + 0.45 * len(rows))))
    return figure


def bars(values: dict[str, float], *, xlabel: str, title: str, errors: dict | None = None, reference: tuple | None = None):
    """One horizontal bar a name, the first on top, with its number beside it.

    Args:
        values: no bar for a value that is not finite, but `n/a`. errors: half-widths of intervals, by name.
        reference: name and value of a dashed line, such as ("chance", 0.1).
    """
    errors, rows = errors or {}, np.arange(len(values))
    widths = np.array([value if math.isfinite(value) else 0.0 for value in values.values()])
    whiskers = np.array([errors.get(name, 0.0) for name in values])
    figure, axes = new_figure(size=(7.0, 1.2 + 0.42 * max(len(values), 1)))
    axes.barh(rows, widths, color=COLOURS[0], height=0.7)
    if whiskers.any():
        axes.errorbar(widths, rows, xerr=whiskers, fmt="none", ecolor="0.2", capsize=3)
    small = np.abs(widths).max(initial=0) < 10  # fixed decimals line up
    for row, (value, width, whisker) in enumerate(zip(values.values(), widths, whiskers, strict=True)):
        sign = -1 if width < 0 else 1
        text = "n/a" if not math.isfinite(value) else f"{value:.3f}" if small else format_number(value)
        where = {"xytext": (4 * sign, 0), "textcoords": "offset points", "va": "center", "ha": "left" if sign > 0 else "right"}
        axes.annotate(text, (width + sign * whisker, row), **where)
    if reference is not None:
        axes.axvline(reference[1], color="0.3", linestyle="--", linewidth=1.2)
        xlabel = f"{xlabel} (dashed: {reference[0]} {reference[1]:.3g})"
    if not values:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center")
    ends = [0.0, *(widths - whiskers), *(widths + whiskers), *([] if reference is None else [reference[1]])]
    low, high = min(ends), max(ends)
    axes.set_xlim(low - (0.15 * (high - low) if low < 0 else 0), high + (0.15 * (high - low) or 1))
    axes.set(yticks=rows, yticklabels=list(values), ylim=(max(len(values), 1) - 0.4, -0.6), xlabel=xlabel)
    set_title(axes, title)
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


def _percent(part: int, whole: int) -> str:
    """Rounded, but 100% only for all and 0% only for none."""
    if 0 < part < whole and not 0.005 <= part / whole < 0.995:
        return "<1%" if part / whole < 0.5 else ">99%"
    return f"{part / whole:.0%}"


def loss_curves(histories: dict[str, list[dict]], *, name: str = "loss"):
    """A named loss over the steps, one colour a run: a running median, and the single records faint behind it.

    Args:
        histories: run name -> step records with "step" and `name`. The scale is logarithmic where the losses span a
            factor of more than 30.

    Raises:
        ValueError: no run, or a run without a record.
    """
    if not histories or not all(histories.values()):
        empty = [run for run, records in histories.items() if not records]
        raise ValueError(f"histories holds no step records{f' for {empty[0]}' if empty else ''}; train at least one step.")
    figure, axes = new_figure()
    label = name.replace("_", " ")
    ends = _draw(axes, {run: (records, name) for run, records in histories.items()})
    axes.set(ylabel=f"{label} (bold: running median)")
    set_title(axes, _finding(label, ends))
    return figure


def loss_parts(records: list[dict], names: Sequence[str]):
    """The parts `names` of one run's loss over its steps, drawn as `loss_curves` draws runs.

    Args:
        records: step records with "step" and a number for each name.

    Raises:
        ValueError: no record, or no name.
    """
    if not records or not names:
        raise ValueError("records or names is empty; give the steps of a run and at least one part of its loss.")
    figure, axes = new_figure()
    ends = _draw(axes, {name.replace("_", " "): (records, name) for name in names})
    axes.set(ylabel="part of the loss (bold: running median)")
    first, *others = (f"{name} {_change(*end[:2])}" for name, end in ends.items())
    set_title(axes, "; ".join([first[:1].upper() + first[1:], *others]))
    return figure


def _draw(axes, curves: dict[str, tuple[list[dict], str]]) -> dict[str, tuple[float, float, int]]:
    """Draw each curve (records, name of the number); by label, its first and last median and its last step."""
    ends, every = {}, []
    for number, (label, (records, name)) in enumerate(curves.items()):
        steps = np.array([record["step"] for record in records])
        values = np.array([record[name] for record in records], dtype=float)
        smooth = _running_median(values, half=len(values) // 40)
        look = {"color": COLOURS[number % len(COLOURS)], "marker": "o" if len(values) == 1 else ""}
        axes.plot(steps, values, alpha=0.3, linewidth=0.8, **look)
        axes.plot(steps, smooth, label=label, linewidth=2, linestyle=("-", "--", ":")[number // len(COLOURS) % 3], **look)
        ends[label] = (smooth[0], smooth[-1], steps[-1])
        every.append(values)
    every = np.concatenate(every)
    if every.min() > 0 and every.max() > 30 * every.min():
        axes.set_yscale("log")
    axes.set(xlabel="optimizer step")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(curves) > 1:
        axes.legend(frameon=False)
    return ends


def _change(first: float, last: float) -> str:
    """What a loss did, in words."""
    if abs(last - first) <= 0.005 * abs(first):
        return f"stayed at {last:.3g}"
    part = f" by {abs(1 - last / first):.0%}" if min(first, last) > 0 and last < first else ""
    return f"{'fell' if last < first else 'rose'}{part}, from {first:.3g} to {last:.3g}"


def _finding(name: str, ends: dict[str, tuple[float, float, int]]) -> str:
    """One sentence on the first and last smoothed losses of each run."""
    if len(ends) == 1:
        first, last, step = next(iter(ends.values()))
        change = _change(first, last)
        comma = "" if change.startswith("stayed") else ","
        return f"{name[:1].upper()}{name[1:]} {change}{comma} in {step:,} step{'' if step == 1 else 's'}"
    last = {run: end[1] for run, end in ends.items()}
    low, high = min(last, key=last.get), max(last, key=last.get)
    if last[high] - last[low] <= 0.01 * abs(last[low]):
        return f"All {len(last)} runs end alike, at a {name} of {last[low]:.3g}"
    return f"{low} ends lowest: {name} {last[low]:.3g}, against {last[high]:.3g} for {high}"


def _running_median(values: np.ndarray, *, half: int) -> np.ndarray:
    """Median over up to `half` neighbours on either side."""
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
