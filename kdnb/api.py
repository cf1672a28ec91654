"""The library in five calls: what a script, or a notebook of one's own, is made of.

    cache = kdnb.precompute("photos/", "outputs/cache_photos", image_size=224)
    teacher = kdnb.load_teacher("vit_base_patch14_dinov2.lvd142m", img_size=224)
    student = kdnb.build_student("resnet18", teacher)
    run = kdnb.distill(student, teacher, cache, regime="fixed", fixed_shards=25, run_name="r18")
    print(kdnb.evaluate(run, "cifar10"))

Keyword arguments are the notebooks' parameters, by the same names and with the same meanings: `kdnb.params` has the table.
Relative paths are taken from the current folder, or from the project's root inside a project.
"""

import difflib
import inspect
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from kdnb.data.cache import read_index
from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.order import count_visits
from kdnb.data.precompute import precompute
from kdnb.distillation import build, teacher
from kdnb.distillation.checks import SUBSETS
from kdnb.distillation.run import build_pieces
from kdnb.distillation.teacher_model import load_teacher
from kdnb.distillation.train import train
from kdnb.evaluation import evaluate as evaluation
from kdnb.evaluation.report import format_table
from kdnb.losses import labels_fit
from kdnb.models.vision import FeatureModel, Student, count_parameters
from kdnb.params import TABLE, arguments_of
from kdnb.runs import Run, anchored

# Every parameter of a training notebook, by name.
PARAMS = {name: row for notebook in SUBSETS for name, row in TABLE[notebook].items()}
__all__ = ["build_student", "distill", "evaluate", "load_teacher", "precompute"]


def build_student(
    name: str, teacher: FeatureModel, *, num_classes: int = 0, layers: Sequence[int] = (), seed: int = 0, **arguments
) -> Student:
    """An untrained student for `teacher`: any timm model, with linear projections to the teacher's widths.

    Called with float images [B, 3, H, W] in [0, 1], it returns a dict with "features" [B, D of the teacher], "embedding" (its own
    pooled features) and, where it has a head, "logits". The projections are dropped when it is saved.

    Args:
        num_classes: width of a classification head, which soft targets and labels need; 0 for none.
        layers: its layers that imitate the teacher's `layers`. seed: decides its first weights.
        arguments: of the architecture, such as width=8.
    """
    dims = {"layer_dims": teacher.layer_dims, "token_dim": teacher.token_dim if teacher.tokens else 0}
    shape = {"num_classes": num_classes, "layers": layers, "seed": seed}
    return build.new_student(name, teacher.feature_dim, **dims, **shape, **arguments)


def distill(
    student: Student,
    teacher: FeatureModel,
    cache: str | Path,
    *,
    regime: str = "full",
    fixed_shards: int | None = None,
    fixed_choice: str = "first",
    samples_per_epoch: int | None = None,
    shards_per_epoch: int | None = None,
    draw: str = "independent",
    random_subset_seed: int = 0,
    shuffle: str = "within_shards",
    loss: str = "mse",
    temperature: float = 2.0,
    alpha: float = 1.0,
    augmentation: str = "simple",
    crop_scale_min: float = 0.4,
    horizontal_flip: bool = True,
    use_local_crops: bool = False,
    local_crops_number: int = 6,
    local_crop_size: int = 96,
    cache_teacher_features: bool = False,
    teacher_feature_dir: str = "outputs/cache_teacher",
    teacher_views: int | None = None,
    teacher_storage: str = "float16",
    teacher_top_k: int | None = None,
    cache_on_device: str = "auto",
    epochs: int = 10,
    max_steps_per_epoch: int | None = None,
    batch_size: int = 64,
    gradient_accumulation_steps: int = 1,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup_steps: int | float = 0.1,
    clip_grad_norm: float | None = 1.0,
    mixed_precision: str = "auto",
    compile_student: bool = False,
    batch_norm: str = "local",
    seed: int = 0,
    num_workers: int = 0,
    save_every_steps: int | None = None,
    keep_checkpoints: int | None = None,
    run_name: str | None = None,
) -> Run:
    """Train `student` to imitate `teacher` on the images of `cache`; a run of that name that was begun before goes on.

    Args:
        student: from `build_student`, trained in place. teacher: from `load_teacher`. cache: a folder that `precompute` filled.
        regime: `full`, `random` (with samples_per_epoch or shards_per_epoch) or `fixed` (with fixed_shards).
        run_name: folder below outputs/; None: a new one of the time. The other arguments: see `kdnb.params`.

    Returns:
        The run: its folder holds config.json, history.json, checkpoints/, best_model/, final_model/ and summary.json.

    Raises:
        ValueError: a value that is not allowed, or that does not go with the others, with the cache, or with the models; in one
            sentence, before the first step.
    """
    given = {name: value for name, value in locals().items() if name in PARAMS and name not in ("student", "teacher")}
    p = _parameters(student, teacher, anchored(cache), given)
    subset = _subset(regime, given)
    frozen = _known(p, teacher)
    build.check_student(p, student, frozen)
    if p.alpha < 1:
        labels_fit(CachedTensorDataset(p.cache_dir).labels, student.encoder.num_classes, alpha=p.alpha)
    pieces = build_pieces(p, regime=regime, student=student, frozen=frozen, **subset)
    _, answers, loader, views, objective = pieces
    run = Run(run_name, vars(p) | subset, prefix="distill")
    history = train(student, answers, loader, views=views, loss=objective, run=run, **build.training_settings(p))
    visits = count_visits(loader.dataset.order, [loader.num_samples(epoch) for epoch in range(len(history["epochs"]))])
    last = history["epochs"][-1]
    sizes = {"teacher": frozen.num_parameters, "student": count_parameters(student.model)}
    summary = {"loss": last["loss"], "steps": last["step"], "images_seen": last["images_seen"], "parameters": sizes}
    run.finish(summary | {"unique_seen": int(np.count_nonzero(visits.any(0)))})
    build.write_run_cards(run)
    return run


