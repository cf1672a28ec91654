"""Weights in checkpoint files: read without their wrappers, and loaded only into the architecture that they are of."""

import hashlib
import re
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from kdnb.data.cache import IMAGENET_MEAN, IMAGENET_STD
from kdnb.files import Damaged, check_sums, read_tensors

TimmModel: TypeAlias = Any  # an nn.Module with timm's attributes: pretrained_cfg, num_classes, feature_info ...
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_CONTAINERS = ("state_dict", "model_state_dict", "model", "student")  # where checkpoint files keep the weights
_PREFIXES = ("module.", "_orig_mod.", "encoder.model.", "model.", "backbone.")


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, tuple[float, ...]]]:
    """(weights in a file, without wrappers; "mean" and "std" of the inputs that they were trained on, where the file tells).

    Raises FileNotFoundError, or ValueError where there are no weights.
    """
    require_checkpoint(path)
    state: Any
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else read_tensors(path)
    except Damaged as error:
        raise ValueError(f"the checkpoint cannot be read as weights: {error}; restore it, or give another one.") from None
    for container in _CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(container), dict):
            state = state[container]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} holds no state dict; expected names and tensors.")
    recorded = {}
    if any(name.startswith("encoder.model.") for name in state):  # a run's Student: its projections are not the model's
        there = {name: state[f"encoder.{name}"] for name in IMAGENET if f"encoder.{name}" in state}
        recorded = IMAGENET | {name: rounded(values) for name, values in there.items()}  # older ones were trained with ImageNet's
        state = {name: value for name, value in state.items() if name.startswith("encoder.model.")}
    while prefix := next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    # The published CIFAR ResNets call the head linear.
    return {re.sub(r"^linear\.", "fc.", name): value for name, value in state.items()}, recorded


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_sums(path.parent)  # in a folder of ours
    try:
        return load_file(path)
    except SafetensorError as error:
        raise Damaged(f"{path} is damaged ({error})") from None


def rounded(values: torch.Tensor) -> tuple[float, ...]:
    """The numbers of a mean or deviation as they were written down before they became float32."""
    return tuple(round(value, 6) for value in values.flatten().tolist())


def require_checkpoint(path: Path):
    """Refuse a checkpoint file that is not there: FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist; check teacher_checkpoint.")


def head_width(name: str, state: dict) -> dict:
    """The width of the head in a checkpoint, as `num_classes`, 0 where it has none; nothing for a folder or the Hub's model."""
    import timm

    config = timm.models.get_pretrained_cfg(name.split(".")[0])
    if config is None:
        return {}
    head = config.classifier if isinstance(config.classifier, str) else (config.classifier or ("",))[0]
    weight = state.get(f"{head}.weight")
    return {"num_classes": 0 if weight is None else len(weight)}


def load_weights(model: TimmModel, state: dict, path: Path) -> bool:
    """Load weights; everything but the head must fit. Returns whether the head was left at random."""
    expected = model.state_dict()
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    shapes = {n: (list(state[n].shape), list(expected[n].shape)) for n in expected.keys() & state.keys()}
    differing = {n: f"{n} {own} instead of {wanted}" for n, (own, wanted) in shapes.items() if own != wanted}
    missing = {n for n in expected.keys() - state.keys() if not n.endswith("num_batches_tracked")}
    faults = []
    for kind, affected in (("missing", missing), ("unexpected", state.keys() - expected), ("of another shape", differing)):
        if names := sorted(n for n in affected if not n.startswith(heads)):
            examples = ", ".join(differing.get(n, n) for n in names[:5])
            faults.append(f"{len(names)} {kind}: {examples}{' ...' if len(names) > 5 else ''}")
    if faults:
        raise ValueError(f"checkpoint {path} is of another architecture than {type(model).__name__}: {'; '.join(faults)}.")
    model.load_state_dict({n: v for n, v in state.items() if n in expected and n not in differing}, strict=False)
    return model.num_classes > 0 and any(n.startswith(heads) for n in [*missing, *differing])


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of `model`: the same for the same weights wherever and from whatever file they were loaded."""
    inner = getattr(model, "model", model)  # a FeatureModel's timm model knows what it was built with
    seen = hashlib.sha256(f"{type(inner).__name__} {sorted(getattr(inner, 'kdnb_args', {}).items())}".encode())
    state = model.state_dict()
    if getattr(model, "normalisation", None) == IMAGENET:  # once the only one, and no part of a hash
        state = {name: tensor for name, tensor in state.items() if name not in IMAGENET}
    for name, tensor in sorted(state.items()):
        seen.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        # Viewed as bytes, because NumPy knows no bfloat16; at least one-dimensional, because a scalar has no such view.
        seen.update(torch.atleast_1d(tensor.detach().cpu().contiguous()).view(torch.uint8).numpy())
    return seen.hexdigest()
