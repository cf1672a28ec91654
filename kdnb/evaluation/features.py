"""Frozen features of a data set: one pass of a model over its batches, kept on the CPU for probe, k-NN and quality.

Cost: one forward pass per image and N x D float32 values of memory (50,000 x 64: 13 MB), twice that while the batches are
joined; the device never holds more than one batch. The checks that every measure makes before it counts anything, and the
split that holds rows out to choose a setting on, are here too.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Features:
    """What a model says about N images, row by row, on the CPU.

    Attributes:
        features: float32 [N, D]. labels: int64 [N], or None where the images have none.
        ids: int64 [N], the samples' ids, so that two models' rows can be matched.
        logits: float32 [N, C], or None where the model has no head.
    """

    features: torch.Tensor
    labels: torch.Tensor | None
    ids: torch.Tensor
    logits: torch.Tensor | None = None


def extract_features(
    model: Callable,
    batches: Iterable[dict],
    *,
    transform: Callable,
    device: str | torch.device = "cpu",
) -> Features:
    """Run `model` over `batches` in eval mode and without gradients; the mode of every submodule is put back after.

    Args:
        model: on `device`; returns features [B, D], or a dict with them as "embedding" (a student's own, before its
            projections) or else as "features" (a teacher's), and perhaps with "logits" [B, C].
        batches: dicts of "image" [B, 3, H, W], "id" [B] and perhaps "label" [B].
        transform: `transform(images, ids, epoch)` -> list of views, of which the first is used (epoch 0), or a plain
            function images -> float images. It gets the images on `device`.

    Raises:
        ValueError: no batches, features that are not [B, D], labels in some batches only.
    """
    rows = []
    modes = {module: module.training for module in model.modules()} if isinstance(model, nn.Module) else {}
    keyed = _takes_ids(transform)
    try:
        if isinstance(model, nn.Module):
            model.eval()
        for batch in batches:
            images = batch["image"].to(device, non_blocking=True)
            with torch.inference_mode():
                output = model(transform(images, batch["id"], 0)[0] if keyed else transform(images))
            # Copied outside of inference mode: a head can be trained on ordinary tensors only.
            rows.append(_on_cpu(batch, *_features_and_logits(output)))
    finally:
        for module, training in modes.items():
            module.training = training
    return _joined(rows)


def raw_pixels(
    batches: Iterable[dict],
    *,
    size: int = 32,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Features:
    """The images themselves as features, in [0, 1]: the baseline that a model has to beat.

    Args:
        size: larger images are averaged down to size x size first (32: 3,072 numbers an image).
        mean, std: of a float cache (its index.json holds them), to undo the normalisation; uint8 images need none.
    """
    rows = []
    for batch in batches:
        images = batch["image"]
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif mean is None or std is None:
            raise ValueError(
                f"the images are {images.dtype}, normalised; pass mean and std of the cache (index.json) to undo that."
            )
        else:
            scale, shift = (torch.tensor(values).view(3, 1, 1) for values in (std, mean))
            images = (images.float() * scale + shift).clamp(0, 1)
        if max(images.shape[-2:]) > size:
            images = nn.functional.adaptive_avg_pool2d(images, size)
        rows.append(_on_cpu(batch, images.flatten(1), None))
    return _joined(rows)


@contextlib.contextmanager
def exact_matmul() -> Iterator[None]:
    """Multiply float32 matrices in full precision meanwhile: TF32, often on for training, keeps three digits."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def check_features(features: torch.Tensor, name: str):
    """Refuse what no measure can use: no rows, not [N, D], values that are not finite. `name` leads the sentence."""
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name} features have shape {list(features.shape)}; expected [N, D] with at least one row.")
    bad = ~torch.isfinite(features).all(1)
    if bad.any():
        raise ValueError(
            f"{name} features are not finite in {bad.sum().item()} of {len(bad)} rows (the first is row "
            f"{bad.nonzero()[0].item()}); the model has diverged or its inputs are not normalised."
        )


