"""Figures of evaluation, asserted on their data and on their titles."""

import math

import numpy as np
import pytest
import torch

from kdnb import plots
from kdnb.evaluation.quality import principal_components


def test_accuracy_curves_hold_the_values_and_the_references():
    curves = {"a probe": ([0, 10], [0.2, 0.6]), "a knn": ([0, 10], [0.1, 0.5])}
    axes = plots.accuracy_curves(curves, references={"teacher": 0.9, "raw pixels": 0.3}).axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.2, 0.6] and axes.lines[1].get_xdata().tolist() == [0, 10]
    assert sorted(line.get_ydata()[0] for line in axes.lines[2:]) == [0.3, 0.9]
    assert axes.get_title(loc="left") == "a probe ends at 0.600, +0.400 since its beginning"


def test_quality_has_a_panel_a_measure():
    figure = plots.quality_curves({name: {"run": ([0, 1], [0, value])} for value, name in enumerate("abcd")})
    drawn = [axes for axes in figure.axes if axes.lines]
    assert [axes.lines[0].get_ydata()[1] for axes in drawn] == [0, 1, 2, 3]


def test_confusion_shows_shares_of_the_true_class():
    axes = plots.confusion_matrix(torch.tensor([[3, 1], [0, 4]]), classes=["cat", "dog"]).axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 1]]
    assert "cat for dog, 25.0%; 87.5% right" in axes.get_title(loc="left")
    perfect = plots.confusion_matrix(torch.eye(2, dtype=torch.int64), classes=["cat", "dog"]).axes[0]
    assert perfect.get_title(loc="left").startswith("No test image is mistaken")


def test_a_map_has_one_cloud_a_class():
    points, labels = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), torch.tensor([0, 1, 1])
    axes = plots.feature_map(points, labels, classes=["a", "b"], explained=0.5).axes[0]
    assert [cloud.get_offsets().tolist() for cloud in axes.collections] == [[[0, 1]], [[2, 3], [4, 5]]]


def test_principal_components_are_the_directions_of_largest_variance():
    features = torch.zeros(4, 3)
    features[:, 2] = torch.tensor([3.0, -3, 3, -3])  # variance 9
    features[:, 0] = torch.tensor([1.0, 1, -1, -1])  # variance 1
    points, share = principal_components(features + 5)
    assert torch.allclose(points, torch.stack([features[:, 2], features[:, 0]], 1), atol=1e-5) and share == pytest.approx(1)
    assert principal_components(features, 1)[1] == pytest.approx(0.9)


def test_bands_are_one_standard_deviation_wide():
    curves = {"fixed": ([0, 64], np.array([[0.1, 0.5], [0.1, 0.7]])), "full": ([0, 64], np.array([[0.1, 0.9]]))}
    axes = plots.seed_bands(curves, references={"teacher": 0.95}).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([0.1, 0.6])
    edges = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edges.max() == pytest.approx(0.6 + 0.02**0.5)  # of 0.5 and 0.7, divided by n - 1
    assert "between 0.600 (fixed) and 0.900 (full)" in axes.get_title(loc="left")


def test_differences_show_mean_interval_and_every_seed():
    intervals = {"full": (1.0, 0.5, 1.5), "dealt": (0.2, -1.0, 1.4)}
    points = {"full": [0.8, 1.2], "dealt": [0.0, 0.4]}
    axes = plots.differences(intervals, points=points, baseline="fixed").axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0.8, 1.2]
    assert axes.get_title(loc="left").startswith("Zero lies outside the interval of full")
    one = plots.differences({"full": (1.0, -np.inf, np.inf)}, points={"full": [1.0]}, baseline="fixed").axes[0]
    assert one.get_title(loc="left").startswith("Every interval holds zero")
    equal = plots.differences({"full": (0.7, 0.7, 0.7)}, points={"full": [0.7, 0.7]}, baseline="fixed").axes[0]
    assert "no width" in equal.get_title(loc="left")  # which says nothing about another seed


def test_a_heat_map_frames_the_best_cell():
    values = {1.0: {0.0: 0.5, 0.7: 0.6}, 3.0: {0.0: 0.5, 0.7: 0.8}}
    axes, bar = plots.heat_map(values, xlabel="alpha", ylabel="temperature", measure="accuracy", examples=400).axes
    assert bar.get_ylabel() == "accuracy"
    assert axes.images[0].get_array().tolist() == [[0.5, 0.6], [0.5, 0.8]]
    assert axes.patches[-1].get_xy() == (0.5, 0.5)
    assert " ".join(axes.get_title(loc="left").split()) == "Best: 0.800 (0.758 to 0.836) at alpha 0.7, temperature 3"


def test_bars_carry_their_numbers():
    values = {"raw pixels": 0.91, "student": 0.5, "unknown": math.nan}
    axes = plots.bars(values, xlabel="accuracy", title="t", intervals={"student": (0.4, 0.65)}, reference=("chance", 0.1)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.91, 0.5, 0.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(values)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first is on top
    assert [text.get_text() for text in axes.texts] == ["0.910", "0.500", "n/a"]
    (whiskers,) = axes.collections
    assert np.allclose(whiskers.get_segments()[1], [[0.4, 1], [0.65, 1]])
    assert list(axes.lines[-1].get_xdata()) == [0.1, 0.1] and axes.get_xlabel() == "accuracy (dashed: chance 0.1)"


def test_bars_may_be_negative_large_or_none():
    axes = plots.bars({"a": -0.2, "b": 0.1}, xlabel="difference", title="t").axes[0]
    assert axes.get_xlim()[0] < -0.2 and axes.get_xlim()[1] > 0.1 and len(axes.patches) == 2
    assert plots.bars({"a": 12345.6}, xlabel="images/s", title="t").axes[0].texts[0].get_text() == "12,346"
    empty = plots.bars({}, xlabel="accuracy", title="no labels").axes[0]
    assert not empty.patches and empty.get_title(loc="left") == "no labels" and empty.texts[0].get_text() == "no values"


def test_names_of_references_that_lie_close_together_are_moved_apart():
    curves = {"fixed": ([0, 1], np.array([[0.0, 1.0]]))}
    axes = plots.seed_bands(curves, references={"teacher": 0.501, "raw pixels": 0.5, "random student": 0.1}).axes[0]
    heights = [text.xy[1] for text in axes.texts]
    assert heights == pytest.approx([0.1, 0.5, 0.56]) and axes.lines[-1].get_ydata()[0] == 0.501
