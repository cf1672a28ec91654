"""The one table of notebook parameters, and the check of what a notebook was given."""

from kdnb.params.check import check_params, names_for
from kdnb.params.table import PARAMS

__all__ = ["PARAMS", "check_params", "names_for"]
