"""All measures of a model's frozen features, kept on disk under a hash of the model and the data.

One pass over training and test images per model, then probe, k-NN and feature quality. A second evaluation of the same
weights on the same data reads the file of the first: milliseconds. Kept are the test features, for maps and for comparison
with a teacher (N x D float32: 5,000 x 64 take 1.3 MB), and the results; not the training features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdnb.evaluation.features import Features, extract_features, raw_pixels
from kdnb.evaluation.knn import knn_classify
from kdnb.evaluation.probe import linear_probe
from kdnb.evaluation.quality import feature_quality
from kdnb.files import hash_of, memoize
from kdnb.models.weights import weights_fingerprint

KNN_K, KNN_TEMPERATURE = 20, 0.07  # fixed, as in Wu et al. 2018 but for k (200 there, more than a class of the digits has)
_VERSION = 2  # of what is kept; a change of any measure must raise it


@dataclass(frozen=True)
class Scores:
    """What was measured of one model; tensors lie on the CPU.

    Attributes:
        probe: top-1 accuracy of the linear probe. knn: of the weighted k-NN. l2: strength that the probe chose.
        per_class: of the probe, float64 [C]. confusion: int64 [C, C], rows are true classes.
        logits: the probe's, float32 [M, C]. weight, bias: its parameters, [C, D] and [C].
        quality: see `feature_quality`. test: the test features, with the model's own logits where it has a head.
    """

    probe: float
    knn: float
    l2: float
    per_class: torch.Tensor
    confusion: torch.Tensor
    logits: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    quality: dict[str, float]
    test: Features


class Evaluator:
    """Measures models on one pair of labelled data.

    Args:
        train, test: `BatchReader`s of labelled caches; the probe and the k-NN's bank see `train`, and `test` judges.
        view: the transform without augmentation. second_view: a random one, for "alignment", or None. (Dataclasses: what
            is kept is told apart by their repr.)
        device: of the models. classes: names of the data's classes. folder: where results are kept.

    Attributes:
        knn: the k-NN's settings in words.
        measured, reused: how many models were measured now, and of how many the scores were read from `folder`.
    """

    def __init__(
        self,
        train,
        test,
        *,
        view: Callable,
        second_view: Callable | None,
        device: str | torch.device,
        classes: Sequence[str],
        folder: Path,
    ):
        self.train, self.test, self.view, self.second_view = train, test, view, second_view
        self.device, self.classes, self.folder = torch.device(device), classes, Path(folder)
        self.k = min(KNN_K, train.num_samples(0))
        self.knn = f"k-NN: k = {self.k}, temperature {KNN_TEMPERATURE}"
        self.measured = self.reused = 0
        data = [(loader.dataset.reader.index["fingerprint"], loader.num_samples(0)) for loader in (train, test)]
        self._facts = [_VERSION, data, len(train.dataset.reader), repr(view), repr(second_view), len(classes)]

    def __call__(self, model: nn.Module) -> Scores:
        """The scores of `model`, measured now or before."""
        return self._memoized(weights_fingerprint(model), lambda: self._measure_model(model))

    def pixels(self) -> Scores:
        """The same of the raw pixels: the floor that a model has to beat."""
        return self._memoized("raw pixels", lambda: self._measure(raw_pixels(self.train), raw_pixels(self.test), None))

    def _memoized(self, model: str, measure: Callable[[], Scores]) -> Scores:
        before = self.measured

        def plain_scores() -> dict:
            self.measured += 1
            scores = measure()
            return vars(scores) | {"test": vars(scores.test)}

        state = memoize(self.folder / f"{hash_of([model, self._facts])}.pt", plain_scores)
        self.reused += self.measured == before
        return Scores(**state | {"test": Features(**state["test"])})

    def _measure_model(self, model: nn.Module) -> Scores:
        shared: dict[str, Any] = {"transform": self.view, "device": self.device}
        train, test = (extract_features(model, batches, **shared) for batches in (self.train, self.test))
        second = None
        if self.second_view is not None:
            second = extract_features(model, self.test, transform=self.second_view, device=self.device)
        return self._measure(train, test, second)

    def _measure(self, train: Features, test: Features, second: Features | None) -> Scores:
        num_classes = len(self.classes)
        shared: dict[str, Any] = {"num_classes": num_classes, "device": self.device}
        probe = linear_probe(train, test, **shared)
        foreign = test.logits is not None and test.logits.shape[1] != num_classes
        judged = replace(test, logits=None) if foreign else test  # a head for other classes is neither right nor wrong here
        return Scores(
            probe=probe.top1,
            knn=knn_classify(train, test, k=self.k, temperature=KNN_TEMPERATURE, **shared).top1,
            l2=probe.l2,
            per_class=probe.per_class,
            confusion=probe.confusion,
            logits=test.features @ probe.weight.T + probe.bias,
            weight=probe.weight,
            bias=probe.bias,
            quality=feature_quality(judged, second_view=second),
            test=test,
        )
