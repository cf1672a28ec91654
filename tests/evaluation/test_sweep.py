"""The comparison of regimes: what is planned is matched, what the pairs tell is worked out, a failure is told."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from kdnb import files
from kdnb.distributed import Preempted
from kdnb.evaluation import report, sweep
from kdnb.params import TABLE


@pytest.fixture
def parameters(cache):
    """Parameters of a comparison on a cache with shards of 10, 10 and 7 images."""
    given = dict.fromkeys(TABLE["compare_regimes"])
    given |= {"cache_dir": str(cache[0]), "regimes": "full random_samples random_shards dealt fixed", "seeds": [0, 3]}
    given |= {"subset_shards": 2, "batch_size": 4, "gradient_accumulation_steps": 1, "max_steps_per_epoch": None, "epochs": 2}
    given |= {"use_cached": True, "shuffle": "within_shards", "num_workers": 0, "persistent_workers": False, "image_size": 4}
    return given | {"resize": "crop", "cache_shard_size": 10}


def test_runs_of_a_seed_differ_in_the_regime_alone(parameters):
    planned = sweep.plan_runs("cmp", **parameters)
    assert [(run.regime, run.seed) for run in planned] == [(regime, seed) for seed in (0, 3) for regime in sweep.REGIMES]
    # 2 shards have at least 17 images: 4 steps of 4 in every regime.
    assert {run.parameters["max_steps_per_epoch"] for run in planned} == {4}
    subset = {"draw", "fixed_choice", "fixed_shards", "notebook", "random_subset_seed", "samples_per_epoch", "shards_per_epoch"}
    words = sweep.what_differs(planned)
    assert set(words.split("differ in ")[1].split(";")[0].split(", ")) == subset
    for run in planned:
        assert run.parameters["seed"] == run.seed and run.parameters["run_name"] == f"cmp/{run.regime}_seed{run.seed}"
        assert run.parameters.keys() == TABLE[run.notebook].keys()
        assert run.parameters.get("random_subset_seed", run.seed) == run.seed
    assert planned[1].parameters["samples_per_epoch"] == 20 and planned[4].parameters["fixed_shards"] == 2
    assert sweep.plan_runs("cmp", **parameters | {"subset_shards": 0.6}) == planned


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"regimes": "fixed half"}, "regimes is 'fixed half'; allowed are full, random_samples"),
        ({"regimes": "fixed fixed"}, "each at most once"),
        ({"seeds": [1, 1]}, "seeds is .1, 1.; give at least one seed, each at most once"),
        ({"subset_shards": 9}, "subset_shards is 9, but the cache holds 3 shards; choose 1 to 3"),
        ({"batch_size": 64}, "batch_size is 64, but a subset has 17 images"),
    ],
)
def test_a_plan_that_cannot_be_matched_is_refused(parameters, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweep.plan_runs("cmp", **parameters | changes)


def test_coverage_is_what_the_order_says(parameters):
    runs = {run.regime: run for run in sweep.plan_runs("cmp", **parameters) if run.seed == 0}
    fixed, dealt = sweep.coverage(runs["fixed"]), sweep.coverage(runs["dealt"])
    assert fixed["images"] == dealt["images"] == 32  # 2 epochs of 4 steps of 4
    assert fixed["unique_seen"] <= 20 and dealt["unique_seen"] > fixed["unique_seen"]
    assert dealt["share_of_cache"] == dealt["unique_seen"] / 27 and fixed["most_exposure"] == 2
    assert fixed["mean_exposure"] == pytest.approx(32 / fixed["unique_seen"])


@pytest.fixture
def sorted_cache(tmp_path):
    """Function that caches 120 pictures of four classes, 10 a shard, in the order that `permutation_seed` says."""
    from PIL import Image

    from kdnb.data.precompute import precompute
    from kdnb.data.sources import open_source

    for number in range(120):
        path = tmp_path / "photos" / "abcd"[number // 30] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)

    def fill(permutation_seed) -> str:
        folder = tmp_path / f"cache_{permutation_seed}"
        settings = {"image_size": 4, "cache_shard_size": 10, "permutation_seed": permutation_seed}
        precompute(open_source(str(tmp_path / "photos")), folder, **settings)
        return str(folder)

    return fill


def covered(parameters: dict) -> tuple[list, list]:
    planned = sweep.plan_runs("cmp", **parameters)
    return planned, [sweep.coverage(run) for run in planned]


def test_regimes_that_cover_other_classes_are_told_before_and_after(parameters, sorted_cache):
    parameters |= {"epochs": 4, "subset_shards": 3, "regimes": "random_samples fixed"}
    planned, found = covered(parameters | {"cache_dir": sorted_cache(None)})
    fixed = found[[run.regime for run in planned].index("fixed")]
    assert fixed["missing_classes"] and "of 4 classes" in fixed["classes"]
    warning = sweep.confounded(planned, found)
    assert warning.startswith("WARNING: the regimes differ in the classes") and "random_samples (seed 0) 4 of 4" in warning
    assert sweep.confounded(*covered(parameters | {"cache_dir": sorted_cache(0)})) is None


def test_all_classes_but_unevenly_is_told_as_well(parameters, sorted_cache):
    parameters |= {"cache_dir": sorted_cache(None), "regimes": "fixed", "subset_shards": 7, "seeds": list(range(8))}
    planned, found = covered(parameters)
    uneven = [(run, seen) for run, seen in zip(planned, found, strict=True) if not seen["missing_classes"]]
    assert uneven and "no fair sample" in sweep.confounded(*zip(*uneven, strict=True))


def test_images_without_labels_have_no_classes_to_differ_in(parameters, tmp_path, make_cache):
    make_cache(tmp_path / "unlabelled", labelled=False)
    planned, found = covered(parameters | {"cache_dir": str(tmp_path / "unlabelled")})
    assert "without labels" in found[0]["classes"] and sweep.confounded(planned, found) is None


def test_differences_are_paired_by_seed_and_in_points():
    scores = {"fixed": [0.50, 0.60, 0.70], "full": [0.51, 0.61, 0.71], "dealt": [0.49, 0.62, 0.70]}
    found = sweep.compare_regimes(scores, baseline="fixed")
    assert list(found) == ["full", "dealt"]
    assert found["full"]["differences"] == pytest.approx([1, 1, 1]) and found["full"]["mean"] == pytest.approx(1)
    assert found["full"]["p"] == 0.25  # of 8 sign patterns only all plus and all minus are as large
    assert found["full"]["p_holm"] == 0.5
    # -1, 2, 0: standard deviation sqrt(7 / 3).
    assert found["dealt"]["sd"] == pytest.approx((7 / 3) ** 0.5) and found["dealt"]["seeds_for_one_point"] == 21


@pytest.mark.parametrize("scores", [{"fixed": [0.5], "full": [0.6]}, {"fixed": [0.5, 0.6], "full": [0.5, 0.6]}])
def test_one_seed_or_equal_scores_can_be_written(scores):
    found = sweep.compare_regimes(scores, baseline="fixed")
    assert not np.isfinite(found["full"]["effect_size"])
    written = json.loads(json.dumps(sweep.plain({"tests": found}), allow_nan=False))["tests"]["full"]
    assert written["effect_size"] is None and written["differences"] == found["full"]["differences"]


def test_curves_collect_the_seeds_of_a_regime():
    evaluations = [
        report.Evaluation([{"model": "teacher", "images_seen": 0, "probe": 1.0}] + [
            {"model": model, "images_seen": seen, "probe": value} for model, seen, value in parts
        ], {})
        for parts in ([("random student", 0, 0.1), ("student", 32, 0.5)], [("random student", 0, 0.2), ("student", 32, 0.7)])
    ]  # fmt: skip
    planned = [sweep.Planned("fixed", seed, "train_fixed", {}) for seed in (0, 1)]
    (seen, values) = report.regime_curves(planned, evaluations)["fixed"]
    assert seen == [0, 32] and np.array_equal(values, [[0.1, 0.5], [0.2, 0.7]])
    references = {"raw pixels": 0.2, "random student": 0.1, "teacher": 1.0}
    assert report.gap_closed(0.6, references) == pytest.approx(0.5)
    assert report.gap_closed(0.6, references | {"teacher": 0.2}) is None
    assert report.describe_gap(0.6, references) == "gap closed 50%"
    assert report.describe_gap(0.6, references | {"teacher": 0.2}).startswith("no gap to close")


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


_SLOW_TO_END = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: (time.sleep(0.5), pathlib.Path(sys.argv[1]).touch(), sys.exit(75)))
os.kill(os.getppid(), signal.SIGINT)  # the notebook's stop button
time.sleep(60)
"""


