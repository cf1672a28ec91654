"""Soft-label distillation of a text classifier: a run, a sweep of temperature and alpha, teacher and student compared.

The same calls make the run of `soft_distill_text.ipynb`, its baseline (alpha 0) and its sweep.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kdnb.distillation.teacher import LiveTeacher
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.evaluation.compare import ModelReport, compare_models
from kdnb.losses import DistillationLoss
from kdnb.runs import Run, local_or_hub, set_seed
from kdnb.text.batches import build_loader, text_views
from kdnb.text.classifier import TextClassifier, accuracy, explain_out_of_memory, load_classifier, predict, save_classifier
from kdnb.text.small_text import small_classifier
from kdnb.text.text_data import TextData, require_labels

_BUILTIN_SHAPE = {"vocab_size": 2048, "hidden": 64, "layers": 1, "dropout": 0.2}


class LiveTextTeacher(LiveTeacher):
    """A text classifier that is called for every batch, which holds its own tokens as "teacher_text"."""

    @torch.no_grad()
    def __call__(self, views: list, batch: dict) -> list[dict[str, torch.Tensor]]:
        """Its output for the batch's texts, in a list of one view."""
        return [self.model(batch["teacher_text"])]


class CachedLogits:
    """A frozen teacher whose logits [N, C] of fixed texts are known; `batch["id"]` are rows of that table."""

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def __call__(self, views: list, batch: dict) -> list[dict[str, torch.Tensor]]:
        """Its output for the batch's texts, in a list of one view."""
        device = batch["text"]["input_ids"].device
        return [{"logits": self.logits[batch["id"]].to(device, non_blocking=True)}]


def build_student(
    data: TextData, *, student: str, max_length: int, gradient_checkpointing: bool = False, seed: int = 0
) -> TextClassifier:
    """The student with its first weights on the training device; the seed alone decides a head that its checkpoint lacks."""
    name: str | Path = local_or_hub(student)
    if student == "builtin":
        name = small_classifier(data.pool, data.classes, max_length=max_length, seed=seed, **_BUILTIN_SHAPE)
    set_seed(seed)
    head: dict = {"num_classes": len(data.classes), "classes": data.classes}
    return load_classifier(name, gradient_checkpointing=gradient_checkpointing, **head).to(find_device())


def distil(
    data: TextData, teacher: torch.Tensor | TextClassifier, run: Run, *, student: str, temperature: float, alpha: float,
    epochs: int, batch_size: int, learning_rate: float, max_length: int, weight_decay: float = 0.01,
    warmup_steps: int | float = 0, max_steps_per_epoch: int | None = None, gradient_accumulation_steps: int = 1,
    clip_grad_norm: float | None = None, mixed_precision: str = "auto", gradient_checkpointing: bool = False,
    early_stopping: int | None = None, seed: int = 0, save_every_steps: int | None = None, keep_checkpoints: int | None = None,
) -> tuple[TextClassifier, dict]:  # fmt: skip
    """Train a new student in `run` with `alpha * T^2 * KL(teacher || student) + (1 - alpha) * cross-entropy`.

    Args:
        teacher: logits [N, C] of the training texts, or a live, frozen classifier.
        student: `builtin`, a model folder, or a name on the Hub. max_length: tokens that are kept of a text.

    The settings of training are explained at `kdnb.distillation.train.train`.

    Returns:
        The student with the weights of its best epoch by validation accuracy, and the history.
    """
    require_labels(data.train, alpha=alpha)
    size: dict = {"max_length": max_length, "batch_size": batch_size}
    checkpointing = {"gradient_checkpointing": gradient_checkpointing}
    model = build_student(data, student=student, max_length=max_length, seed=seed, **checkpointing)
    tokenizers = {"text": model.tokenizer}
    if isinstance(teacher, TextClassifier):
        tokenizers["teacher_text"] = teacher.tokenizer
    frozen = LiveTextTeacher(teacher) if isinstance(teacher, TextClassifier) else CachedLogits(teacher)
    steps: dict = {"max_steps_per_epoch": max_steps_per_epoch, "gradient_accumulation_steps": gradient_accumulation_steps}

    def validate(trained: nn.Module) -> dict[str, float]:  # which is `model`
        logits = predict(model, data.validation, **size)
        loss = cross_entropy(logits, data.validation.known_labels).item()
        return {"val_loss": loss, "val_accuracy": accuracy(logits, data.validation)}

    with explain_out_of_memory(**size, gradient_accumulation_steps=gradient_accumulation_steps):
        history = train(
            model, frozen, build_loader(data.train, tokenizers, seed=seed, **size, **steps), views=text_views, run=run,
            loss=DistillationLoss("soft_targets", temperature=temperature, alpha=alpha, log_accuracy=True), epochs=epochs,
            learning_rate=learning_rate, weight_decay=weight_decay, warmup_steps=warmup_steps, clip_grad_norm=clip_grad_norm,
            gradient_accumulation_steps=gradient_accumulation_steps, mixed_precision=mixed_precision, seed=seed,
            save_every_steps=save_every_steps, keep_checkpoints=keep_checkpoints, validate=validate,
            save_model=lambda trained, folder: save_classifier(model, folder), early_stopping=early_stopping,
        )  # fmt: skip
    best = load_classifier(run.folder / "best_model", classes=data.classes).to(find_device())
    return best, history


