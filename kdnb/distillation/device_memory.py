"""Whether images fit on the GPU beside training: a step is taken on a copy of the student, and what it took is measured."""

import copy
import gc
from types import SimpleNamespace

import torch
from torch import nn

from kdnb import distributed
from kdnb.data.loader import BatchReader, DeviceLoader, bytes_on_device
from kdnb.distillation.optim import accelerator_for
from kdnb.distillation.train import AllViews, forward_backward
from kdnb.models.vision import Student
from kdnb.progress import format_bytes

_MARGIN = 1 << 30  # bytes of the device that stay free, for fragmentation and for others


def step_bytes(
    student: nn.Module, loader: BatchReader, teacher, views, loss, *, mixed_precision: str, gradient_accumulation_steps: int
) -> int | None:
    """Bytes that training takes on the GPU beyond what is allocated now, the optimizer's moments included.

    The arguments are those of `kdnb.distillation.train.train`. Measured is what it does: this rank's part of a batch, the same
    precision, the same teacher, gradients that wait for the next batch of their step, moments that are there from the second
    step on.

    Returns:
        None where it ran out of memory; nothing of the trial is left on the GPU then either.
    """
    loader.set_rank(distributed.rank(), distributed.world())
    try:
        peak = _trial(student, loader, teacher, views, loss, mixed_precision, min(2, gradient_accumulation_steps))
    except torch.OutOfMemoryError:
        peak = None
    loader.set_rank(0, 1)
    gc.collect()  # the error and its frames are gone by now; the copy is part of a cycle
    torch.cuda.empty_cache()
    if peak is not None and distributed.world() > 1:
        peak += sum(weight.nbytes for weight in student.parameters())  # in which ranks exchange their gradients
    return peak


def _trial(student, loader, teacher, views, loss, mixed_precision: str, batches: int) -> int:
    """Two steps of so many batches each, on one process."""
    accelerator = accelerator_for(mixed_precision, loader.device)
    trial = copy.deepcopy(student).train()
    model = accelerator.prepare_model(AllViews(trial), evaluation_mode=True)  # its precision, but no exchange between ranks
    optimizer = torch.optim.AdamW(trial.parameters())
    optimizer.zero_grad()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(loader.device)
    before = torch.cuda.memory_allocated(loader.device)
    batch = next(loader.batches(0)) | {"epoch": 0}
    for _ in range(2):
        for _ in range(batches):
            forward_backward(batch, model, teacher, views, loss, accelerator)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated(loader.device) - before


def fits_in_memory(needed: int, *, free: int, peak: int | None) -> tuple[bool, str]:
    """Whether `needed` bytes fit beside a step that takes up to `peak` more than now, and a sentence that says why.

    A `peak` of None stands for a step that ran out of memory.
    """
    enough = peak is not None and needed <= free - peak - _MARGIN
    step = "not enough for a step" if peak is None else f"of which a step may take {format_bytes(peak)}"
    said = f"{format_bytes(needed)} of images, {format_bytes(free)} free, {step}"
    return enough, f"{said}: {'kept on the device' if enough else 'read from the shards'}"


def maybe_cache_on_device(p: SimpleNamespace, loader, student: Student, answers, views, loss):
    """`loader`, or the same batches from the device's memory where `cache_on_device` says so; prints what was decided.

    `auto` measures what a step takes, on a copy of the student, and what the GPU has free.

    Raises:
        MemoryError: `cache_on_device` is true, and the images do not fit.
    """
    cuda = loader.device.type == "cuda"
    if p.cache_on_device == "false" or not isinstance(loader, BatchReader) or (p.cache_on_device == "auto" and not cuda):
        return loader
    needed = bytes_on_device(loader, p.epochs)
    if p.cache_on_device == "auto":
        how = {name: getattr(p, name) for name in ("mixed_precision", "gradient_accumulation_steps")}
        peak = step_bytes(student, loader, answers, views, loss, **how)
        enough, said = fits_in_memory(needed, free=torch.cuda.mem_get_info(loader.device)[0], peak=peak)
        print(f"cache_on_device: {said}", flush=True)
        if not enough:
            return loader
    try:
        return DeviceLoader(loader, epochs=p.epochs)
    except torch.OutOfMemoryError:
        said = f"{needed / 1e9:.2f} GB of images do not fit on {loader.device}"
    if p.cache_on_device == "true":
        raise MemoryError(f"cache_on_device is true, but {said}; set it to auto or false.")
    print(f"cache_on_device: {said}: read from the shards", flush=True)
    return loader
