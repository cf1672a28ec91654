"""The linear probes of a training notebook: what features are worth, between the floors and the ceiling."""

from types import SimpleNamespace

import numpy as np
from torch import nn

from kdnb.data.cache import normalisation
from kdnb.data.prepare import drawn_batches, held_out_batches
from kdnb.data.views import CleanTransform
from kdnb.distillation.build import num_classes
from kdnb.distributed import find_device
from kdnb.evaluation.features import extract_features, raw_pixels
from kdnb.evaluation.probe import linear_probe
from kdnb.losses import labels_fit
from kdnb.models.vision import Student
from kdnb.params import arguments_of
from kdnb.runs import anchored


class Probe:
    """Linear probes on one pair of labelled data: at most `p.probe_samples` cached images, and the held-out split.

    Attributes:
        available: False where there is no held-out split, or labels are missing or no classes; `why_not` says which.
        about: what tells the data.
    """

    def __init__(self, p: SimpleNamespace):
        self.available, self.why_not = False, "eval_split is None"
        if p.eval_split is None:
            return
        self.train = drawn_batches(anchored(p.cache_dir), p.probe_samples)
        cached = self.train.dataset.reader
        self.test = held_out_batches(**arguments_of(held_out_batches, p)) if cached.labelled else None
        if self.test is None:
            self.why_not = f"{p.dataset} has no labels"
            return
        known = cached.labels, self.test.dataset.labels
        self.num_classes = num_classes(np.concatenate(known), cached.index["classes"])
        if not all(labels_fit(labels, self.num_classes, alpha=1) for labels in known):
            self.why_not = f"some images of {p.dataset} have no label, or one beyond its {self.num_classes} classes"
            return
        self.stored = normalisation(cached.index)
        self.view = CleanTransform(size=p.image_size, **self.stored)
        held_out = self.test.dataset.reader.index["fingerprint"]
        self.about = [cached.index["fingerprint"], len(cached), self.train.num_samples(0), held_out]
        self.available, self.why_not = True, ""

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
    """Accuracy by name: the floors (raw pixels, the student before training) and the ceiling (the teacher)."""
    if not probe.available:
        return {}
    floors = {"raw pixels": probe.pixels(), "random student": probe.accuracy(student)}
    return floors | {"teacher": teacher.memoize("probe", probe.about, lambda: probe.accuracy(teacher.load()))}
