"""Odd values of parameters through every notebook's check and the cells that follow: an error is a sentence."""

import json
from functools import partial
from pathlib import Path

import projects
import pytest
from harness import brief, run
from odd_values import odd_parameters

from kdnb.params import TABLE

pytestmark = pytest.mark.attack
# Cells of code after the check that are run: before what takes minutes.
CELLS = {"precompute": 1, "train_optimized": 3, "train_random": 3, "train_fixed": 3, "evaluate": 0, "compare_regimes": 0,
         "soft_distill_text": 0}  # fmt: skip


def first_cells(notebook: str, values: dict, folder: Path) -> dict:
    """Run the parameters' cell, change them, run the cells that follow."""
    cells = json.loads((projects.NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    parameters, *others = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names = {"display": print}
    exec(parameters, names)
    names |= values
    for cell in others[: 1 + CELLS[notebook]]:
        exec(cell, names)
    return {}


@pytest.mark.parametrize("notebook", CELLS)
def test_a_wrong_value_is_refused_by_a_sentence(attack, templates, notebook):
    attack.fresh(templates / "cached")
    defaults = {name: row.default for name, row in TABLE[notebook].items()}
    for _ in attack.tries():
        (values,) = odd_parameters(notebook, 1, attack.seed)
        ended = run(partial(first_cells, notebook, values), attack.project)
        outcome = {"done": "harmless", "sentence": "found"}.get(ended.how, ended.how)
        odd = [name for name, value in values.items() if value is not defaults[name]]
        attack.count(f"odd values in {notebook}", outcome, f"{', '.join(odd)}: {brief(ended.said)}")
