"""A teacher is measured before it is believed: statistics of its features, and whether its logits are better than chance."""

import math
from collections.abc import Iterable

import torch

from kdnb.data.views import CleanTransform
from kdnb.distillation.teacher import LiveTeacher, Teacher
from kdnb.evaluation.statistics import accuracy_interval, format_accuracy
from kdnb.losses import entropy, labels_fit

WAYS = (
    "set loss to mse or cosine (no head needed), pass a trained teacher_checkpoint, or fit the head on frozen features first "
    "(kdnb.evaluation.probe.fit_logistic)"
)


def check_head(teacher: Teacher, held_out):
    """Measure the teacher's head on held-out images before any step, print it, and refuse noise as soft targets: ValueError.

    Args:
        held_out: batches of labelled images, or None. Where they have other classes than the teacher, nothing is measured.
    """
    if not labels_fit(None if held_out is None else held_out.dataset.labels, teacher.num_classes, alpha=1):
        why = f"eval_split gives no labels of its {teacher.num_classes} classes"
        if teacher.head_is_random:
            raise ValueError(f"the teacher's head was not in its checkpoint, and {why} to measure it on; set eval_split to a "
                             "labelled split, or loss to mse or cosine.")  # fmt: skip
        print(f"the teacher's head is not measured: {why}")
        return
    index = held_out.dataset.reader.index

    def measure() -> dict:
        return measure_teacher(LiveTeacher(teacher.load()), held_out.batches(0), CleanTransform(size=index["image_size"]))

    scores = teacher.memoize("knowledge", index["fingerprint"], measure)
    print(f"teacher's own head on held-out images, 95% interval: {describe_logits(scores)}")
    require_better_than_chance(scores, head_is_random=teacher.head_is_random)


@torch.no_grad()
def feature_statistics(
    teacher, batches: Iterable[dict], views, *, num_images: int = 1024, epoch: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation, float32 [D] on the CPU, of the teacher's features over the first `num_images` images.

    Fixed before training, so that the loss does not depend on how a batch is cut up (accumulation, processes), and
    computed from the run's own first batches, so that a resumed run computes the same numbers.

    Args: see `first_features`.
    """
    features = first_features(teacher, batches, views, num_images=num_images, epoch=epoch)
    return features.mean(0).float(), features.std(0, correction=0).float()


@torch.no_grad()
def first_features(teacher, batches: Iterable[dict], views, *, num_images: int, epoch: int = 0) -> torch.Tensor:
    """The teacher's features of all its views of the first `num_images` images, float64 [N, D] on the CPU.

    Args:
        teacher: called as `teacher(views, batch)`, from `kdnb.distillation.teacher.build_teacher_call`.
    """
    features, count = [], 0
    for batch in batches:
        outputs = teacher(views(batch["image"], batch["id"], epoch)[: views.num_global], batch | {"epoch": epoch})
        features += [output["features"].cpu().double() for output in outputs]  # on the CPU, as not every device has float64
        count += len(batch["image"])
        if count >= num_images:
            break
    return torch.cat(features)


@torch.no_grad()
def measure_teacher(teacher, batches: Iterable[dict], views) -> dict[str, float]:
    """`measure_logits` of a teacher that is called as `teacher(views, batch)`, on labelled batches of images."""
    pairs = [(teacher(views(b["image"], b["id"], 0)[:1], b)[0]["logits"], b["label"]) for b in batches]
    return measure_logits(*map(torch.cat, zip(*pairs, strict=True)))


def measure_logits(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Accuracy, mean entropy in nats, chance level and number of examples of logits [N, C] and labels [N]."""
    accuracy = (logits.argmax(1) == labels).sum().item() / len(labels)
    return {"accuracy": accuracy, "entropy": entropy(logits).item(), "chance": 1 / logits.shape[1], "examples": len(labels)}


def describe_logits(scores: dict[str, float]) -> str:
    """What `measure_logits` returns, in words, with the accuracy's 95% interval."""
    shown = {name: f"{value:.4g}" for name, value in scores.items()}
    shown["accuracy"] = format_accuracy(scores["accuracy"], int(scores["examples"]))
    return ", ".join(f"{name} {text}" for name, text in shown.items())


def require_better_than_chance(scores: dict[str, float], *, head_is_random: bool, ways: str = WAYS):
    """Refuse a teacher whose logits are noise: a new head, or an accuracy that chance explains (3 standard deviations).

    Args:
        scores: from `measure_logits`. ways: what to do about it, in words.

    Raises:
        ValueError: with the accuracy and the ways out.
    """
    chance, examples = scores["chance"], scores["examples"]
    limit = chance + 3 * math.sqrt(chance * (1 - chance) / examples)
    if head_is_random or scores["accuracy"] <= limit:
        low, high = accuracy_interval(scores["accuracy"], int(examples))
        why = "its classification head was not in the checkpoint" if head_is_random else "that is chance level"
        raise ValueError(
            f"the teacher is right on {scores['accuracy']:.1%} of {examples} held-out examples (95% interval: {low:.1%} to "
            f"{high:.1%}; chance: {chance:.1%}) and "
            f"{why}, so its soft targets would be noise; {ways}."
        )
