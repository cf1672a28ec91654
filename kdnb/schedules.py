"""Learning rates as pure functions of the step: nothing to save, nothing to restore."""

import math


def cosine_with_warmup(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Factor on the peak learning rate for step number `step` (from 0): linear warm-up, then half a cosine towards 0.

    The first step has 1 / warmup_steps of the peak, step `warmup_steps` the peak, and a step `total_steps` would have 0
    (Loshchilov & Hutter 2017, without restarts). Steps are optimizer steps, after the cap on an epoch.

    Raises:
        ValueError: the warm-up does not end before the training does.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps is {warmup_steps}, but training has {total_steps} steps; choose 0 to {total_steps - 1}.")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
