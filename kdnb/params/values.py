"""Values of a notebook's parameters: converted and checked, shown, and passed to the functions that take them."""

import difflib
import html
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace

from kdnb.params.cell import assigned_values, is_plain
from kdnb.params.param import Param
from kdnb.params.table import LATER, TABLE
from kdnb.progress import choose_mode

_OPEN = '<details class="kdnb-params"><summary>{}</summary><table><tr><th>{}</th></tr>'
_MARK = ' style="font-weight: bold; background: rgba(230, 159, 0, 0.2)"'
_READABLE = 120  # letters of a value in a sentence


class ParameterError(ValueError):
    """Parameters are refused, with a sentence for each of them."""


class Parameters(SimpleNamespace):
    """Checked parameters: one attribute a name, and nothing else in `vars()`."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Mapping[str, Param], values: Mapping):
        super().__init__(**values)
        self._rows = rows

    def __reduce__(self):
        return SimpleNamespace, (), vars(self)  # a copy is a plain namespace

    def of(self, function: Callable) -> dict:
        """Those of the parameters that `function` takes by keyword: see `arguments_of`."""
        return arguments_of(function, self)

    def changed(self) -> dict:
        """Values that differ from the notebook's defaults."""
        return {name: vars(self)[name] for name in self._rows if vars(self)[name] != self._default(name)}

    def _default(self, name: str):
        row = self._rows[name]
        return row.resolve(row.convert(row.default), vars(self))

    def __repr__(self) -> str:
        changed = [f"{name} {value!r}" for name, value in self.changed().items()]
        return f"{len(vars(self))} parameters checked" + (f", not the default: {', '.join(changed)}" if changed else "")

    def _repr_html_(self) -> str | None:
        """The table; None where nobody looks: what nbval compares and papermill stores is then the line of text."""
        if choose_mode() != "widgets":
            return None
        changed, lines = self.changed(), []
        for name, row in self._rows.items():
            cells = (name, repr(vars(self)[name]), repr(self._default(name)), row.help)
            mark = _MARK if name in changed else ""
            lines.append(f"<tr{mark}>" + "".join(f'<td style="text-align: left">{html.escape(cell)}</td>' for cell in cells))
        head = _OPEN.format(html.escape(repr(self)), "</th><th>".join(("parameter", "value", "default", "meaning")))
        return head + "</tr>".join(lines) + "</tr></table></details>"


def check_params(values: Mapping, notebook: str) -> Parameters:
    """The notebook's parameters, converted and checked.

    Args:
        values: `globals()` of the notebook, in the first cell after the parameters; only what its parameters cell and
            papermill assigned is looked at. In a script, a mapping of all parameters.
        notebook: the notebook's name, as in the table. `precompute` also takes parameters of the training on its cache:
            they are checked, named in a line, and left out.

    Returns:
        A namespace with one attribute a parameter; `vars()` of it goes into the run's config. Where None stands for what suits
        the data, that is in its place. As the last line of a cell it shows all values.

    Raises:
        ParameterError (a ValueError): one sentence for every fault: an unknown name (with the nearest known one), a missing
            parameter, a value that is no such type or outside its range.

    Example:
        >>> defaults = {name: row.default for name, row in TABLE["precompute"].items()}
        >>> p = check_params(defaults | {"image_size": "64"}, "precompute")
        >>> p.image_size, p.changed()
        (64, {'image_size': 64})
    """
    if notebook not in TABLE:
        raise ParameterError(f"there is no notebook {notebook!r}; known are {', '.join(TABLE)}.")
    rows = TABLE[notebook]
    assigned = assigned_values(values, rows)
    later = {name: row for other in LATER.get(notebook, ()) for name, row in TABLE[other].items() if name not in rows}
    left = {name: assigned.pop(name) for name in later if name in assigned}
    faults = [_unknown(name, value, notebook) for name, value in assigned.items() if name not in rows]
    faults += [f"{name} is missing; add it to the notebook's parameters cell." for name in rows if name not in assigned]
    checked, refused = convert_values({name: assigned[name] for name in rows if name in assigned}, rows)
    refused += convert_values(left, later)[1]
    if faults + refused:
        raise ParameterError("\n".join(faults + refused))
    if left:
        print(f"left to the training: {', '.join(left)}")
    return Parameters(rows, resolve(checked, rows))


def convert_values(values: Mapping, rows: Mapping[str, Param]) -> tuple[dict, list[str]]:
    """`values` as the types of their `rows`, and one sentence for every value that is refused."""
    converted, faults = {}, []
    for name, value in values.items():
        try:
            converted[name] = rows[name].convert(value)
        except (ValueError, TypeError, OverflowError, RecursionError):
            other = f"now an object of type {type(value).__name__} (run the parameters cell again)"
            shown = _shown(value) if is_plain(value) else other
            faults.append(f"{name} is {shown}; allowed is {rows[name].allowed()} ({rows[name].help}).")
    return converted, faults


def checked(values: Mapping, *notebooks: str) -> dict:
    """Those of `values` that are parameters of `notebooks`, as their types.

    Raises:
        ParameterError: as from `check_params`.

    Example:
        >>> checked({"seed": "3", "regime": "full"}, "train_fixed")
        {'seed': 3}
    """
    rows = {name: row for notebook in notebooks for name, row in TABLE[notebook].items()}
    converted, faults = convert_values({name: value for name, value in values.items() if name in rows}, rows)
    if faults:
        raise ParameterError("\n".join(faults))
    return converted


def resolve(values: Mapping, rows: Mapping[str, Param]) -> dict:
    """`values` with what each None stands for in its place."""
    return {name: rows[name].resolve(value, values) if name in rows else value for name, value in values.items()}


def _shown(value) -> str:
    """`value` as it is written, as far as one wants to read it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or a list inside itself
        return f"of type {type(value).__name__} and beyond what can be shown"
    return text if len(text) <= _READABLE else f"{text[:_READABLE]}... ({len(text):,} letters)"


def _unknown(name: str, value, notebook: str) -> str:
    owners = [other for other, rows in TABLE.items() if name in rows]
    near = difflib.get_close_matches(name, TABLE[notebook], n=1)
    if owners:
        hint = f"it belongs to {', '.join(owners)}."
    else:
        hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(TABLE[notebook])}."
    return f"{notebook} has no parameter {name} (given: {_shown(value)}); {hint}"


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
