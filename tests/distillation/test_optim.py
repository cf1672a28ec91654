"""The learning rate at the places that can be worked out by hand."""

import pytest

from kdnb.distillation.optim import cosine_with_warmup, count_steps, count_warmup_steps


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


def test_a_share_of_the_steps_is_rounded_and_always_leaves_a_step():
    assert [count_warmup_steps(share, total_steps=7) for share in (0.1, 0.3, 0.5, 0.99)] == [1, 2, 4, 6]
    assert count_warmup_steps(0.5, total_steps=1) == 0 and count_warmup_steps(0.001, total_steps=10) == 0
    assert [count_warmup_steps(steps, total_steps=7) for steps in (0, 0.0, 6, 3.0)] == [0, 0, 6, 3]
    by_share = [cosine_with_warmup(step, total_steps=40, warmup_steps=0.1) for step in range(40)]
    assert by_share == [cosine_with_warmup(step, total_steps=40, warmup_steps=4) for step in range(40)]


@pytest.mark.parametrize("warmup", [7, 100, -1, 2.5, 1.0e9])
def test_what_is_neither_steps_nor_a_share_is_refused(warmup):
    with pytest.raises(ValueError, match=r"warmup_steps is .*, but training has 7 steps; choose 0 to 6, or a share"):
        count_warmup_steps(warmup, total_steps=7)


def test_steps_are_counted_by_epoch_with_short_groups():
    class Plan:
        def num_batches(self, epoch):
            return (4, 3, 1)[epoch]

    assert count_steps(Plan(), epochs=3) == 8 and count_steps(Plan(), epochs=3, gradient_accumulation_steps=3) == 4
