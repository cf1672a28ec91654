"""The pieces of an image run: views, student, loss, and what is saved of them. `kdnb.distillation.run` puts them together.

Keyword arguments are the notebooks' parameters, so that `build_views(index, **p.of(build_views))` takes what it needs of them.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from kdnb import distributed
from kdnb.data.cache import normalisation, read_index
from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.views import CleanTransform, FastMultiCropTransform, RepeatedViews, SimpleTransform
from kdnb.distillation.teacher_check import check_head, feature_statistics, first_features
from kdnb.distributed import find_device
from kdnb.files import memory_bytes
from kdnb.losses import DistillationLoss, fit_phi_s, labels_fit
from kdnb.losses.methods import CHOICES, needs_labels
from kdnb.losses.mix import STANDARDISED
from kdnb.models.folder import save_model, write_cards
from kdnb.models.vision import FeatureModel, Student, build_model, count_parameters, outline, require_own, required_size
from kdnb.progress import format_bytes
from kdnb.runs import Run, anchored, set_seed


def build_views(
    index: dict | None, *, image_size: int, augmentation: str, crop_scale_min: float, horizontal_flip: bool,
    use_local_crops: bool, local_crops_number: int, local_crop_size: int, teacher_views: int | None, seed: int,
) -> CleanTransform | SimpleTransform | FastMultiCropTransform | RepeatedViews:  # fmt: skip
    """The augmentation that teacher and student share: uint8 or float images in, lists of float32 views in [0, 1] out.

    Args:
        index: of the cache that images come from, whose float formats are stored normalised; None for raw images.

    Raises:
        ValueError: local crops without multicrop, or larger than the global ones.
    """
    sizes = {"image_size": image_size, "local_crop_size": local_crop_size}
    require_multicrop(augmentation=augmentation, use_local_crops=use_local_crops, **sizes)
    stored: dict[str, Any] = {} if index is None else normalisation(index)
    if augmentation == "clean":
        return CleanTransform(size=image_size, **stored)
    if augmentation == "simple":
        crop: dict[str, Any] = {"scale": (crop_scale_min, 1.0), "horizontal_flip": horizontal_flip}
        views = SimpleTransform(size=image_size, seed=seed, **crop, **stored)
    else:
        views = FastMultiCropTransform(
            global_size=image_size,
            local_size=local_crop_size,
            local_crops_number=local_crops_number,
            use_local_crops=use_local_crops,
            global_scale=(crop_scale_min, 1.0),
            horizontal_flip=horizontal_flip,
            seed=seed,
            **stored,
        )
    return views if teacher_views is None else RepeatedViews(transform=views, repeats=teacher_views)


def require_multicrop(*, augmentation: str, use_local_crops: bool, image_size: int, local_crop_size: int):
    """Refuse local crops without the global ones that belong to them, or larger than these: ValueError."""
    if use_local_crops and augmentation != "multicrop":
        raise ValueError(f"use_local_crops is true, but augmentation is {augmentation}; local crops need multicrop.")
    if use_local_crops and local_crop_size > image_size:
        raise ValueError(
            f"local_crop_size is {local_crop_size}, but image_size is {image_size}; local crops are the smaller ones."
        )


def build_student(
    name: str,
    teacher,
    *,
    num_classes: int = 0,
    student_layers: Sequence[int] = (),
    projection_width: int | None = None,
    seed: int = 0,
    **student_args,
) -> Student:
    """An untrained student for `teacher`, on the training device: any timm model, with projections to the teacher's widths.

    Called with float images [B, 3, H, W] in [0, 1], it returns a dict with "features" [B, D of the teacher], "embedding" (its own
    pooled features) and, where it has a head, "logits" [B, num_classes]. The projections are dropped when it is saved.

    Args:
        name: a model that timm knows, or a CIFAR ResNet (`cifar_resnet20` ...).
        teacher: from `load_teacher`, or from `kdnb.distillation.teacher.open_teacher`.
        num_classes: width of a classification head, which soft targets and labels need (see `head_width`); 0 for none.
        student_layers: indices of its layers that imitate the teacher's `feature_layers`.
        projection_width: of the hidden layer of the projection to the teacher's pooled features; None: it is linear.
        seed: decides its first weights, and nothing else does.
        student_args: keyword arguments of the architecture, such as width=8.

    Raises:
        ValueError: an unknown name (with near ones), or an argument that the architecture does not know.

    Example:
        >>> import kdnb, torch
        >>> teacher = kdnb.load_teacher("builtin")
        >>> student = kdnb.build_student("cifar_resnet8", teacher, width=8)
        >>> {name: tuple(value.shape) for name, value in student(torch.rand(2, 3, 32, 32)).items()}
        {'features': (2, 64), 'embedding': (2, 32)}
    """
    set_seed(seed)
    model = build_model(name, num_classes=num_classes, **student_args)
    dims = {"layer_dims": teacher.layer_dims, "token_dim": teacher.token_dim if teacher.tokens else 0}
    student = Student(
        model, teacher_dim=teacher.feature_dim, layers=tuple(student_layers), projection_width=projection_width, **dims
    )
    student.made_with = {"student": name, "student_args": student_args, "student_layers": list(student_layers)}
    student.made_with |= {"projection_width": projection_width, "seed": seed}
    return student.to(find_device())


def head_width(teacher, *, loss: str, alpha: float, cache_dir: str | Path) -> int:
    """Classes of the student's head: the teacher's for a loss of logits, the cached labels' where these are mixed in, else 0.

    Raises:
        ValueError: a loss of logits with a teacher without a head, or labels that do not fit.
    """
    of_logits = CHOICES[loss].of_logits
    if of_logits and not teacher.num_classes:
        raise ValueError(f"loss is {loss}, but the teacher has no classification head; choose mse or cosine.")
    if not needs_labels(loss, alpha=alpha):
        return teacher.num_classes if of_logits else 0
    cached = CachedTensorDataset(anchored(cache_dir))
    width = teacher.num_classes if of_logits else num_classes(cached.labels, cached.classes)
    labels_fit(cached.labels, width, alpha=alpha, loss=loss)
    return width


def num_classes(labels: np.ndarray | None, classes: list[str] | None) -> int:
    """How many classes a data set has: as many as it names, or else one more than its largest label."""
    return len(classes) if classes else 0 if labels is None else int(labels.max()) + 1


def require_student(
    student: str, *, student_args: dict, student_layers: Sequence[int] = (), image_size: int, use_local_crops: bool = False,
    local_crop_size: int = 96,
):  # fmt: skip
    """Refuse a student that cannot be built, has no such layers, or cannot take the views: ValueError. No weight is made."""
    require_own("student_args", student_args, taken=inspect.signature(build_student).parameters)
    model = outline(student, **student_args)
    if model is None:
        return
    needed, memory = 16 * count_parameters(model), memory_bytes()
    if needed > memory:  # float32 weights, their gradients and two moments
        have = f"{student} has {count_parameters(model):,} weights with student_args {student_args}; training them"
        raise ValueError(f"{have} takes {format_bytes(needed)}, and this machine has {format_bytes(memory)} of memory.")
    FeatureModel(model, layers=student_layers)
    _require_size(model, image_size=image_size, use_local_crops=use_local_crops, local_crop_size=local_crop_size)


def _require_size(student: nn.Module, *, image_size: int, use_local_crops: bool, local_crop_size: int):
    size = required_size(student)
    if size not in (None, image_size) or (size and use_local_crops and local_crop_size != size):
        other = f"image_size is {image_size}" if size != image_size else f"local_crop_size is {local_crop_size}"
        raise ValueError(f"{type(student).__name__} takes images of {size} pixels a side alone, but {other}; set student_args "
                         f"img_size={image_size}, or dynamic_img_size=true for crops of several sizes.")  # fmt: skip


def check_student(student: Student, teacher, *, image_size: int, use_local_crops: bool = False, local_crop_size: int = 96):
    """Refuse a student that cannot take the views, or has another number of tokens than its teacher: ValueError."""
    _require_size(student.model, image_size=image_size, use_local_crops=use_local_crops, local_crop_size=local_crop_size)
    if student.token_projection is not None:
        own, wanted = student.encoder.token_shape(image_size)[0], teacher.token_shape[0]
        if own != wanted:
            raise ValueError(f"teacher_tokens is true, but the student has {own} tokens and the teacher {wanted}; choose another "
                             "student, or set it to false.")  # fmt: skip


def build_loss(
    teacher, outputs, loader, views, held_out, *, loss: str = "mse", loss_args: dict | None = None, temperature: float = 2.0,
    alpha: float = 1.0,
) -> DistillationLoss:  # fmt: skip
    """The loss, with the teacher's feature statistics where it needs them.

    Args:
        teacher: from `kdnb.distillation.teacher.open_teacher`. outputs: from `build_teacher_call`.
        loader, views: the run's. held_out: batches of labelled images that the teacher's head is measured on, or None.

    Raises:
        ValueError: logits of a teacher that is no better than chance on the held-out images, or are not stored whole, or features
            for which there is no PHI-S.
    """
    mix: dict[str, Any] = {"temperature": temperature, "alpha": alpha, "loss_args": loss_args}
    if CHOICES[loss].of_logits:
        require_whole_logits(
            loss=loss, cache_teacher_features=teacher.cache_dir is not None, teacher_top_k=teacher.output_settings["top_k"]
        )
        check_head(teacher, held_out)
        labels = loader.dataset.labels
        mix["log_accuracy"] = labels_fit(labels, teacher.num_classes, alpha=alpha, loss=loss)
        if labels is not None and not mix["log_accuracy"]:
            known = f"the teacher has {teacher.num_classes} classes"
            print(f"labels go from {labels.min()} to {labels.max()}, but {known}: accuracies are left out")
    if loss in STANDARDISED:
        mean, std = feature_statistics(outputs, loader.batches(0), views)
        mix |= {"mean": mean.to(loader.device), "std": std.to(loader.device)}
    if loss == "phi_s":
        enough = max(1024, 4 * teacher.feature_dim)  # a covariance of so many dimensions
        mix["phi_s"] = fit_phi_s(first_features(outputs, loader.batches(0), views, num_images=enough)).to(loader.device)
    return DistillationLoss(loss, **mix)


def require_whole_logits(*, loss: str, cache_teacher_features: bool, teacher_top_k: int | None):
    """Refuse a loss that looks at all logits, where only the largest are stored: ValueError."""
    if cache_teacher_features and teacher_top_k and CHOICES[loss].of_logits and loss != "soft_targets":
        raise ValueError(f"teacher_top_k is {teacher_top_k}, but loss is {loss}, which compares all logits; set teacher_top_k to "
                         "None, or loss to soft_targets.")  # fmt: skip


def save_student(student: Student, folder: Path, *, image_size: int, resize: str = "crop"):
    """Save the student's backbone, without its projections, as a timm model folder that says how its images were prepared."""
    inputs: dict[str, Any] = {"input_size": (3, image_size, image_size), "interpolation": "bicubic", "crop_pct": 1.0}
    inputs |= {"crop_mode": {"crop": "center", "squash": "squash"}[resize]}
    save_model(student.model, folder, **inputs | student.encoder.normalisation)


def finish_run(run: Run, **summary):
    """Write `summary` as the run's summary.json, and the model cards into its model folders. Of several ranks, rank 0 does."""
    if distributed.rank() > 0:
        return
    with run.writing():
        run.finish(summary)
        config = run.read("config.json")
        if config["parameters"]["use_cached"]:
            config["source"] = read_index(anchored(config["parameters"]["cache_dir"]))["source"]
        write_cards(run.folder, config, summary)
