"""Every way of making a step cheaper, each switched on in turn and measured on this machine with the run's own parameters.

All ways see the same images in stored order. Each trains two short epochs, of which the second one counts (caches are warm,
kernels are compiled), and the ways take turns in several rounds, so that a machine that slows down slows all of them.
"""

import contextlib
import io
import logging
import os
import statistics
import tempfile
from types import SimpleNamespace

from kdnb.distillation.run import distill_parameters
from kdnb.distributed import Preempted
from kdnb.runs import Run

WAYS: dict[str, dict] = {
    "raw images": {"use_cached": False},
    "shards": {},
    "shards, DINO global crops": {"augmentation": "multicrop"},
    "shards, DINO global + local crops": {"augmentation": "multicrop", "use_local_crops": True},
    "shards, teacher cache": {"teacher_views": 1, "cache_teacher_features": True},
    "shards, teacher cache, compiled": {"teacher_views": 1, "cache_teacher_features": True, "compile_student": True},
}
_PLAIN: dict = {
    "use_cached": True, "augmentation": "simple", "use_local_crops": False, "teacher_views": None, "compile_student": False,
    "cache_teacher_features": False, "shuffle": "none", "num_workers": 0, "persistent_workers": False, "epochs": 2,
    "warmup_steps": 0, "save_every_steps": None, "gradient_accumulation_steps": 1,
}  # fmt: skip


def take_tour(p: SimpleNamespace, *, steps: int, rounds: int = 2, ways: dict[str, dict] | None = None) -> dict[str, dict]:
    """Medians of {"step_ms", "wait_ms", "images_per_s"} for each way, over `rounds` rounds of `steps` steps.

    A way that this machine or this student lacks (no compiler, an image size that is fixed) is left out, and a line says why: the
    run that the tour ends is not lost for it.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    ways = dict(WAYS if ways is None else ways)
    if getattr(p, "streaming", False):  # its images cannot be read at random, and would be fetched to be measured
        for name in [name for name, changes in ways.items() if not changes.get("use_cached", True)]:
            print(f"{name}: not here ({p.dataset} is streamed)")
            del ways[name]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for name, changes in list(ways.items()):
                q = SimpleNamespace(**vars(p) | _PLAIN | {"max_steps_per_epoch": steps, "teacher_feature_dir": folder} | changes)
                try:
                    found.setdefault(name, []).extend(_measure(q, Run(f"{name}_{number}", vars(q), outputs=folder)))
                except Preempted:
                    raise
                except Exception as error:  # of the compiler, of a model, of a disk: they have no common class
                    if not changes:
                        raise
                    print(f"{name}: not here ({(str(error).splitlines() or [type(error).__name__])[0][:240]})")
                    del ways[name], found[name]
    table = {}
    for name in ways:
        step, wait = (1000 * statistics.median(values) for values in zip(*found[name], strict=True))
        table[name] = {"step_ms": step, "wait_ms": wait, "images_per_s": 1000 * p.batch_size / (step + wait)}
    return table


def _measure(q: SimpleNamespace, run: Run) -> list[tuple[float, float]]:
    """(seconds of the step, seconds of waiting) of every step of the second epoch."""
    with _silent():
        distill_parameters(q, run)
    return [(record["step_s"], record["data_wait_s"]) for record in run.read("history.json")["steps"] if record["epoch"] == 1]


@contextlib.contextmanager
def _silent():
    """Without lines and bars: the tour's runs are not the reader's."""
    before = os.environ.get("KDNB_PROGRESS")
    os.environ["KDNB_PROGRESS"] = "none"
    logging.disable(logging.WARNING)  # the compiler's remarks on what this machine lacks
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop("KDNB_PROGRESS") if before is None else os.environ.update(KDNB_PROGRESS=before)
