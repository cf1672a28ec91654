"""Figures of losses: what they show is asserted on their data, and what their titles say on numbers worked out by hand."""

import numpy as np
import pytest

from kdnb import plots


def records(values, name="loss"):
    return [{"step": step + 1, name: value} for step, value in enumerate(values)]


def title(axes) -> str:
    return axes.get_title(loc="left").replace("\n", " ")


def test_loss_curves_draw_every_record_and_the_median():
    values = [4.0] * 40 + [9.0, 2.0, 1.0] + [1.0] * 37  # 80 records: medians of up to 2 neighbours on either side
    axes = plots.loss_curves({"a": records(values)}).axes[0]
    raw, smooth = axes.lines
    assert list(raw.get_ydata()) == values and list(raw.get_xdata()) == list(range(1, 81))
    assert list(smooth.get_ydata()) == [4.0] * 41 + [2.0] + [1.0] * 38
    assert title(axes) == "Loss fell by 75%, from 4 to 1, in 80 steps" and axes.get_legend() is None


def test_the_median_shrinks_at_the_ends():
    values = np.array([5.0, 1.0, 3.0, 2.0])
    assert plots.training._running_median(values, half=1).tolist() == [3, 3, 2, 2.5]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([2.0], "Loss stayed at 2 in 1 step"),
        ([0.5, 0.5, 0.5], "Loss stayed at 0.5 in 3 steps"),
        ([0.0, 0.0], "Loss stayed at 0 in 2 steps"),
        ([1.0, 1.5], "Loss rose, from 1 to 1.5, in 2 steps"),
        ([1.0, -1.0], "Loss fell, from 1 to -1, in 2 steps"),
    ],
)
def test_the_title_says_what_the_loss_did(values, expected):
    assert title(plots.loss_curves({"a": records(values)}).axes[0]) == expected


def test_several_runs_share_one_figure():
    histories = {"fixed": records([2.0, 1.0]), "random": records([2.0, 3.0]), "full": records([2.0, 1.5, 1.2])}
    axes = plots.loss_curves(histories).axes[0]
    assert len(axes.lines) == 6 and len({line.get_color() for line in axes.lines}) == 3
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fixed", "random", "full"]
    assert title(axes) == "fixed ends lowest: loss 1, against 3 for random"
    alike = plots.loss_curves({"a": records([2.0, 1.0]), "b": records([2.0, 1.001])}).axes[0]
    assert title(alike) == "All 2 runs end alike, at a loss of 1"


def test_more_runs_than_colours_differ_in_their_lines():
    axes = plots.loss_curves({f"run {number}": records([2.0, 1.0]) for number in range(9)}).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines[1::2]}) == 9


def test_other_parts_can_be_drawn_and_a_wide_range_is_logarithmic():
    axes = plots.loss_curves({"a": records([1.0, 0.1, 0.01], name="soft_targets")}, name="soft_targets").axes[0]
    assert axes.get_yscale() == "log" and "soft targets" in axes.get_ylabel()
    assert plots.loss_curves({"a": records([1.0, 0.1, 0.0])}).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("histories, which", [({}, ""), ({"a": records([1.0]), "b": []}, " for b")])
def test_without_records_there_is_nothing_to_draw(histories, which):
    with pytest.raises(ValueError, match=f"histories holds no step records{which}; train at least one step"):
        plots.loss_curves(histories)


def test_the_parts_of_a_loss_share_one_figure():
    rows = [{"step": 1, "soft_targets": 2.0, "cross_entropy": 1.0}, {"step": 2, "soft_targets": 1.0, "cross_entropy": 1.5}]
    axes = plots.loss_parts(rows, ["soft_targets", "cross_entropy"]).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["soft targets", "cross entropy"]
    assert [list(line.get_ydata()) for line in axes.lines[::2]] == [[2.0, 1.0], [1.0, 1.5]]
    assert title(axes) == "Soft targets fell by 50%, from 2 to 1; cross entropy rose, from 1 to 1.5"
    alone = plots.loss_parts(rows, ["cross_entropy"]).axes[0]
    assert title(alone) == "Cross entropy rose, from 1 to 1.5" and alone.get_legend() is None


@pytest.mark.parametrize("rows, names", [([], ["loss"]), (records([1.0]), [])])
def test_without_parts_there_is_nothing_to_draw(rows, names):
    with pytest.raises(ValueError, match="records or names is empty; give the steps of a run"):
        plots.loss_parts(rows, names)
