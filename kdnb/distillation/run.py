"""A whole image run, put together here and nowhere else: by scripts, notebooks, tours and tests."""

import difflib
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from kdnb import distributed
from kdnb.data.cache import read_index
from kdnb.data.loader import EpochLoader, build_pretraining_dataloader
from kdnb.data.prepare import held_out_batches
from kdnb.data.reader import ShardReader
from kdnb.data.sources import whole_name
from kdnb.distillation.build import build_loss, build_student, build_views, check_student, finish_run, head_width, save_student
from kdnb.distillation.checks import SUBSETS, check_run
from kdnb.distillation.device_memory import maybe_cache_on_device
from kdnb.distillation.teacher import CachedTeacher, Teacher, build_teacher_call, open_teacher
from kdnb.distillation.teacher_outputs import TeacherCache
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.losses import labels_fit
from kdnb.losses.methods import CHOICES, needs_labels
from kdnb.models.vision import FeatureModel, Student, count_parameters
from kdnb.params import TABLE, ParameterError, arguments_of, convert_values, resolve
from kdnb.runs import Run, anchored

NOTEBOOKS = {regime: notebook for notebook, (regime, _) in SUBSETS.items()}


def distill(
    student: Student,
    teacher: FeatureModel | Teacher,
    cache: str | Path,
    *,
    regime: str = "full",
    fixed_shards: int | float | None = None,
    fixed_choice: str = "first",
    samples_per_epoch: int | float | None = None,
    shards_per_epoch: int | float | None = None,
    draw: str = "independent",
    random_subset_seed: int = 0,
    shuffle: str = "within_shards",
    use_cached: bool = True,
    dataset: str | None = None,
    split: str | None = None,
    eval_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    image_size: int | None = None,
    resize: str | None = None,
    cache_shard_size: int | None = None,
    loss: str = "mse",
    loss_args: dict | None = None,
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
    persistent_workers: bool = False,
    save_every_steps: int | None = None,
    keep_checkpoints: int | None = None,
    run_name: str | None = None,
    run: Run | None = None,
) -> Run:
    """Train `student` to imitate `teacher` on the images of `cache`; a run of that name that was begun before goes on.

    Args:
        student: from `build_student`, trained in place. teacher: from `load_teacher`, or from
            `kdnb.distillation.teacher.open_teacher`, which loads it only where its outputs are not stored yet.
        cache: a folder that `precompute` filled.
        regime: `full`, `random` (with samples_per_epoch or shards_per_epoch) or `fixed` (with fixed_shards).
        use_cached: false decodes the images of `dataset` on the fly.
        dataset ... cache_shard_size: how the cache was made; None: as it records.
        eval_split: labelled images that the head of a teacher of soft targets is measured on first; None: it is not.
        run_name: folder below outputs/; None: a new one of the time.
        run: a run that was opened with a configuration of its own; `run_name` is not looked at then.
        The other arguments are the notebooks' parameters: `python -m kdnb.params train_fixed` says what they mean.

    Returns:
        The run: its folder holds config.json, history.json, checkpoints/, best_model/, final_model/ and summary.json.

    Raises:
        ValueError: values that are not allowed, or that do not go with each other, with the cache, or with the models; all of
            them in one error, before the first step.

    Example:
        >>> import kdnb
        >>> cache = kdnb.precompute("digits", "cache_digits", image_size=32, max_samples=200, cache_shard_size=50)
        >>> teacher = kdnb.load_teacher("builtin")
        >>> student = kdnb.build_student("cifar_resnet8", teacher, width=4)
        >>> run = kdnb.distill(student, teacher, cache, regime="fixed", fixed_shards=2, epochs=1, batch_size=50)
        >>> run.finished, run.read("summary.json")["unique_seen"]
        (True, 100)
    """
    given = {name: value for name, value in locals().items() if name not in ("student", "teacher", "cache", "run")}
    p = _parameters(student, teacher, anchored(cache), given)
    notebook = NOTEBOOKS[p.regime]
    check_run(p, notebook)
    frozen = teacher if isinstance(teacher, Teacher) else open_teacher(model=teacher, **arguments_of(open_teacher, p))
    check_student(student, frozen, **arguments_of(check_student, p))
    run = Run(run_name, vars(p), prefix="distill") if run is None else run
    loader, views, outputs, objective = build_pieces(p, student, frozen)

    def save(model: Student, folder: Path):
        save_student(model, folder, image_size=p.image_size, resize=p.resize)

    settings = arguments_of(train, p) | {"views": views, "loss": objective, "run": run, "save_model": save}
    trained = train(student, outputs, loader, **settings)["epochs"]
    visits, last = loader.visits(len(trained)), trained[-1]
    finish_run(
        run,
        loss=last["loss"],
        steps=last["step"],
        images_seen=last["images_seen"],
        unique_seen=int(np.count_nonzero(visits.any(0))),
        parameters={"teacher": frozen.num_parameters, "student": count_parameters(student.model)},
    )
    distributed.barrier()  # before other ranks read what rank 0 has written
    return run


