"""What is measured of a teacher before it is believed: statistics of its features, and whether its logits know anything."""

import math
from collections.abc import Iterable

import torch

from kdnb.losses import entropy

WAYS = (
    "set loss to mse or cosine (no head needed), pass a trained teacher_checkpoint, or fit the head on frozen features first "
    "(kdnb.evaluation.probe.fit_logistic)"
)


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
        answers = teacher(views(batch["image"], batch["id"], epoch)[: views.num_global], batch | {"epoch": epoch})
        found += [answer["features"].cpu().double() for answer in answers]  # on the CPU, as not every device has float64
        count += len(batch["image"])
        if count >= num_images:
            break
    features = torch.cat(found)
    return features.mean(0).float(), features.std(0, correction=0).float()


@torch.no_grad()
def measure_teacher(teacher, batches: Iterable[dict], views) -> dict[str, float]:
    """Accuracy, mean entropy in nats and chance level of the teacher's logits on labelled batches of images."""
    answers = [(teacher(views(b["image"], b["id"], 0)[:1], b)[0]["logits"], b["label"]) for b in batches]
    return measure_logits(torch.cat([logits for logits, _ in answers]), torch.cat([labels for _, labels in answers]))


def measure_logits(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The same of logits [N, C] and labels [N]."""
    accuracy = (logits.argmax(1) == labels).sum().item() / len(labels)
    return {"accuracy": accuracy, "entropy": entropy(logits).item(), "chance": 1 / logits.shape[1], "examples": len(labels)}


def require_skill(knowledge: dict[str, float], *, head_is_random: bool, ways: str = WAYS):
    """Refuse a teacher whose logits are noise: a new head, or an accuracy that chance explains (3 standard deviations).

    Args:
        ways: what to do about it, in words.

    Raises:
        ValueError: with the accuracy and the ways out.
    """
    chance, examples = knowledge["chance"], knowledge["examples"]
    limit = chance + 3 * math.sqrt(chance * (1 - chance) / examples)
    if head_is_random or knowledge["accuracy"] <= limit:
        why = "its classification head was not in the checkpoint" if head_is_random else "that is chance level"
        raise ValueError(
            f"the teacher is right on {knowledge['accuracy']:.1%} of {examples} held-out examples (chance: {chance:.1%}) and "
            f"{why}, so its soft targets would be noise; {ways}."
        )
