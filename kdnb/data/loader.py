"""Batches of an epoch, ready when the step needs them.

`BatchReader` reads a cache with one thread and no worker process: positions are known beforehand, reading is a memcpy, so a
thread that stays a few batches ahead costs nothing that training wants. `WorkerLoader` uses PyTorch's worker processes, for
raw images, where decoding is the work. Both: `batches(epoch, start)` iterates an epoch from its batch number `start`.
"""

import queue
import signal
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from kdnb.data.datasets import CachedTensorDataset, FixedShardSubsetCachedDataset, RandomSubsetCachedDataset, RawImageDataset
from kdnb.data.order import EpochPlan, Order, batch_cap, even_shards, rank_slice
from kdnb.data.sources import open_source


class EpochLoader(EpochPlan):
    """The plan of a data set's epochs, which a loader then reads: see `EpochPlan` for the other arguments."""

    def __init__(self, dataset: CachedTensorDataset, *, device: str | torch.device = "cpu", **plan):
        super().__init__(dataset.order, **plan)
        self.dataset, self.device = dataset, torch.device(device)

    @property
    def data_fingerprint(self) -> str:
        """What tells the data: the same on every process that reads the same."""
        source = getattr(self.dataset, "source", None)
        fingerprint = self.dataset.reader.index["fingerprint"] if source is None else source.fingerprint
        return f"{fingerprint} {self.dataset.order}"

    def set_epoch(self, epoch: int):
        """Choose the epoch that iterating gives."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return self.num_batches(self.dataset.epoch)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self.batches(self.dataset.epoch)

    def _positions(self, epoch: int, start: int) -> list[np.ndarray]:
        self.dataset.set_epoch(epoch)
        positions = self.dataset.positions()
        whole = (positions[k * self.batch_size :][: self.batch_size] for k in range(start, self.num_batches(epoch)))
        return [rank_slice(batch, self.rank, self.world) for batch in whole]


_ADVISE_AHEAD = 4  # batches that the kernel is asked for before they are copied


def build_pretraining_dataloader(
    *,
    use_cached: bool = True,
    cache_dir: str = "",
    dataset: str = "",
    regime: str = "full",
    samples_per_epoch: int | None = None,
    shards_per_epoch: int | None = None,
    draw: str = "independent",
    fixed_shards: int | None = None,
    fixed_choice: str = "first",
    random_subset_seed: int = 0,
    shuffle: str = "within_shards",
    seed: int = 0,
    batch_size: int = 64,
    max_steps_per_epoch: int | None = None,
    gradient_accumulation_steps: int = 1,
    num_workers: int = 0,
    persistent_workers: bool = False,
    device: str | torch.device = "cpu",
    reuse_buffers: bool = False,
    image_size: int = 224,
    resize: str = "crop",
    cache_shard_size: int = 2048,
    **source,
) -> "BatchReader | WorkerLoader":
    """The batches that a student is trained from.

    Args:
        use_cached: read the shards in `cache_dir`; otherwise decode the images of `dataset` on the fly, cut into shards of
            `cache_shard_size` (then `source` holds further arguments of `open_source`).
        regime ... seed: see `Order`.
        max_steps_per_epoch: optimizer steps, of `gradient_accumulation_steps` batches each, after which an epoch ends.
        num_workers: worker processes; 0 reads a cache with one thread, which is the fastest way.
        reuse_buffers: a batch is valid only until the next one is asked for; saves allocations.

    Returns:
        An object with `batches(epoch, start=0)`, `num_batches(epoch)`, `set_epoch(epoch)` and `dataset`; iterating over it
        gives the batches of the epoch set. A batch is {"image": uint8 [B, 3, H, W] on `device`, "label": int64 [B] on
        `device` (where known), "id": int64 [B] on the host}.
    """
    subset = {
        "full": {},
        "random": {"samples_per_epoch": samples_per_epoch, "shards_per_epoch": shards_per_epoch, "draw": draw},
        "fixed": {"fixed_shards": fixed_shards, "fixed_choice": fixed_choice},
    }
    if regime not in subset:
        raise ValueError(f"regime is {regime!r}; allowed are {', '.join(subset)}.")
    if use_cached:
        kinds = {"random": RandomSubsetCachedDataset, "fixed": FixedShardSubsetCachedDataset}
        settings = {"shuffle": shuffle, "seed": seed} | subset[regime]
        if regime != "full":
            settings["random_subset_seed"] = random_subset_seed
        data = kinds.get(regime, CachedTensorDataset)(cache_dir, **settings)
    else:
        raw = open_source(dataset, **source)
        if raw.num_images is None:
            raise ValueError(f"{dataset} is streamed and has no random access; set use_cached to true and precompute it.")
        seeds = {"subset_seed": random_subset_seed, "shuffle": shuffle, "shuffle_seed": seed}
        order = Order(shard_sizes=even_shards(raw.num_images, cache_shard_size), regime=regime, **seeds, **subset[regime])
        data = RawImageDataset(raw, image_size=image_size, resize=resize, order=order, permutation_seed=0)
    cap = batch_cap(max_steps_per_epoch, gradient_accumulation_steps)
    shared = {"batch_size": batch_size, "device": device, "max_batches": cap}
    if use_cached and num_workers == 0:
        return BatchReader(data, reuse_buffers=reuse_buffers, **shared)
    return WorkerLoader(data, num_workers=num_workers, persistent_workers=persistent_workers, **shared)


class BatchReader(EpochLoader):
    """Reads batches of a `CachedTensorDataset` with one prefetching thread.

    Args:
        prefetch: batches kept ready. reuse_buffers: hand out the thread's own buffers; such a batch changes when the next
            one is asked for. On a GPU the host buffers are always reused (they are pinned) and batches never change.
    """

    def __init__(self, dataset, *, prefetch: int = 2, reuse_buffers: bool = False, **shared):
        super().__init__(dataset, **shared)
        self.prefetch, self.reuse_buffers = prefetch, reuse_buffers

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `epoch` from batch number `start` on."""
        plan = self._positions(epoch, start)
        cuda = self.device.type == "cuda"
        ring = cuda or (self.reuse_buffers and not self.dataset.normalise)
        free, ready, stop = queue.SimpleQueue(), queue.Queue(maxsize=self.prefetch), threading.Event()
        reader = self.dataset.reader
        for _ in range(self.prefetch + 2 if ring else 0):  # one being filled, those ready, one with the caller
            free.put((torch.empty((self.batch_size, *reader.row_shape), dtype=reader.dtype, pin_memory=cuda), None))
        worker = threading.Thread(
            target=self._fill, args=(plan, free if ring else None, ready, stop), name="kdnb-batches", daemon=True
        )
        worker.start()
        buffer = None
        try:
            for _ in plan:
                if buffer is not None:
                    free.put((buffer, None))
                batch, buffer, copied = ready.get()
                if isinstance(batch, BaseException):
                    raise batch
                if copied is not None:  # a GPU: the batch's own memory is on the device, the buffer waits for its copy
                    torch.cuda.current_stream(self.device).wait_event(copied)
                    for name in ("image", "label"):
                        if name in batch:
                            batch[name].record_stream(torch.cuda.current_stream(self.device))
                    free.put((buffer, copied))
                    buffer = None
                yield batch
        finally:
            stop.set()
            free.put(None)
            while worker.is_alive():
                try:
                    ready.get(timeout=0.05)
                except queue.Empty:
                    continue

    def _fill(self, plan: list[np.ndarray], free: queue.SimpleQueue | None, ready: queue.Queue, stop: threading.Event):
        try:
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            for positions in plan[:_ADVISE_AHEAD]:
                self.dataset.reader.advise(positions)
            for number, positions in enumerate(plan):
                if number + _ADVISE_AHEAD < len(plan):
                    self.dataset.reader.advise(plan[number + _ADVISE_AHEAD])
                taken = free.get() if free is not None else (None, None)
                if taken is None or stop.is_set():
                    return
                buffer, in_use = taken
                if in_use is not None:
                    in_use.synchronize()
                part = None if buffer is None else buffer[: len(positions)]
                batch, copied = self.dataset.read(positions, part), None
                if stream is not None:
                    with torch.cuda.stream(stream):
                        batch = _to_device(batch, self.device)
                        copied = torch.cuda.Event()
                        copied.record(stream)
                elif self.device.type != "cpu":
                    batch = _to_device(batch, self.device)
                ready.put((batch, buffer, copied))
        except BaseException as error:  # raised again where the batch is asked for
            ready.put((error, None, None))


