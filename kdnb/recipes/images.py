"""From checked parameters to the pieces that an image training notebook puts together.

Each function takes the notebook's parameters `p` (from `check_params`) and returns one piece; a script can build the same
pieces from the modules that they come from.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F

from kdnb import ranks
from kdnb.data.datasets import CachedTensorDataset, RawImageDataset
from kdnb.data.device_loader import DeviceLoader, bytes_on_device
from kdnb.data.images import open_source
from kdnb.data.loader import BatchReader, WorkerLoader, build_pretraining_dataloader
from kdnb.data.order import Order
from kdnb.data.shards import read_index
from kdnb.data.views import CleanTransform, FastMultiCropTransform, RepeatedViews, SimpleTransform
from kdnb.knowledge import feature_statistics, require_knowledge, teacher_knowledge
from kdnb.losses import DistillationLoss, labels_fit
from kdnb.models.card import write_cards
from kdnb.models.folder import load_model, save_model
from kdnb.models.vision import FeatureModel, Student, build_model, freeze, required_size
from kdnb.recipes.memory import fits, step_bytes
from kdnb.recipes.sources import held_out_batches, source_arguments
from kdnb.runs import Run, anchored, find_device, local_or_hub, set_seed
from kdnb.teachers import LiveTeacher
from kdnb.train import train

_BUILTIN_TEACHER = {"model": "cifar_resnet8", "epochs": 10, "batch_size": 48, "learning_rate": 1e-2, "label_smoothing": 0.1}


def build_loader(p: SimpleNamespace, *, regime: str, **subset) -> BatchReader | WorkerLoader:
    """The batches of `regime` with the notebook's batch size, cap and seeds; `subset` holds what the regime needs."""
    raw = {"image_size": p.image_size, "resize": p.resize, "cache_shard_size": p.cache_shard_size}
    raw = {} if p.use_cached else raw | source_arguments(p)
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
    stored = stored_normalisation(p) if p.use_cached else {}
    if p.augmentation == "clean":
        return CleanTransform(size=p.image_size, **stored)
    free = _free_views(p, scale=(p.crop_scale_min, 1.0), **stored)
    return free if p.teacher_views is None else RepeatedViews(transform=free, repeats=p.teacher_views)


def require_multicrop(p: SimpleNamespace):
    """Refuse local crops without the global ones that belong to them: ValueError."""
    if p.use_local_crops and p.augmentation != "multicrop":
        raise ValueError(f"use_local_crops is true, but augmentation is {p.augmentation}; local crops need multicrop.")


def stored_normalisation(p: SimpleNamespace) -> dict:
    """Normalisation ("mean", "std") that the images of a float cache were stored with; nothing for uint8."""
    index = read_index(anchored(p.cache_dir))
    return {} if index["storage"] == "uint8" else {name: tuple(index[name]) for name in ("mean", "std")}


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


def build_teacher(p: SimpleNamespace) -> FeatureModel:
    """The frozen teacher of `p`."""
    # An older run's parameters do not know of tokens; nothing but its features and logits is asked for then.
    asked = {"layers": p.feature_layers, "tokens": getattr(p, "teacher_tokens", False)}
    return load_teacher(p.teacher, checkpoint=p.teacher_checkpoint, **asked, **p.teacher_args)


