"""Figures of a training run, asserted on their data, and what their titles say on numbers worked out by hand."""

import numpy as np
import pytest

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


def test_step_parts_stack_the_wait_on_the_step():
    rows = {"raw": {"step_ms": 30.0, "wait_ms": 10.0}, "shards": {"step_ms": 19.0, "wait_ms": 1.0}}
    axes = plots.step_parts(rows).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [30, 19, 10, 1] and [bar.get_x() for bar in axes.patches[2:]] == [30, 19]
    assert [text.get_text() for text in axes.texts] == ["40 ms, 25% waiting", "20 ms, 5% waiting"]
    assert "shards: 2.0 times as fast as raw" in axes.get_title(loc="left")


# --- losses


def records(values, name="loss"):
    return [{"step": step + 1, name: value} for step, value in enumerate(values)]


def test_loss_curves_draw_every_record_and_the_median():
    values = [4.0] * 40 + [9.0, 2.0, 1.0] + [1.0] * 37  # 80 records: medians of up to 2 neighbours on either side
    axes = plots.loss_curves({"a": records(values)}).axes[0]
    raw, smooth = axes.lines
    assert list(raw.get_ydata()) == values and list(raw.get_xdata()) == list(range(1, 81))
    assert list(smooth.get_ydata()) == [4.0] * 41 + [2.0] + [1.0] * 38
    assert title(axes) == "Loss fell by 75%, from 4 to 1, in 80 steps" and axes.get_legend() is None


def test_the_median_shrinks_at_the_ends():
    values = [5.0, 1.0] + [3.0] * 36 + [3.0, 2.0]  # 40 records: medians of up to one neighbour on either side
    smooth = plots.loss_curves({"a": records(values)}).axes[0].lines[1].get_ydata()
    assert [smooth[0], smooth[1], smooth[-2], smooth[-1]] == [3, 3, 3, 2.5]


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
