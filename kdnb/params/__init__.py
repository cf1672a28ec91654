"""The one table of notebook parameters, and the check of what a notebook was given."""

from kdnb.params.notebook import ParameterError, arguments_of, check_params, names_for, params_for
from kdnb.params.table import TABLE

__all__ = ["TABLE", "ParameterError", "arguments_of", "check_params", "names_for", "params_for"]
