"""The optimizer's side of training: learning rate, parameter groups, precision, processes."""

import math
from fnmatch import fnmatch

import torch
from torch import nn

from kdnb import distributed


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


def precision_for(mixed_precision: str, device: torch.device) -> str:
    """`mixed_precision` with `auto` decided. Raises ValueError for one that `device` does not have."""
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if mixed_precision == "auto":
        mixed_precision = "bf16" if bf16 else "no"
    lacking = {"fp16": device.type != "cuda", "bf16": device.type == "cuda" and not bf16}
    if lacking.get(mixed_precision, False):
        raise ValueError(f"mixed_precision is {mixed_precision}, which {device} does not have; choose auto or no.")
    return mixed_precision


def require_batch_norm(batch_norm: str, device: torch.device, *, processes: int):
    """Refuse statistics over all processes (`sync`) on a device that cannot make them: ValueError."""
    if batch_norm == "sync" and processes > 1 and device.type != "cuda":
        raise ValueError(f"batch_norm is sync, which {device} does not have; choose local.")


def accelerator_for(mixed_precision: str, device: torch.device):
    """Accelerate's view of this process, for batches on `device`, in a precision that it has; see `train`."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    mixed_precision = precision_for(mixed_precision, device)
    distributed.init_distributed()
    alone = distributed.world() == 1
    AcceleratorState._reset_state(reset_partial_state=alone)  # one notebook may train twice, in other precisions or places
    several = [] if alone else [DistributedDataParallelKwargs(find_unused_parameters=True)]
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=device.type == "cpu", kwargs_handlers=several)
    if _place(device) != _place(accelerator.device):
        raise ValueError(f"the loader's batches go to {device}, but this process trains on {accelerator.device}; give the loader "
                         "device=kdnb.distributed.find_device().")  # fmt: skip
    return accelerator


def _place(device: torch.device) -> tuple[str, int]:
    """Its type and number; a GPU without a number is the current one."""
    return device.type, torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index or 0


def parameter_groups(student: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for matrices and kernels; none for biases, norms and other vectors, nor for what a timm model spares.

    The rule is that of `timm.optim.param_groups_weight_decay`, with the names that `no_weight_decay()` of a model inside the
    student gives (class token, position embedding, ...). That function itself puts the group that decays last and leaves empty
    ones out: the optimizer's state in earlier checkpoints would not fit.
    """
    owners, spared = [], []
    for prefix, module in student.named_modules(prefix="student"):
        if hasattr(module, "no_weight_decay") and not any(prefix.startswith(f"{owner}.") for owner in owners):
            owners.append(prefix)
            spared += [f"{prefix}.{name}" for name in module.no_weight_decay()]
    groups = {True: [], False: []}
    for name, weight in student.named_parameters(prefix="student"):
        vector = weight.ndim <= 1 or name.endswith(".bias")
        if weight.requires_grad:
            groups[not vector and not any(fnmatch(name, pattern) for pattern in spared)].append(weight)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]
