"""From checked parameters to the pieces that an image training notebook puts together.

Each function takes the notebook's parameters `p` (from `check_params`) and returns one piece; a script can build the same
pieces from the modules that they come from.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from kdnb import distributed
from kdnb.data.cache import normalisation, read_index
from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.loader import BatchReader, WorkerLoader, build_pretraining_dataloader
from kdnb.data.prepare import held_out_batches
from kdnb.data.sources import open_source
from kdnb.data.views import CleanTransform, FastMultiCropTransform, RepeatedViews, SimpleTransform
from kdnb.distillation.teacher import LiveTeacher
from kdnb.distillation.teacher_check import feature_statistics, measure_teacher, require_better_than_chance
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.losses import DistillationLoss, labels_fit
from kdnb.models.folder import save_model, write_cards
from kdnb.models.vision import Student, build_model, required_size
from kdnb.params import arguments_of
from kdnb.runs import Run, anchored, set_seed


def build_loader(p: SimpleNamespace, *, regime: str, **subset) -> BatchReader | WorkerLoader:
    """The batches of `regime` with the notebook's batch size, cap and seeds; `subset` holds what the regime needs."""
    raw = {"image_size": p.image_size, "resize": p.resize, "cache_shard_size": p.cache_shard_size}
    raw = {} if p.use_cached else raw | {"dataset": p.dataset} | arguments_of(open_source, p)
    return build_pretraining_dataloader(
        use_cached=p.use_cached,
        cache_dir=anchored(p.cache_dir),
        regime=regime,
        shuffle=p.shuffle,
        seed=p.seed,
        batch_size=p.batch_size,
        max_steps_per_epoch=p.max_steps_per_epoch,
        gradient_accumulation_steps=p.gradient_accumulation_steps,
        num_workers=p.num_workers,
        persistent_workers=p.persistent_workers,
        device=find_device(),
        reuse_buffers=True,  # the loop is done with a batch before it asks for the next
        **subset,
        **raw,
    )


def build_views(p: SimpleNamespace) -> CleanTransform | SimpleTransform | FastMultiCropTransform | RepeatedViews:
    """The augmentation that teacher and student share: float32 in [0, 1]."""
    require_multicrop(p)
    stored = normalisation(read_index(anchored(p.cache_dir))) if p.use_cached else {}
    if p.augmentation == "clean":
        return CleanTransform(size=p.image_size, **stored)
    free = _free_views(p, scale=(p.crop_scale_min, 1.0), **stored)
    return free if p.teacher_views is None else RepeatedViews(transform=free, repeats=p.teacher_views)


def require_multicrop(p: SimpleNamespace):
    """Refuse local crops without the global ones that belong to them: ValueError."""
    if p.use_local_crops and p.augmentation != "multicrop":
        raise ValueError(f"use_local_crops is true, but augmentation is {p.augmentation}; local crops need multicrop.")


def _free_views(p: SimpleNamespace, *, scale: tuple[float, float], **stored) -> SimpleTransform | FastMultiCropTransform:
    """New views in every epoch."""
    if p.augmentation == "simple":
        flip = {"scale": scale, "horizontal_flip": p.horizontal_flip}
        return SimpleTransform(size=p.image_size, seed=p.seed, **flip, **stored)
    return FastMultiCropTransform(
        global_size=p.image_size,
        local_size=p.local_crop_size,
        local_crops_number=p.local_crops_number,
        use_local_crops=p.use_local_crops,
        global_scale=scale,
        horizontal_flip=p.horizontal_flip,
        seed=p.seed,
        **stored,
    )


def build_student(p: SimpleNamespace, teacher) -> Student:
    """The student of `p` with projections to the widths of `teacher`, from `kdnb.distillation.teacher.open_teacher`."""
    dims = {"layer_dims": teacher.layer_dims, "token_dim": teacher.token_shape[1] if p.teacher_tokens else 0}
    shape = {"num_classes": _head_width(p, teacher), "layers": p.student_layers, "seed": p.seed}
    student = new_student(p.student, teacher.feature_dim, **dims, **shape, **p.student_args)
    check_student(p, student, teacher)
    return student


def new_student(
    name: str, teacher_dim: int, *, layer_dims: Sequence[int] = (), token_dim: int = 0, num_classes: int = 0,
    layers: Sequence[int] = (), seed: int = 0, **arguments,
) -> Student:  # fmt: skip
    """A student on the training device, untrained: the seed alone decides its first weights; see `kdnb.models.vision.Student`."""
    set_seed(seed)
    model = build_model(name, num_classes=num_classes, **arguments)
    dims = {"teacher_dim": teacher_dim, "layer_dims": layer_dims, "token_dim": token_dim}
    student = Student(model, layers=tuple(layers), **dims)
    student.made_with = {"student": name, "student_args": arguments, "student_layers": list(layers), "seed": seed}
    return student.to(find_device())


