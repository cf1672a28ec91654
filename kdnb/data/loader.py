"""Batches of an epoch, ready when the step needs them.

`BatchReader` reads a cache with one thread and no worker process: positions are known beforehand, reading is a memcpy, so a
thread that stays a batch or two ahead costs nothing that training wants. `WorkerLoader` uses PyTorch's worker processes, for
raw images, where decoding is the work. Both: `batches(epoch, start)` iterates an epoch from its batch number `start`.
"""

import math
import queue
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from kdnb import distributed
from kdnb.data.datasets import (
    CachedTensorDataset,
    FixedShardSubsetCachedDataset,
    ImageDataset,
    RandomSubsetCachedDataset,
    RawImageDataset,
)
from kdnb.data.order import EpochPlan, Order, even_shards
from kdnb.data.sources import open_source_of
from kdnb.runs import anchored

_ADVISE_AHEAD = 4  # batches that the kernel is asked for before they are copied
_QUICK = 2**19  # bytes; a smaller batch is copied sooner than a thread hands it over
_STAY_COLD = 64  # batches that go on being asked for after one that had to come from the disk


def build_pretraining_dataloader(
    *, use_cached: bool = True, cache_dir: str | Path = "",
    dataset: str = "", split: str = "train", image_column: str | None = None, label_column: str | None = None,
    streaming: bool = False, image_size: int = 224, resize: str = "crop", cache_shard_size: int = 2048,
    regime: str = "full", samples_per_epoch: int | float | None = None, shards_per_epoch: int | float | None = None,
    draw: str = "independent", fixed_shards: int | float | None = None, fixed_choice: str = "first", random_subset_seed: int = 0,
    shuffle: str = "within_shards", seed: int = 0,
    batch_size: int = 64, max_steps_per_epoch: int | None = None, gradient_accumulation_steps: int = 1,
    num_workers: int = 0, persistent_workers: bool = False, device: str | torch.device = "cpu", reuse_buffers: bool = False,
) -> "BatchReader | WorkerLoader":  # fmt: skip
    """The batches that a student is trained from.

    Args:
        use_cached: read the shards in `cache_dir`; otherwise decode the images of `dataset` on the fly, cut into shards of
            `cache_shard_size`, at `image_size` and `resize`.
        dataset ... streaming: see `kdnb.data.sources.open_source`; for images that are decoded on the fly. What the cache in
            `cache_dir` holds out is left out.
        regime ... seed: see `kdnb.data.order.Order`; of the subset's arguments, those of the other regimes are passed over.
        max_steps_per_epoch: optimizer steps, of `gradient_accumulation_steps` batches each, after which an epoch ends.
        num_workers: worker processes; 0 reads a cache with one thread, which is the fastest way.
        reuse_buffers: a batch is valid only until the next one is asked for; saves allocations.
        image_size, resize: pixels a side of raw images, and how they become square; a cache has its own.

    Returns:
        An object with `batches(epoch, start=0)`, `num_batches(epoch)`, `set_epoch(epoch)` and `dataset`; iterating over it
        gives the batches of the epoch set. A batch is {"image": uint8 [B, 3, H, W] on `device` (float where the cache is),
        "label": int64 [B] on `device` (where known), "id": int64 [B] on the host}.

    Raises:
        ValueError: a value that is not allowed, or more than there is; a batch that an epoch cannot fill; a streamed `dataset`.
        FileNotFoundError: no cache in `cache_dir`.

    Example:
        >>> import kdnb, tempfile
        >>> cache = kdnb.precompute("digits", tempfile.mkdtemp(), image_size=8)
        1,500 images of 8x8 in uint8 ...
        >>> loader = kdnb.build_pretraining_dataloader(cache_dir=cache, regime="random", samples_per_epoch=320)
        >>> loader.set_epoch(3)
        >>> [batch["image"].shape[0] for batch in loader]
        [64, 64, 64, 64, 64]
    """
    subset = {
        "full": {},
        "random": {"samples_per_epoch": samples_per_epoch, "shards_per_epoch": shards_per_epoch, "draw": draw},
        "fixed": {"fixed_shards": fixed_shards, "fixed_choice": fixed_choice},
    }
    if regime not in subset:
        raise ValueError(f"regime is {regime!r}; allowed are {', '.join(subset)}.")
    settings: dict[str, Any] = {"shuffle": shuffle, "seed": seed} | subset[regime]
    if regime != "full":
        settings["random_subset_seed"] = random_subset_seed
    plan: dict[str, Any] = {"batch_size": batch_size, "device": device, "max_steps_per_epoch": max_steps_per_epoch}
    plan["gradient_accumulation_steps"] = gradient_accumulation_steps
    if use_cached:
        kinds = {"random": RandomSubsetCachedDataset, "fixed": FixedShardSubsetCachedDataset}
        data = kinds.get(regime, CachedTensorDataset)(anchored(cache_dir), **settings)
        _say_shares(subset[regime], data.order)
        if num_workers == 0:
            return BatchReader(data, reuse_buffers=reuse_buffers, **plan)
    else:
        columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
        raw = open_source_of(cache_dir, dataset, split=split, streaming=streaming, **columns)
        if raw.num_images is None:
            raise ValueError(f"{dataset} is streamed and has no random access; set use_cached to true and precompute it.")
        if raw.note and distributed.rank() == 0:
            print(raw.note, flush=True)
        order = Order(shard_sizes=even_shards(raw.num_images, cache_shard_size), regime=regime, **settings)
        _say_shares(subset[regime], order)
        data = RawImageDataset(raw, image_size=image_size, resize=resize, order=order, permutation_seed=0)
    return WorkerLoader(data, num_workers=num_workers, persistent_workers=persistent_workers, **plan)


