"""The learning rate at the places that can be worked out by hand."""

import pytest

from kdnb.schedules import cosine_with_warmup


def test_warm_up_peak_middle_and_end():
    factor = [cosine_with_warmup(step, total_steps=12, warmup_steps=4) for step in range(12)]
    assert factor[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor[8] == pytest.approx(0.5)  # half of the eight steps after the warm-up
    assert factor[11] == pytest.approx(0.5 * (1 + -0.9238795325112867))  # cos(7/8 pi)
    assert factor[4:] == sorted(factor[4:], reverse=True)


def test_without_warm_up_training_starts_at_the_peak():
    assert cosine_with_warmup(0, total_steps=1, warmup_steps=0) == 1.0


def test_a_warm_up_longer_than_training_is_refused():
    with pytest.raises(ValueError, match="warmup_steps is 12, but training has 12 steps; choose 0 to 11"):
        cosine_with_warmup(0, total_steps=12, warmup_steps=12)
