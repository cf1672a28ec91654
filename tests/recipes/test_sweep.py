"""The comparison of regimes: what is planned is matched, what the pairs tell is worked out, a failure is told."""

from types import SimpleNamespace

import numpy as np
import pytest

from kdnb.params import names_for
from kdnb.recipes import sweep, tables


@pytest.fixture
def parameters(cache):
    """Parameters of a comparison on a cache with shards of 10, 10 and 7 images."""
    given = dict.fromkeys(names_for("compare_regimes"))
    given |= {"cache_dir": str(cache[0]), "regimes": "full random_samples random_shards dealt fixed", "seeds": [0, 3]}
    given |= {"subset_shards": 2, "batch_size": 4, "gradient_accumulation_steps": 1, "max_steps_per_epoch": None, "epochs": 2}
    given |= {"use_cached": True, "shuffle": "within_shards", "num_workers": 0, "persistent_workers": False, "image_size": 4}
    return given | {"resize": "crop", "cache_shard_size": 10}


def test_runs_of_a_seed_differ_in_the_regime_alone(parameters):
    planned = sweep.plan_runs(SimpleNamespace(**parameters), "cmp")
    assert [(run.regime, run.seed) for run in planned] == [(regime, seed) for seed in (0, 3) for regime in sweep.REGIMES]
    # 2 shards have at least 17 images: 4 steps of 4 in every regime.
    assert {run.parameters["max_steps_per_epoch"] for run in planned} == {4}
    subset = {"draw", "fixed_choice", "fixed_shards", "notebook", "random_subset_seed", "samples_per_epoch", "shards_per_epoch"}
    words = sweep.what_differs(planned)
    assert set(words.split("differ in ")[1].split(";")[0].split(", ")) == subset
    for run in planned:
        assert run.parameters["seed"] == run.seed and run.parameters["run_name"] == f"cmp/{run.regime}_seed{run.seed}"
        assert run.parameters.keys() == set(names_for(run.notebook))
        assert run.parameters.get("random_subset_seed", run.seed) == run.seed
    assert planned[1].parameters["samples_per_epoch"] == 20 and planned[4].parameters["fixed_shards"] == 2


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"regimes": "fixed half"}, "regimes is 'fixed half'; allowed are full, random_samples"),
        ({"regimes": "fixed fixed"}, "each at most once"),
        ({"seeds": [1, 1]}, "seeds is .1, 1.; give at least one seed, each at most once"),
        ({"subset_shards": 9}, "subset_shards is 9, but the cache holds 3 shards; lower it"),
        ({"batch_size": 64}, "batch_size is 64, but a subset has 17 images"),
    ],
)
def test_a_plan_that_cannot_be_matched_is_refused(parameters, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweep.plan_runs(SimpleNamespace(**parameters | changes), "cmp")


def test_coverage_is_what_the_order_says(parameters):
    runs = {run.regime: run for run in sweep.plan_runs(SimpleNamespace(**parameters), "cmp") if run.seed == 0}
    fixed, dealt = sweep.coverage(runs["fixed"]), sweep.coverage(runs["dealt"])
    assert fixed["images"] == dealt["images"] == 32  # 2 epochs of 4 steps of 4
    assert fixed["unique_seen"] <= 20 and dealt["unique_seen"] > fixed["unique_seen"]
    assert dealt["share_of_cache"] == dealt["unique_seen"] / 27 and fixed["most_exposure"] == 2
    assert fixed["mean_exposure"] == pytest.approx(32 / fixed["unique_seen"])


def test_differences_are_paired_by_seed_and_in_points():
    scores = {"fixed": [0.50, 0.60, 0.70], "full": [0.51, 0.61, 0.71], "dealt": [0.49, 0.62, 0.70]}
    found = sweep.compare(scores, baseline="fixed")
    assert list(found) == ["full", "dealt"]
    assert found["full"]["differences"] == pytest.approx([1, 1, 1]) and found["full"]["mean"] == pytest.approx(1)
    assert found["full"]["p"] == 0.25  # of 8 sign patterns only all plus and all minus are as large
    assert found["full"]["p_holm"] == 0.5
    # -1, 2, 0: standard deviation sqrt(7 / 3).
    assert found["dealt"]["sd"] == pytest.approx((7 / 3) ** 0.5) and found["dealt"]["seeds_for_one_point"] == 21


def test_curves_collect_the_seeds_of_a_regime():
    lines = [
        [{"model": "teacher", "images_seen": 0, "probe": 1.0}] + [
            {"model": model, "images_seen": seen, "probe": value} for model, seen, value in parts
        ]
        for parts in ([("random student", 0, 0.1), ("student", 32, 0.5)], [("random student", 0, 0.2), ("student", 32, 0.7)])
    ]  # fmt: skip
    planned = [sweep.Planned("fixed", seed, "train_fixed", {}) for seed in (0, 1)]
    (seen, values) = tables.regime_curves(planned, lines)["fixed"]
    assert seen == [0, 32] and np.array_equal(values, [[0.1, 0.5], [0.2, 0.7]])
    references = {"raw pixels": 0.2, "random student": 0.1, "teacher": 1.0}
    assert tables.share_of_gap(0.6, references) == pytest.approx(0.5)
    assert tables.share_of_gap(0.6, references | {"teacher": 0.2}) is None


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "anchored", lambda path: tmp_path)
    monkeypatch.setenv("KDNB_PROGRESS", "text")
    done = tmp_path / "cmp" / "done"
    done.mkdir(parents=True)
    (done / "summary.json").write_text("{}")
    names = ("cmp/done", "cmp/bad")
    planned = [sweep.Planned("fixed", 0, "train_fixed", {"run_name": name, "batch_size": 0}) for name in names]
    with pytest.raises(RuntimeError, match="1 of 1 runs failed; what is finished is kept. bad: .*batch_size is 0"):
        sweep.run_all(planned, parallel=1)
    assert "2 runs, 1 of them finished before" in capsys.readouterr().out
    assert (tmp_path / "cmp" / "bad.ipynb").exists()
