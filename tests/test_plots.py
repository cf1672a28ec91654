"""Figures: what they show is asserted on their data."""

import numpy as np
import pytest
import torch

from kdnb import plots


def records(values, name="loss"):
    return [{"step": step + 1, name: value} for step, value in enumerate(values)]


def test_loss_curves_draw_every_step_and_the_median():
    figure = plots.loss_curves({"a": records([4.0, 9.0, 2.0, 1.0, 1.0])})
    raw, smooth = figure.axes[0].lines
    assert raw.get_ydata().tolist() == [4, 9, 2, 1, 1] and raw.get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert smooth.get_ydata().tolist() == [6.5, 4, 2, 1, 1]  # medians of up to one neighbour on either side
    assert figure.axes[0].get_title() == "loss from 6.5 to 1"


def test_several_runs_share_one_figure():
    figure = plots.loss_curves({"fixed": records([2.0, 1.0]), "random": records([2.0, 3.0])})
    assert len(figure.axes[0].lines) == 4
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["fixed", "random"]


def test_one_step_is_enough():
    assert len(plots.loss_curves({"a": records([1.0])}).axes[0].lines) == 2


def test_visits_are_counted_and_binned():
    visits = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=np.uint8)
    figure = plots.visit_map(visits, shard_sizes=(2, 2))
    above, below = figure.axes[:2]
    assert above.images[0].get_array().tolist() == visits.tolist()
    assert above.get_title() == "3 of 4 images seen (75%), each 1.3 times on average"
    assert [bar.get_height() for bar in below.patches] == [1, 2, 1]  # never, once, twice


def test_a_large_cache_is_binned_to_shares():
    visits = np.zeros((3, 60_000), dtype=np.uint8)
    visits[:, :30_000:2] = 1
    shown = plots.visit_map(visits, shard_sizes=(2000,) * 30).axes[0].images[0].get_array()
    assert shown.shape == (3, 600) and np.allclose(shown[:, :300], 0.5) and not shown[:, 300:].any()


def test_time_is_stacked_and_the_share_named():
    figure = plots.step_time([{"epoch": 0, "data_wait_s": 1.0, "step_s": 3.0}, {"epoch": 1, "data_wait_s": 0.0, "step_s": 4.0}])
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [3, 4, 1, 0] and figure.axes[0].get_title() == "Waiting for data took 12.5% of the training time"


def test_bars_carry_their_numbers():
    figure = plots.bars({"raw pixels": 0.91, "student": 0.5}, xlabel="accuracy", title="t", errors={"student": 0.1})
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.91, 0.5]
    assert [text.get_text() for text in axes.texts] == ["0.910", "0.500"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_views_are_shown_without_normalisation(dtype):
    images = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    stored = images if dtype == torch.uint8 else (images / 255 - 0.5) / 0.2
    views = [(torch.full((2, 3, 5, 5), 0.75) - 0.5) / 0.2]
    figure = plots.view_grid(stored, views, mean=(0.5,) * 3, std=(0.2,) * 3)
    pictures = [axes.images[0].get_array() for axes in figure.axes]
    assert [picture.shape for picture in pictures] == [(4, 4, 3)] * 2 + [(5, 5, 3)] * 2
    assert np.allclose(pictures[0], 0.2) and np.allclose(pictures[-1], 0.75)


def test_the_grid_of_stored_images_leaves_no_hole():
    images = torch.randint(0, 256, (10, 3, 4, 4), dtype=torch.uint8)
    figure = plots.image_grid(images, titles=[str(n) for n in range(10)])
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 10 and shown[9].get_title() == "9"
    assert np.array_equal(shown[9].images[0].get_array(), images[9].permute(1, 2, 0))
