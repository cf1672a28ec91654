"""Two models side by side as one picture: the results of `kdnb.evaluation.compare.compare_models`."""

import math
from collections.abc import Sequence

from kdnb.plots.style import COLOURS, annotate_end, new_figure
from kdnb.progress import format_bytes, format_duration, format_number

_MOST_CLASSES = 20  # of which the picture shows each
_ROLES = ("teacher", "student")


def comparison_figure(results: dict):
    """The picture of what `compare_models` returned, or wrote as JSON: two bars a measure, and two dots a class."""
    colours, panels, sides = COLOURS, _panels(results), (results["teacher"], results["student"])
    dots = "accuracy" in sides[0] and len(results["classes"]) <= _MOST_CLASSES
    heights = [1.6] * (len(panels) // 4) + [2.6] * dots
    look = {"ncols": 4, "squeeze": False, "height_ratios": heights}
    figure, grid = new_figure(len(heights), size=(10, sum(heights) + 1.3), **look)
    labels = [side["name"] + f"\n({role})" * (side["name"] != role) for side, role in zip(sides, _ROLES, strict=True)]
    for number, (axes, (title, values, texts, spread)) in enumerate(zip(grid.flat, panels, strict=False)):
        widths = [value or 0.0 for value in values]
        axes.barh([0, 1], widths, color=colours[:2], height=0.72)
        if spread:
            whiskers = [[abs(end - width) for end, width in zip(ends, widths, strict=True)] for ends in spread]
            axes.errorbar(widths, [0, 1], xerr=whiskers, fmt="none", ecolor="0.2", capsize=3, linewidth=1.2)
        for row, (text, end) in enumerate(zip(texts, spread[1] if spread else widths, strict=True)):
            annotate_end(axes, text, end, row, fontsize=10)
        axes.set_title(title, loc="left", fontsize=10.5)
        axes.set(xlim=(0, 1.6 * max(*widths, *(spread[1] if spread else [])) or 1), ylim=(1.6, -0.6), xticks=[])
        axes.set_yticks([0, 1], ["", ""] if number % 4 else labels)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    if dots:
        place = grid[-1, 0].get_gridspec()[-1, :]
        for axes in grid[-1]:
            axes.remove()
        _class_dots(figure.add_subplot(place), results, colours)
    figure.suptitle(_finding(results), fontsize=13.5, x=0.01, ha="left")
    turns = f"medians of {results['rounds']['one']} single examples and {results['rounds']['many']} batches, by turns"
    threads = f"{results['threads']} thread{'s' * (results['threads'] != 1)}"
    same = f"Both predict the same class for {_percent(results['agreement'])} of {results['rows']:,} test rows."
    note = f"{same}{_accuracies(sides)}\nSpeed on {results['device']}, {threads}: {turns}; whiskers: 10 to 90%."
    figure.supxlabel(note, fontsize=9.5, color="0.35", x=0.01, ha="left")
    return figure


def _panels(results: dict) -> list[tuple]:
    """(title, values, their texts, (10, 90% quantiles) or None) of each panel, teacher first; a value may be None."""
    sides, ratios = [results[role] for role in _ROLES], results["ratios"]

    def panel(title, key, finding, write, spread=None):
        values = [side[key]["median"] if spread else side[key] for side in sides]
        texts = ["not measured" if value is None else write(value) for value in values]
        return f"{title}\n{finding}", values, texts, spread

    def share(key):
        return f"{_percent(ratios[key])} of the teacher's"

    def more(key):
        ratio = ratios.get(key)
        return "no ratio to the teacher's" if ratio is None else f"{format_number(ratio)} times the teacher's"

    size = "/".join(dict.fromkeys(str(side["batch_size"]) for side in sides))
    quantiles = [[side["latency_ms"][end] for side in sides] for end in ("p10", "p90")]
    latency, throughput = (_times(ratios[f"{key}_speedup"]) for key in ("latency", "throughput"))
    panels = [
        panel("Parameters", "parameters", share("parameters"), _count),
        panel("Size on disk", "bytes", share("bytes"), format_bytes),
        panel("Latency of one example", "latency_ms", latency, lambda ms: format_duration(ms / 1000), quantiles),
        panel(f"Throughput, batches of {size}", "throughput", throughput, lambda rate: f"{format_number(rate)}/s"),
    ]
    if "accuracy" not in sides[0]:
        return panels
    return [
        panel("Accuracy", "accuracy", share("accuracy"), "{:.3f}".format),
        panel("Macro F1", "macro_f1", share("macro_f1"), "{:.3f}".format),
        panel("Calibration error", "calibration_error", more("calibration_error"), "{:.3f}".format),
        panel("Calibration error, scaled", "calibration_error_scaled", more("calibration_error_scaled"), "{:.3f}".format),
        *panels,
    ]


def _class_dots(axes, results: dict, colours: Sequence[str]):
    """Accuracy on each class, a dot a model, joined by a line; classes without test rows stay empty."""
    sides = [[math.nan if v is None else v for v in results[role]["per_class_accuracy"]] for role in _ROLES]
    names, places = results["classes"], range(len(results["classes"]))
    axes.vlines(places, *sides, color="0.7", linewidth=2)
    for role, values, colour, marker in zip(_ROLES, sides, colours, "os", strict=False):
        axes.plot(places, values, marker, color=colour, markersize=7, label=results[role]["name"])
    change = {name: after - before for name, before, after in zip(names, *sides, strict=True) if after == after}
    worst, best = (choose(change, key=lambda name: change[name]) for choose in (min, max))
    low, high = (f"{100 * change[name]:+.1f} points on {name}" for name in (worst, best))
    axes.set_title(f"Student minus teacher by class: {low} to {high}", loc="left", fontsize=10.5)
    long = max(map(len, names)) * len(names) > 90
    axes.set_xticks(places, names, rotation=30 if long else 0, ha="right" if long else "center", fontsize=10)
    axes.set(ylabel="accuracy", xlim=(-0.6, len(names) - 0.4))
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, fontsize=10, loc="lower right", bbox_to_anchor=(1.01, 0.98), borderpad=0)


def _finding(results: dict) -> str:
    """One sentence on what is kept, at what size and speed."""
    ratios = results["ratios"]
    kept = f"agrees with the teacher on {_percent(results['agreement'])} of the rows,"
    if ratios.get("accuracy") is not None:
        verb = "keeps" if ratios["accuracy"] <= 1 else "reaches"
        kept = f"{verb} {_percent(ratios['accuracy'])} of the teacher's accuracy"
    speed = f"{_times(ratios['latency_speedup'])} on one example, {_times(ratios['throughput_speedup'])} in batches"
    return f"The student {kept} with {_percent(ratios['parameters'])} of its parameters,\n{speed}"


def _accuracies(sides: Sequence[dict]) -> str:
    """A sentence on what either accuracy is of; none for results of earlier versions, which do not say it."""
    if not all("accuracy_interval" in side for side in sides):
        return ""
    measures = [f"{side['name']}: {side['predicts']}, {'{:.3f} to {:.3f}'.format(*side['accuracy_interval'])}" for side in sides]
    return f"\nAccuracy, and its 95% interval (Wilson's): {'; '.join(measures)}."


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.2%}" if share < 0.01 else f"{share:.1%}"


def _times(ratio: float | None) -> str:
    return f"{'?' if ratio is None else format_number(ratio) if ratio >= 9.95 else f'{ratio:.2g}'} times as fast"


def _count(number: int) -> str:
    """857, 270k, 1.73M."""
    return format_bytes(number).removesuffix("B").replace(" ", "").replace("G", "B")