class Evaluation(list):
    """The lines of an evaluation (dicts: references first, then every checkpoint); printed, a table of the main columns."""

    def __str__(self) -> str:
        return format_table(self)


def evaluate(
    run: Run | str | Path, dataset: str | None = None, *, split: str = "train", eval_split: str = "test",
    probe_samples: int = 10_000, image_column: str | None = None, label_column: str | None = None, streaming: bool = False,
) -> Evaluation:  # fmt: skip
    """What every checkpoint of `run` is worth: linear probe, weighted k-NN and feature quality on frozen features, between the
    floors (raw pixels, the untrained student) and the teacher.

    Args:
        run: from `distill`, or the folder of any run. dataset: labelled images; None: those that the run was trained on.
        split, probe_samples: training images that the probe is fitted on, at most. eval_split: held-out images that judge.

    Raises:
        ValueError: no labels, or no such split. FileNotFoundError: no run there, or no checkpoint yet.
    """
    found = evaluation.open_run(run.folder if isinstance(run, Run) else run)
    asked = {name: value for name, value in locals().items() if name in TABLE["evaluate"]}
    data = evaluation.data_for(SimpleNamespace(**asked), found)
    lines, _ = evaluation.evaluate_run(found, evaluation.build_evaluator(found, data))
    return Evaluation(lines)


def _parameters(student: Student, teacher: FeatureModel, cache: Path, given: dict) -> SimpleNamespace:
    """What the notebooks' functions read: how the models were made, what the cache holds, and what is given, checked."""
    faults, checked = [], {}
    for name, value in given.items():
        try:
            checked[name] = None if value is None and _may_be_none(name) else PARAMS[name].convert(value)
        except (ValueError, TypeError, OverflowError):
            faults.append(f"{name} is {value!r}; allowed is {PARAMS[name].allowed()} ({PARAMS[name].help}).")
    for what, model, by in (("student", student, "build_student"), ("teacher", teacher, "load_teacher")):
        if not hasattr(model, "made_with"):
            faults.append(f"{what} is a {type(model).__name__} that kdnb.{by} did not make; pass what that returns.")
    if faults:
        raise ValueError("\n".join(faults))
    index = read_index(cache)
    source, _, split = index["source"].rpartition("/")
    data = {"dataset": source or index["source"], "split": split if source else "train", "eval_split": None}
    data |= {"image_column": None, "label_column": None, "cache_dir": str(cache), "cache_shard_size": index["shard_size"]}
    data |= {"image_size": index["image_size"], "resize": index["resize"], "use_cached": True, "persistent_workers": False}
    return SimpleNamespace(**data | teacher.made_with | student.made_with | checked)


def _may_be_none(name: str) -> bool:
    return inspect.signature(distill).parameters[name].default is None


def _subset(regime: str, given: dict) -> dict:
    """The regime's own parameters, without those that belong to others."""
    known = dict(SUBSETS.values())
    if regime not in known:
        near = difflib.get_close_matches(str(regime), known, n=1)
        raise ValueError(f"regime is {regime!r}; {f'did you mean {near[0]}?' if near else 'allowed are ' + ', '.join(known)}.")
    return {name: given[name] for name in known[regime]}


def _known(p: SimpleNamespace, model: FeatureModel) -> teacher.Teacher:
    teacher.require_recurring_views(**arguments_of(teacher.require_recurring_views, p))
    return teacher.open_teacher(model=model, **arguments_of(teacher.open_teacher, p))
