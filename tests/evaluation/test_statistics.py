"""Numbers that can be checked by hand or in a table, and a verdict for every case."""

import math

import numpy as np
import pytest

from kdnb.evaluation import statistics
from kdnb.evaluation.statistics import (
    effect_size,
    holm,
    mean_interval,
    paired_permutation_test,
    seeds_needed,
    smallest_p,
    verdict,
)


def test_interval_from_the_table():
    found = mean_interval([1, 2, 3, 4, 5])
    # sd = sqrt(10 / 4); t(0.975, 4) = 2.776; half a width of 2.776 * 1.5811 / sqrt(5) = 1.963.
    assert (found.mean, found.n) == (3, 5)
    assert found.sd == pytest.approx(1.5811388)
    assert (found.low, found.high) == pytest.approx((3 - 1.9633, 3 + 1.9633), abs=1e-4)
    wider = mean_interval([1, 2, 3, 4, 5], confidence=0.99)  # t(0.995, 4) = 4.604
    assert wider.high == pytest.approx(3 + 4.6041 * 1.5811388 / math.sqrt(5), abs=1e-4)


def test_a_single_value_has_no_interval():
    found = mean_interval([2.5])
    assert (found.mean, found.low, found.high) == (2.5, -math.inf, math.inf) and math.isnan(found.sd)


@pytest.mark.parametrize("differences, p", [
    ([1, 2, 3], 2 / 8),  # only +++ and --- sum to 6 or more
    ([-1, -2, -3], 2 / 8),
    ([1, -2, 3], 6 / 8),  # sums 6, 4, 2, 0 and their negatives: all but the two zeros reach 2
    ([1, 1, 1, -1], 10 / 16),  # sum 2: all but the six sign patterns that sum to 0
    ([0, 0, 0], 1),
    ([5], 1),
    ([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], 2 / 64),  # the same sum in another order of rounding still counts
])  # fmt: skip
def test_exact_p_values_by_counting(differences, p):
    assert paired_permutation_test(differences) == p


def test_equal_sums_count_whatever_their_rounding():
    # 0.1 + 0.2 - 0.3 is 5.6e-17 and -0.1 - 0.2 + 0.3 is -5.6e-17, but exactly all sums are 0, 0.2, 0.4 or 0.6.
    assert paired_permutation_test([0.1, 0.2, -0.3]) == 1
    assert paired_permutation_test([0.3, -0.2, -0.1]) == 1


def test_more_pairs_than_16_are_sampled_with_a_seed():
    differences = np.random.default_rng(0).normal(0.8, 1, size=17)
    sampled = paired_permutation_test(differences)
    assert sampled == paired_permutation_test(differences) != paired_permutation_test(differences, seed=1)
    exact = paired_permutation_test(differences, samples=2**17)
    assert 0.02 < exact < 0.5
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 100_000))
    assert (exact * 2**17) % 2 == 0  # every pattern counts with its mirror image


def test_a_sampled_p_value_is_never_zero():
    assert 0 < paired_permutation_test([1.0] * 40, samples=999) <= 2 / 1000
    assert paired_permutation_test([1.0, -1.0] * 20, samples=999) == 1


def test_the_test_is_right_as_often_as_it_says():
    generator = np.random.default_rng(1)
    p = [paired_permutation_test(generator.normal(size=8)) for _ in range(1000)]
    share = np.mean(np.array(p) <= 0.05)
    assert 0.02 < share <= 0.08  # 12 of 256 patterns: 0.047, within 4 standard deviations


def test_effect_size_by_hand():
    assert effect_size([1, 2, 3]) == pytest.approx(2)
    assert effect_size([-1, -2, -3]) == pytest.approx(-2)
    assert effect_size([2, 2]) == math.inf and effect_size([-2, -2]) == -math.inf
    assert math.isnan(effect_size([0, 0])) and math.isnan(effect_size([1]))
    nearly = [94.1 - 93.4, 92.7 - 92.0, 95.3 - 94.6]  # 0.7 each, but for rounding
    assert len(set(nearly)) > 1 and effect_size(nearly) == math.inf and mean_interval(nearly).sd == 0


@pytest.mark.parametrize("d, power, n", [(0.5, 0.8, 34), (0.8, 0.8, 15), (1.0, 0.8, 10), (0.2, 0.8, 199), (0.5, 0.95, 54)])
def test_seeds_needed_from_published_tables(d, power, n):
    # Paired two-sided t-test at 0.05, as in Cohen 1988 and G*Power.
    assert seeds_needed(1, d, power=power) == n
    assert seeds_needed(0.01, -0.01 * d, power=power) == n


