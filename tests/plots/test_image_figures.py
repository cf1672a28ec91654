"""Pictures of images, and that a notebook shows each figure once."""

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from kdnb import plots


@pytest.mark.parametrize("stored", ["uint8", "float16"])
def test_views_are_shown_below_the_images_as_they_were_before_storing(stored):
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    shift, scale = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    if stored == "float16":
        images = ((images / 255 - shift) / scale).half()
    views = [torch.full((2, 3, 5, 8), value).bfloat16() for value in (0.75, 1.5)]
    axes = plots.view_grid(images, views, mean=mean, std=std, titles=["global", "too bright"]).axes[0]
    pictures = [image.get_array() for image in axes.images]
    assert [picture.shape for picture in pictures] == [(4, 4, 3)] * 2 + [(5, 8, 3)] * 4
    for picture, value in zip(pictures, [0.2, 0.2, 0.75, 0.75, 1.0, 1.0], strict=True):
        assert np.allclose(picture, value, atol=0.01)  # bfloat16 has 8 bits; what is out of range is clipped
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cached\n4×4", "global\n8×5", "too bright\n8×5"]
    left, right, bottom, top = axes.images[2].get_extent()
    assert right - left == pytest.approx(1) and bottom - top == pytest.approx(5 / 8)  # no view is stretched


def test_views_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"views\[0\] holds 3 images, but images holds 2"):
        plots.view_grid(torch.zeros(2, 3, 4, 4), [torch.zeros(3, 3, 4, 4)])


def test_the_grid_of_stored_images_goes_row_by_row():
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    axes = plots.image_grid(images, titles=[str(n) for n in range(10)], columns=8).axes[0]
    assert len(axes.images) == 10 and [text.get_text() for text in axes.texts] == [str(n) for n in range(10)]
    assert np.array_equal(axes.images[9].get_array(), images[9].permute(1, 2, 0))
    place = [image.get_extent() for image in axes.images]  # left, right, bottom, top; rows count downwards
    assert place[9][0] == place[1][0] > place[0][0] and place[8][3] > place[0][2]
    below = axes.texts[9].get_position()
    assert place[9][0] < below[0] < place[9][1] and below[1] > place[9][2]


def test_a_notebook_shows_a_figure_once(monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    cells = ["from kdnb import plots", "plots.bars({'a': 1.0}, xlabel='x', title='t')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    NotebookClient(notebook, kernel_name="python3").execute()
    assert ["image/png" in output.get("data", {}) for output in notebook.cells[-1].outputs] == [True]
