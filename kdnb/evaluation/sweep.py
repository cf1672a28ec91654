"""The same training under several sampling regimes and seeds, through papermill, and what the pairs of seeds tell.

Everything but the regime is equal for the runs of one seed: steps, batch, schedule, shuffling, first weights, views. The
subset's size is given in shards and is the same for every regime that has a subset.
"""

import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from kdnb.data.audit import class_coverage
from kdnb.data.cache import read_index
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.order import Order
from kdnb.distributed import Preempted
from kdnb.evaluation.statistics import effect_size, holm, mean_interval, paired_permutation_test, seeds_needed
from kdnb.files import only_process
from kdnb.params import TABLE, arguments_of
from kdnb.progress import Display
from kdnb.runs import anchored, project_root

REGIMES = ("full", "random_samples", "random_shards", "dealt", "fixed")


@dataclass(frozen=True)
class Planned:
    """One run to be made: a training notebook with all of its parameters."""

    regime: str
    seed: int
    notebook: str
    parameters: dict

    @property
    def folder(self) -> Path:
        return anchored("outputs") / self.parameters["run_name"]


def plan_runs(
    name: str, *, regimes: str, seeds: Sequence[int], subset_shards: int | float, shards: Sequence[int] | None = None, **training
) -> list[Planned]:
    """Every regime of `regimes` with every seed of `seeds`, seeds outermost; runs go to outputs/`name`/.

    An epoch has as many optimizer steps in every regime: `max_steps_per_epoch`, or what the subset allows.

    Args:
        subset_shards: how many, or a share below 1 of all. shards: rows of each shard; None: the cache's.
        training: the parameters of the training notebooks, the same for all runs; others are left out.

    Raises:
        ValueError: an unknown regime, a regime or seed given twice, a cache with too few shards or a subset too small
            for a step.
    """
    names, batch_size, cap = regimes.replace(",", " ").split(), training["batch_size"], training["max_steps_per_epoch"]
    if not names or not set(names) <= set(REGIMES) or len(set(names)) < len(names):
        raise ValueError(f"regimes is {regimes!r}; allowed are {', '.join(REGIMES)}, each at most once.")
    if len(set(seeds)) < len(seeds) or not seeds or min(seeds) < 0:
        raise ValueError(f"seeds is {seeds}; give at least one seed, each at most once, all 0 or larger.")
    if shards is None:
        shards = [shard["rows"] for shard in read_index(anchored(training["cache_dir"]))["shards"]]
    if not 0 < subset_shards <= len(shards):
        raise ValueError(
            f"subset_shards is {subset_shards}, but the cache holds {len(shards)} shards; choose 1 to {len(shards)}."
        )
    subset_shards = int(subset_shards) or max(round(subset_shards * len(shards)), 1)
    drawn = Order(shard_sizes=tuple(shards), regime="random", shards_per_epoch=subset_shards)
    smallest = drawn.smallest_epoch  # the last shard may be short
    possible = smallest // (batch_size * training["gradient_accumulation_steps"])
    steps = possible if cap is None else min(possible, cap)
    if not steps:
        raise ValueError(f"batch_size is {batch_size}, but a subset has {smallest} images; raise subset_shards or lower it.")
    samples = min(subset_shards * max(shards), sum(shards))
    by_sample = {"samples_per_epoch": samples, "shards_per_epoch": None}
    by_shard = {"samples_per_epoch": None, "shards_per_epoch": subset_shards}
    subset: dict[str, tuple[str, dict]] = {
        "full": ("train_optimized", {"tour_steps": 0}),
        "random_samples": ("train_random", by_sample | {"draw": "independent"}),
        "random_shards": ("train_random", by_shard | {"draw": "independent"}),
        "dealt": ("train_random", by_sample | {"draw": "dealt"}),
        "fixed": ("train_fixed", {"fixed_shards": subset_shards, "fixed_choice": "seeded"}),
    }
    planned = []
    for seed in seeds:
        for regime in names:
            notebook, own = subset[regime]
            own = own | ({} if regime == "full" else {"random_subset_seed": seed})
            own |= {"seed": seed, "run_name": f"{name}/{regime}_seed{seed}", "max_steps_per_epoch": steps, "eval_split": None}
            own |= {"processes": 1, "save_every_steps": None, "keep_checkpoints": None}  # a checkpoint an epoch, all kept
            shared = {parameter: value for parameter, value in training.items() if parameter in TABLE[notebook]}
            planned.append(Planned(regime, seed, notebook, shared | own))
    return planned


def what_differs(planned: Sequence[Planned]) -> str:
    """The parameters in which the runs of one seed differ, and their number of equal ones."""
    runs = [run.parameters | {"notebook": run.notebook} for run in planned if run.seed == planned[0].seed]
    names = sorted({name for run in runs for name in run} - {"run_name", "tour_steps"})
    differing = [name for name in names if len({repr(run.get(name)) for run in runs}) > 1]
    return f"the runs of a seed differ in {', '.join(differing) or 'nothing'}; {len(names) - len(differing)} parameters are equal"


def run_all(planned: Sequence[Planned], *, parallel: int) -> float:
    """Execute what is not finished yet, `parallel` notebooks at a time, and return the minutes it took.

    Each notebook stands beside its run's folder, with the cell that failed where one did. The others go on. Another job that
    executes the same runs is waited for; what it has finished is not executed again.

    Raises:
        RuntimeError: a run failed; with its notebook and the last line of its error.
        Preempted: the cell was interrupted; all runs have ended, and can go on.
    """
    folder = planned[0].folder.parent
    folder.mkdir(parents=True, exist_ok=True)
    with only_process(folder / ".lock", wait=True):
        return _run_all(planned, parallel=parallel)


