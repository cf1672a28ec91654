"""How right and how honest a classifier's logits are: accuracy, macro F1, and calibration before and after a temperature."""

import math

import torch

from kdnb.evaluation.quality import expected_calibration_error

_HOTTEST = 100.0  # temperature, and its inverse the coldest: logits that are all right would ask for 0


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
    found = {
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
        found["temperature"] = temperature
        found["calibration_error"] = expected_calibration_error(rest, true)
        found["calibration_error_scaled"] = expected_calibration_error(rest.double() / temperature, true)
    return found


def calibrated_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The T that minimises the mean negative log-likelihood of softmax(logits / T) on these rows (Guo et al. 2017).

    The loss is convex in 1 / T, so its slope has one zero, found by Brent's method. From 0.01 (every row is right: the
    surer, the better) to 100 (worse than guessing); 1 where T makes no difference.
    """
    from scipy.optimize import brentq

    z = logits.detach().cpu().double()
    z = z - z.gather(1, checked_labels(labels, *z.shape)[:, None])  # the loss is then log sum exp(z / T)

    def slope(log_inverse: float) -> float:
        return ((z * math.exp(log_inverse)).softmax(1) * z).sum(1).mean().item()

    low, high = -math.log(_HOTTEST), math.log(_HOTTEST)
    if slope(0.0) == 0:
        return 1.0
    if slope(low) >= 0:
        return _HOTTEST
    return 1 / _HOTTEST if slope(high) <= 0 else math.exp(-brentq(slope, low, high, xtol=1e-7))


def checked_labels(labels: torch.Tensor, rows: int, classes: int) -> torch.Tensor:
    """`labels` as int64 [rows] on the CPU; a ValueError where they are of another length, or outside 0..classes-1."""
    if labels.shape != (rows,) or not rows:
        raise ValueError(
            f"labels have shape {list(labels.shape)}, but the logits have {rows} rows; pass the labels of these rows."
        )
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise ValueError(f"labels go from {low} to {high}; allowed is 0 to {classes - 1}, for the logits have {classes} columns.")
    return labels.detach().cpu().long()