def _say_shares(subset: dict, order: Order):
    """Print what a size that is a share became."""
    for name, value in subset.items():
        if isinstance(value, float) and value < 1 and distributed.rank() == 0:
            what = f"{order.num_samples:,} images" if name == "samples_per_epoch" else f"{len(order.shard_sizes)} shards"
            _say_once(f"{name} {value:g} is {getattr(order, name):,} of {what}")


@cache
def _say_once(line: str):
    """Print `line`, which several loaders of a run would."""
    print(line, flush=True)


class EpochLoader(EpochPlan):
    """The plan of a data set's epochs, which a loader then reads: see `EpochPlan` for the other arguments."""

    def __init__(self, dataset: ImageDataset, *, device: str | torch.device = "cpu", **plan):
        super().__init__(dataset.order, **plan)
        self.dataset, self.device = dataset, torch.device(device)

    @property
    def data_fingerprint(self) -> str:
        """Tells the data and their order from others: the same on every process that reads the same."""
        return f"{self.dataset.fingerprint} {self.order}"

    @property
    def epoch(self) -> int:
        return self.dataset.epoch

    def set_epoch(self, epoch: int):
        self.dataset.set_epoch(epoch)

    def _positions(self, epoch: int, start: int) -> list[np.ndarray]:
        """Positions of this process' samples in each batch of `epoch` from number `start` on."""
        self.dataset.set_epoch(epoch)
        return self.local_batches(self.dataset.positions(), epoch, start)


