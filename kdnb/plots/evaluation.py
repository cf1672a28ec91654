"""Figures of measurements: accuracy and feature quality over training, confusion, maps of features, regimes, bars."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from kdnb.evaluation.statistics import format_accuracy
from kdnb.plots.style import COLOURS, annotate_end, new_figure, reference_lines, set_title
from kdnb.progress import format_number

_STYLES = ("-", "--", ":", "-.")


def accuracy_curves(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    references: Mapping[str, float],
    xlabel: str = "optimizer step",
    ylabel: str = "held-out accuracy",
):
    """Accuracy over training, a line a name, between dashed floors and ceiling.

    Args:
        curves: name -> (x, accuracy). references: name -> accuracy of a dashed line, named at its right end.
    """
    figure, axes = new_figure(size=(7.4, 4.2))
    for number, (name, (x, y)) in enumerate(curves.items()):
        colour, style = COLOURS[number % 6], _STYLES[number // 6 % 4]
        axes.plot(x, y, style, label=name, color=colour, marker="o", markersize=4, linewidth=2)
    reference_lines(axes, references, [value for _, y in curves.values() for value in y])
    best = max(curves, key=lambda name: curves[name][1][-1])
    x, y = curves[best]
    change = f", {y[-1] - y[0]:+.3f} since its beginning" if len(y) > 1 else ""
    set_title(axes, f"{best} ends at {y[-1]:.3f}{change}")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if len(curves) > 1:
        axes.legend(frameon=False)
    return figure


def quality_curves(curves: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]]):
    """Small multiples: one panel a measure, one line a run.

    Args:
        curves: measure -> name of the run -> (step, value).
    """
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, grid = new_figure(rows, ncols=columns, size=(3.4 * columns, 2.5 * rows + 0.5), squeeze=False)
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    for axes, (measure, runs) in zip(grid.flat, curves.items(), strict=False):
        for number, (name, (x, y)) in enumerate(runs.items()):
            axes.plot(x, y, color=COLOURS[number % 6], marker="o", markersize=3, linewidth=1.6, label=name)
        axes.set_title(measure.replace("_", " "), loc="left", fontsize=12)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    for axes in grid[-1]:
        axes.set_xlabel("optimizer step")
    if len(next(iter(curves.values()))) > 1:
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    return figure


def confusion_matrix(confusion: torch.Tensor, *, classes: Sequence[str]):
    """Shares of each true class (rows) by predicted class (columns), with numbers where there are at most 20 classes.

    Args:
        confusion: int64 [C, C], rows are true classes.
    """
    count = confusion.double()
    share = (count / count.sum(1, keepdim=True).clamp_min(1)).numpy()
    side = max(4.5, min(9.0, 0.55 * len(classes) + 1.5))
    figure, axes = new_figure(size=(side + 1, side))
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    few = len(classes) <= 20
    if few:
        for true, predicted in np.argwhere(share >= 0.005):
            colour = "white" if share[true, predicted] > 0.55 else "black"
            text = f"{share[true, predicted]:.2f}".replace("0.", ".").replace("1.00", "1")
            axes.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=10)
        axes.set_yticks(range(len(classes)), classes, fontsize=10)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(picture, ax=axes, shrink=0.8).set_label("share of the true class", size=11)
    wrong = share.copy()
    np.fill_diagonal(wrong, 0)
    true, predicted = map(int, np.unravel_index(wrong.argmax(), wrong.shape))
    finding = "No test image is mistaken"
    if wrong.max() > 0:
        finding = f"Mistaken most: {classes[true]} for {classes[predicted]}, {wrong.max():.1%}"
    set_title(axes, f"{finding}; {np.trace(count.numpy()) / count.sum().item():.1%} right", width=58)
    return figure


def feature_map(points: torch.Tensor, labels: torch.Tensor, *, classes: Sequence[str], explained: float, most: int = 3000):
    """Features in two dimensions, coloured by class.

    Args:
        points: [N, 2], the first two principal components. explained: their share of the variance.
        most: points drawn, the first ones. Beyond 20 classes, colours repeat and there is no legend.
    """
    import matplotlib

    figure, axes = new_figure(size=(7.4, 5.4))
    palette = matplotlib.color_sequences["tab10" if len(classes) <= 10 else "tab20"]
    for number, name in enumerate(classes):
        cloud, colour = points[:most][labels[:most] == number], palette[number % len(palette)]
        axes.scatter(*cloud.T.numpy(), s=7, alpha=0.6, linewidths=0, color=colour, label=name)
    set_title(axes, f"The first two principal components hold {explained:.0%} of the features' variance")
    axes.set(xlabel="first component", ylabel="second component")
    if len(classes) <= 20:
        figure.legend(loc="outside right center", frameon=False, markerscale=2.5, fontsize=10.5)
    return figure


def seed_bands(curves: Mapping[str, tuple[Sequence[float], np.ndarray]], *, references: Mapping[str, float]):
    """Mean accuracy over images seen, a line a regime, in a band of one standard deviation over seeds.

    Args:
        curves: regime -> (images seen [K], accuracy [seeds, K]).
    """
    figure, axes = new_figure(size=(7.4, 4.4))
    ends = {}
    for number, (name, (x, values)) in enumerate(curves.items()):
        mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        axes.fill_between(x, mean - spread, mean + spread, color=COLOURS[number % 6], alpha=0.15, linewidth=0)
        axes.plot(x, mean, color=COLOURS[number % 6], marker="o", markersize=4, linewidth=2, label=name.replace("_", " "))
        ends[name] = mean[-1]
    reference_lines(axes, references, [value for _, values in curves.values() for value in values.mean(0)])
    low, high = min(ends, key=lambda name: ends[name]), max(ends, key=lambda name: ends[name])
    title = f"Means end between {ends[low]:.3f} ({low}) and {ends[high]:.3f} ({high})".replace("_", " ")
    set_title(axes, f"{title}; bands: one standard deviation over seeds")
    axes.set(xlabel="images seen", ylabel="held-out accuracy (linear probe)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    return figure


def differences(intervals: Mapping[str, tuple[float, float, float]], *, points: Mapping[str, Sequence[float]], baseline: str):
    """Differences to a baseline in points of accuracy: mean and interval, and faint behind them each seed's.

    Args:
        intervals: name -> (mean, low, high). points: name -> one difference a seed.
    """
    figure, axes = new_figure(size=(7.4, 1.6 + 0.55 * len(intervals)))
    for number, (name, (mean, low, high)) in enumerate(intervals.items()):
        axes.plot(points[name], [number] * len(points[name]), "o", color="0.6", markersize=4, zorder=1)
        whiskers = [[mean - low], [high - mean]] if math.isfinite(low) else None
        look = {"color": COLOURS[0], "markersize": 8, "capsize": 4, "linewidth": 2}
        axes.errorbar([mean], [number], xerr=whiskers, fmt="D", **look)
    axes.axvline(0, color="0.2", linewidth=1)
    wide = {name.replace("_", " "): (low, high) for name, (_, low, high) in intervals.items() if low < high}
    clear = [name for name, (low, high) in wide.items() if low > 0 or high < 0]
    finding = f"Zero lies outside the interval of {', '.join(clear)}" if clear else "Every interval holds zero"
    if len(wide) < len(intervals) and not clear:
        finding += ", or has no width: its differences are all the same"
    set_title(axes, f"{finding} (diamonds: mean and 95% interval; dots: seeds)")
    axes.set_yticks(range(len(intervals)), [name.replace("_", " ") for name in intervals])
    axes.set(xlabel=f"difference to {baseline.replace('_', ' ')}, points of accuracy", ylim=(len(intervals) - 0.4, -0.6))
    return figure


def heat_map(values: Mapping[float, Mapping[float, float]], *, xlabel: str, ylabel: str, measure: str, examples: int):
    """An accuracy for each pair of settings, {y: {x: value}}; the best one is framed, with its 95% interval over `examples`."""
    from matplotlib.patches import Rectangle

    rows, columns = list(values), list(next(iter(values.values())))
    table = np.array([[values[row][column] for column in columns] for row in rows])
    figure, axes = new_figure(size=(2.4 + 1.1 * len(columns), 1.7 + 0.6 * len(rows)))
    picture = axes.imshow(table, cmap="Blues", aspect="auto")
    middle = (table.min() + table.max()) / 2
    for (row, column), value in np.ndenumerate(table):
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", color="w" if value > middle else "k", fontsize=11)
    best = np.unravel_index(table.argmax(), table.shape)
    corner = (float(best[1]) - 0.5, float(best[0]) - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=2.5, clip_on=False))
    axes.set_xticks(range(len(columns)), [f"{column:g}" for column in columns])
    axes.set_yticks(range(len(rows)), [f"{row:g}" for row in rows])
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes).set_label(measure, size=11)
    finding = f"Best: {format_accuracy(table.max(), examples)} at {xlabel} {columns[best[1]]:g}, {ylabel} {rows[best[0]]:g}"
    set_title(axes, finding, width=max(40, 12 * len(columns)))
    return figure


def bars(values: dict[str, float], *, xlabel: str, title: str, intervals: dict | None = None, reference: tuple | None = None):
    """One horizontal bar a name, the first on top, with its number beside it.

    Args:
        values: no bar for a value that is not finite, but `n/a`. intervals: (low, high) by name, drawn as whiskers.
        reference: name and value of a dashed line, such as ("chance", 0.1).
    """
    rows = np.arange(len(values))
    widths = np.array([value if math.isfinite(value) else 0.0 for value in values.values()])
    ends = np.array([(intervals or {}).get(name, (width, width)) for name, width in zip(values, widths, strict=True)])
    low, high = ends.reshape(-1, 2).T
    figure, axes = new_figure(size=(7.0, 1.2 + 0.42 * max(len(values), 1)))
    axes.barh(rows, widths, color=COLOURS[0], height=0.7)
    if intervals:
        axes.errorbar(widths, rows, xerr=(widths - low, high - widths), fmt="none", ecolor="0.2", capsize=3)
    small = np.abs(widths).max(initial=0) < 10  # fixed decimals line up
    for row, (value, end) in enumerate(zip(values.values(), np.where(widths < 0, low, high), strict=True)):
        text = "n/a" if not math.isfinite(value) else f"{value:.3f}" if small else format_number(value)
        annotate_end(axes, text, end, row, left=value < 0)
    if reference is not None:
        axes.axvline(reference[1], color="0.3", linestyle="--", linewidth=1.2)
        xlabel = f"{xlabel} (dashed: {reference[0]} {reference[1]:.3g})"
    if not values:
        axes.text(0.5, 0.5, "no values", transform=axes.transAxes, ha="center", va="center")
    drawn = [0.0, *low, *high, *([] if reference is None else [reference[1]])]
    least, most = min(drawn), max(drawn)
    axes.set_xlim(least - (0.15 * (most - least) if least < 0 else 0), most + (0.15 * (most - least) or 1))
    axes.set(yticks=rows, yticklabels=list(values), ylim=(max(len(values), 1) - 0.4, -0.6), xlabel=xlabel)
    set_title(axes, title)
    return figure
