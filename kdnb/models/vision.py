"""Any timm model as teacher or student: built by name, checked against its checkpoint, called for its features.

A model owns its normalisation: `model.pretrained_cfg` says with which mean and deviation it was (or will be) trained, and
`FeatureModel` applies them, so that images are given as floats in [0, 1]. Teacher and student may differ in it.
"""

import contextlib
import difflib
import inspect
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from kdnb.hub import WITHOUT_NETWORK, without_retries
from kdnb.models.folder import load_model
from kdnb.models.weights import IMAGENET, TimmModel, head_width, load_weights, read_weights, rounded

M = TypeVar("M", bound=nn.Module)


def build_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **kwargs,
) -> TimmModel:
    """A timm model.

    Args:
        name: a name that timm knows, a CIFAR ResNet (`cifar_resnet20` ...), or a folder that `save_model` wrote.
        pretrained: with the Hub's weights; a checkpoint or a folder takes their place.
        checkpoint: a file with a state dict (.pt, .pth, .th, .safetensors), or a run's own checkpoint.
        num_classes: width of the head, 0 for none; None takes the checkpoint's or timm's default.
        mean, std: normalisation of its inputs, three numbers each, for RGB in [0, 1]; None takes what is recorded in the
            folder or in a run's checkpoint (older ones record none, and were trained with ImageNet's), else timm's for `name`.
        kwargs: further arguments of the architecture, such as img_size or depth.

    Returns:
        The model, with `head_is_random` set: whether it has a head that neither checkpoint, folder nor Hub filled;
        `kdnb_args`, the architecture's arguments, for `save_model`; and the normalisation in `pretrained_cfg`.

    Raises:
        ValueError: an unknown name (with near ones), arguments that the model does not take, or a checkpoint of another
            architecture (with some of the keys that do not fit).
        FileNotFoundError: no such checkpoint or folder.
        ConnectionError: pretrained weights that cannot be fetched.
    """
    import timm

    require_model(name)
    statistics = {key: values for key, values in (("mean", mean), ("std", std)) if values is not None}
    if wrong := [key for key, values in statistics.items() if not _is_statistic(key, values)]:
        raise ValueError(f"{wrong[0]} of {name} is {statistics[wrong[0]]}; allowed are three numbers, for RGB in [0, 1].")
    folder = _as_folder(name)
    settings = kwargs if num_classes is None else kwargs | {"num_classes": num_classes}
    path = None if checkpoint is None else Path(checkpoint)
    state, recorded = (None, {}) if path is None else read_weights(path)
    if state is not None and "num_classes" not in settings:
        settings = settings | head_width(name, state)
    pretrained = pretrained and folder is None and state is None
    from_hub = pretrained or name.startswith("hf-hub:")  # whose architecture is on the Hub, too
    try:
        with without_retries() if from_hub else contextlib.nullcontext():
            model = load_model(folder, **settings) if folder else timm.create_model(name, pretrained=pretrained, **settings)
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        if "state_dict" in reason:  # weights are there, but of other shapes
            raise ValueError(f"the weights of {name} do not fit {settings}: {reason}.") from error
        if isinstance(error, TypeError | AssertionError) or not (folder or from_hub):
            raise _unbuildable(name, settings, reason) from error
        if not from_hub:
            raise
        raise ConnectionError(
            f"the pretrained weights of {name} cannot be fetched ({str(error).strip().split(chr(10))[0][:120]}); "
            f"{WITHOUT_NETWORK}, or pass the path of a checkpoint file or of a model folder."
        ) from error
    if any(weight.numel() == 0 for weight in model.parameters()):
        raise _unbuildable(name, settings, "some of its layers would have no weights")
    if folder is None:
        # Weights of the Hub fill the head only where it has as many classes as theirs.
        filled = pretrained and model.pretrained_cfg.get("num_classes") == model.num_classes
        model.head_is_random = model.num_classes > 0 and not filled
        of_timm = {"num_classes", *inspect.signature(timm.create_model).parameters}  # the rest makes the architecture
        model.kdnb_args = {key: value for key, value in settings.items() if key not in of_timm}
    if path is not None and state is not None:
        model.head_is_random = load_weights(model, state, path)
    model.pretrained_cfg = model.pretrained_cfg | recorded | statistics
    return model


def _unbuildable(name: str, settings: dict, reason: str) -> ValueError:
    ways = "change student_args, or for a teacher teacher_args"
    return ValueError(f"{name} cannot be built with {settings or 'its defaults'}: {reason}; {ways}.")


def outline(name: str, **settings) -> TimmModel | None:
    """The model that `build_model` makes of these arguments, on the meta device: in milliseconds, without memory for its weights.

    None for what is not built from its name alone, such as a folder. Raises ValueError as `build_model` does.
    """
    require_model(name)
    if _as_folder(name) is not None or name.startswith("hf-hub:"):
        return None
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        return build_model(name, **settings | {"pretrained": False, "checkpoint": None})