def _run_all(planned: Sequence[Planned], *, parallel: int) -> float:
    todo = [run for run in planned if not (run.folder / "summary.json").exists()]
    print(f"{len(planned)} runs, {len(planned) - len(todo)} of them finished before", flush=True)
    began, waiting, failed = time.monotonic(), list(todo), []
    running: dict[subprocess.Popen, Planned] = {}
    try:
        with Display(len(todo), title="runs", unit="run") as display:
            while waiting or running:
                while waiting and len(running) < parallel:
                    run = waiting.pop(0)
                    running[_start(run, parallel)] = run
                time.sleep(0.2)
                for process in [process for process in running if process.poll() is not None]:
                    run = running.pop(process)
                    if process.returncode:
                        failed.append(f"{run.folder.name}: {_last_line(_log(run))} (see {_notebook(run)})")
                    display.update(len(todo) - len(waiting) - len(running))
    except KeyboardInterrupt:
        raise Preempted(
            "the runs were interrupted; run this cell again: what is finished is kept, the others go on from a checkpoint."
        ) from None
    finally:
        for process in running:
            process.terminate()  # its notebook writes a checkpoint, from which the run goes on next time
        for process in running:
            process.wait()
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(todo)} runs failed; what is finished is kept. " + "; ".join(failed))
    return (time.monotonic() - began) / 60


def _notebook(run: Planned) -> Path:
    return run.folder.with_name(f"{run.folder.name}.ipynb")


def _log(run: Planned) -> Path:
    return run.folder.with_name(f"{run.folder.name}.log")


def _start(run: Planned, parallel: int) -> subprocess.Popen:
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    parameters = run.folder.with_name(f"{run.folder.name}.yaml")
    parameters.write_text(yaml.safe_dump(run.parameters), encoding="utf-8")
    source = project_root() / "notebooks" / f"{run.notebook}.ipynb"
    papermill = [sys.executable, "-m", "kdnb.papermill"]
    command = [*papermill, str(source), str(_notebook(run)), "-f", str(parameters), "--no-progress-bar"]
    threads = str(max(1, (os.cpu_count() or 1) // parallel))  # runs that fight for cores are many times slower
    environment = os.environ | {"KDNB_PROGRESS": "text", "OMP_NUM_THREADS": threads}
    with open(_log(run), "w") as log:
        return subprocess.Popen(command, cwd=project_root(), env=environment, stdout=log, stderr=log)


def _last_line(log: Path) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace")).strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def coverage(run: Planned) -> dict:
    """What `run` visits, known before it is trained: images, unique_seen, share_of_cache, mean and largest exposure, and of the
    classes: in words, which are missing (by number), and whether the images are a fair sample of them."""
    regime = {"train_optimized": "full", "train_random": "random", "train_fixed": "fixed"}[run.notebook]
    loader = build_pretraining_dataloader(regime=regime, **arguments_of(build_pretraining_dataloader, run.parameters))
    visits = loader.visits(run.parameters["epochs"])
    exposure = visits.sum(0, dtype=int)
    seen = exposure[exposure > 0]
    classes = class_coverage(loader.dataset.labels, exposure, classes=loader.dataset.classes)
    return {
        "images": int(exposure.sum()),
        "unique_seen": len(seen),
        "share_of_cache": len(seen) / len(exposure),
        "mean_exposure": float(seen.mean()),
        "most_exposure": int(seen.max()),
        "classes": str(classes),
        "missing_classes": np.flatnonzero((classes.seen == 0) & (classes.total > 0)).tolist(),
        "fair_sample": classes.fair,
    }


def confounded(planned: Sequence[Planned], coverages: Sequence[dict]) -> str | None:
    """Why these runs compare more than their sampling, in a sentence; None where all cover the same classes, and fairly.

    Args:
        coverages: `coverage` of each run.
    """
    if len({tuple(seen["missing_classes"]) for seen in coverages}) == 1 and all(seen["fair_sample"] for seen in coverages):
        return None
    worst: dict[str, tuple] = {}
    for run, seen in zip(planned, coverages, strict=True):
        rank = (seen["fair_sample"], -len(seen["missing_classes"]), run.seed, seen["classes"])
        worst[run.regime] = min(rank, worst.get(run.regime, rank))
    words = "; ".join(f"{regime} (seed {seed}) {classes}" for regime, (_, _, seed, classes) in worst.items())
    return f"WARNING: the regimes differ in the classes that they cover, so more than sampling is compared: {words}."


def compare_regimes(scores: dict[str, list[float]], *, baseline: str) -> dict[str, dict]:
    """Every regime against `baseline`, in points of accuracy, pairs by seed; p-values as they are and after Holm 1979.

    Args:
        scores: regime -> one accuracy a seed, in the same order of seeds for all.
    """
    tests: dict[str, dict] = {}
    for name in (name for name in scores if name != baseline):
        points = 100 * (np.array(scores[name]) - np.array(scores[baseline]))
        mean = mean_interval(points)
        tests[name] = {"mean": mean.mean, "low": mean.low, "high": mean.high, "sd": mean.sd, "seeds": mean.n}
        tests[name] |= {"p": paired_permutation_test(points), "effect_size": effect_size(points), "differences": points.tolist()}
        tests[name]["seeds_for_one_point"] = seeds_needed(mean.sd, 1.0) if mean.n > 1 and mean.sd > 0 else None
    for test, p in zip(tests.values(), holm([test["p"] for test in tests.values()]), strict=True):
        test["p_holm"] = p
    return tests


def plain(value):
    """`value` with None for each number that JSON does not have: one seed has no interval, equal differences no effect size."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