def check_labels(labels: torch.Tensor | None, rows: int, num_classes: int | None, name: str, *, several: bool = False) -> int:
    """Refuse labels that are missing, of another length, outside 0..num_classes-1, or (`several`) all the same.

    `name` leads the sentence.

    Returns:
        The number of classes: `num_classes`, or one more than the largest label.
    """
    if labels is None:
        raise ValueError(f"{name} features have no labels, which this measure needs; use a labelled split.")
    if labels.shape != (rows,):
        raise ValueError(f"{name} labels have shape {list(labels.shape)}, but there are {rows} rows.")
    low, high = int(labels.min()), int(labels.max())
    classes = num_classes or high + 1
    if low < 0 or high >= classes:
        raise ValueError(f"{name} labels go from {low} to {high}; allowed is 0 to {classes - 1}.")
    if several and low == high:
        raise ValueError(f"{name} labels are all {low}; at least two classes are needed.")
    return classes


def check_pair(train: Features, test: Features, num_classes: int | None) -> int:
    """Refuse a pair that cannot be fitted and tested; returns the number of classes: `num_classes`, or as the labels have them.

    Few rows to train on may lack a class that is tested: it is never predicted, and counts as wrong.
    """
    for name, part in (("train", train), ("test", test)):
        check_features(part.features, name)
    if train.features.shape[1] != test.features.shape[1]:
        raise ValueError(
            f"train features are {train.features.shape[1]} wide and test features {test.features.shape[1]}; "
            "both must come from the same model."
        )
    trained = check_labels(train.labels, len(train.features), num_classes, "train", several=True)
    return max(trained, check_labels(test.labels, len(test.features), num_classes, "test"))


def stratified_split(labels: torch.Tensor, *, fraction: float, seed: int) -> torch.Tensor:
    """Boolean [N]: the held-out rows, `fraction` of each class, at least one, but never a class's only row."""
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        held_out[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    if not held_out.any():
        raise ValueError(
            f"{len(labels)} rows in as many classes leave none to choose the L2 strength on; "
            "give at least two rows of a class, or an l2_grid of one value."
        )
    return held_out


def _takes_ids(transform: Callable) -> bool:
    """Whether `transform` is a keyed view (images, ids, epoch) rather than a plain function of the images."""
    try:
        call = transform.forward if isinstance(transform, nn.Module) else transform
        return "ids" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # a built-in without a signature
        return False


def _features_and_logits(output) -> tuple[torch.Tensor, torch.Tensor | None]:
    if not isinstance(output, Mapping):
        features, logits = output, None
    elif "embedding" in output or "features" in output:
        features, logits = output["embedding" if "embedding" in output else "features"], output.get("logits")
    else:
        raise ValueError(f"the model's output has no 'embedding' and no 'features', only {', '.join(map(repr, output))}.")
    if features.ndim != 2:
        raise ValueError(f"the model's features have shape {list(features.shape)}; expected [B, D], pooled.")
    return features, logits


def _on_cpu(batch: dict, features: torch.Tensor, logits: torch.Tensor | None) -> dict[str, torch.Tensor | None]:
    """The columns of one batch, copied: a loader may use its buffers again."""
    columns = {"features": features, "labels": batch.get("label"), "ids": batch["id"], "logits": logits}
    dtypes = {"labels": torch.int64, "ids": torch.int64}
    return {
        name: None if column is None else column.to("cpu", dtypes.get(name, torch.float32), copy=True)
        for name, column in columns.items()
    }


def _joined(rows: list[dict[str, torch.Tensor | None]]) -> Features:
    if not rows:
        raise ValueError("batches is empty: there are no images to take features of.")
    columns: dict = {}
    for name in list(rows[0]):
        parts = [batch.pop(name) for batch in rows]
        present = [part for part in parts if part is not None]
        if present and len(present) < len(parts):
            raise ValueError(f"some batches have {name} and others have not; use one source for all batches.")
        columns[name] = torch.cat(present) if present else None
    return Features(**columns)
