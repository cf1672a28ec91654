"""Any timm model as teacher or student: built by name, checked against its checkpoint, saved so that timm reloads it."""

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

_CONTAINERS = ("state_dict", "model_state_dict", "model", "student")  # where checkpoint files keep the weights
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")


def build_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    **kwargs,
) -> nn.Module:
    """A timm model.

    Args:
        name: a name that timm knows, a CIFAR ResNet (`cifar_resnet20` ...), or a folder that `save_model` wrote.
        pretrained: with the Hub's weights. checkpoint: a file with a state dict (.pt, .pth, .th, .safetensors).
        num_classes: width of the head, 0 for none; None takes the checkpoint's or timm's default.
        kwargs: further arguments of the architecture, such as img_size or depth.

    Returns:
        The model, with `head_is_random` set: whether it has a head that no checkpoint filled.

    Raises:
        ValueError: an unknown name (with near ones), arguments that the model does not take, or a checkpoint of another
            architecture (with some of the keys that do not fit).
        ConnectionError: pretrained weights that cannot be fetched.
    """
    import timm

    from kdnb.models import cifar_resnet  # noqa: F401 - registers its models with timm

    if Path(name.removeprefix("local-dir:")).is_dir():
        return load_model(name.removeprefix("local-dir:"))
    if not name.startswith("hf-hub:") and not timm.is_model(name.split(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(f"{name} is no model that timm knows; near names are {', '.join(near) or 'none'}.")
    settings = kwargs if num_classes is None else kwargs | {"num_classes": num_classes}
    state = None if checkpoint is None else _read_checkpoint(Path(checkpoint))
    if state is not None and num_classes is None and "num_classes" not in kwargs:
        settings = settings | _classes_of(name, state, kwargs)
    try:
        model = timm.create_model(name, pretrained=pretrained, **settings)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"{name} cannot be built with {settings or 'its defaults'}: {error}.") from error
    except Exception as error:
        if not pretrained:
            raise
        raise ConnectionError(
            f"the pretrained weights of {name} cannot be fetched ({str(error).splitlines()[0][:120]}); without a network, "
            "pass the path of a checkpoint file or of a model folder."
        ) from error
    model.head_is_random = model.num_classes > 0 and not pretrained
    if state is not None:
        model.head_is_random = _load_state(model, state, Path(checkpoint))
    return model


def _read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file, without wrappers. Raises FileNotFoundError, or ValueError where there are none."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; check teacher_checkpoint.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"checkpoint {path} cannot be read as weights ({str(error).splitlines()[0][:120]}).") from None
    for container in _CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(container), dict):
            state = state[container]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} holds no state dict; expected names and tensors.")
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {_renamed(name): value for name, value in state.items()}


def _renamed(name: str) -> str:
    """The published CIFAR ResNets call their head `linear`."""
    return "fc." + name.removeprefix("linear.") if name.startswith("linear.") else name


def _classes_of(name: str, state: dict, kwargs: dict) -> dict:
    """The width of the head in a checkpoint, as `num_classes`; nothing where it has none."""
    import timm

    head = timm.models.get_pretrained_cfg(name.split(".")[0]).classifier
    head = head if isinstance(head, str) else (head or ("",))[0]
    weight = state.get(f"{head}.weight")
    return {"num_classes": 0 if weight is None else len(weight)}


def _load_state(model: nn.Module, state: dict, path: Path) -> bool:
    """Load weights; everything but the head must fit. Returns whether the head was left at random."""
    expected = model.state_dict()
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    differing = [n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape]
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    missing = {n for n in missing if not n.endswith("num_batches_tracked")}
    faults = {
        "missing": sorted(n for n in missing if not n.startswith(heads)) if heads else sorted(missing),
        "unexpected": sorted(n for n in unexpected if not (heads and n.startswith(heads))),
        "of another shape": [
            f"{n} {list(state[n].shape)} instead of {list(expected[n].shape)}"
            for n in sorted(differing)
            if not (heads and n.startswith(heads))
        ],
    }
    faults = {kind: names for kind, names in faults.items() if names}
    if faults:
        words = "; ".join(f"{len(n)} {kind}: {', '.join(n[:5])}{' ...' if len(n) > 5 else ''}" for kind, n in faults.items())
        raise ValueError(f"checkpoint {path} is of another architecture than {type(model).__name__}: {words}.")
    model.load_state_dict({n: v for n, v in state.items() if n in expected and n not in differing}, strict=False)
    return bool(heads) and model.num_classes > 0 and any(n.startswith(heads) for n in [*missing, *differing])


