"""The frozen teacher as a model: loaded from anywhere timm knows, or the built-in one, trained here once."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional as F

from kdnb.data.datasets import RawImageDataset
from kdnb.data.loader import WorkerLoader
from kdnb.data.order import Order
from kdnb.data.sources import open_source
from kdnb.data.views import SimpleTransform
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.models.folder import load_model, save_model
from kdnb.models.vision import FeatureModel, build_model, freeze, required_size
from kdnb.runs import Run, anchored, local_or_hub, set_seed

_BUILTIN_TEACHER = {"model": "cifar_resnet8", "epochs": 10, "batch_size": 48, "learning_rate": 1e-2, "label_smoothing": 0.1}


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


@torch.no_grad()
def token_shape(model: FeatureModel, size: int) -> tuple[int, int]:
    """(N, D) of the tokens that `model` makes of an image of `size` pixels a side."""
    training = model.training
    tokens = model.eval()(torch.zeros(1, 3, size, size, device=model.mean.device))["tokens"]
    model.train(training)
    return tuple(tokens.shape[1:])