def require_pretrained(name: str):
    """Refuse a model of which timm knows no trained weights: ValueError. Folders have theirs; what the Hub has is known there."""
    import timm

    if name.startswith("hf-hub:") or _as_folder(name) is not None:
        return
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"there are no pretrained weights of {name}; give teacher_checkpoint, a file with its weights.")


def looks_untrained(model: nn.Module) -> bool:
    """Whether all normalisation layers are as they were initialised, which no training leaves them; False where there are none.

    Example:
        >>> model = build_model("cifar_resnet8")
        >>> looks_untrained(model)
        True
    """
    layers = [layer for layer in model.modules() if "norm" in type(layer).__name__.lower()]
    zeros = [getattr(layer, name, None) for layer in layers for name in ("bias", "running_mean")]  # until they are trained
    zeros = [values for values in zeros if isinstance(values, torch.Tensor)]
    return bool(zeros) and not any(values.any() for values in zeros)


def _is_statistic(name: str, values: Sequence[float]) -> bool:
    numbers = isinstance(values, Sequence) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
    return numbers and (name == "mean" or min(values) > 0)


def _as_folder(name: str) -> Path | None:
    """The model folder that `name` means; None for a name of timm, even where a folder is called the same."""
    import timm

    if name.startswith("local-dir:"):
        return Path(name.removeprefix("local-dir:"))
    return Path(name) if name and not timm.is_model(name) and Path(name).is_dir() else None


def require_model(name: str):
    """Raise ValueError, with near names, for what is no model folder and no model or tag that timm knows.

    The Hub's own are known to the Hub alone. No model is built and nothing is fetched.
    """
    import timm

    from kdnb.models import cifar_resnet  # noqa: F401 - registers its models with timm

    if _as_folder(name) is not None:
        return
    base, _, tag = name.partition(".")
    tags = timm.list_models(f"{base}.*", include_tags=True) if timm.is_model(base) else []
    if name.startswith("hf-hub:") or (timm.is_model(base) and (not tag or name in tags)):
        return
    known = tags or timm.list_models()
    near = ", ".join(difflib.get_close_matches(name, known, n=5, cutoff=0.5)) or "none"
    raise ValueError(f"{name} is no model that timm knows and no model folder; near names are {near}.")


