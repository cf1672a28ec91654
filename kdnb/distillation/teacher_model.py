"""The frozen teacher as a model: any that timm knows, or the built-in one, trained here once."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.nn import functional as F

from kdnb.data.datasets import RawImageDataset
from kdnb.data.loader import WorkerLoader
from kdnb.data.order import Order
from kdnb.data.sources import DigitsSource
from kdnb.data.views import SimpleTransform
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.models.folder import load_model, save_model, trained_once
from kdnb.models.vision import FeatureModel, build_model, freeze, require_own, required_size
from kdnb.runs import Run, anchored, local_or_hub, set_seed

# What the built-in teacher's config.json holds.
_BUILTIN: dict[str, Any] = {"model": "cifar_resnet8", "epochs": 10, "batch_size": 48, "learning_rate": 1e-2}
_BUILTIN |= {"label_smoothing": 0.1}


def load_teacher(
    name: str, *, teacher_checkpoint: str | Path | None = None, feature_layers: Sequence[int] = (), teacher_tokens: bool = False,
    **teacher_args,
) -> FeatureModel:  # fmt: skip
    """A frozen teacher on the training device: any timm model, from the Hub, a folder or a checkpoint file.

    Called with float images [B, 3, H, W] in [0, 1], it normalises them as its own configuration says and returns a dict with
    "features", float32 [B, D], and, where it has a head, "logits" [B, C]. One that takes images of a single size, such as a ViT,
    resizes images to that.

    Args:
        name: a name that timm knows (Wightman, https://github.com/huggingface/pytorch-image-models), a model folder,
            `hf-hub:owner/name`, or `builtin`: a ResNet-8 for the built-in digits, trained here the first time, in seconds.
        teacher_checkpoint: a file with its weights; None: those of the Hub.
        feature_layers, teacher_tokens: also return intermediate "layers" and patch "tokens": see
            `kdnb.models.vision.FeatureModel`.
        teacher_args: of the architecture, such as img_size=224; `mean` and `std` where a checkpoint's are not timm's.

    Raises:
        ValueError: an unknown name (with near ones), or weights of another architecture. FileNotFoundError: no such checkpoint.
        ConnectionError: weights that cannot be fetched.

    Example:
        >>> import tempfile, timm, torch
        >>> path = tempfile.mkdtemp() + "/resnet.pt"
        >>> torch.save(timm.create_model("resnet10t", num_classes=5).state_dict(), path)
        >>> teacher = load_teacher("resnet10t", teacher_checkpoint=path)
        >>> outputs = teacher(torch.rand(2, 3, 64, 64).to(teacher.mean.device))
        >>> {name: tuple(values.shape) for name, values in outputs.items()}
        {'features': (2, 512), 'logits': (2, 5)}
    """
    require_teacher_args(name, teacher_args=teacher_args, teacher_checkpoint=teacher_checkpoint)
    path = None if teacher_checkpoint is None else anchored(teacher_checkpoint)
    if name == "builtin":
        model = load_model(builtin_teacher())
    else:
        model = build_model(local_or_hub(name), pretrained=path is None, checkpoint=path, **teacher_args)
    teacher = FeatureModel(model, input_size=required_size(model), layers=tuple(feature_layers), tokens=teacher_tokens)
    teacher.made_with = {
        "teacher": name, "teacher_checkpoint": None if path is None else str(teacher_checkpoint), "teacher_args": teacher_args,
        "feature_layers": list(feature_layers), "teacher_tokens": teacher_tokens,
    }  # fmt: skip
    return freeze(teacher.to(find_device()))


def require_teacher_args(teacher: str, *, teacher_args: dict, teacher_checkpoint: str | Path | None):
    """Refuse arguments that the teacher does not take: ValueError."""
    given = {"teacher_args": teacher_args, "teacher_checkpoint": teacher_checkpoint}
    if wrong := [name for name, value in given.items() if value and teacher == "builtin"]:
        raise ValueError(f"{wrong[0]} is {given[wrong[0]]!r}, but the built-in teacher takes none; leave it out.")
    taken = {"pretrained", "checkpoint", *inspect.signature(load_teacher).parameters}  # it has the Hub's weights, or its file's
    require_own("teacher_args", teacher_args, taken=taken)


def build_teacher(
    *, teacher: str, teacher_args: dict, teacher_checkpoint: str | None, feature_layers: Sequence[int],
    teacher_tokens: bool = False,
) -> FeatureModel:  # fmt: skip
    """`load_teacher` by the names of a notebook's parameters; those of older runs have no `teacher_tokens`."""
    return load_teacher(
        teacher,
        teacher_checkpoint=teacher_checkpoint,
        feature_layers=feature_layers,
        teacher_tokens=teacher_tokens,
        **teacher_args,
    )


def builtin_teacher() -> Path:
    """Folder of a ResNet-8 trained on the labels of the 1,500 training digits: of an earlier run, or trained now."""
    run = Run("teacher_digits", _BUILTIN)
    return trained_once(run, lambda: _train_on_digits(run))


def _train_on_digits(run: Run):
    """The loop of distillation, with labels in the place of a teacher."""
    set_seed(0)
    digits = DigitsSource("train")
    order = Order(shard_sizes=(digits.num_images,), shuffle="all")
    images = RawImageDataset(digits, image_size=32, resize="crop", order=order)
    history = train(
        FeatureModel(build_model(_BUILTIN["model"], num_classes=10)),
        lambda views, batch: [],
        WorkerLoader(images, batch_size=_BUILTIN["batch_size"], device=find_device(), drop_last=False),
        views=SimpleTransform(scale=(0.7, 1.0), horizontal_flip=False, size=32),
        loss=lambda outputs, teacher_outputs, labels: {
            "loss": F.cross_entropy(outputs[0]["logits"], labels, label_smoothing=_BUILTIN["label_smoothing"])
        },
        run=run,
        epochs=_BUILTIN["epochs"],
        learning_rate=_BUILTIN["learning_rate"],
        warmup_steps=30,
        keep_checkpoints=1,
        save_model=lambda model, folder: save_model(model.model, folder),
    )
    run.finish({"loss": history["epochs"][-1]["loss"]})
