"""The frozen teacher behind one call: what it answers to the views of a batch, and whether it knows anything."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from kdnb.losses import entropy


class LiveTeacher:
    """A teacher that is asked anew for every batch.

    Args:
        model: frozen, in eval mode (`kdnb.models.vision.freeze`), on the device of the batches; returns a dict of
            "features" [B, D] and, with a head, "logits" [B, C].
    """

    def __init__(self, model: nn.Module):
        if model.training or any(weight.requires_grad for weight in model.parameters()):
            raise ValueError("the teacher's model is not frozen; pass it through kdnb.models.vision.freeze first.")
        self.model = model

    @torch.no_grad()
    def __call__(self, views: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """One answer per view [B, 3, H, W]; `batch` is the batch that the views were made from."""
        return [self.model(view) for view in views]


@torch.no_grad()
def feature_statistics(
    teacher, batches: Iterable[dict], views, *, num_images: int = 1024, epoch: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [D] of the teacher's features over the first `num_images` images.

    Fixed before training, so that the loss does not depend on how a batch is cut up (accumulation, processes), and
    computed from the run's own first batches, so that a resumed run finds the same numbers.
    """
    found, count = [], 0
    for batch in batches:
        answers = teacher(views(batch["image"], batch["id"], epoch)[: views.num_global], batch)
        found += [answer["features"].double().cpu() for answer in answers]
        count += len(batch["image"])
        if count >= num_images:
            break
    features = torch.cat(found)
    return features.mean(0).float(), features.std(0, correction=0).float()


@torch.no_grad()
def teacher_knowledge(teacher, batches: Iterable[dict], views) -> dict[str, float]:
    """Accuracy, mean entropy in nats and chance level of the teacher's logits on labelled batches."""
    right, total, entropies, classes = 0, 0, 0.0, 0
    for batch in batches:
        logits = teacher(views(batch["image"], batch["id"], 0)[:1], batch)[0]["logits"]
        right += (logits.argmax(1) == batch["label"]).sum().item()
        entropies += entropy(logits).item() * len(logits)
        total, classes = total + len(logits), logits.shape[1]
    return {"accuracy": right / total, "entropy": entropies / total, "chance": 1 / classes, "images": total}


def require_knowledge(knowledge: dict[str, float], *, head_is_random: bool):
    """Refuse a teacher whose logits are noise: a new head, or an accuracy that chance explains (3 standard deviations).

    Raises:
        ValueError: with the accuracy and the ways out.
    """
    chance, images = knowledge["chance"], knowledge["images"]
    limit = chance + 3 * math.sqrt(chance * (1 - chance) / images)
    if head_is_random or knowledge["accuracy"] <= limit:
        why = "its classification head was not in the checkpoint" if head_is_random else "that is chance level"
        raise ValueError(
            f"the teacher is right on {knowledge['accuracy']:.1%} of {images} held-out images (chance: {chance:.1%}) and "
            f"{why}, so its soft targets would be noise; set loss to mse or cosine (no head needed), pass a trained "
            "teacher_checkpoint, or fit the head on frozen features first (kdnb.evaluation.probe.fit_logistic)."
        )
