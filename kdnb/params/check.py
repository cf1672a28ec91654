"""The check of what a notebook was given.

Papermill hands YAML's `1e-3` over as a string, `-p flag false` as a string, too, and only logs a name that it does not know.
`check_params` therefore stands in the first cell after the parameters: it converts what is meant clearly, and reports
everything else in one error.
"""

import difflib
from collections.abc import Mapping

from kdnb.params.given import is_plain, parameters_given
from kdnb.params.param import Param
from kdnb.params.show import Parameters
from kdnb.params.table import TABLE


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
