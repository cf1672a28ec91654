"""The linear probes of a training notebook: what features are worth, between the floors and the ceiling."""

from types import SimpleNamespace

import numpy as np
from torch import nn

from kdnb.data.datasets import CachedTensorDataset, RandomSubsetCachedDataset
from kdnb.data.images import open_source
from kdnb.data.loader import BatchReader
from kdnb.data.views import CleanTransform
from kdnb.evaluation.features import extract_features, raw_pixels
from kdnb.evaluation.probe import linear_probe
from kdnb.losses import labels_fit
from kdnb.models.vision import Student
from kdnb.recipes.images import num_classes, raw_batches, source_arguments, stored_normalisation
from kdnb.runs import anchored, find_device


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
        cached = CachedTensorDataset(anchored(p.cache_dir))
        held_out = open_source(**source_arguments(p, p.eval_split))
        if not (cached.reader.labelled and held_out.labelled):
            self.why_not = f"{p.dataset} has no labels"
            return
        self.num_classes = num_classes(np.concatenate([cached.labels, held_out.labels()]), cached.classes)
        if not all(labels_fit(labels, self.num_classes, alpha=1) for labels in (cached.labels, held_out.labels())):
            self.why_not = f"some images of {p.dataset} have no label, or one beyond its {self.num_classes} classes"
            return
        count = min(p.probe_samples, len(cached))
        part = RandomSubsetCachedDataset(anchored(p.cache_dir), samples_per_epoch=count)
        self.train = BatchReader(part, batch_size=100, device=find_device(), drop_last=False)
        self.test = raw_batches(held_out, image_size=p.image_size, resize=p.resize)
        self.stored = stored_normalisation(p)
        self.view = CleanTransform(size=p.image_size, **self.stored)
        self.about = [cached.reader.index["fingerprint"], len(cached), count, held_out.fingerprint]
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
    return floors | {"teacher": teacher.remember("probe", probe.about, lambda: probe.accuracy(teacher.load()))}