def check_student(p: SimpleNamespace, student: Student, teacher):
    """Refuse a student that cannot take the views of `p`, or has other tokens than its teacher: ValueError."""
    size = required_size(student.model)
    if size not in (None, p.image_size) or (size and p.use_local_crops and p.local_crop_size != size):
        other = f"image_size is {p.image_size}" if size != p.image_size else f"local_crop_size is {p.local_crop_size}"
        raise ValueError(f"student {p.student} takes images of {size} pixels a side alone, but {other}; set student_args "
                         f"img_size={p.image_size}, or dynamic_img_size=true for crops of several sizes.")  # fmt: skip
    if student.token_projection is not None:
        own, asked = student.encoder.token_shape(p.image_size)[0], teacher.token_shape[0]
        if own != asked:
            raise ValueError(f"teacher_tokens is true, but the student has {own} tokens and the teacher {asked}; choose another "
                             "student, or set it to false.")  # fmt: skip


def _head_width(p: SimpleNamespace, teacher) -> int:
    """Classes of the student's head: the teacher's for soft targets, the data's where labels are mixed in, else 0."""
    if p.loss == "soft_targets" and not teacher.num_classes:
        raise ValueError(f"loss is soft_targets, but teacher {p.teacher} has no classification head; choose mse or cosine.")
    if p.alpha == 1:
        return teacher.num_classes if p.loss == "soft_targets" else 0
    cached = CachedTensorDataset(anchored(p.cache_dir))
    width = teacher.num_classes if p.loss == "soft_targets" else num_classes(cached.labels, cached.classes)
    labels_fit(cached.labels, width, alpha=p.alpha)
    return width


def num_classes(labels: np.ndarray | None, classes: list[str] | None) -> int:
    """How many classes a data set has: as many as it names, or else one more than its largest label."""
    return len(classes) if classes else 0 if labels is None else int(labels.max()) + 1


def build_loss(p: SimpleNamespace, teacher, answers, loader, views) -> DistillationLoss:
    """The loss, with the teacher's feature statistics where it needs them.

    Args:
        teacher: from `kdnb.distillation.teacher.open_teacher`. answers: from `build_teacher_call`.

    Raises:
        ValueError: soft targets from a teacher that knows nothing about the held-out images.
    """
    mix = {"temperature": p.temperature, "alpha": p.alpha}
    if p.loss == "soft_targets":
        check_teacher(p, teacher)
        labels = loader.dataset.labels
        mix["log_accuracy"] = labels_fit(labels, teacher.num_classes, alpha=p.alpha)
        if labels is not None and not mix["log_accuracy"]:
            known = f"{teacher.num_classes} classes are known to the teacher"
            print(f"labels go from {labels.min()} to {labels.max()}, but {known}: accuracies are left out")
    if p.loss != "mse":
        return DistillationLoss(p.loss, **mix)
    mean, std = feature_statistics(answers, loader.batches(0), views)
    return DistillationLoss(p.loss, mean=mean.to(loader.device), std=std.to(loader.device), **mix)


def check_teacher(p: SimpleNamespace, teacher):
    """Measure the teacher's head on the held-out split before any step, print it, and refuse noise as soft targets."""
    held_out = held_out_batches(**arguments_of(held_out_batches, p))
    if not labels_fit(None if held_out is None else held_out.dataset.labels, teacher.num_classes, alpha=1):
        why = f"eval_split gives no labels of its {teacher.num_classes} classes"
        if teacher.head_is_random:
            raise ValueError(f"the teacher's head was not in its checkpoint, and {why} to measure it on; set eval_split to a "
                             "labelled split, or loss to mse or cosine.")  # fmt: skip
        print(f"the teacher's head is not measured: {why}")
        return

    def measure() -> dict:
        view = CleanTransform(size=p.image_size)
        return measure_teacher(LiveTeacher(teacher.load()), held_out.batches(0), view)

    scores = teacher.memoize("knowledge", held_out.dataset.reader.index["fingerprint"], measure)
    print("teacher on held-out images: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    require_better_than_chance(scores, head_is_random=teacher.head_is_random)


def save_student(p: SimpleNamespace, student: Student, folder: Path):
    """Save the student's backbone, without its projections, as a timm model folder that says how its images were prepared."""
    inputs = {"input_size": (3, p.image_size, p.image_size), "interpolation": "bicubic", "crop_pct": 1.0}
    inputs |= {"crop_mode": {"crop": "center", "squash": "squash"}[p.resize]}
    save_model(student.model, folder, **inputs, **student.encoder.normalisation)


def write_run_cards(run: Run):
    """Write the model card into the run's model folders; the run must be finished. Of several ranks, rank 0 does."""
    if distributed.rank() > 0:
        return
    config = run.read("config.json")
    if config["parameters"]["use_cached"]:
        config["source"] = read_index(anchored(config["parameters"]["cache_dir"]))["source"]
    write_cards(run.folder, config, run.read("summary.json"))


def training_settings(p: SimpleNamespace) -> dict:
    """The keyword arguments of `train` that are parameters of the notebook."""
    return arguments_of(train, p) | {"save_model": partial(save_student, p)}
