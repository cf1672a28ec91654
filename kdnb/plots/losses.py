"""Figures of losses: of several runs together, or of the parts of one run's loss."""

from collections.abc import Sequence

import numpy as np

from kdnb.plots.style import COLOURS, new_figure, set_title


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