class FeatureModel(nn.Module):
    """A timm model that normalises its inputs and returns features and logits.

    Called with float images [B, 3, H, W] in [0, 1], it returns a dict of "features" [B, feature_dim], pooled; "logits"
    [B, num_classes], where there is a head; "layers", a list of [B, D], pooled over space or tokens, where `layers` is not empty;
    and "tokens" [B, N, D], where `tokens` is true.

    Args:
        model: from `build_model`; `pretrained_cfg` holds its mean and std.
        layers: indices of intermediate features, as for timm's `forward_intermediates` (negative ones count from the
            end), in any order. ValueError where the model has no such layer.
        tokens: return the patch tokens of a transformer (without class and register tokens), or the positions of a convolutional
            network's last feature map.
        input_size: side that images of another size are resized to (antialiased bilinear); None passes them on as they are.

    Attributes:
        mean, std: buffers [3, 1, 1], saved with the weights: a checkpoint says how its model was trained.
        feature_dim, num_classes, layer_dims, token_dim: widths of the outputs.
    """

    model: TimmModel
    mean: torch.Tensor
    std: torch.Tensor
    made_with: dict  # the parameters that name it, where `load_teacher` returned it

    def __init__(self, model: TimmModel, *, layers: Sequence[int] = (), tokens: bool = False, input_size: int | None = None):
        super().__init__()
        for name, usual in IMAGENET.items():
            values = torch.tensor(getattr(model, "pretrained_cfg", {}).get(name, usual), dtype=torch.float32)
            self.register_buffer(name, values.view(3, 1, 1))
        self.input_size = input_size
        self.tokens, self.token_dim = tokens, model.num_features
        count = len(model.feature_info) if hasattr(model, "forward_intermediates") else 0
        if wrong := [index for index in layers if not -count <= index < count]:
            raise ValueError(f"layers {wrong} are not in {type(model).__name__}, which has {count}; allowed is 0 to {count - 1}.")
        self.model, self.layers = model, tuple(index % count for index in layers)
        self.num_classes = model.num_classes
        self.feature_dim = model.head_hidden_size
        self.layer_dims = tuple(model.feature_info[i]["num_chs"] for i in self.layers)
        self.head_is_random = getattr(model, "head_is_random", model.num_classes > 0)

    @property
    def normalisation(self) -> dict[str, tuple[float, ...]]:
        """The "mean" and "std" of its inputs, three numbers each."""
        return {name: rounded(getattr(self, name)) for name in IMAGENET}

    @torch.no_grad()
    def token_shape(self, image_size: int) -> tuple[int, int]:
        """(N, D) of the tokens of one image of `image_size` pixels a side."""
        training = self.training
        tokens = self.eval()(torch.zeros(1, 3, image_size, image_size, device=self.mean.device))["tokens"]
        self.train(training)
        return tuple(tokens.shape[1:])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args):
        for name, usual in IMAGENET.items():  # which is what models were trained with before checkpoints recorded it
            state_dict.setdefault(prefix + name, torch.tensor(usual).view(3, 1, 1))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, images: torch.Tensor) -> dict:
        """See the class. Raises ValueError for images that are not float."""
        if not images.is_floating_point():
            raise ValueError(f"images is {images.dtype}; models take float images in [0, 1], as views are.")
        if self.input_size and images.shape[-1] != self.input_size:
            images = F.interpolate(images, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        images = (images - self.mean).div_(self.std)
        outputs = {}
        if self.layers:
            indices = sorted(set(self.layers))  # the order in which timm returns them
            last, middle = self.model.forward_intermediates(images, indices=indices, norm=True)
            outputs["layers"] = [middle[indices.index(layer)].mean((2, 3)) for layer in self.layers]  # timm gives NCHW
        else:
            last = self.model.forward_features(images)
        if self.tokens:
            prefix = getattr(self.model, "num_prefix_tokens", 0)
            outputs["tokens"] = last[:, prefix:] if last.ndim == 3 else last.flatten(2).transpose(1, 2)  # from NCHW
        outputs["features"] = self.model.forward_head(last, pre_logits=True)
        if self.num_classes:
            outputs["logits"] = self.model.forward_head(last)
        return outputs


class Student(nn.Module):
    """A timm model with projections to the teacher's widths, which are dropped after training.

    Called with float images [B, 3, H, W] in [0, 1], it returns the dict of a `FeatureModel` with "features" [B, teacher_dim],
    "layers" and "tokens" projected, and the pooled features themselves as "embedding" [B, D]; "logits" are its own head's.

    Args:
        model: from `build_model`. teacher_dim: width of the teacher's pooled features.
        layers, layer_dims: intermediate layers of the student, and the widths of the teacher's that they imitate.
        token_dim: width of the teacher's tokens, to imitate them, too; 0 leaves them out.
        projection_width: of the hidden layer between its pooled features and the teacher's; None: a linear projection.
    """

    made_with: dict  # the parameters that name it, where `build_student` returned it

    def __init__(
        self, model: TimmModel, *, teacher_dim: int, layers: Sequence[int] = (), layer_dims: Sequence[int] = (),
        token_dim: int = 0, projection_width: int | None = None,
    ):  # fmt: skip
        super().__init__()
        require_as_many_layers(layers, layer_dims)
        self.encoder = FeatureModel(model, layers=layers, tokens=token_dim > 0)
        own = self.encoder.feature_dim
        self.projection = (
            nn.Linear(own, teacher_dim) if projection_width is None else two_layers(own, projection_width, teacher_dim)
        )
        widths = zip(self.encoder.layer_dims, layer_dims, strict=True)
        self.layer_projections = nn.ModuleList(nn.Linear(own, teachers) for own, teachers in widths)
        self.token_projection = nn.Linear(self.encoder.token_dim, token_dim) if token_dim else None

    @property
    def model(self) -> TimmModel:
        """The timm model."""
        return self.encoder.model

    def forward(self, images: torch.Tensor) -> dict:
        """See the class."""
        outputs = self.encoder(images)
        outputs["embedding"] = outputs["features"]
        outputs["features"] = self.projection(outputs["embedding"])
        if "layers" in outputs:
            pairs = zip(self.layer_projections, outputs["layers"], strict=True)
            outputs["layers"] = [project(features) for project, features in pairs]
        if self.token_projection is not None:
            outputs["tokens"] = self.token_projection(outputs["tokens"])
        return outputs


def two_layers(inputs: int, width: int, outputs: int) -> nn.Module:
    """A projection with one hidden layer of `width`: what a linear one cannot reach need not change the features before it."""
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


def require_as_many_layers(student_layers: Sequence, feature_layers: Sequence):
    """Refuse to pair layers of the student with another number of the teacher's: ValueError."""
    if len(student_layers) != len(feature_layers):
        counts = f"student_layers has {len(student_layers)} layers, feature_layers {len(feature_layers)}"
        raise ValueError(f"{counts}; give as many of each.")


def require_own(name: str, arguments: Mapping, *, taken: Iterable[str]):
    """Refuse, among an architecture's `arguments`, those that other parameters decide on: ValueError."""
    if clash := sorted(arguments.keys() & {*taken}):
        raise ValueError(f"{name} has {', '.join(clash)}, which other parameters decide on; leave it out.")


def required_size(model: nn.Module) -> int | None:
    """Side in pixels of the only images that a timm model takes, such as a ViT's `img_size`; None where any size will do."""
    patches = getattr(model, "patch_embed", None)
    size = getattr(patches, "img_size", None) if getattr(patches, "strict_img_size", False) else None
    return size[0] if size else None


def freeze(model: M) -> M:
    """`model` in eval mode for good, without gradients: a later `train()` on it or on its parent changes nothing."""
    model.requires_grad_(False).eval()
    model.__dict__["train"] = partial(_stay_in_eval, model)  # of this one module, which copies and pickles with it
    return model


def _stay_in_eval(model: nn.Module, mode: bool = True) -> nn.Module:
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in model.parameters())
