"""The results of an evaluation as tables, files and curves."""

import csv
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np

from kdnb.evaluation.evaluator import Scores
from kdnb.evaluation.statistics import format_accuracy
from kdnb.evaluation.sweep import Planned
from kdnb.files import write_atomically
from kdnb.progress import choose_mode
from kdnb.runs import Run

GAP_CLOSED = "gap closed: share of the way from the higher floor (raw pixels, random student) to the teacher"
_NAMES, _NUMBERS = ("run", "model"), ("step", "probe", "95% interval", "k-NN", "95% interval", "gap closed", "rank", "CKA")


class Table(list):
    """Lines of evaluations, a dict each, which show their main columns: as text, and in JupyterLab as an HTML table."""

    def __repr__(self) -> str:
        return format_table(self)

    def _repr_html_(self) -> str | None:
        """None where nobody looks: what nbval compares and papermill stores is then the text."""
        if choose_mode() != "widgets":
            return None

        def row(cells: Sequence[str], tag: str) -> str:
            sides = ["left"] * len(_NAMES) + ["right"] * len(_NUMBERS)
            pairs = zip(sides, cells, strict=True)
            return "<tr>" + "".join(f'<{tag} style="text-align: {s}">{html.escape(cell)}</{tag}>' for s, cell in pairs) + "</tr>"

        rows = row((*_NAMES, *_NUMBERS), "th"), *(row(_cells(line), "td") for line in self)
        note = "<br>".join(html.escape(sentence) for sentence in _caption(self))
        caption = f'<caption style="caption-side: bottom; text-align: left">{note}</caption>'
        look = 'class="kdnb-evaluation" style="font-variant-numeric: tabular-nums"'
        return f"<table {look}>{caption}{''.join(rows)}</table>"


class Evaluation(Table):
    """What the checkpoints of one run are worth: a dict for each line of the table.

    The references come first ("model" is raw pixels, random student or teacher), then every checkpoint ("student"), oldest
    first, and "best model" where another epoch than the last was the best.

    Attributes:
        scores: everything that was measured, by "model"; of the student that of the last checkpoint.
    """

    def __init__(self, lines: Sequence[dict], scores: Mapping[str, Scores]):
        super().__init__(lines)
        self.scores = dict(scores)

    @property
    def references(self) -> dict[str, float]:
        """Probe accuracies of the floors and the ceiling: raw pixels, random student, teacher."""
        return {line["model"]: line["probe"] for line in self[:3]}

    @property
    def last(self) -> dict:
        """The line of the last checkpoint."""
        return [line for line in self if line["model"] == "student"][-1]

    def curve(self, measure: str, *, over: str = "step") -> tuple[list, list]:
        """`over` (or "images_seen") and a measure in the course of training, from the random student on."""
        students = [line for line in self if line["model"] in ("random student", "student") and line.get(measure) is not None]
        return [line[over] for line in students], [line[measure] for line in students]


def gap_closed(value: float, references: Mapping[str, float]) -> float | None:
    """Share of the way from the higher floor to the teacher: 0 learnt nothing, 1 is as good as the teacher.

    None where the teacher is not above the floors, because then there is no gap.
    """
    floor, teacher = references[_higher_floor(references)], references["teacher"]
    return (value - floor) / (teacher - floor) if teacher > floor else None


def teacher_warning(references: Mapping[str, float]) -> str:
    """A line that says loudly that the teacher is no better than a floor; "" where it is."""
    floor = _higher_floor(references)
    if references["teacher"] > references[floor]:
        return ""
    return (
        f"WARNING: a probe of the teacher's features is right on {references['teacher']:.1%} of the held-out images, one of "
        f"{floor} on {references[floor]:.1%}: there is nothing to learn from this teacher here. Check teacher, "
        "teacher_checkpoint, and mean and std in teacher_args."
    )


def _higher_floor(references: Mapping[str, float]) -> str:
    return max(("raw pixels", "random student"), key=references.__getitem__)


def describe_gap(value: float, references: Mapping[str, float]) -> str:
    """The same in words."""
    share = gap_closed(value, references)
    return "no gap to close, as the teacher is no better" if share is None else f"gap closed {share:.0%}"


def write_table(out: Run, lines: Sequence[dict]):
    """Write `lines` to evaluation.csv and evaluation.json in the folder of `out`; a measure that a line lacks stays empty."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with out.writing():
        write_atomically(out.folder / "evaluation.csv", lambda file: file.write(text.getvalue().encode()))
        out.write("evaluation.json", lines)


def format_table(lines: Sequence[dict]) -> str:
    """The main columns as text, numbers aligned at the right, and below them what they measure."""
    rows = [(*_NAMES, *_NUMBERS), *map(_cells, lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * len(_NAMES) + [str.rjust] * len(_NUMBERS)
    aligned = ([pad(cell, w) for pad, cell, w in zip(sides, row, widths, strict=True)] for row in rows)
    return "\n".join(["  ".join(row).rstrip() for row in aligned] + _caption(lines))


def format_accuracies(accuracies: Mapping[str, float], *, images: int) -> str:
    """What is measured, and a line for each linear probe's accuracy by name, with its 95% interval for so many test images."""
    lines = [f"accuracy of a linear probe on {images:,} held-out images, with the 95% interval (Wilson's) for that number"]
    return "\n".join(lines + [f"{name:17s} {format_accuracy(value, images)}" for name, value in accuracies.items()])


def _cells(line: Mapping) -> tuple[str, ...]:
    """A line's cells; empty where something could not be measured."""

    def number(name: str, form: str) -> str:
        return "" if line[name] is None else format(line[name], form)

    def accuracy(name: str) -> tuple[str, str]:
        return number(name, ".3f"), f"{line[f'{name}_low']:.3f} to {line[f'{name}_high']:.3f}"

    quality = number("probe_gap_closed", ".0%"), number("effective_rank", ".1f"), number("cka_teacher", ".2f")
    return (str(line["run"]), line["model"], number("step", ","), *accuracy("probe"), *accuracy("knn"), *quality)


def _caption(lines: Sequence[dict]) -> list[str]:
    """What the columns hold, in sentences."""
    images = " or ".join(f"{count:,}" for count in sorted({line["test_images"] for line in lines}))
    return [
        f"probe, k-NN: accuracy on {images} held-out images of a linear probe and of weighted k-NN, both on frozen features",
        "95% interval: Wilson's, for that number of images; another training seed may differ by more",
        f"{GAP_CLOSED}, by the probe",
        "rank: effective rank of the features; CKA: their likeness to the teacher's",
    ]


def regime_curves(planned: Sequence[Planned], evaluations: Sequence[Evaluation]) -> dict[str, tuple[list[int], np.ndarray]]:
    """Images seen [K] and probe accuracy [seeds, K] of each regime, from the evaluation of each planned run."""
    curves: dict[str, list] = {}
    for run, evaluation in zip(planned, evaluations, strict=True):
        curves.setdefault(run.regime, []).append(evaluation.curve("probe", over="images_seen"))
    return {regime: (seeds[0][0], np.array([accuracy for _, accuracy in seeds])) for regime, seeds in curves.items()}
