"""The figures of the notebooks: plain data in, a matplotlib Figure out, with a title that says what was found.

What a figure shows can be asserted through its axes' lines, patches and images.
"""

from kdnb.plots.comparison import comparison_figure
from kdnb.plots.evaluation import (
    accuracy_curves,
    bars,
    confusion_matrix,
    differences,
    feature_map,
    heat_map,
    quality_curves,
    seed_bands,
)
from kdnb.plots.images import image_grid, view_grid
from kdnb.plots.training import loss_curves, loss_parts, step_parts, step_time, visit_map

__all__ = [
    "accuracy_curves",
    "bars",
    "comparison_figure",
    "confusion_matrix",
    "differences",
    "feature_map",
    "heat_map",
    "image_grid",
    "loss_curves",
    "loss_parts",
    "quality_curves",
    "seed_bands",
    "step_parts",
    "step_time",
    "view_grid",
    "visit_map",
]
