"""The lines that evaluation finds, as files, as text and as curves."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from kdnb.evaluation.evaluator import gap_closed
from kdnb.evaluation.sweep import Planned
from kdnb.files import write_atomically
from kdnb.runs import Run


def write_table(out: Run, lines: list[dict]):
    """Write `lines` to evaluation.csv and evaluation.json in the folder of `out`; a measure that a line lacks stays empty."""
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_atomically(out.folder / "evaluation.csv", lambda file: file.write(text.getvalue().encode()))
    out.write("evaluation.json", lines)


def format_table(lines: list[dict]) -> str:
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


def curve(lines: list[dict], run: str, measure: str) -> tuple[list[int], list[float]]:
    """Steps and values of a measure over the training of `run`, from the student before training on."""
    found = [line for line in lines if line["run"] == run and line["model"] in ("random student", "student")]
    found = [line for line in found if line.get(measure) is not None]
    return [line["step"] for line in found], [line[measure] for line in found]


def curve_end(lines: list[dict], run: str) -> dict:
    """The line of the last checkpoint of `run`."""
    return [line for line in lines if line["run"] == run and line["model"] == "student"][-1]


def regime_curves(planned: Sequence[Planned], lines: Sequence[list[dict]]) -> dict[str, tuple[list[int], np.ndarray]]:
    """Images seen [K] and probe accuracy [seeds, K] of each regime; `lines` holds those of each planned run."""
    curves = {}
    for run, found in zip(planned, lines, strict=True):
        students = [line for line in found if line["model"] in ("random student", "student")]
        seen, values = curves.setdefault(run.regime, ([line["images_seen"] for line in students], []))
        values.append([line["probe"] for line in students])
    return {regime: (seen, np.array(values)) for regime, (seen, values) in curves.items()}


def share_of_gap(value: float, references: dict[str, float]) -> float | None:
    """`gap_closed` with the floors and the ceiling by name."""
    return gap_closed(value, floors=[references["raw pixels"], references["random student"]], ceiling=references["teacher"])


def describe_gap(value: float, references: dict[str, float]) -> str:
    """The same in words."""
    share = share_of_gap(value, references)
    return "no gap to close, as the teacher is no better" if share is None else f"gap closed {share:.0%}"
