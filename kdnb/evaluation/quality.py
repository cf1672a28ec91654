"""Measures of features without any labels (collapse, spread, likeness to a teacher), and of predictions (right, calibrated).

Each measure is a plain function of [N, D] features or [N, C] logits on the CPU, computed in float64 (so for a moment with
twice or thrice their memory). Cost: N x D^2 multiplications at most, 50,000 x 64 in well under a second; except uniformity,
which looks at all pairs and is therefore taken on at most `max_pairs_rows` rows in `feature_quality`.
"""

import math

import torch
from torch.nn.functional import normalize

from kdnb.evaluation.features import Features, check_features, check_labels

DEAD_BELOW = 1e-4  # of the mean variance over dimensions
_HOTTEST = 100.0  # temperature, and its inverse the coldest: logits that are all right would ask for 0


def feature_quality(
    features: Features,
    *,
    second_view: Features | None = None,
    max_pairs_rows: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """All measures of one model's features, as one flat dict.

    Args:
        second_view: the same model's features of another view of the same images, in the same order.
        max_pairs_rows: "uniformity" is taken on a seeded choice of so many rows.

    Returns:
        "mean_cosine", "variance_mean", "variance_min", "dead_dimensions", "effective_rank", "uniformity"; where there are
        labels and logits also "accuracy" and "calibration_error"; with a second view "alignment".

    Raises:
        ValueError: fewer than two rows, values not finite, or a second view of other images.
    """
    x = features.features
    check_features(x, "the")
    if len(x) < 2:
        raise ValueError("the features have one row; at least two are needed.")
    variance = dimension_variance(x)
    some = x
    if len(x) > max_pairs_rows:
        some = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:max_pairs_rows]]
    quality = {
        "mean_cosine": mean_cosine(x),
        "variance_mean": variance.mean().item(),
        "variance_min": variance.min().item(),
        "dead_dimensions": dead_dimensions(x),
        "effective_rank": effective_rank(x),
        "uniformity": uniformity(some),
    }
    if features.logits is not None and features.labels is not None:
        quality["accuracy"] = (features.logits.argmax(1) == features.labels).double().mean().item()
        quality["calibration_error"] = expected_calibration_error(features.logits, features.labels)
    if second_view is not None:
        check_features(second_view.features, "second_view")
        if not torch.equal(features.ids, second_view.ids):
            raise ValueError(
                f"second_view has {len(second_view.ids)} rows and the features {len(features.ids)}, and their ids differ; "
                "extract both from the same batches in the same order."
            )
        quality["alignment"] = alignment(x, second_view.features)
    return quality


def mean_cosine(features: torch.Tensor) -> float:
    """Mean cosine similarity over all pairs of different rows; near 1 means collapse. Exact in O(N D).

    The sum over all pairs is |sum of unit vectors|^2; the N pairs of a row with itself are taken off.
    """
    unit = normalize(features.double())
    own = unit.square().sum()  # N, but for rows of zeros
    return ((unit.sum(0).square().sum() - own) / (len(unit) * (len(unit) - 1))).item()


def dimension_variance(features: torch.Tensor) -> torch.Tensor:
    """Variance of each dimension over the rows (divided by N), float64 [D]."""
    return features.double().var(0, correction=0)


def dead_dimensions(features: torch.Tensor, *, below: float = DEAD_BELOW) -> int:
    """How many dimensions vary less than `below` times the mean variance; all of them where nothing varies."""
    variance = dimension_variance(features)
    return int((variance <= below * variance.mean()).sum())


def effective_rank(features: torch.Tensor) -> float:
    """RankMe of Garrido et al. 2023: exp of the entropy of the singular values' shares, from 1 (collapse) to min(N, D).

    As in the paper the features are not centred. The singular values come from the smaller Gram matrix.
    """
    x = features.double()
    gram = x.T @ x if len(x) >= x.shape[1] else x @ x.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return torch.special.entr(share).sum().exp().item()


def alignment(features: torch.Tensor, other: torch.Tensor) -> float:
    """Mean squared distance of the unit vectors of two views of an image, 0 (same) to 4; Wang & Isola 2020, alpha = 2."""
    return (normalize(features.double()) - normalize(other.double())).square().sum(1).mean().item()


def uniformity(features: torch.Tensor, *, t: float = 2.0, chunk: int = 2048) -> float:
    """Log of the mean of exp(-t d^2) over all pairs of different rows' unit vectors; Wang & Isola 2020.

    0 is collapse, lower is more even. One block of chunk x N at a time: O(N^2 D).
    """
    unit = normalize(features.double())
    count, total = len(unit), 0.0
    for start in range(0, count, chunk):
        block, later = unit[start : start + chunk], unit[start:]
        # d^2 from the norms, not as 2 - 2 cos, so that rows of zeros count as what they are.
        squared = block.square().sum(1)[:, None] + later.square().sum(1) - 2 * block @ later.T
        kernel = squared.clamp_min_(0).mul_(-t).exp_().triu_(1)  # each pair once
        total += kernel.sum().item()
    return math.log(total / (count * (count - 1) / 2))


