"""The one table of notebook parameters, and the check of what a notebook was given."""

from kdnb.params.check import ParameterError, check_params, names_for, params_for

__all__ = ["ParameterError", "check_params", "names_for", "params_for"]
