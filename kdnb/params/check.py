"""The check of what a notebook was given.

Papermill hands YAML's `1e-3` over as a string, `-p flag false` as a string, too, and only logs a name that it does not know.
`check_params` therefore stands in the first cell after the parameters: it converts what is meant clearly, and reports
everything else in one error.
"""

import difflib
from collections.abc import Mapping
from types import FunctionType, ModuleType, SimpleNamespace

from kdnb.params.table import PARAMS


def names_for(notebook: str) -> list[str]:
    """Names of the parameters of `notebook`, in the table's order."""
    return [name for name, row in PARAMS.items() if notebook in row.notebooks]


def check_params(values: Mapping, notebook: str) -> SimpleNamespace:
    """The notebook's parameters, converted and checked.

    Args:
        values: `globals()` of the notebook, in the first cell after the parameters. Imports and names with an underscore
            are passed over; every other name is taken for a parameter that somebody meant.
        notebook: the notebook's name, as in the table.

    Returns:
        A namespace with one attribute a parameter; `vars()` of it goes into the run's config.

    Raises:
        ValueError: one sentence for every fault: an unknown name (with the nearest known one), a missing parameter, a value
            that is no such type or outside its range.
    """
    known, faults, checked = names_for(notebook), [], {}
    for name in (name for name, value in values.items() if _is_parameter(name, value)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            others = PARAMS[name].notebooks if name in PARAMS else ()
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}."
            hint = f"it belongs to {', '.join(others)}." if others else hint
            faults.append(f"{notebook} has no parameter {name} (given: {values[name]!r}); {hint}")
    for name in known:
        if name not in values:
            faults.append(f"{name} is missing; add it to the notebook's parameters cell.")
            continue
        try:
            checked[name] = PARAMS[name].convert(values[name])
        except (ValueError, TypeError, OverflowError):
            faults.append(f"{name} is {values[name]!r}; allowed is {PARAMS[name].allowed()} ({PARAMS[name].help}).")
    if faults:
        raise ValueError("\n".join(faults))
    return SimpleNamespace(**checked)


def _is_parameter(name: str, value) -> bool:
    interactive = name in ("In", "Out", "exit", "quit", "open", "get_ipython")
    return not (name.startswith("_") or interactive or isinstance(value, (ModuleType, FunctionType, type)))