def load_teacher(
    name: str, *, checkpoint: str | Path | None = None, layers: Sequence[int] = (), tokens: bool = False, **arguments
) -> FeatureModel:
    """A frozen teacher on the training device: any timm model, from the Hub, a folder or a checkpoint file.

    Called with float images [B, 3, H, W] in [0, 1], it normalises them as its own configuration says and returns a dict with
    "features" [B, D] and, where it has a head, "logits" [B, C]. One that takes images of a single size, such as a ViT, resizes
    what it is given to that.

    Args:
        name: a name that timm knows, a model folder, `hf-hub:owner/name`, or `builtin`: a ResNet-8 for the built-in digits,
            trained here the first time.
        checkpoint: a file with its weights; None: those of the Hub.
        layers, tokens: also return intermediate "layers" and patch "tokens" (see `kdnb.models.vision.FeatureModel`).
        arguments: of the architecture, such as img_size=224; `mean` and `std` where a checkpoint's normalisation is not timm's.

    Raises:
        ValueError: an unknown name (with near ones), or weights of another architecture. FileNotFoundError: no such checkpoint.
        ConnectionError: weights that cannot be fetched.

    Example:
        >>> teacher = load_teacher("resnet10t", checkpoint=None, num_classes=0)  # doctest: +SKIP
    """
    if name == "builtin":
        model = load_model(builtin_teacher())
    else:
        path = None if checkpoint is None else anchored(checkpoint)
        model = build_model(local_or_hub(name), pretrained=path is None, checkpoint=path, **arguments)
    teacher = FeatureModel(model, input_size=required_size(model), layers=tuple(layers), tokens=tokens)
    teacher.made_with = {
        "teacher": name, "teacher_checkpoint": None if checkpoint is None else str(checkpoint), "teacher_args": arguments,
        "feature_layers": list(layers), "teacher_tokens": tokens,
    }  # fmt: skip
    return freeze(teacher.to(find_device()))


def builtin_teacher() -> Path:
    """Folder of a ResNet-8 trained on the labels of the 1,500 training digits: found from an earlier run, or trained now."""
    run = Run("teacher_digits", _BUILTIN_TEACHER)
    if not run.finished:
        with run.held(wait=True):  # by another job, which then has trained it
            if not run.finished:
                _train_builtin_teacher(run)
    return run.folder / "final_model"


def _train_builtin_teacher(run: Run):
    set_seed(0)
    history = train(
        FeatureModel(build_model("cifar_resnet8", num_classes=10)),
        lambda views, batch: [],  # nobody teaches the teacher: it learns from labels
        raw_batches(open_source("digits", split="train"), image_size=32, batch_size=48, shuffle="all"),
        views=SimpleTransform(scale=(0.7, 1.0), horizontal_flip=False, size=32),
        loss=lambda outputs, answers, labels: {
            "loss": F.cross_entropy(outputs[0]["logits"], labels, label_smoothing=_BUILTIN_TEACHER["label_smoothing"])
        },
        run=run,
        epochs=_BUILTIN_TEACHER["epochs"],
        learning_rate=_BUILTIN_TEACHER["learning_rate"],
        warmup_steps=30,
        keep_checkpoints=1,
        save_model=lambda model, folder: save_model(model.model, folder),
    )
    run.finish({"loss": history["epochs"][-1]["loss"]})


def raw_batches(source, *, image_size: int, batch_size: int = 100, resize: str = "crop", shuffle: str = "none"):
    """Batches of all images of a source, decoded on the fly (the held-out split, say)."""
    order = Order(shard_sizes=(source.num_images,), shuffle=shuffle)
    data = RawImageDataset(source, image_size=image_size, resize=resize, order=order)
    return WorkerLoader(data, batch_size=batch_size, device=find_device(), drop_last=False)


def build_student(p: SimpleNamespace, teacher) -> Student:
    """The student of `p` with projections to the widths of `teacher`, from `kdnb.recipes.teacher.open_teacher`."""
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
        own, asked = token_shape(student.encoder, p.image_size)[0], teacher.token_shape[0]
        if own != asked:
            raise ValueError(f"teacher_tokens is true, but the student has {own} tokens and the teacher {asked}; choose another "
                             "student, or set it to false.")  # fmt: skip