def build_pieces(p: SimpleNamespace, student: Student, teacher: Teacher) -> tuple:
    """(loader, views, call of the teacher, loss) of a run with the parameters `p`, `regime` among them."""
    loader: EpochLoader = build_pretraining_dataloader(
        **arguments_of(build_pretraining_dataloader, p),
        device=find_device(),
        reuse_buffers=True,  # the loop is done with a batch before it asks for the next
    )
    if needs_labels(p.loss, alpha=p.alpha):  # to read those of all images takes a while
        labels_fit(loader.dataset.labels, student.encoder.num_classes, alpha=p.alpha, loss=p.loss)
    views = build_views(read_index(anchored(p.cache_dir)) if p.use_cached else None, **arguments_of(build_views, p))
    outputs = build_teacher_call(teacher, loader, views)
    held_out = held_out_batches(**arguments_of(held_out_batches, p)) if CHOICES[p.loss].of_logits else None
    objective = build_loss(teacher, outputs, loader, views, held_out, **arguments_of(build_loss, p))
    memory = arguments_of(maybe_cache_on_device, p)
    loader = maybe_cache_on_device(loader, student, outputs, views, objective, **memory)
    return loader, views, outputs, objective


def distill_parameters(p: SimpleNamespace, run: Run, *, regime: str = "full") -> Student:
    """Build the teacher and the student that a training notebook's parameters `p` name, and distil; returns the student."""
    teacher = open_teacher(**arguments_of(open_teacher, p))
    width = head_width(teacher, **arguments_of(head_width, p))
    student = build_student(p.student, teacher, num_classes=width, **arguments_of(build_student, p), **p.student_args)
    distill(student, teacher, p.cache_dir, **arguments_of(distill, p) | {"regime": regime, "run": run})
    return student


def _parameters(student: Student, teacher: FeatureModel | Teacher, cache: Path, given: dict) -> SimpleNamespace:
    """All parameters of a run: how the models were made, what the cache holds, and what is given, converted and checked."""
    rows = {name: row for notebook in SUBSETS for name, row in TABLE[notebook].items()}
    defaults = {name: row.default for name, row in inspect.signature(distill).parameters.items()}
    as_they_are = {name for name, value in given.items() if name not in rows or (value is None and defaults[name] is None)}
    checked, faults = convert_values({name: value for name, value in given.items() if name not in as_they_are}, rows)
    checked |= {name: given[name] for name in as_they_are}
    if given["regime"] not in NOTEBOOKS:
        near = difflib.get_close_matches(str(given["regime"]), NOTEBOOKS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(NOTEBOOKS)}."
        faults.append(f"regime is {given['regime']!r}; {hint}")
    for what, model, maker in (("student", student, "build_student"), ("teacher", teacher, "load_teacher")):
        if not hasattr(model, "made_with"):
            faults.append(f"{what} is a {type(model).__name__} that kdnb.{maker} did not make; pass what that returns.")
    if faults:
        raise ParameterError("\n".join(faults))
    recorded = _recorded(cache) if given["use_cached"] else {}
    missing = {name: value for name, value in recorded.items() if checked[name] is None}
    named = teacher.made_with | student.made_with | checked | missing
    return SimpleNamespace(**resolve(named, rows), cache_dir=str(cache))


def _recorded(cache: Path) -> dict:
    """What a cache's index says of the parameters that it was made with."""
    index = read_index(cache)
    source, _, split = whole_name(index["source"])[0].rpartition("/")
    names = {"dataset": source or split, "split": split if source else "train", "cache_shard_size": index["shard_size"]}
    return names | {name: index[name] for name in ("image_size", "resize")}


def store_teacher_outputs(p: SimpleNamespace, display) -> TeacherCache:
    """Compute and store the teacher's outputs for every view of every cached image, ahead of training, where they are missing.

    Several ranks take the batches in turn.

    Args:
        display: has `update(done)`, called with the number of views done.
    """
    teacher = open_teacher(**arguments_of(open_teacher, p))
    unseen = {"use_local_crops": False, "local_crops_number": 1, "local_crop_size": 1}  # by the teacher
    views = build_views(read_index(anchored(p.cache_dir)), **arguments_of(build_views, p) | unseen)
    loader = build_pretraining_dataloader(
        cache_dir=p.cache_dir,
        shuffle="none",
        batch_size=min(p.batch_size, len(ShardReader(anchored(p.cache_dir)))),
        device=find_device(),
        reuse_buffers=True,
    )
    loader.drop_last = False
    outputs, done = build_teacher_call(teacher, loader, views), 0
    if not isinstance(outputs, CachedTeacher):
        raise ValueError("cache_teacher_features is false; set it to true to store the teacher's outputs.")
    for epoch in range(outputs.repeats):
        for number, batch in enumerate(loader.batches(epoch)):
            ids = batch["id"].numpy()
            mine = number % distributed.world() == distributed.rank()
            if mine and not all(outputs.store.read(ids, epoch * views.num_global + g)[1].all() for g in range(views.num_global)):
                outputs(views(batch["image"], batch["id"], epoch)[: views.num_global], batch | {"epoch": epoch})
            done += len(ids) * views.num_global
            display.update(done)
    distributed.barrier()
    return outputs.store
