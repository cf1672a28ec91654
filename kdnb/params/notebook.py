"""What stands in a notebook: its parameters cell, what the cell and papermill assigned, and how checked values are shown."""

import ast
import difflib
import html
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from numbers import Number
from pathlib import Path, PurePath
from types import ModuleType, SimpleNamespace

from kdnb.params.param import Param
from kdnb.params.table import TABLE
from kdnb.progress import choose_mode

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


_OPEN = '<details class="kdnb-params"><summary>{}</summary><table><tr><th>{}</th></tr>'


_MARK = ' style="font-weight: bold; background: rgba(230, 159, 0, 0.2)"'


class Parameters(SimpleNamespace):
    """Checked parameters: one attribute a name, and nothing else in `vars()`."""

    __slots__ = ("_rows",)

    def __init__(self, rows: dict[str, Param], values: dict):
        super().__init__(**values)
        self._rows = rows

    def __reduce__(self):
        return SimpleNamespace, (), vars(self)  # a copy is a plain namespace

    def of(self, function: Callable) -> dict:
        """Those of the parameters that `function` takes by keyword: see `arguments_of`."""
        return arguments_of(function, self)

    def changed(self) -> dict:
        """Values that differ from the notebook's defaults."""
        return {name: vars(self)[name] for name, row in self._rows.items() if vars(self)[name] != row.convert(row.default)}

    def __repr__(self) -> str:
        changed = [f"{name} {value!r}" for name, value in self.changed().items()]
        return f"{len(vars(self))} parameters checked" + (f", not the default: {', '.join(changed)}" if changed else "")

    def _repr_html_(self) -> str | None:
        """The table; None where nobody looks: what nbval compares and papermill stores is then the line of text."""
        if choose_mode() != "widgets":
            return None
        changed, lines = self.changed(), []
        for name, row in self._rows.items():
            cells = (name, repr(vars(self)[name]), repr(row.convert(row.default)), row.help)
            mark = _MARK if name in changed else ""
            lines.append(f"<tr{mark}>" + "".join(f'<td style="text-align: left">{html.escape(cell)}</td>' for cell in cells))
        head = _OPEN.format(html.escape(repr(self)), "</th><th>".join(("parameter", "value", "default", "meaning")))
        return head + "</tr>".join(lines) + "</tr></table></details>"


def arguments_of(function: Callable, p: SimpleNamespace | Mapping) -> dict:
    """Those of the parameters `p` that `function` takes as keyword-only arguments, by the same names: `f(**arguments_of(f, p))`.

    Example:
        >>> def train(model, *, epochs, seed=0): ...
        >>> arguments_of(train, {"model": "resnet18", "epochs": 10, "loss": "mse"})
        {'epochs': 10}
    """
    values = p if isinstance(p, Mapping) else vars(p)
    named = inspect.signature(function).parameters.values()
    return {row.name: values[row.name] for row in named if row.kind is row.KEYWORD_ONLY and row.name in values}


class ParameterError(ValueError):
    """What was given is refused; a notebook shows the sentences alone, because no traceback would tell more."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def params_for(notebook: str) -> dict[str, Param]:
    """The parameters of `notebook` by name, in the order of its parameters cell."""
    if notebook not in TABLE:
        raise ParameterError(f"there is no notebook {notebook!r}; known are {', '.join(TABLE)}.")
    return TABLE[notebook]


def names_for(notebook: str) -> list[str]:
    """Names of the parameters of `notebook`, in the order of its parameters cell."""
    return list(params_for(notebook))


def check_params(values: Mapping, notebook: str) -> Parameters:
    """The notebook's parameters, converted and checked.

    Args:
        values: `globals()` of the notebook, in the first cell after the parameters; only what its parameters cell and
            papermill assigned is looked at. In a script, a mapping of all parameters.
        notebook: the notebook's name, as in the table.

    Returns:
        A namespace with one attribute a parameter; `vars()` of it goes into the run's config. As the last line of a cell
        it shows all values.

    Raises:
        ParameterError (a ValueError): one sentence for every fault: an unknown name (with the nearest known one), a missing
            parameter, a value that is no such type or outside its range.
    """
    known = params_for(notebook)
    given, faults, checked = parameters_given(values, known), [], {}
    for name in (name for name in given if name not in known):
        near = difflib.get_close_matches(name, known, n=1)
        others = [other for other, rows in TABLE.items() if name in rows]
        hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}."
        hint = f"it belongs to {', '.join(others)}." if others else hint
        faults.append(f"{notebook} has no parameter {name} (given: {given[name]!r}); {hint}")
    for name, row in known.items():
        if name not in given:
            faults.append(f"{name} is missing; add it to the notebook's parameters cell.")
            continue
        try:
            checked[name] = row.convert(given[name])
        except (ValueError, TypeError, OverflowError):
            faults.append(f"{name} is {_shown(given[name])}; allowed is {row.allowed()} ({row.help}).")
    if faults:
        raise ParameterError("\n".join(faults))
    return Parameters(known, checked)


def _shown(value) -> str:
    return repr(value) if is_plain(value) else f"now an object of type {type(value).__name__} (run the parameters cell again)"


_LINE = "# " + "-" * 100


def cell_source(notebook: str) -> str:
    """The parameters cell of `notebook`: what decides a run, a line, the rest under headings.

    Papermill lists what it can read: annotations without `|`, and no line with a second `=`, which none of the defaults and
    comments has.
    """
    lines = [f"# Edit the values; `python -m kdnb.params {notebook}` prints what is allowed.", "from typing import Optional", ""]
    section = ""
    for name, row in params_for(notebook).items():
        if row.section != section:
            lines += [_LINE if not section else "", f"# {row.section}"]
            section = row.section
        lines.append(f"{name}: {row.annotation()} = {literal(row.default)}  # {row.help}")
    return "\n".join(lines)


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
