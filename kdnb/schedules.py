"""Learning rates as pure functions of the step: nothing to save, nothing to restore."""

import math


def count_steps(plan, *, epochs: int, gradient_accumulation_steps: int = 1) -> int:
    """Optimizer steps of `epochs` epochs of `plan`, which has `num_batches(epoch)`; an epoch's last group may be smaller."""
    return sum(math.ceil(plan.num_batches(epoch) / gradient_accumulation_steps) for epoch in range(epochs))


def count_warmup_steps(warmup_steps: int | float, *, total_steps: int) -> int:
    """Steps of warm-up: a whole number as it is, a number between 0 and 1 as that share of `total_steps`, rounded.

    Raises:
        ValueError: a number that is neither, or a warm-up that does not end before the training does.
    """
    if 0 < warmup_steps < 1:
        return min(round(warmup_steps * total_steps), total_steps - 1)
    if warmup_steps != int(warmup_steps) or not 0 <= warmup_steps < total_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps}, but training has {total_steps} steps; choose 0 to {total_steps - 1}, or a share of "
            "the steps, such as 0.1."
        )
    return int(warmup_steps)


def cosine_with_warmup(step: int, *, total_steps: int, warmup_steps: int | float) -> float:
    """Factor on the peak learning rate for step number `step` (from 0): linear warm-up, then half a cosine towards 0.

    The first step of w warm-up steps has 1 / w of the peak, step w the peak, and a step `total_steps` would have 0
    (Loshchilov & Hutter 2017, without restarts). Steps are optimizer steps, after the cap on an epoch.

    Raises:
        ValueError: see `count_warmup_steps`.
    """
    warmup_steps = count_warmup_steps(warmup_steps, total_steps=total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
