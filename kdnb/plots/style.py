"""What the figures share: size, colours (Okabe and Ito's, which colour-blind readers can tell apart), titles."""

import textwrap

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
