"""The one table of notebook parameters; their values, checked, shown and passed on."""

from kdnb.params.table import FREE, TABLE
from kdnb.params.values import ParameterError, arguments_of, check_params, checked, convert_values, resolve

__all__ = ["FREE", "TABLE", "ParameterError", "arguments_of", "check_params", "checked", "convert_values", "resolve"]
