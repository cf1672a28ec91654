"""Which names and values a notebook was given as parameters.

A kernel's globals hold everything that any cell ever left there: a loader, a figure, a name that was misspelt and has been
corrected since. So names are taken from the cells, whose sources IPython keeps in `In`: from the last run of the parameters
cell (the newest cell that assigns at least half of the notebook's parameters) and from the newest one of papermill's injected
cells (they begin with `# Parameters`) since. What was run before, or does anything else, is not looked at.

Values are what those names hold now, so that any Python will do to set one. A later cell of the notebook may have put a model
under such a name (`teacher = open_teacher(p)`); then the newest constant counts that a cell assigned to it.

Where no sources are kept (a script, a plain dict, nbval, which runs every cell once and without history), every name is given
but for imports, IPython's own, and those that begin with an underscore.
"""

import ast
from collections.abc import Collection, Mapping
from numbers import Number
from pathlib import PurePath
from types import ModuleType

_PLAIN = (type(None), Number, str, PurePath, list, tuple, dict)


def parameters_given(values: Mapping, known: Collection[str]) -> dict[str, object]:
    """Name and value of what was given, of the variables `values` of a notebook with the parameters `known`."""
    if not any(values.get("In", ())):
        return {name: value for name, value in values.items() if _is_meant(name, value)}
    injected, cells = None, []  # `cells`: what each executed cell assigns, newest first
    for source in reversed(values["In"]):
        cells.append(assigned := _assignments(source))
        if source.lstrip().startswith("# Parameters"):
            injected = assigned if injected is None else injected
        elif 2 * len(assigned.keys() & set(known)) >= len(known):
            names = assigned | (injected or {})
            break
    else:  # no such cell, as in a console: nothing says which other names were meant
        names = known
    return {name: _value(name, values[name], cells) for name in names if name in values and not name.startswith("_")}


def is_plain(value) -> bool:
    """Whether `value` may be a parameter's at all: a number, text, path, list, dict or None."""
    return isinstance(value, _PLAIN)


def _is_meant(name: str, value) -> bool:
    return not (name.startswith("_") or name in ("In", "Out") or isinstance(value, ModuleType) or callable(value))


def _assignments(source: str) -> dict[str, ast.expr]:
    """Names that a cell assigns, with the last expression of each; nothing where it is not Python."""
    try:
        statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Assign, ast.AnnAssign))]
    except (SyntaxError, ValueError):
        return {}
    found = {}
    for node in (node for node in statements if node.value):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]
            found |= dict.fromkeys(names, node.value if isinstance(target, ast.Name) else target)
    return found


def _value(name: str, value, cells: list[dict]):
    if is_plain(value):
        return value
    for assigned in cells:
        try:
            return ast.literal_eval(assigned[name])
        except (KeyError, ValueError, TypeError):
            continue
    return value