def linear_cka(features: torch.Tensor, other: torch.Tensor) -> float:
    """Linear centred kernel alignment of [N, D] and [N, E], 0 to 1; Kornblith et al. 2019, equation 5.

    Does not change with rotation or scale of either side. Computed from D x E matrices, never N x N. Biased upwards
    where N is not much larger than D. NaN where a side does not vary at all.
    """
    x = features.double() - features.mean(0, dtype=torch.float64)
    y = other.double() - other.mean(0, dtype=torch.float64)
    norms = (x.T @ x).norm() * (y.T @ y).norm()
    return ((x.T @ y).square().sum() / norms).item()


def agreement(logits: torch.Tensor, other: torch.Tensor) -> float:
    """Share of rows for which both predict the same class."""
    if logits.shape != other.shape:
        raise ValueError(f"the logits have shapes {list(logits.shape)} and {list(other.shape)}; they must be the same.")
    return (logits.argmax(1) == other.argmax(1)).double().mean().item()


def expected_calibration_error(logits: torch.Tensor, labels: torch.Tensor, *, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by rows; Guo et al. 2017.

    Bins are closed at the right, as in the paper: (0, 1/15], (1/15, 2/15], ...
    """
    check_labels(labels, len(logits), logits.shape[1], "the")
    confidence, predicted = logits.double().softmax(1).max(1)
    gap = (predicted == labels).double() - confidence
    number = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    return torch.zeros(bins, dtype=torch.float64).index_add_(0, number, gap).abs().sum().item() / len(logits)


def classification_scores(logits: torch.Tensor, labels: torch.Tensor, held_out: torch.Tensor | None) -> dict:
    """Scores of logits [N, C] against labels int64 [N].

    Args:
        held_out: bool [N], the rows on which calibration is measured, with a temperature fitted on the others; None: not.

    Returns:
        {"accuracy", "macro_f1", "per_class_accuracy", "temperature", "calibration_error", "calibration_error_scaled"}; None is
        what cannot be known. Classes that are neither among the labels nor among the predictions have no part in macro_f1.
    """
    from sklearn.metrics import f1_score

    predictions, classes = logits.argmax(1), logits.shape[1]
    right = predictions == labels
    rows = labels.bincount(minlength=classes)
    per_class = labels[right].bincount(minlength=classes).double() / rows
    scores = {
        "accuracy": right.double().mean().item(),
        "macro_f1": f1_score(labels.numpy(), predictions.numpy(), average="macro", zero_division=0.0),
        "per_class_accuracy": [None if math.isnan(value) else value for value in per_class.tolist()],
        "temperature": None,
        "calibration_error": None,
        "calibration_error_scaled": None,
    }
    if held_out is not None:
        temperature = calibrated_temperature(logits[~held_out], labels[~held_out])
        rest, true = logits[held_out], labels[held_out]
        scores["temperature"] = temperature
        scores["calibration_error"] = expected_calibration_error(rest, true)
        scores["calibration_error_scaled"] = expected_calibration_error(rest.double() / temperature, true)
    return scores


def calibrated_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The T that minimises the mean negative log-likelihood of softmax(logits / T) on these rows (Guo et al. 2017).

    The loss is convex in 1 / T, so its slope has one zero, found by Brent's method. From 0.01 (every row is right: the
    surer, the better) to 100 (worse than guessing); 1 where T makes no difference.
    """
    from scipy.optimize import brentq

    rows, classes = logits.shape
    check_labels(labels, rows, classes, "the")
    z = logits.detach().cpu().double()
    z = z - z.gather(1, labels.detach().cpu().long()[:, None])  # the loss is then log sum exp(z / T)

    def slope(log_inverse: float) -> float:
        return ((z * math.exp(log_inverse)).softmax(1) * z).sum(1).mean().item()

    low, high = -math.log(_HOTTEST), math.log(_HOTTEST)
    if slope(0.0) == 0:
        return 1.0
    if slope(low) >= 0:
        return _HOTTEST
    return 1 / _HOTTEST if slope(high) <= 0 else math.exp(-brentq(slope, low, high, xtol=1e-7))


def principal_components(features: torch.Tensor, count: int = 2) -> tuple[torch.Tensor, float]:
    """The rows' coordinates on the `count` directions of largest variance, float32 [N, count], and their share of it.

    The sign of a direction is chosen such that its largest entry is positive, so that maps do not flip between runs.
    """
    x = features.double() - features.mean(0, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(x.T @ x)
    directions = vectors[:, -count:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    share = values[-count:].sum() / values.sum().clamp_min(torch.finfo(x.dtype).tiny)
    return (x @ (directions * largest.sign())).float(), share.item()
