"""Is one regime better than another, or is it the seed? And how much of an accuracy is chance?

But for the interval of an accuracy, everything works on the differences of n pairs and says what so few pairs can show: a
sign-flip test of n pairs has no p-value below 2 / 2^n, so that five seeds can never reach 0.05. Cost: 2^n sums up to n = 16
(milliseconds).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """Mean, its t confidence interval and the standard deviation (divided by n - 1) of n values."""

    mean: float
    low: float
    high: float
    sd: float
    n: int


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean of `values` and its Student t interval; of a single value the interval is the whole line."""
    x = _checked(values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed is between 0 and 1, such as 0.95.")
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, -math.inf, math.inf, math.nan, 1)
    from scipy.stats import t

    equal = np.ptp(x) <= 1e-12 * np.abs(x).max()  # but for rounding, from which a spread would come that is none
    sd = 0.0 if equal else float(x.std(ddof=1))
    half = float(t.ppf((1 + confidence) / 2, len(x) - 1)) * sd / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half, sd, len(x))


def accuracy_interval(accuracy: float, examples: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927) of an accuracy on `examples` independent test images or texts.

    It says what another draw of as many could give, and nothing about another seed of training. Of two models on the same
    examples the difference is known better than either interval says.

    Example:
        >>> low, high = accuracy_interval(289 / 297, 297)
        >>> f"{low:.3f} to {high:.3f}"
        '0.948 to 0.986'
    """
    if examples < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy} of {examples} examples; allowed is 0 to 1, of at least one example.")
    from scipy.stats import binomtest

    interval = binomtest(round(accuracy * examples), examples).proportion_ci(confidence, method="wilson")
    return min(float(interval.low), accuracy), max(float(interval.high), accuracy)  # rounding may leave 1 out


def format_accuracy(accuracy: float, examples: int) -> str:
    """An accuracy on `examples` images or texts and, in brackets, its 95% interval.

    Example:
        >>> format_accuracy(289 / 297, 297)
        '0.973 (0.948 to 0.986)'
    """
    return "{:.3f} ({:.3f} to {:.3f})".format(accuracy, *accuracy_interval(accuracy, examples))


def paired_permutation_test(differences: Sequence[float], *, samples: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean difference under random signs (Fisher 1935).

    Exact, over all 2^n sign patterns, where these are at most `samples` (n <= 16 by default); else from `samples` seeded
    patterns, with the observed one counted among them (Phipson & Smyth 2010), so that p is never 0.
    """
    from scipy.stats import permutation_test

    x = _checked(differences)
    if len(x) == 1:  # either sign is as far from 0
        return 1.0

    def mean(values, axis):
        return values.mean(axis)

    settings = {"permutation_type": "samples", "n_resamples": samples, "batch": 10_000, "rng": seed}
    return float(permutation_test((x,), mean, vectorized=True, **settings).pvalue)


def effect_size(differences: Sequence[float]) -> float:
    """Cohen's d_z: mean difference in standard deviations of the differences; infinite where these are all equal."""
    interval = mean_interval(differences)
    if interval.n == 1 or interval.mean == interval.sd == 0:
        return math.nan
    return interval.mean / interval.sd if interval.sd else math.copysign(math.inf, interval.mean)


def seeds_needed(sd: float, difference: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Pairs that a two-sided paired t-test needs to find `difference` with probability `power`, by the noncentral t.

    Args:
        sd: standard deviation of the differences between pairs, not of the measurements themselves.
    """
    if sd <= 0 or difference == 0 or not (math.isfinite(sd) and math.isfinite(difference)):
        raise ValueError(f"sd is {sd} and difference {difference}; sd must be above 0 and difference other than 0.")
    if not 0 < alpha < power < 1:
        raise ValueError(f"power is {power} and alpha {alpha}; allowed is 0 < alpha < power < 1.")
    from scipy.stats import nct, t

    def reached(n: int) -> float:
        shift, limit = abs(difference) / sd * math.sqrt(n), t.ppf(1 - alpha / 2, n - 1)
        if shift > 37:  # as good as certain, and beyond what the noncentral t can be computed for
            return 1.0
        return float(nct.sf(limit, n - 1, shift) + nct.cdf(-limit, n - 1, shift))

    high = 2
    while reached(high) < power:
        high *= 2
    low = high // 2  # too few, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return high


def smallest_p(n: int) -> float:
    """The smallest two-sided p-value that a sign-flip test of `n` pairs can give: 2 of the 2^n patterns."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for several comparisons (Holm 1979), in the order given: compare them with alpha as they are."""
    p = np.asarray(p_values, dtype=float)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values are {list(p_values)}; allowed is 0 to 1.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(p.size, 0, -1)))
    return adjusted.tolist()


def verdict(
    name_a: str,
    name_b: str,
    differences: Sequence[float],
    *,
    alpha: float = 0.05,
    margin: float | None = None,
    unit: str = "",
) -> str:
    """One sentence on whether a is better than b, by how much, or why that cannot be told.

    "Better" asks for both a sign-flip p-value of at most `alpha` and a t interval without zero. "Equivalent" asks for the
    same interval to lie within +-`margin`, the largest difference that would not matter (two one-sided tests would use
    the narrower interval of 1 - 2 alpha).

    Args:
        differences: a minus b, one per seed, of something where more is better (for losses, pass b minus a).
        unit: written behind differences, such as "points".
    """
    if margin is not None and margin <= 0:
        raise ValueError(f"margin is {margin}; allowed is any number above 0, or None.")
    interval = mean_interval(differences, confidence=1 - alpha)
    p, n, tail = paired_permutation_test(differences), interval.n, f" {unit}" if unit else ""
    seeds = f"{n} paired seed{'s' if n > 1 else ''}"
    if n == 1:
        return f"cannot tell {name_a} from {name_b}: one paired seed says nothing about the spread over seeds."
    level = f"{100 * (1 - alpha):g}% interval"
    facts = f"mean difference {interval.mean:.3g}{tail}, {level} {interval.low:.3g} to {interval.high:.3g}, p = {p:.2g}, {seeds}"
    within = margin is not None and -margin <= interval.low and interval.high <= margin
    if p <= alpha and (interval.low > 0 or interval.high < 0):
        better, worse = (name_a, name_b) if interval.mean > 0 else (name_b, name_a)
        low, high = sorted((abs(interval.low), abs(interval.high)))
        small = f", which is within the margin of {margin:g}{tail}" if within else ""
        return (
            f"{better} is better than {worse} by {abs(interval.mean):.3g}{tail}{small} ({level} {low:.3g} to {high:.3g}, "
            f"p = {p:.2g}, {seeds})."
        )
    if within:
        return f"{name_a} and {name_b} are equivalent within {margin:g}{tail} ({facts})."
    if smallest_p(n) > alpha:
        least = math.ceil(1 - math.log2(alpha))
        why = f"{seeds} can never give a p-value below {smallest_p(n):.2g}, {least} are needed for {alpha:g}"
    elif interval.low <= 0 <= interval.high:
        why = "the interval contains zero"
        if abs(interval.mean) > 0.1 * interval.sd:  # else hundreds
            needed = seeds_needed(interval.sd, interval.mean, alpha=alpha)
            why += f"; a true difference of this size would need about {needed} seeds"
    else:
        why = f"the interval leaves zero out, but the sign-flip test does not reach {alpha:g}"
    return f"cannot tell {name_a} from {name_b}: {why} ({facts})."


def _checked(values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"the values are {list(values)}; give at least one number, all of them finite.")
    return x
