"""A notebook's parameters cell: written from the table, and what it and papermill assigned, read back from a kernel."""

import ast
import json
from collections.abc import Collection, Mapping
from numbers import Number
from pathlib import Path, PurePath
from types import ModuleType

from kdnb.params.param import Param
from kdnb.params.table import TABLE

_PLAIN = (type(None), Number, str, PurePath, list, tuple, dict)
_LINE = "# " + "-" * 100


def cell_source(notebook: str) -> str:
    """The parameters cell of `notebook`: what decides a run, a line, the rest under headings.

    Papermill lists what it can read: annotations without `|`, and no line with a second `=`, which none of the defaults and
    comments has.
    """
    lines = [f"# Edit the values; `python -m kdnb.params {notebook}` prints what is allowed.", "from typing import Optional", ""]
    section = ""
    for row in TABLE[notebook].values():
        if row.section != section:
            lines += ["" if section else _LINE, f"# {row.section}"]
            section = row.section
        lines.append(f"{assignment(row)}  # {row.help}")
    return "\n".join(lines)


def assignment(row: Param) -> str:
    """The line of the cell that sets a parameter to its default, without the comment."""
    return f"{row.name}: {row.annotation()} = {literal(row.default)}"


def literal(value) -> str:
    """`value` as it is written in Python, with double quotes; `10_000` from five digits on."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(entry)}" for key, entry in value.items()) + "}"
    return f"{value:_}" if type(value) is int and value >= 10_000 else repr(value)


def write_cell(path: Path) -> bool:
    """Replace the source of the cell tagged `parameters` in the notebook at `path`; whether that changed it."""
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    (cell,) = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cell["source"] = cell_source(path.stem).splitlines(keepends=True)
    written = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(written, encoding="utf-8")
    return written != text


def assigned_values(variables: Mapping, known: Collection[str]) -> dict[str, object]:
    """Name and value of what was assigned as a parameter, right or wrong.

    Args:
        variables: `globals()` of a notebook. IPython's history in it (`In`) says what the parameters cell and the cell that
            papermill injects assigned when they last ran; what other cells leave behind does not count. Without a history,
            as in a script, every variable counts but modules, functions, classes and `_private` ones.
        known: the parameters' names. The parameters cell is recognised by assigning at least half of them.
    """
    if not any(variables.get("In", ())):
        return {name: value for name, value in variables.items() if _may_be_parameter(name, value)}
    injected: dict[str, ast.expr] | None = None
    cells: list[dict[str, ast.expr]] = []  # what each executed cell assigns, newest first
    for source in reversed(variables["In"]):
        cells.append(assigned := _assignments(source))
        if source.lstrip().startswith("# Parameters"):  # papermill begins the injected cell so
            injected = assigned if injected is None else injected
        elif 2 * len(assigned.keys() & set(known)) >= len(known):
            names: Collection[str] = assigned | (injected or {})
            break
    else:  # no such cell, as in a console: nothing says which other names were meant
        names = known
    present = (name for name in names if name in variables and not name.startswith("_"))
    return {name: _assigned_value(variables[name], name, cells) for name in present}


def is_plain(value) -> bool:
    """Whether `value` may be a parameter's at all: a number, text, path, list, dict or None."""
    return isinstance(value, _PLAIN)


def _may_be_parameter(name: str, value) -> bool:
    return not (name.startswith("_") or name in ("In", "Out") or isinstance(value, ModuleType) or callable(value))


def _assignments(source: str) -> dict[str, ast.expr]:
    """Names that a cell assigns, with the last expression of each; nothing where it is not Python."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):
        return {}
    assigned = {}
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
                assigned |= dict.fromkeys(names, node.value if isinstance(target, ast.Name) else target)
    return assigned


def _assigned_value(value, name: str, cells: list[dict[str, ast.expr]]):
    """`value` of the variable `name`; where a later cell put an object there, such as a model, the newest literal before it."""
    if is_plain(value):
        return value
    for assigned in cells:
        try:
            return ast.literal_eval(assigned[name])
        except (KeyError, ValueError, TypeError):
            continue
    return value
