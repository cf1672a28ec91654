"""The one table of notebook parameters, and the check of what a notebook was given."""

from kdnb.params.notebook import ParameterError, check_params, names_for, params_for
from kdnb.params.table import TABLE

__all__ = ["TABLE", "ParameterError", "check_params", "names_for", "params_for"]
