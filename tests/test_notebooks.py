"""Notebooks are thin, run, checked and clean; params files fit the notebooks that they are for."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill import execute_notebook, inspect_notebook

from kdnb.fetch import notebook_of
from kdnb.params import TABLE, check_params
from kdnb.params.cell import cell_source, literal, write_cell

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRAINING = ["train_optimized", "train_random", "train_fixed"]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str = "code") -> list:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


@each_notebook
def test_the_parameters_cell_is_written_from_the_table(path):
    """If not: python -m kdnb.params --write."""
    (cell,) = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert cell.source == cell_source(path.stem)
    values = {}
    exec(cell.source, values)
    checked = check_params(values, path.stem)  # as a script gives them: nothing but imports stands beside them
    assert not checked.changed()


def test_writing_the_cell_changes_nothing_else(tmp_path):
    path = ROOT / "notebooks" / "evaluate.ipynb"
    edited = path.read_text().replace('split: str = \\"train\\"', 'split: str = \\"other\\"')
    assert edited != path.read_text()
    copy = tmp_path / path.name
    copy.write_text(edited)
    assert write_cell(copy) and copy.read_text() == path.read_text() and not write_cell(copy)


@each_notebook
def test_papermill_lists_and_knows_every_parameter(path, tmp_path, caplog):
    listed = [tuple(entry.values()) for entry in inspect_notebook(path).values()]
    table = [(name, row.annotation(), literal(row.default), row.help) for name, row in TABLE[path.stem].items()]
    assert listed == table
    execute_notebook(path, tmp_path / "out.ipynb", parameters=defaults(path.stem), prepare_only=True)
    assert not [record.message for record in caplog.records if record.levelname == "WARNING"]


def defaults(notebook: str) -> dict:
    return {name: row.default for name, row in TABLE[notebook].items()}


@each_notebook
def test_every_code_cell_was_run_in_order_and_without_error(path):
    counts = [cell.execution_count for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for cell in cells(path) for o in cell.outputs if o.output_type == "error"]


@each_notebook
def test_cells_are_short_explained_and_define_nothing(path):
    notebook = nbformat.read(path, 4)
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type != "code" or "parameters" in cell.metadata.get("tags", []):
            continue
        tree = ast.parse(cell.source)
        kinds = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
        assert not [node for node in ast.walk(tree) if isinstance(node, kinds)], cell.source
        lines = [line for line in cell.source.splitlines() if line and not line.startswith(("from ", "import "))]
        assert 1 <= len(lines) <= 12, cell.source
        assert before.cell_type == "markdown", f"no sentence above: {cell.source}"


@each_notebook
def test_sections_are_what_a_table_of_contents_marks_as_running_or_waiting(path):
    """JupyterLab stands at the last cell after Run All: that is where the reader is told to look there."""
    texts = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    sections = [text.splitlines()[0] for text in texts[1:] if text.startswith("## ")]
    assert texts[1].startswith("## ") and len(sections) == len(set(sections)) >= 5
    assert "table of contents" in texts[-1]


@each_notebook
def test_metadata_holds_no_widgets_no_times_and_no_machine(path):
    notebook = nbformat.read(path, 4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and "version" not in notebook.metadata.language_info
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)
    assert not re.search(r"/(home|root|Users|work|tmp)/", path.read_text())


def test_the_training_notebooks_differ_in_one_cell():
    """Beside title, parameters and names: the cell that makes the loader. train_optimized has its tour, too."""
    texts = {}
    for name in TRAINING:
        for cell in cells(ROOT / "notebooks" / f"{name}.ipynb"):
            if "parameters" not in cell.metadata.get("tags", []):
                texts.setdefault(cell.id, set()).add(cell.source.replace(name, "NAME"))
    assert [cell for cell, sources in texts.items() if len(sources) > 1] == ["loader"]


PARAMS_FILES = sorted((ROOT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", PARAMS_FILES, ids=lambda path: path.stem)
def test_a_params_file_fits_its_notebook(path):
    name = notebook_of(path)
    given = yaml.safe_load(path.read_text())
    assert given.keys() <= TABLE[name].keys()
    check_params(defaults(name) | given, name)


def test_every_documented_run_has_its_params_file():
    names = {path.stem for path in PARAMS_FILES}
    assert {"precompute_500k", "compare_regimes", "compare_regimes_cifar10", *TRAINING} <= names
    assert {"soft_distill_dbpedia", "soft_distill_quick"} <= names
    assert len([name for name in names if name.startswith("cifar10_")]) >= 4
