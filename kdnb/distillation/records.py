"""What training writes down: named losses and honest times, per step and per epoch."""

import math
import time
from collections.abc import Iterator

import torch


class Clock:
    """Splits the time of a step into waiting for data and the rest; what runs on a GPU is waited for."""

    def __init__(self, device: torch.device):
        self.device = device
        self.last: float | None = None
        self.waited = 0.0

    def wait(self, batches: Iterator[dict]) -> dict:
        """The next batch."""
        begun = time.perf_counter()
        if self.last is None:
            self.last = begun
        batch = next(batches)
        self.waited += time.perf_counter() - begun
        return batch

    def lap(self) -> dict[str, float]:
        """Seconds since the last lap, as {"data_wait_s", "step_s"}; the next lap begins with the next batch."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        lap = {"data_wait_s": self.waited, "step_s": time.perf_counter() - self.last - self.waited}
        self.last, self.waited = None, 0.0
        return lap


def reduce_metrics(
    losses: list[dict[str, torch.Tensor]], weights: list[float], times: dict[str, float], *, stop: bool, step: int, accelerator
) -> tuple[dict[str, float], bool]:
    """(means of a step over all ranks: of the named losses by their weights, and of `times`; whether any rank wants to stop).

    Args:
        losses, weights: of each batch of this rank; the weights are shares of the step's samples, over all ranks they make 1.
        accelerator: Accelerate's; None: this process works alone.

    Raises:
        FloatingPointError: on every rank, where a loss is not finite on one.
    """
    names = list(losses[0])
    table = torch.stack([torch.stack([values[name].float() for name in names]) for values in losses])
    # A rank without a sample of its own computed something on a borrowed one, which may be anything.
    used = [number for number, weight in enumerate(weights) if weight > 0]
    shares = torch.tensor([weights[number] for number in used], dtype=table.dtype, device=table.device)
    sums = torch.cat([shares @ table[used], torch.tensor([*times.values(), float(stop)], device=table.device)])
    if accelerator is not None and accelerator.num_processes > 1:
        sums = accelerator.reduce(sums, "sum")
        sums[len(names) : -1] /= accelerator.num_processes
    *values, stops = sums.tolist()
    means = dict(zip([*names, *times], values, strict=True))
    if wrong := [name for name in names if not math.isfinite(means[name])]:
        raise FloatingPointError(
            f"{', '.join(wrong)} is not finite at step {step}; lower learning_rate, set clip_grad_norm or use "
            "mixed_precision no. The last checkpoint holds the weights from before."
        )
    return means, stops > 0


def merge(records: list[dict]) -> dict:
    """One record for several: where the last one ends, sums of counts and seconds, means of everything else by steps."""
    merged = dict(records[-1])
    num_steps = sum(record["num_steps"] for record in records)
    for name in merged.keys() - {"step", "epoch", "images_seen", "learning_rate"}:
        if name.startswith("num_") or name.endswith("_s"):
            merged[name] = sum(record[name] for record in records)
        else:
            merged[name] = sum(record["num_steps"] * record[name] for record in records) / num_steps
    return merged


def epochs_since_best(epochs: list[dict]) -> int:
    """How many epochs ago the best one was, by validation accuracy, validation loss or training loss; 0 before the first."""
    marks = [-e["val_accuracy"] if "val_accuracy" in e else e.get("val_loss", e["loss"]) for e in epochs]
    return len(marks) - 1 - marks.index(min(marks)) if marks else 0


def epoch_line(record: dict, epochs: int, *, unit: str = "image") -> str:
    """What a person wants to know after an epoch, in one line."""
    seconds = record["data_wait_s"] + record["step_s"]
    losses = " | ".join(f"{name} {record[name]:.4f}" for name in ("loss", "val_loss", "val_accuracy") if name in record)
    return (
        f"epoch {record['epoch'] + 1}/{epochs} | step {record['step']} | {losses} | learning rate "
        f"{record['learning_rate']:.2e} | {record['num_images'] / seconds:,.0f} {unit}s/s | data wait "
        f"{record['data_wait_s']:.2f} s ({record['data_wait_s'] / seconds:.1%}) | compute {record['step_s']:.2f} s"
    )
