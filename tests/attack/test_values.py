"""Random values of random parameters through every notebook's check and the cells that follow: an error is a sentence."""

import json
import random
from functools import partial
from pathlib import Path

import projects
import pytest
from harness import brief, run

from kdnb.params import TABLE

pytestmark = pytest.mark.attack
# Cells of code after the check that are run: before what takes minutes.
CELLS = {"precompute": 1, "train_optimized": 3, "train_random": 3, "train_fixed": 3, "evaluate": 0, "compare_regimes": 0,
         "soft_distill_text": 0}  # fmt: skip
VALUES = [
    None, True, False, 0, 1, -1, 2, 7, 0.5, 1e-9, 1.5, 1e308, 10**6, 2**31, 2**64, -(2**70), float("inf"), float("nan"),
    "", " ", "0", "1e-3", "-1", "nan", "true", "none", "test", "train", "digits", "builtin", "auto", "x", "x,y", "..", "../../x",
    "/", "/dev/null", "~", "a\0b", "a\nb", "\udcff", "x" * 300, [], [0], [-1], [1.5], ["x"], [[1]], list(range(50)),
    {}, {"width": 0}, {"width": 4}, {"num_classes": 3}, {"x": 1}, {1: 2}, (1, 2), {1}, b"x", object(), 1j, print,
]  # fmt: skip


def cells_of(notebook: str) -> list[str]:
    cells = json.loads((projects.NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][: 2 + CELLS[notebook]]


def first_cells(notebook: str, values: dict, folder: Path) -> dict:
    """Run the parameters' cell, change them, run the cells that follow."""
    parameters, *cells = cells_of(notebook)
    names = {"display": print}
    exec(parameters, names)
    names |= values
    for cell in cells:
        exec(cell, names)
    return {}


def draw(rng: random.Random) -> tuple[str, dict]:
    """A notebook, and values for one to three of its parameters: anything, or the default made a little larger or smaller."""
    notebook = rng.choice(list(CELLS))
    values = {}
    for name in rng.sample(list(TABLE[notebook]), rng.choice([1, 1, 2, 3])):
        default = TABLE[notebook][name].default
        near = [default * factor for factor in (-1, 0, 0.1, 3, 1000)] if type(default) in (int, float) else [default]
        values[name] = rng.choice([*VALUES, *VALUES, *near])
    return notebook, values


def test_a_wrong_value_is_refused_by_a_sentence(attack, templates):
    for rng in attack.tries():
        notebook, values = draw(rng)
        if not (attack.project / "pictures").exists():
            attack.fresh(templates / "cached")
        ended = run(partial(first_cells, notebook, values), attack.project)
        outcome = {"done": "harmless", "sentence": "found"}.get(ended.how, ended.how)
        attack.count(f"random values in {notebook}", outcome, f"{values}: {brief(ended.said)}")
