"""What the figures share: size, colours (Okabe and Ito's, which colour-blind readers can tell apart), titles."""

import math
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(rows: int = 1, *, size: tuple[float, float] = (7.0, 3.8), **settings):
    """A figure and its axes; closed at once for pyplot, so that a notebook shows it once and nothing keeps it alive."""
    import matplotlib.pyplot as plt  # in a notebook, this import is what makes figures show as pictures

    figure, axes = plt.subplots(rows, figsize=size, layout="constrained", **settings)
    plt.close(figure)
    for one in np.ravel(axes):
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=11)
        one.xaxis.label.set_size(12)
        one.yaxis.label.set_size(12)
    return figure, axes


def set_title(axes, text: str, *, width: int = 66):
    """A title at the left, wrapped at `width` characters."""
    axes.set_title(textwrap.fill(text, width), loc="left", fontsize=12.5)


def whole_numbers(axis):
    """Ticks of an axis at whole numbers alone, with thousands apart."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axis.set_major_formatter("{x:,.0f}")


def annotate_end(axes, text: str, x: float, y: float, *, left: bool = False, **look):
    """Write `text` beside the end of a horizontal bar, on the right of it or on the `left`."""
    place = {"xytext": (-4 if left else 4, 0), "textcoords": "offset points", "va": "center", "ha": "right" if left else "left"}
    axes.annotate(text, (x, y), **place, **look)


def reference_lines(axes, references: Mapping[str, float], values: Iterable[float]):
    """A dashed line for each reference, named at its right end; names of lines that lie close together are moved apart.

    Args:
        values: all that is drawn, which tell how high a line of text is.
    """
    values = [*values, *references.values()]
    height, last = 0.06 * (max(values) - min(values) or 1), -math.inf
    for name, value in sorted(references.items(), key=lambda item: item[1]):
        axes.axhline(value, color="0.35", linestyle=(0, (4, 3)), linewidth=1.1)
        last = max(value, last + height)
        axes.annotate(f"{name} {value:.3f}", (1.01, last), xycoords=("axes fraction", "data"), va="center", fontsize=10.5)
