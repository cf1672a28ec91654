"""kdnb: knowledge distillation from Jupyter notebooks."""

from importlib.metadata import version

__version__ = version("kdnb")