class WorkerLoader(EpochLoader):
    """Reads batches with PyTorch's DataLoader and its worker processes; the order still comes from the main process."""

    def __init__(self, dataset, *, num_workers: int = 0, persistent_workers: bool = False, **shared):
        super().__init__(dataset, **shared)
        self._plan = _BatchPlan()
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._plan,
            num_workers=num_workers,
            persistent_workers=persistent_workers and num_workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else each epoch takes a number from those that training draws from
            worker_init_fn=_ignore_interrupts,
        )

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `epoch` from batch number `start` on."""
        self.dataset.set_epoch(epoch)
        samples, size = self.num_samples(epoch), self.batch_size
        whole = (range(k, min(k + size, samples)) for k in range(start * size, samples, size))
        self._plan.batches = [rank_slice(batch, self.rank, self.world) for batch in whole]
        for batch in self._loader:
            yield _to_device(batch, self.device)


def _ignore_interrupts(worker: int):
    """The stop button reaches every process of a notebook; training, which answers it, still needs its batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _BatchPlan:
    """A batch sampler whose batches are set anew for each epoch, since a DataLoader keeps its sampler."""

    def __init__(self):
        self.batches: list[range] = []

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def _to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Images and labels to the device; ids stay on the host, where views are drawn from them."""
    return {name: v if name == "id" else v.to(device, non_blocking=True) for name, v in batch.items()}


class DeviceLoader(EpochLoader):
    """The batches of a `CachedTensorDataset` from the device's memory.

    Args:
        loader: reads the same batches from the disk; its data set, device, batch size and cap are taken over.
        epochs: how many epochs the run has: only shards that they visit are copied.
    """

    def __init__(self, loader: BatchReader, *, epochs: int):
        settings = {name: getattr(loader, name) for name in ("batch_size", "device", "max_batches", "drop_last")}
        super().__init__(loader.dataset, **settings)
        reader, shards = loader.dataset.reader, visited_shards(loader, epochs)
        starts = np.concatenate([[0], np.cumsum(reader.shard_sizes, dtype=np.int64)])
        count = sum(reader.shard_sizes[shard] for shard in shards)
        self._place = np.full(len(reader), -1, dtype=np.int64)  # of each position of the cache, among the rows here
        self._ids = np.empty(count, dtype=np.int64)
        self._images = torch.empty((count, *reader.row_shape), dtype=reader.dtype, device=self.device)
        self._labels = torch.empty(count, dtype=torch.int64, device=self.device) if reader.labelled else None
        row = 0
        for shard in shards:
            batch = reader.read(np.arange(starts[shard], starts[shard + 1]))
            part = slice(row, row + len(batch["id"]))
            self._images[part].copy_(batch["image"])
            self._ids[part] = batch["id"].numpy()
            if self._labels is not None:
                self._labels[part].copy_(batch["label"])
            self._place[starts[shard] : starts[shard + 1]] = np.arange(part.start, part.stop)
            row = part.stop

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of `epoch` from batch number `start` on; each owns its memory."""
        plan = self._positions(epoch, start)
        # All of the epoch's rows go over at once: a copy per batch would be waited for.
        rows = torch.from_numpy(self._place[np.concatenate(plan)] if plan else np.empty(0, np.int64)).to(self.device)
        at = 0
        for positions in plan:
            chosen = rows[at : at + len(positions)]
            batch = {"image": self._images.index_select(0, chosen), "id": torch.from_numpy(self._ids[self._place[positions]])}
            if self._labels is not None:
                batch["label"] = self._labels.index_select(0, chosen)
            at += len(positions)
            yield batch


def visited_shards(loader: BatchReader, epochs: int) -> list[int]:
    """Places in the index of the shards that the first `epochs` epochs visit, ascending."""
    order = loader.dataset.order
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