def test_seeds_needed_at_the_ends():
    assert seeds_needed(1, 1000) == 2
    assert seeds_needed(1, 0.5, alpha=0.01) > seeds_needed(1, 0.5)
    assert seeds_needed(1, 1e-4) == pytest.approx((1.959964 + 0.841621) ** 2 * 1e8, rel=1e-4)  # the normal approximation
    with pytest.raises(ValueError, match="sd is 0 and difference 1; sd must be above 0"):
        seeds_needed(0, 1)
    with pytest.raises(ValueError, match="power is 0.01 and alpha 0.05"):
        seeds_needed(1, 1, power=0.01)


def test_the_smallest_p_value_is_reached_and_not_beaten():
    assert [smallest_p(n) for n in (1, 2, 3, 5, 6)] == [1, 0.5, 0.25, 0.0625, 0.03125]
    for n in range(1, 10):
        assert paired_permutation_test([1 + k / 100 for k in range(n)]) == smallest_p(n)


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04 times 3, 2, 1 gives 0.03, 0.06, 0.04; the last may not be below the one before.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1] and holm([0.2]) == [0.2] and holm([]) == []
    with pytest.raises(ValueError, match="p_values are .* allowed is 0 to 1"):
        holm([0.1, 1.2])


def test_verdict_better_in_both_directions():
    differences = [1.2, 1.0, 2.0, 1.5, 1.1, 1.8]
    assert verdict("random", "fixed", differences, unit="points") == (
        "random is better than fixed by 1.43 points (95% interval 1.01 to 1.86, p = 0.031, 6 paired seeds)."
    )
    assert verdict("random", "fixed", [-d for d in differences], unit="points") == (
        "fixed is better than random by 1.43 points (95% interval 1.01 to 1.86, p = 0.031, 6 paired seeds)."
    )
    assert "by 1.43, which is within the margin of 3 (" in verdict("random", "fixed", differences, margin=3)


@pytest.mark.parametrize("differences, margin, start", [
    ([0.3], None, "cannot tell a from b: one paired seed says nothing about the spread"),
    ([0.3, 0.2, 0.4, 0.3, 0.25], None,
     "cannot tell a from b: 5 paired seeds can never give a p-value below 0.062, 6 are needed for 0.05 (mean"),
    ([1.2, -1.0, 2.0, 1.5, 1.1, 1.8], None,
     "cannot tell a from b: the interval contains zero; a true difference of this size would need about 10 seeds ("),
    ([1, -1, 2, -2, 3, -3], None, "cannot tell a from b: the interval contains zero (mean difference 0,"),
    ([1, 1, 1, 1, 1, 1, 30], None, "cannot tell a from b: the interval contains zero; a true difference"),  # p = 0.016
    ([-0.02, 0.01, 0.005], 0.1, "a and b are equivalent within 0.1 (mean difference -0.00167, 95% interval -0.041"),
    ([0, 0, 0], 0.1, "a and b are equivalent within 0.1 (mean difference 0, 95% interval 0 to 0, p = 1, 3 paired seeds)"),
    ([0, 0, 0, 0, 0, 0], None, "cannot tell a from b: the interval contains zero (mean difference 0,"),
    ([-0.02, 0.01, 0.005], 0.01, "cannot tell a from b: 3 paired seeds can never"),
])  # fmt: skip
def test_verdict_says_why_it_cannot_tell(differences, margin, start):
    found = verdict("a", "b", differences, margin=margin)
    assert found.startswith(start), found
    assert found.endswith(".") and found.count(". ") == 0


def test_verdict_when_the_two_criteria_differ(monkeypatch):
    monkeypatch.setattr(statistics, "paired_permutation_test", lambda differences: 0.06)
    found = verdict("a", "b", [1.2, 1.0, 2.0, 1.5, 1.1, 1.8])
    assert "the interval leaves zero out, but the sign-flip test does not reach 0.05" in found


def test_another_alpha_changes_interval_and_seeds():
    assert "99% interval" in verdict("a", "b", [1.2, 1.0, 2.0, 1.5, 1.1, 1.8, 1.3, 1.4], alpha=0.01)
    assert "8 are needed for 0.01" in verdict("a", "b", [1.2, 1.0, 2.0], alpha=0.01)
    assert "5 are needed for 0.0625" in verdict("a", "b", [1.2, 1.0, 2.0], alpha=0.0625)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_bad_values_are_refused(values):
    for function in (mean_interval, paired_permutation_test, lambda x: verdict("a", "b", x)):
        with pytest.raises(ValueError, match="at least one number, all of them finite"):
            function(values)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="margin is 0; allowed is any number above 0"):
        verdict("a", "b", [1, 2], margin=0)
    with pytest.raises(ValueError, match="confidence is 95; allowed is between 0 and 1"):
        mean_interval([1, 2], confidence=95)