def test_interrupted_it_waits_until_its_runs_have_written_what_they_go_on_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "anchored", lambda path: tmp_path)
    command = [sys.executable, "-c", _SLOW_TO_END, tmp_path / "ended"]
    monkeypatch.setattr(sweep, "_start", lambda run, parallel: subprocess.Popen(command))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(Preempted, match="run this cell again: what is finished is kept"):
        sweep.run_all([sweep.Planned("fixed", 0, "train_fixed", {"run_name": "a"})], parallel=1)
    signal.signal(signal.SIGINT, before)
    assert (tmp_path / "ended").exists()


_HOLD = """
import sys, time
from pathlib import Path
from kdnb.files import only_process
with only_process(Path(sys.argv[1]) / "cmp/.lock"):
    print("held", flush=True)
    time.sleep(0.5)
    (Path(sys.argv[1]) / "cmp/a").mkdir()
    (Path(sys.argv[1]) / "cmp/a/summary.json").touch()
"""


def test_a_second_job_waits_for_the_first_and_finds_what_it_has_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "anchored", lambda path: tmp_path)
    monkeypatch.setattr(sweep, "_start", lambda run, parallel: pytest.fail("it was executed twice"))
    monkeypatch.setattr(files, "_PATIENCE", 1)  # as if the other job had the file for longer than a second
    (tmp_path / "cmp").mkdir()
    first = subprocess.Popen([sys.executable, "-c", _HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    sweep.run_all([sweep.Planned("fixed", 0, "train_fixed", {"run_name": "cmp/a"})], parallel=1)
    said = capsys.readouterr().out
    assert f"is held by process {first.pid} on" in said and "1 runs, 1 of them finished before" in said
    first.communicate()