def sweep(
    data: TextData,
    logits: torch.Tensor,
    run: Run,
    settings: Mapping,
    *,
    sweep_temperatures: list[float],
    sweep_alphas: list[float],
    sweep_epochs: int,
) -> dict[float, dict[float, float]]:
    """Best validation accuracy for each temperature and alpha, each a run of `sweep_epochs` below the folder of `run`.

    With alpha 0 the temperature plays no part, and one run serves all.

    Args:
        logits: the teacher's, of the training texts. settings: the keyword arguments of `distil`.

    Returns:
        {temperature: {alpha: accuracy}}.
    """
    table: dict[float, dict[float, float]] = {temperature: {} for temperature in sweep_temperatures}
    for temperature, row in table.items():
        for alpha in sweep_alphas:
            first = table[sweep_temperatures[0]]
            if alpha == 0 and alpha in first:
                row[alpha] = first[alpha]
                continue
            one = Run(f"T{temperature:g}_A{alpha:g}", run.parameters, prefix="sweep", outputs=run.folder / "sweep")
            changes = {"temperature": temperature, "alpha": alpha, "epochs": sweep_epochs}
            _, history = distil(data, logits, one, **{**settings, **changes})
            row[alpha] = max(epoch["val_accuracy"] for epoch in history["epochs"])
    return table


def compare(
    teacher: TextClassifier,
    student: TextClassifier,
    data: TextData,
    folder: Path,
    *,
    max_length: int,
    batch_size: int,
    teacher_logits: torch.Tensor | None = None,
) -> dict:
    """Teacher and student on the test texts, side by side: see `kdnb.evaluation.compare.compare_models`.

    Args:
        teacher_logits: [N, C] of the test texts where the teacher's own head does not make them (teacher_head labels).
    """
    reports = []
    for name, model, logits in (("teacher", teacher, teacher_logits), ("student", student, None)):
        if logits is None:
            logits = predict(model, data.test, max_length=max_length, batch_size=batch_size)
        calls: dict[str, Any] = {}
        for call, size in (("one", 1), ("many", batch_size)):
            settings = {"max_length": max_length, "batch_size": size, "shuffle": False}
            tokens = next(build_loader(data.test, {"text": model.tokenizer}, **settings).batches(0))["text"]
            calls[call] = partial(model, tokens)
        many = len(tokens["input_ids"])
        reports.append(ModelReport(name=name, model=model.model, logits=logits, batch_size=many, **calls))
    return compare_models(*reports, labels=data.test.labels, classes=data.classes, device=find_device(), folder=folder)
