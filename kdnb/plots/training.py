"""Figures of a training run: which images it visited, where its time went, what its losses did."""

from collections.abc import Sequence

import numpy as np

from kdnb.plots.style import COLOURS, annotate_end, new_figure, set_title, whole_numbers
from kdnb.progress import format_duration, format_number

_MAX_BINS = 600  # columns of a visit map: about one a pixel


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
    whole_numbers(above.yaxis)
    counts = np.bincount(exposure)
    drawn = below.bar(np.arange(len(counts)), counts, color=[COLOURS[1], *[COLOURS[0]] * (len(counts) - 1)], width=0.9)
    if len(counts) <= 12:
        below.bar_label(drawn, [f"{count:,}" if count else "" for count in counts], fontsize=10)
        below.margins(y=0.2)
    below.set(xlabel="how often an image was seen (never: orange)", ylabel="images")
    whole_numbers(below.xaxis)
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
    axes.bar(epochs, step, color=COLOURS[0], label="compute")
    axes.bar(epochs, wait, bottom=step, color=COLOURS[4], label="data wait")
    set_title(axes, f"Waiting for data took {wait.sum() / (total or 1):.1%} of {format_duration(total)}")
    axes.set(xlabel="epoch", ylabel="time (s)")
    axes.set_ylim(0, 1.2 * (wait + step).max(initial=0) or 1)  # room for the legend
    axes.set_xlim(min(epochs, default=1) - 0.8, max(epochs, default=1) + 0.8)
    whole_numbers(axes.xaxis)
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
    axes.barh(places, step, color=COLOURS[0], height=0.7, label="compute")
    axes.barh(places, wait, left=step, color=COLOURS[4], height=0.7, label="data wait")
    for place, width, share in zip(places, total, wait / total, strict=True):
        annotate_end(axes, f"{width:.3g} ms, {share:.0%} waiting", width, float(place))
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * total.max())
    best = int(total.argmin())
    set_title(axes, f"{list(rows)[best]}: {total[0] / total[best]:.1f} times as fast as {list(rows)[0]}")
    axes.set(xlabel="time of a step (ms)")
    axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.5 / (0.5 + 0.45 * len(rows))))
    return figure


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
    low, high = min(values.min() for values in every), max(values.max() for values in every)
    if low > 0 and high > 30 * low:
        axes.set_yscale("log")
    axes.set(xlabel="optimizer step")
    whole_numbers(axes.xaxis)
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
    low, high = (choose(ends, key=lambda run: ends[run][1]) for choose in (min, max))
    lowest, highest = ends[low][1], ends[high][1]
    if highest - lowest <= 0.01 * abs(lowest):
        return f"All {len(ends)} runs end alike, at a {name} of {lowest:.3g}"
    return f"{low} ends lowest: {name} {lowest:.3g}, against {highest:.3g} for {high}"


def _running_median(values: np.ndarray, *, half: int) -> np.ndarray:
    """Median over up to `half` neighbours on either side."""
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def _percent(part: int, whole: int) -> str:
    """Rounded, but 100% only for all and 0% only for none."""
    if 0 < part < whole and not 0.005 <= part / whole < 0.995:
        return "<1%" if part / whole < 0.5 else ">99%"
    return f"{part / whole:.0%}"
