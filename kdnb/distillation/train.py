"""The training loop: the only one. It knows no data set and no model; everything is handed to it.

A step is: batch, views, teacher, student, loss, backward, update. Whatever is periodic (records, checkpoints, lines) stands
outside it. Killed or interrupted anywhere and started again with the same run, it ends on a CPU with bitwise the same weights.

Several processes (`kdnb.distributed`) share each batch: a step's samples, loss and gradient are those of one process, whatever
their number, and a run may go on with another one. What is drawn (dropout, say) is drawn by each rank for itself. Rank 0 writes.
Metrics are sums over all ranks.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from kdnb import distributed
from kdnb.distillation.checkpoint import TrainState, load, save
from kdnb.distillation.optim import (
    accelerator_for,
    cosine_with_warmup,
    count_steps,
    count_warmup_steps,
    parameter_groups,
    require_batch_norm,
)
from kdnb.distillation.records import Clock, Metrics, epoch_line, epochs_since_best, merge
from kdnb.distributed import Preempted, StopFlag, catch_signals
from kdnb.progress import Display
from kdnb.runs import Run

_MAX_RECORDS = 5000  # step records per run; in a longer run each record is the mean of several steps


def train(
    student: nn.Module,
    teacher: Callable,
    loader,
    views: Callable,
    loss: Callable,
    run: Run,
    *,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 0.05,
    warmup_steps: int | float = 0,
    gradient_accumulation_steps: int = 1,
    clip_grad_norm: float | None = None,
    mixed_precision: str = "auto",
    compile_student: bool = False,
    seed: int = 0,
    save_every_steps: int | None = None,
    keep_checkpoints: int | None = None,
    save_model: Callable[[nn.Module, Path], None] | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    early_stopping: int | None = None,
    batch_norm: str = "local",
) -> dict:
    """Train `student` to imitate `teacher` on the batches of `loader`.

    Args:
        student: called with one view, returns what `loss` reads. Trained in place.
        teacher: called as `teacher(views, batch)` with the first `views.num_global` views, returns a list of outputs, one a
            view.
        loader: has `batches(epoch, start)`, `num_batches(epoch)`, `batch_size_at(epoch, number)` of a batch, for several
            processes `set_rank`, `local_batch_size` and `data_fingerprint` (see `kdnb.data.order`), and a `device` that the
            student is moved to.
        views: called as `views(images, ids, epoch)`, returns a list of inputs.
        loss: called as `loss(outputs, teacher_outputs, labels)`, returns named parts, among them "loss", their mix.
        run: where checkpoints and history go; a run that has a checkpoint is resumed.
        weight_decay: of AdamW, for matrices and kernels that the student's model does not spare (timm's `no_weight_decay`).
        warmup_steps: optimizer steps of warm-up before the cosine decay over all (capped) steps; between 0 and 1 a share of them.
        clip_grad_norm: largest norm of the gradient of all weights that are trained, the projections' included; None: no limit.
        gradient_accumulation_steps: batches per step; the last group of an epoch may be smaller and counts as it is.
        mixed_precision: `no`, `bf16`, `fp16`, or `auto`: bf16 on a GPU that has it, else none.
        save_every_steps: checkpoint every so many steps, beside one at each epoch's end.
        keep_checkpoints: how many of the newest stay; None: all, which evaluation makes a curve of.
        save_model: called as `save_model(student, folder)` for final_model/ and, after each best epoch, best_model/.
        validate: called as `validate(student)` after each epoch, returns named numbers, among them "val_loss" or
            "val_accuracy"; the latter, if it is there, decides which epoch is best. Without it the mean training loss does.
        early_stopping: stop after so many epochs in a row that were no better than the best one; None never stops early.
        batch_norm: statistics over a rank's part of the batch (`local`), or over all of it (`sync`, on GPUs).

    Returns:
        {"steps": [...], "epochs": [...]}, as `run.history()` reads it at any time, and history.json holds it at the end.

    Raises:
        FloatingPointError: a loss that is not finite, with the step and what checkpoint there is.
        ValueError: a precision that the hardware does not have, a warm-up longer than training, a batch that the processes
            cannot share equally, processes that read different data, a loader for another device than this process has.
        RuntimeError: another job trains the run. OSError: its disk is full or read-only.
        Preempted: SIGINT, SIGTERM or SIGUSR1 came, and a checkpoint was written. A second SIGINT is a KeyboardInterrupt at once.
    """
    accelerator = accelerator_for(mixed_precision, loader.device)
    loader.set_rank(accelerator.process_index, accelerator.num_processes)
    distributed.require_same("the data", loader.data_fingerprint)
    total_steps = count_steps(loader, epochs=epochs, gradient_accumulation_steps=gradient_accumulation_steps)
    given, warmup_steps = warmup_steps, count_warmup_steps(warmup_steps, total_steps=total_steps)
    if 0 < given < 1 and distributed.rank() == 0:
        print(f"warmup_steps {given:g} is {warmup_steps:,} of {total_steps:,} steps", flush=True)
    student.to(accelerator.device)
    fused = accelerator.device.type in ("cpu", "cuda")  # one kernel for all weights, and no number of steps to look up
    optimizer = torch.optim.AdamW(parameter_groups(student, weight_decay), lr=learning_rate, fused=fused)
    if compile_student:
        student.compile()
    model, optimizer = accelerator.prepare(AllViews(_synchronised(student, batch_norm, accelerator)), optimizer)
    optimizer.zero_grad()  # of a step that was broken off, where the student was trained before
    clock, metrics = Clock(), Metrics(accelerator)
    steps_per_record = math.ceil(total_steps / _MAX_RECORDS)

    with run.held(), Display(total_steps, title=run.name, curve="loss") as display, catch_signals() as stop_flag:
        trained = run, student, optimizer, accelerator.scaler
        state = load(*trained, seed=seed)
        accelerator.wait_for_everyone()  # nobody writes a checkpoint before everybody has read one
        while state.epoch < epochs and not (early_stopping and epochs_since_best(state.epochs) >= early_stopping):
            student.train()
            num_batches, batches = loader.num_batches(state.epoch), loader.batches(state.epoch, state.batch)
            while state.batch < num_batches:
                rate = learning_rate * cosine_with_warmup(state.step, total_steps=total_steps, warmup_steps=warmup_steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                num_images, weights = batch_weights(loader, state, gradient_accumulation_steps)
                losses = []
                for weight in weights:
                    batch = clock.wait(batches) | {"epoch": state.epoch}
                    last = len(losses) == len(weights) - 1  # only then do processes average their gradients
                    with nullcontext() if last else accelerator.no_sync(model):
                        losses.append(forward_backward(batch, model, teacher, views, loss, accelerator, weight=weight))
                if clip_grad_norm is not None:
                    accelerator.clip_grad_norm_(model.parameters(), clip_grad_norm)
                optimizer.step()
                optimizer.zero_grad()

                state.step, state.batch = state.step + 1, state.batch + len(weights)
                state.images_seen += num_images
                where = {"step": state.step, "epoch": state.epoch, "images_seen": state.images_seen, "learning_rate": rate}
                metrics.add(where | {"num_steps": 1, "num_images": num_images} | clock.lap(), losses, weights)
                epoch_ends = state.batch == num_batches
                saves = not epoch_ends and save_every_steps and state.step % save_every_steps == 0
                if not (epoch_ends or saves or metrics.due(stop=bool(stop_flag))):
                    continue
                try:
                    steps, stop = metrics.fetch(stop=bool(stop_flag))
                except FloatingPointError as error:
                    raise FloatingPointError(f"{error} {_what_is_left(run)}") from None
                for step in steps:
                    state.pending.append(step)
                    if len(state.pending) == steps_per_record or (epoch_ends and step is steps[-1]):
                        state.record("steps", merge(state.pending))
                        state.pending = []
                        display.update(step["step"], **{name: state.steps[-1][name] for name in ("loss", "learning_rate")})
                if not epoch_ends and (stop or saves):
                    save(*trained, state, keep=keep_checkpoints)
                if not epoch_ends and stop:
                    raise _preempted(run, stop_flag, state)

            record = merge([record for record in state.steps if record["epoch"] == state.epoch])
            if validate is not None:
                record |= validate(student)
            print(epoch_line(record, epochs, unit=getattr(loader, "unit", "image")), flush=True)
            state.record("epochs", record)
            state.epoch, state.batch = state.epoch + 1, 0
            if save_model is not None and epochs_since_best(state.epochs) == 0 and accelerator.is_main_process:
                with run.writing():
                    save_model(student, run.folder / "best_model")
            save(*trained, state, keep=keep_checkpoints)
            if stop and state.epoch < epochs:
                raise _preempted(run, stop_flag, state)
        if save_model is not None and accelerator.is_main_process:
            with run.writing():
                save_model(student, run.folder / "final_model")
        run.write("history.json", {"steps": state.steps, "epochs": state.epochs})
        accelerator.wait_for_everyone()  # for the files that the others read next
    loader.set_rank(0, 1)
    return {"steps": state.steps, "epochs": state.epochs}


def batch_weights(loader, state: TrainState, gradient_accumulation_steps: int) -> tuple[int, list[float]]:
    """(images of the next step over all processes, share of them in each of this process' batches of that step)."""
    end = min(state.batch + gradient_accumulation_steps, loader.num_batches(state.epoch))
    numbers = range(state.batch, end)
    num_images = sum(loader.batch_size_at(state.epoch, number) for number in numbers)
    return num_images, [loader.local_batch_size(state.epoch, number) / num_images for number in numbers]


def forward_backward(batch: dict, model, teacher, views, loss, accelerator, *, weight: float = 1.0) -> dict[str, torch.Tensor]:
    """Views, teacher, student, loss and backward for a loader's batch with its "epoch"; returns the named parts of the loss.

    Args:
        model: an `AllViews` that the accelerator has prepared. weight: the batch's share in its step. The rest as for `train`.
    """
    inputs = views(batch.get("image", batch.get("text")), batch["id"], batch["epoch"])
    with torch.no_grad(), accelerator.autocast():
        teacher_outputs = teacher(inputs[: views.num_global], batch)
    outputs = model(inputs)
    losses = loss(outputs, teacher_outputs, batch.get("label"))
    # Processes average their gradients, and wait for one to every output, also to those without a loss.
    scaled = losses["loss"] * (weight * accelerator.num_processes)
    accelerator.backward(scaled + _nothing(outputs, accelerator))
    return {name: value.detach() for name, value in losses.items()}


class AllViews(nn.Module):
    """All views of a batch in one call, which is what processes synchronise."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def forward(self, views: list) -> list:
        return [self.student(view) for view in views]


def _synchronised(student: nn.Module, batch_norm: str, accelerator) -> nn.Module:
    require_batch_norm(batch_norm, accelerator.device, processes=accelerator.num_processes)
    if batch_norm == "sync" and accelerator.num_processes > 1:
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
    return student


def _nothing(outputs: list, accelerator) -> torch.Tensor | float:
    """0, made from every output, where several processes need a gradient of each; alone, plainly 0."""
    if accelerator.num_processes == 1:
        return 0.0
    tensors = []
    for output in outputs:
        for value in output.values() if isinstance(output, dict) else [output]:
            tensors += value if isinstance(value, list) else [value]
    return sum((tensor.float() * 0).sum() for tensor in tensors)


def _what_is_left(run: Run) -> str:
    if paths := run.checkpoints():
        return f"{paths[-1].name} holds the weights from before; give the new values another run_name."
    return "There is no checkpoint yet: the same run_name takes the new values."


def _preempted(run: Run, stop_flag: StopFlag, state: TrainState) -> Preempted:
    name = stop_flag.signal_name
    why = "interrupted" if name == "SIGINT" else f"asked to stop by {name or 'a signal to another rank'}"
    return Preempted(
        f"{run.name} was {why} and wrote a checkpoint at step {state.step}; run this cell again to go on, or the same command "
        "with its run_name."
    )
