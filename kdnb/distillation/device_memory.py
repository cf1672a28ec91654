"""Images kept in the device's memory, where they fit there beside training.

`DeviceLoader` gives the batches of a cache without reading its shards again. Whether the images fit is measured: a step is taken
on a copy of the student, and what it took is compared with what the GPU has free.
"""

import copy
import gc
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from kdnb import distributed
from kdnb.data.loader import BatchReader, EpochLoader
from kdnb.distillation.optim import accelerator_for
from kdnb.distillation.train import AllViews, forward_backward
from kdnb.progress import format_bytes

_MARGIN = 1 << 30  # bytes of the device that stay free, for fragmentation and for others


def maybe_cache_on_device(
    loader: EpochLoader, student: nn.Module, teacher, views, loss, *,
    cache_on_device: str, epochs: int, mixed_precision: str, gradient_accumulation_steps: int,
) -> EpochLoader:  # fmt: skip
    """`loader`, or the same batches from the device's memory where `cache_on_device` says so; prints what was decided.

    Args:
        cache_on_device: `true`, `false`, or `auto`: on a GPU, where the images fit beside a step, which is measured.
        epochs: of the run; only shards that they visit are copied. The others are those of `kdnb.distillation.train.train`.

    Raises:
        MemoryError: `cache_on_device` is true, and the images do not fit.
    """
    auto = cache_on_device == "auto"
    if cache_on_device == "false" or not isinstance(loader, BatchReader) or (auto and loader.device.type != "cuda"):
        return loader
    needed = bytes_on_device(loader, epochs)
    if auto:
        peak = step_bytes(
            student, loader, teacher, views, loss,
            mixed_precision=mixed_precision, gradient_accumulation_steps=gradient_accumulation_steps,
        )  # fmt: skip
        fits, reason = fits_in_memory(needed, free=torch.cuda.mem_get_info(loader.device)[0], peak=peak)
        print(f"cache_on_device: {reason}", flush=True)
        if not fits:
            return loader
    try:
        return DeviceLoader(loader, epochs=epochs)
    except torch.OutOfMemoryError:
        reason = f"{format_bytes(needed)} of images do not fit on {loader.device}"
    if not auto:
        raise MemoryError(f"cache_on_device is true, but {reason}; set it to auto or false.")
    print(f"cache_on_device: {reason}: read from the shards", flush=True)
    return loader


class DeviceLoader(EpochLoader):
    """The batches of a `CachedTensorDataset` from the device's memory.

    Args:
        loader: reads the same batches from the disk; its data set, device, batch size and cap are taken over.
        epochs: how many epochs the run has: only shards that they visit are copied.
    """

    def __init__(self, loader: BatchReader, *, epochs: int):
        super().__init__(loader.dataset, device=loader.device, batch_size=loader.batch_size, drop_last=loader.drop_last)
        self.max_batches = loader.max_batches
        reader = loader.dataset.reader
        shards = [reader.shard_positions(shard) for shard in visited_shards(loader, epochs)]
        count = sum(map(len, shards))
        self._row = np.full(len(reader), -1, dtype=np.int64)  # of each position of the cache, among the rows here
        self._ids = np.empty(count, dtype=np.int64)
        self._images = torch.empty((count, *reader.row_shape), dtype=reader.dtype, device=self.device)
        self._labels = torch.empty(count, dtype=torch.int64, device=self.device) if reader.labelled else None
        end = 0
        for positions in shards:
            batch, start, end = reader.read(positions), end, end + len(positions)
            self._row[positions] = np.arange(start, end)
            self._ids[start:end] = batch["id"].numpy()
            self._images[start:end].copy_(batch["image"])
            if self._labels is not None:
                self._labels[start:end].copy_(batch["label"])

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `epoch` from batch number `start` on; each owns its memory."""
        plan = [self._row[positions] for positions in self._positions(epoch, start)]
        if not plan:
            return
        # All of the epoch's rows go over at once: a copy per batch would be waited for.
        there = torch.from_numpy(np.concatenate(plan)).to(self.device).split([len(rows) for rows in plan])
        for rows, rows_there in zip(plan, there, strict=True):
            batch = {"image": self._images.index_select(0, rows_there), "id": torch.from_numpy(self._ids[rows])}
            if self._labels is not None:
                batch["label"] = self._labels.index_select(0, rows_there)
            yield batch


def visited_shards(loader: EpochLoader, epochs: int) -> list[int]:
    """Places in the index of the shards that the first `epochs` epochs visit, ascending."""
    order = loader.order
    starts = np.cumsum(order.shard_sizes)
    seen = np.zeros(len(order.shard_sizes), dtype=bool)
    for epoch in range(1 if order.regime in ("full", "fixed") and loader.max_batches is None else epochs):
        positions = order.epoch(epoch)[: loader.num_samples(epoch)]
        seen[np.unique(np.searchsorted(starts, positions, side="right"))] = True
        if seen.all():
            break
    return np.flatnonzero(seen).tolist()


def bytes_on_device(loader: BatchReader, epochs: int) -> int:
    """Bytes of the images and labels that `DeviceLoader` would copy."""
    reader = loader.dataset.reader
    rows = sum(reader.shard_sizes[shard] for shard in visited_shards(loader, epochs))
    return rows * (int(np.prod(reader.row_shape)) * reader.dtype.itemsize + 8 * reader.labelled)


def fits_in_memory(needed: int, *, free: int, peak: int | None) -> tuple[bool, str]:
    """Whether `needed` bytes fit beside a step that takes up to `peak` more than now, and a sentence that says why.

    A `peak` of None stands for a step that ran out of memory.
    """
    fits = peak is not None and needed <= free - peak - _MARGIN
    step = "not enough for a step" if peak is None else f"of which a step may take {format_bytes(peak)}"
    place = "kept on the device" if fits else "read from the shards"
    return fits, f"{format_bytes(needed)} of images, {format_bytes(free)} free, {step}: {place}"


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