@torch.no_grad()
def token_shape(model: FeatureModel, size: int) -> tuple[int, int]:
    """(N, D) of the tokens that `model` makes of an image of `size` pixels a side."""
    training = model.training
    tokens = model.eval()(torch.zeros(1, 3, size, size, device=model.mean.device))["tokens"]
    model.train(training)
    return tuple(tokens.shape[1:])


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
        teacher: from `kdnb.recipes.teacher.open_teacher`. answers: from `build_answers`.

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
    held_out = held_out_batches(p)
    if not labels_fit(None if held_out is None else held_out.dataset.labels, teacher.num_classes, alpha=1):
        why = f"eval_split gives no labels of its {teacher.num_classes} classes"
        if teacher.head_is_random:
            raise ValueError(f"the teacher's head was not in its checkpoint, and {why} to measure it on; set eval_split to a "
                             "labelled split, or loss to mse or cosine.")  # fmt: skip
        print(f"the teacher's head is not measured: {why}")
        return

    def measure() -> dict:
        view = CleanTransform(size=p.image_size)
        return teacher_knowledge(LiveTeacher(teacher.load()), held_out.batches(0), view)

    knowledge = teacher.remember("knowledge", held_out.dataset.reader.index["fingerprint"], measure)
    print("teacher on held-out images: " + ", ".join(f"{name} {value:.4g}" for name, value in knowledge.items()))
    require_knowledge(knowledge, head_is_random=teacher.head_is_random)


def place_data(p: SimpleNamespace, loader, student: Student, answers, views, loss):
    """`loader`, or the same batches from the device's memory where `cache_on_device` says so; prints what was decided.

    `auto` measures what a step takes, on a copy of the student, and what the GPU has free.

    Raises:
        MemoryError: `cache_on_device` is true, and the images do not fit.
    """
    cuda = loader.device.type == "cuda"
    if p.cache_on_device == "false" or not isinstance(loader, BatchReader) or (p.cache_on_device == "auto" and not cuda):
        return loader
    needed = bytes_on_device(loader, p.epochs)
    if p.cache_on_device == "auto":
        how = {name: getattr(p, name) for name in ("mixed_precision", "gradient_accumulation_steps")}
        peak = step_bytes(student, loader, answers, views, loss, **how)
        enough, said = fits(needed, free=torch.cuda.mem_get_info(loader.device)[0], peak=peak)
        print(f"cache_on_device: {said}", flush=True)
        if not enough:
            return loader
    try:
        return DeviceLoader(loader, epochs=p.epochs)
    except torch.OutOfMemoryError:
        said = f"{needed / 1e9:.2f} GB of images do not fit on {loader.device}"
    if p.cache_on_device == "true":
        raise MemoryError(f"cache_on_device is true, but {said}; set it to auto or false.")
    print(f"cache_on_device: {said}: read from the shards", flush=True)
    return loader


def save_student(p: SimpleNamespace, student: Student, folder: Path):
    """Save the student's backbone, without its projections, as a timm model folder that says how its images were prepared."""
    inputs = {"input_size": (3, p.image_size, p.image_size), "interpolation": "bicubic", "crop_pct": 1.0}
    inputs |= {"crop_mode": {"crop": "center", "squash": "squash"}[p.resize]}
    save_model(student.model, folder, **inputs, **student.encoder.normalisation)


def write_run_cards(run: Run):
    """Write the model card into the run's model folders; the run must be finished. Of several ranks, rank 0 does."""
    if ranks.rank() > 0:
        return
    config = run.read("config.json")
    if config["parameters"]["use_cached"]:
        config["source"] = read_index(anchored(config["parameters"]["cache_dir"]))["source"]
    write_cards(run.folder, config, run.read("summary.json"))


def training_settings(p: SimpleNamespace) -> dict:
    """The keyword arguments of `train` that are parameters of the notebook."""
    names = (
        "epochs learning_rate weight_decay warmup_steps gradient_accumulation_steps clip_grad_norm mixed_precision "
        "compile_student batch_norm seed save_every_steps keep_checkpoints"
    )
    return {name: getattr(p, name) for name in names.split()} | {"save_model": partial(save_student, p)}
