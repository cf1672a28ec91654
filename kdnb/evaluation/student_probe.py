"""The linear probes of a training notebook: what features are worth, between the floors and the ceiling."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from kdnb.data.cache import normalisation
from kdnb.data.prepare import drawn_batches, held_out_batches
from kdnb.data.views import CleanTransform
from kdnb.distillation.build import num_classes
from kdnb.distributed import find_device
from kdnb.evaluation.features import extract_features, raw_pixels
from kdnb.evaluation.probe import linear_probe
from kdnb.evaluation.report import teacher_warning
from kdnb.losses import labels_fit
from kdnb.models.vision import Student
from kdnb.runs import anchored


class Probe:
    """Linear probes on one pair of labelled data: at most `probe_samples` cached images, and the held-out split.

    Args:
        The parameters of a training notebook by these names; `eval_split` None: no probe.

    Attributes:
        available: False where there is no held-out split, or labels are missing or no classes; `why_not` says which.
        facts: what tells the data, to keep an accuracy by. test_images: how many judge; 0 where there is no probe.
    """

    def __init__(
        self, *, cache_dir: str | Path, probe_samples: int, dataset: str, eval_split: str | None, image_size: int, resize: str,
        image_column: str | None = None, label_column: str | None = None, streaming: bool = False, num_workers: int = 0,
    ):  # fmt: skip
        self.available, self.why_not, self.test_images = False, "eval_split is None", 0
        if eval_split is None:
            return
        self.train = drawn_batches(anchored(cache_dir), probe_samples)
        cached = self.train.dataset.reader
        images: dict[str, Any] = {"dataset": dataset, "eval_split": eval_split, "image_size": image_size, "resize": resize}
        images |= {"image_column": image_column, "label_column": label_column, "streaming": streaming}
        images |= {"num_workers": num_workers, "cache_dir": cache_dir}
        self.test = held_out_batches(**images) if cached.labelled else None
        if self.test is None:
            self.why_not = f"{dataset} has no labels"
            return
        labels = cached.labels, self.test.dataset.labels
        self.num_classes = num_classes(np.concatenate(labels), cached.index["classes"])
        if not all(labels_fit(part, self.num_classes, alpha=1) for part in labels):
            self.why_not = f"some images of {dataset} have no label, or one beyond its {self.num_classes} classes"
            return
        self.stored: dict[str, Any] = normalisation(cached.index)
        self.view = CleanTransform(size=image_size, **self.stored)
        held_out = self.test.dataset.reader.index["fingerprint"]
        self.facts = [cached.index["fingerprint"], len(cached), self.train.num_samples(0), held_out]
        self.available, self.why_not, self.test_images = True, "", self.test.num_samples(0)

    def accuracy(self, model: nn.Module) -> float:
        """Held-out accuracy of a linear probe on the model's frozen features."""
        device = find_device()
        parts = [extract_features(model, b, transform=self.view, device=device) for b in (self.train, self.test)]
        return linear_probe(*parts, num_classes=self.num_classes, device=device).top1

    def pixels(self) -> float:
        """The same on the raw pixels."""
        parts = [raw_pixels(b, **self.stored) for b in (self.train, self.test)]
        return linear_probe(*parts, num_classes=self.num_classes).top1


def probe_references(probe: Probe, teacher, student: Student) -> dict[str, float]:
    """Accuracy by name: the floors (raw pixels, the student before training) and the ceiling (the teacher).

    Prints a warning where the ceiling is not above the floors.
    """
    if not probe.available:
        return {}
    floors = {"raw pixels": probe.pixels(), "random student": probe.accuracy(student)}
    accuracy = floors | {"teacher": teacher.memoize("probe", probe.facts, lambda: probe.accuracy(teacher.load()))}
    if warning := teacher_warning(accuracy):
        print(warning)
    return accuracy
