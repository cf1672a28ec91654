"""The results of an evaluation as lines of a table, files, text and curves."""

import csv
import io
from collections.abc import Mapping, Sequence

import numpy as np

from kdnb.evaluation.evaluator import Scores
from kdnb.evaluation.sweep import Planned
from kdnb.files import write_atomically
from kdnb.runs import Run


class Evaluation(list):
    """What the checkpoints of one run are worth: a dict for each line of the table; printed, its main columns.

    The references come first ("model" is raw pixels, random student or teacher), then every checkpoint ("student"), oldest
    first, and "best model" where another epoch than the last was the best.

    Attributes:
        scores: everything that was measured, by "model"; of the student that of the last checkpoint.
    """

    def __init__(self, lines: Sequence[dict], scores: Mapping[str, Scores]):
        super().__init__(lines)
        self.scores = dict(scores)

    def __str__(self) -> str:
        return format_table(self)

    @property
    def references(self) -> dict[str, float]:
        """Probe accuracies of the floors and the ceiling: raw pixels, random student, teacher."""
        return {line["model"]: line["probe"] for line in self[:3]}

    @property
    def last(self) -> dict:
        """The line of the last checkpoint."""
        return [line for line in self if line["model"] == "student"][-1]

    def curve(self, measure: str, *, over: str = "step") -> tuple[list, list]:
        """`over` (or "images_seen") and a measure in the course of training, from the untrained student on."""
        students = [line for line in self if line["model"] in ("random student", "student") and line.get(measure) is not None]
        return [line[over] for line in students], [line[measure] for line in students]


def gap_closed(value: float, references: Mapping[str, float]) -> float | None:
    """Share of the way from the higher floor to the teacher: 0 learnt nothing, 1 is as good as the teacher.

    None where the teacher is not above the floors, because then there is no gap.
    """
    floor, teacher = max(references["raw pixels"], references["random student"]), references["teacher"]
    return (value - floor) / (teacher - floor) if teacher > floor else None


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
    write_atomically(out.folder / "evaluation.csv", lambda file: file.write(text.getvalue().encode()))
    out.write("evaluation.json", lines)


def format_table(lines: Sequence[dict]) -> str:
    """The main columns as text."""
    rows = [("run", "model", "step", "probe", "k-NN", "gap", "rank", "CKA")]
    for line in lines:
        gap = "" if line["probe_gap_closed"] is None else f"{line['probe_gap_closed']:.0%}"
        row = (line["run"], line["model"], f"{line['step']:,}", f"{line['probe']:.3f}", f"{line['knn']:.3f}", gap)
        cka = "" if line["cka_teacher"] is None else f"{line['cka_teacher']:.2f}"
        rows.append((*row, f"{line['effective_rank']:.1f}", cka))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def regime_curves(planned: Sequence[Planned], evaluations: Sequence[Evaluation]) -> dict[str, tuple[list[int], np.ndarray]]:
    """Images seen [K] and probe accuracy [seeds, K] of each regime, from the evaluation of each planned run."""
    curves: dict[str, list] = {}
    for run, evaluation in zip(planned, evaluations, strict=True):
        curves.setdefault(run.regime, []).append(evaluation.curve("probe", over="images_seen"))
    return {regime: (seeds[0][0], np.array([accuracy for _, accuracy in seeds])) for regime, seeds in curves.items()}