class FeatureModel(nn.Module):
    """A timm model that answers with its pooled features, its logits and, where asked, intermediate features.

    Args:
        model: from `build_model`. layers: indices of intermediate features, as for timm's `forward_intermediates`.

    `forward(images [B, 3, H, W])` returns {"features": [B, feature_dim]}, "logits" [B, num_classes] where there is a head,
    and "layers", a list of [B, D], pooled over space or tokens, where `layers` is not empty.
    """

    def __init__(self, model: nn.Module, *, layers: Sequence[int] = ()):
        super().__init__()
        self.model, self.layers = model, tuple(layers)
        self.frozen = False  # see freeze
        self.num_classes = model.num_classes
        self.feature_dim = model.head_hidden_size
        self.layer_dims = tuple(model.feature_info[i]["num_chs"] for i in self.layers)
        self.head_is_random = getattr(model, "head_is_random", model.num_classes > 0)

    def train(self, mode: bool = True) -> "FeatureModel":
        """Training or eval mode; a frozen model stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, images: torch.Tensor) -> dict:
        """See the class."""
        answer = {}
        if self.layers:
            found, middle = self.model.forward_intermediates(images, indices=list(self.layers), norm=True)
            answer["layers"] = [features.mean((2, 3)) for features in middle]  # timm gives NCHW
        else:
            found = self.model.forward_features(images)
        answer["features"] = self.model.forward_head(found, pre_logits=True)
        if self.num_classes:
            answer["logits"] = self.model.forward_head(found)
        return answer


class Student(nn.Module):
    """A timm model with linear projections to the teacher's widths, which are dropped after training.

    Args:
        model: from `build_model`. teacher_dim: width of the teacher's pooled features.
        layers, layer_dims: intermediate layers of the student, and the widths of the teacher's that they imitate.

    `forward(images)` returns the answer of `FeatureModel` with "features" and "layers" projected, and the pooled features
    themselves as "embedding" [B, D].
    """

    def __init__(self, model: nn.Module, *, teacher_dim: int, layers: Sequence[int] = (), layer_dims: Sequence[int] = ()):
        super().__init__()
        if len(layers) != len(layer_dims):
            raise ValueError(f"student_layers has {len(layers)} layers and feature_layers {len(layer_dims)}; they are pairs.")
        self.encoder = FeatureModel(model, layers=layers)
        self.projection = nn.Linear(self.encoder.feature_dim, teacher_dim)
        widths = zip(self.encoder.layer_dims, layer_dims, strict=True)
        self.layer_projections = nn.ModuleList(nn.Linear(own, teachers) for own, teachers in widths)

    @property
    def model(self) -> nn.Module:
        """The timm model."""
        return self.encoder.model

    def forward(self, images: torch.Tensor) -> dict:
        """See the class."""
        answer = self.encoder(images)
        answer["embedding"] = answer["features"]
        answer["features"] = self.projection(answer["embedding"])
        if "layers" in answer:
            pairs = zip(self.layer_projections, answer["layers"], strict=True)
            answer["layers"] = [project(features) for project, features in pairs]
        return answer


def freeze(model: FeatureModel) -> FeatureModel:
    """`model` in eval mode for good, without gradients: a later `train()` on it or on its parent changes nothing."""
    model.frozen = True
    return model.requires_grad_(False).eval()


def count_parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in model.parameters())


def save_model(model: nn.Module, folder: str | Path, *, card: str | None = None):
    """Write a timm model as config.json and model.safetensors (and `card` as README.md), whole or not at all.

    `timm.create_model("local-dir:<folder>")` loads it; for a CIFAR ResNet, import kdnb.models.cifar_resnet first.
    """
    from timm.models import save_for_hf

    folder = Path(folder)
    fresh, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_for_hf(model, fresh, safe_serialization=True)
    if card is not None:
        (fresh / "README.md").write_text(card, encoding="utf-8")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_model(folder: str | Path) -> nn.Module:
    """The timm model that `save_model` wrote to `folder`."""
    import timm

    from kdnb.models import cifar_resnet  # noqa: F401 - registers its models with timm

    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json.")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    model.head_is_random = False
    return model
