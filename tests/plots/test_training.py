"""Figures: what they show is asserted on their data, and what their titles say on numbers worked out by hand."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from kdnb import plots


def title(axes) -> str:
    return axes.get_title(loc="left").replace("\n", " ")


def test_visits_are_counted():
    visits = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=np.uint8)
    above, below = plots.visit_map(visits, shard_sizes=(2, 2)).axes[:2]
    assert above.images[0].get_array().tolist() == visits.tolist()
    assert title(above) == "3 of 4 images seen (75%), each 1.3 times on average"
    assert [path.vertices[0, 0] for path in above.collections[0].get_paths()] == [2]  # one border between two shards
    assert [bar.get_height() for bar in below.patches] == [1, 2, 1]  # never, once, twice
    assert [text.get_text() for text in below.texts] == ["1", "2", "1"]


@pytest.mark.parametrize(
    "visits, expected",
    [
        (np.ones((1, 40), int), "40 of 40 images seen (100%), each once"),
        (np.ones((300, 3), np.uint8), "3 of 3 images seen (100%), each 300 times"),  # more than a byte counts to
        (np.eye(3, 2000, dtype=int), "3 of 2,000 images seen (<1%), each once"),
        (np.ones((1, 2000), int) - np.eye(1, 2000, dtype=int), "1,999 of 2,000 images seen (>99%), each once"),
        (np.zeros((2, 5), int), "0 of 5 images seen (0%)"),
    ],
)
def test_coverage_is_told_honestly(visits, expected):
    assert title(plots.visit_map(visits, shard_sizes=[visits.shape[1]]).axes[0]) == expected


def test_a_large_cache_is_binned_to_shares():
    visits = np.zeros((3, 60_000), dtype=np.uint8)
    visits[:, :30_000:2] = 1
    above = plots.visit_map(visits, shard_sizes=(600,) * 100).axes[0]
    shown = above.images[0].get_array()
    assert shown.shape == (3, 600) and np.allclose(shown[:, :300], 0.5) and not shown[:, 300:].any()
    assert not above.collections  # a hundred borders would hide the picture


def test_bins_that_do_not_divide_the_cache_keep_the_mean():
    visits = np.arange(1501)[None] % 2
    shown = plots.visit_map(visits, shard_sizes=(1501,)).axes[0].images[0].get_array()
    assert shown.shape == (1, 600) and set(np.round(np.unique(shown), 6)) <= {0.333333, 0.5, 0.666667}


def test_time_is_stacked_and_the_share_named():
    axes = plots.step_time(
        [{"epoch": 0, "data_wait_s": 1.0, "step_s": 3.0}, {"epoch": 1, "data_wait_s": 0.0, "step_s": 96.0}]
    ).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [3, 96, 1, 0]
    assert [bar.get_y() for bar in axes.patches] == [0, 0, 3, 96]
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches[:2]] == [1, 2]
    assert title(axes) == "Waiting for data took 1.0% of 1 min 40 s"


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_one_epoch_is_enough(seconds):
    axes = plots.step_time([{"epoch": 4, "data_wait_s": 0.0, "step_s": seconds}]).axes[0]
    assert axes.get_xlim() == (4.2, 5.8) and len(axes.patches) == 2


def test_bars_carry_their_numbers():
    values = {"raw pixels": 0.91, "student": 0.5, "unknown": math.nan}
    axes = plots.bars(values, xlabel="accuracy", title="t", errors={"student": 0.1}, reference=("chance", 0.1)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.91, 0.5, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(values)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first is on top
    assert [text.get_text() for text in axes.texts] == ["0.910", "0.500", "n/a"]
    (whiskers,) = axes.collections
    assert np.allclose(whiskers.get_segments()[1], [[0.4, 1], [0.6, 1]])
    assert list(axes.lines[-1].get_xdata()) == [0.1, 0.1] and axes.get_xlabel() == "accuracy (dashed: chance 0.1)"


def test_bars_may_be_negative_large_or_none():
    axes = plots.bars({"a": -0.2, "b": 0.1}, xlabel="difference", title="t").axes[0]
    assert axes.get_xlim()[0] < -0.2 and axes.get_xlim()[1] > 0.1 and len(axes.patches) == 2
    assert plots.bars({"a": 12345.6}, xlabel="images/s", title="t").axes[0].texts[0].get_text() == "12,346"
    empty = plots.bars({}, xlabel="accuracy", title="no labels").axes[0]
    assert not empty.patches and title(empty) == "no labels" and empty.texts[0].get_text() == "no values"


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


def test_a_notebook_shows_a_figure_once(tmp_path):
    cells = ["from kdnb import plots", "plots.bars({'a': 1.0}, xlabel='x', title='t')"]
    notebook = {"cells": [], "metadata": {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}}
    for number, source in enumerate(cells):
        cell = {"id": f"c{number}", "cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
        notebook["cells"].append(cell | {"source": source})
    (tmp_path / "in.ipynb").write_text(json.dumps(notebook | {"nbformat": 4, "nbformat_minor": 5}))
    command = [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--no-progress-bar"]
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    outputs = json.loads((tmp_path / "out.ipynb").read_text())["cells"][-1]["outputs"]
    assert ["image/png" in output.get("data", {}) for output in outputs] == [True]


def test_step_parts_stack_the_wait_on_the_step():
    rows = {"raw": {"step_ms": 30.0, "wait_ms": 10.0}, "shards": {"step_ms": 19.0, "wait_ms": 1.0}}
    axes = plots.step_parts(rows).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [30, 19, 10, 1] and [bar.get_x() for bar in axes.patches[2:]] == [30, 19]
    assert [text.get_text() for text in axes.texts] == ["40 ms, 25% waiting", "20 ms, 5% waiting"]
    assert "shards: 2.0 times as fast as raw" in axes.get_title(loc="left")