class BatchReader(EpochLoader):
    """Reads batches of a `CachedTensorDataset` with one prefetching thread, or, where they are small, when they are asked for.

    Args:
        prefetch: batches kept ready, 0 for no thread; None: 2 for a GPU, 0 for small batches on a CPU, else 1.
        reuse_buffers: hand out the reader's own buffers; such a batch changes when the next one is asked for. On a GPU the host
            buffers are always reused (they are pinned) and batches never change.
    """

    dataset: CachedTensorDataset

    def __init__(self, dataset: CachedTensorDataset, *, prefetch: int | None = None, reuse_buffers: bool = False, **plan):
        super().__init__(dataset, **plan)
        self._shape, self.reuse_buffers = (self.batch_size, *dataset.reader.row_shape), reuse_buffers
        if prefetch is None:
            small = self.device.type == "cpu" and math.prod(self._shape) * dataset.reader.dtype.itemsize < _QUICK
            prefetch = {"cuda": 2}.get(self.device.type, 0 if small else 1)
        self.prefetch = prefetch

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `epoch` from batch number `start` on."""
        plan = self._positions(epoch, start)
        yield from self._prefetched(plan) if self.prefetch else self._as_asked_for(plan)

    def _as_asked_for(self, plan: list[np.ndarray]) -> Iterator[dict[str, torch.Tensor]]:
        buffer = torch.empty(self._shape, dtype=self.dataset.reader.dtype) if self.reuse_buffers else None
        for positions in plan:
            yield _to_device(self.dataset.read(positions, None if buffer is None else buffer[: len(positions)]), self.device)

    def _prefetched(self, plan: list[np.ndarray]) -> Iterator[dict[str, torch.Tensor]]:
        cuda, dtype = self.device.type == "cuda", self.dataset.reader.dtype
        free: queue.SimpleQueue = queue.SimpleQueue()
        ready: queue.SimpleQueue = queue.SimpleQueue()
        stop = threading.Event()
        for _ in range(self.prefetch + 1):  # those that are ready, and the caller's, which is filled once it asks for the next
            buffer = torch.empty(self._shape, dtype=dtype, pin_memory=cuda) if cuda or self.reuse_buffers else None
            free.put((buffer, None))
        thread = threading.Thread(target=self._fill, args=(plan, free, ready, stop), name="kdnb-batches", daemon=True)
        thread.start()
        try:
            held = None  # what the caller has; few buffers stay in the processor's cache
            for _ in plan:
                if held is not None:
                    free.put(held)
                batch, buffer, copied = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                if copied is not None:  # a GPU: the batch's own memory is on the device, the buffer waits for its copy
                    stream = torch.cuda.current_stream(self.device)
                    stream.wait_event(copied)
                    for name in batch.keys() - {"id"}:
                        batch[name].record_stream(stream)
                    free.put((buffer, copied))
                held = (buffer, None) if copied is None else None
                yield batch
        finally:
            stop.set()
            free.put(None)
            thread.join()

    def _fill(self, plan: list[np.ndarray], free: queue.SimpleQueue, ready: queue.SimpleQueue, stop: threading.Event):
        """Read each batch of `plan` into the next free buffer: (batch, buffer, event of its copy to a GPU) into `ready`."""
        try:
            torch.set_num_threads(1)  # of this thread alone: the cores belong to training
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            read_before, cold_until = _disk_reads(), _ADVISE_AHEAD
            for positions in plan[:_ADVISE_AHEAD]:
                self.dataset.reader.advise(positions)
            for number, positions in enumerate(plan):
                read = _disk_reads()
                if read != read_before:
                    read_before, cold_until = read, number + _STAY_COLD
                if number < cold_until and number + _ADVISE_AHEAD < len(plan):
                    self.dataset.reader.advise(plan[number + _ADVISE_AHEAD])
                taken = free.get()
                if taken is None or stop.is_set():
                    return
                buffer, copied = taken
                if copied is not None:
                    copied.synchronize()
                batch = self.dataset.read(positions, None if buffer is None else buffer[: len(positions)])
                with nullcontext() if stream is None else torch.cuda.stream(stream):
                    batch = _to_device(batch, self.device)
                ready.put((batch, buffer, None if stream is None else stream.record_event()))
        except BaseException as error:  # raised again where the batch is asked for
            ready.put((error, None, None))


def _disk_reads() -> float:
    """Grows when this thread had something read from a disk; NaN, which differs from itself, where the system does not tell."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        return math.nan
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_inblock + usage.ru_majflt


class WorkerLoader(EpochLoader):
    """Reads batches with PyTorch's DataLoader and its worker processes; the order still comes from the main process."""

    def __init__(self, dataset: ImageDataset, *, num_workers: int = 0, persistent_workers: bool = False, **plan):
        super().__init__(dataset, **plan)
        self._indices: list[Any] = []  # of the batches to come; a DataLoader keeps its sampler, so the list is filled anew
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._indices,
            num_workers=num_workers,
            persistent_workers=persistent_workers and num_workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else each epoch takes a number from those that training draws from
            worker_init_fn=_ignore_interrupts,
        )

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `epoch` from batch number `start` on."""
        self.dataset.set_epoch(epoch)
        self._indices[:] = self.local_batches(range(self.order.size(epoch)), epoch, start)
        for batch in self._loader:
            yield _to_device(batch, self.device)


def _ignore_interrupts(worker: int):
    """The stop button reaches every process of a notebook; training, which answers it, still needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Images and labels to the device; ids stay on the host, where views are drawn from them."""
    return {name: v if name == "id" else v.to(device, non_blocking=True) for name, v in batch.items()}
