"""What training writes down: named losses and honest times, per step and per epoch."""

import math
import time
from collections.abc import Iterator

import torch

_TIMES = ("data_wait_s", "step_s")
_FETCH_S = 0.1  # seconds between two fetches of losses
_STEPS_TOGETHER = 10  # ... or steps, where several processes fetch together


class Clock:
    """Splits the time of a step into waiting for data and the rest."""

    def __init__(self):
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
        lap = {"data_wait_s": self.waited, "step_s": time.perf_counter() - self.last - self.waited}
        self.last, self.waited = None, 0.0
        return lap


class Metrics:
    """Named losses and times of the steps since they were last fetched.

    Losses stay on the device until then, because fetching waits for it: a GPU always has the next steps to work on.

    Args:
        accelerator: Accelerate's; None: this process works alone.
    """

    def __init__(self, accelerator):
        self._accelerator = accelerator
        self._processes = 1 if accelerator is None else accelerator.num_processes
        self._steps: list[dict] = []
        self._losses: list[torch.Tensor] = []  # [names], of each step
        self._fetched = time.perf_counter()

    def add(self, step: dict, losses: list[dict[str, torch.Tensor]], weights: list[float]):
        """Note a step.

        Args:
            step: its plain values, among them "step", its number, and "data_wait_s" and "step_s".
            losses, weights: of each batch of this rank; the weights are shares of the step's samples, over all ranks they make 1.
        """
        self._names = list(losses[0])
        parts = [torch.stack([values[name].float() for name in self._names]) for values in losses]
        # A rank without a sample of its own computed something on a borrowed one, which may be anything.
        shares = [weight * part for part, weight in zip(parts, weights, strict=True) if weight > 0]
        self._losses.append(torch.stack(shares).sum(0) if shares else torch.zeros_like(parts[0]))
        self._steps.append(step)

    def due(self, *, stop: bool) -> bool:
        """Whether to fetch now: on the wish to stop, and after a while; of several processes, all after as many steps."""
        if self._processes > 1:
            return len(self._steps) == _STEPS_TOGETHER
        return stop or time.perf_counter() - self._fetched > _FETCH_S

    def fetch(self, *, stop: bool) -> tuple[list[dict], bool]:
        """(steps since the last time, with means of losses and times over all ranks; whether any rank wants to stop).

        Raises:
            FloatingPointError: on every rank, where a loss is not finite on one.
        """
        losses = torch.stack(self._losses)
        times = torch.tensor([[step[name] for name in _TIMES] for step in self._steps])
        if losses.device.type == "cuda":  # a step was over, for the host, when all its work was queued
            begun = time.perf_counter()
            torch.cuda.synchronize(losses.device)
            times[:, _TIMES.index("step_s")] += (time.perf_counter() - begun) / len(times)
            times = times.mean(0).expand_as(times)
        if self._processes > 1:
            parts = losses, (times / self._processes).to(losses.device), torch.tensor([float(stop)], device=losses.device)
            sums = self._accelerator.reduce(torch.cat([part.flatten() for part in parts]), "sum")
            losses, times, stops = sums.cpu().split([losses.numel(), times.numel(), 1])
            losses, times, stop = losses.view(-1, len(self._names)), times.view(-1, len(_TIMES)), stops.item() > 0
        steps = [
            step | dict(zip(self._names, values, strict=True)) | dict(zip(_TIMES, seconds, strict=True))
            for step, values, seconds in zip(self._steps, losses.tolist(), times.tolist(), strict=True)
        ]
        for step in steps:
            if wrong := [name for name in self._names if not math.isfinite(step[name])]:
                raise FloatingPointError(
                    f"{', '.join(wrong)} is not finite at step {step['step']}; lower learning_rate, set clip_grad_norm or use "
                    "mixed_precision no."
                )
        self._steps, self._losses, self._fetched = [], [], time.perf_counter()
        return steps, stop


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
