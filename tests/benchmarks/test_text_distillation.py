"""What soft labels are worth on AG News and on the built-in texts, and what asking a cached teacher costs.

    pytest -m benchmark -s tests/benchmarks/test_text_distillation.py

About 25 minutes on two cores. Teacher and student are small ModernBERTs with random first weights, trained here; per seed,
students of the same first weights take the same steps.

KDNB_REAL_DATA/ag_news holds train.csv and test.csv (class, title, description).
"""

import statistics
import time
from types import SimpleNamespace

import pytest
import torch
from test_notebooks import defaults
from torch.nn.functional import cross_entropy

from kdnb.losses import DistillationLoss
from kdnb.params import arguments_of, check_params
from kdnb.runs import Run
from kdnb.text.batches import build_loader
from kdnb.text.classifier import accuracy, predict
from kdnb.text.small_text import make_small_classifier
from kdnb.text.soft_labels import CachedLogits, LiveTextTeacher, build_student, distil
from kdnb.text.text_data import TextData, load_data, stratified_rows
from kdnb.text.text_teacher import build_teacher, check_teacher

pytestmark = pytest.mark.benchmark
SEEDS = (0, 1, 2)
TEACHER = {"hidden": 128, "layers": 2, "vocab_size": 16384, "dropout": 0.3}
STUDENT = {"hidden": 96, "layers": 1, "vocab_size": 16384, "dropout": 0.3}
RUNS = {  # labelled rows, alpha, epochs
    "200 rows, labels only": (200, 0.0, 60), "200 rows, distilled": (200, 0.7, 60), "200 rows, pure": (200, 1.0, 60),
    "1,000 rows, labels only": (1000, 0.0, 25), "1,000 rows, distilled": (1000, 0.7, 25), "1,000 rows, pure": (1000, 1.0, 25),
    "all rows, no labels": (None, 1.0, 6),
}  # fmt: skip


def parameters(dataset, **changes) -> SimpleNamespace:
    given = {
        "dataset": str(dataset), "split": "train", "eval_split": "test", "text_columns": "", "label_column": None,
        "validation_split": 0.1, "max_train_samples": None, "max_val_samples": None, "on_short": "refuse", "max_length": 64,
        "teacher_head": "keep", "temperature": 3.0, "max_steps_per_epoch": None, "batch_size": 32,
        "gradient_accumulation_steps": 1, "learning_rate": 1e-3, "weight_decay": 0.05, "warmup_steps": 20,
        "clip_grad_norm": 1.0, "mixed_precision": "no", "gradient_checkpointing": False, "early_stopping": None,
        "save_every_steps": None, "keep_checkpoints": 1,
    }  # fmt: skip
    return SimpleNamespace(**given | changes)


def call(function, p, *arguments, **changes):
    """The function with those parameters that it takes."""
    return function(*arguments, **arguments_of(function, p) | changes)


def small(folder, data, shape, seed) -> str:
    make_small_classifier(folder, texts=data.pool.texts, classes=data.classes, max_length=64, seed=seed, **shape)
    return str(folder)


def report(accuracy: dict[str, list[float]]) -> dict[str, float]:
    """Print a line for each name; the means."""
    print(f"\n{'test accuracy, mean and standard deviation':30s}")
    for name, values in accuracy.items():
        print(f"{name:30s} {statistics.mean(values):.3f} +- {statistics.stdev(values):.3f}   {[round(v, 3) for v in values]}")
    return {name: statistics.mean(values) for name, values in accuracy.items()}


def test_soft_labels_against_labels_alone_on_ag_news(real_data, tmp_path):
    scores: dict[str, list[float]] = {}
    for seed in SEEDS:
        p = parameters(real_data / "ag_news", seed=seed)
        data = call(load_data, p)
        p.teacher = small(tmp_path / f"teacher{seed}", data, TEACHER, seed)
        p.student = small(tmp_path / f"student{seed}", data, STUDENT, seed)
        p.teacher_head, p.epochs = "finetune", 5
        teacher = call(build_teacher, p, data)
        call(check_teacher, p, teacher, data)
        scores.setdefault("teacher", []).append(accuracy(call(predict, p, teacher, data.test), data.test))
        logits = call(predict, p, teacher, data.pool)
        for name, (count, alpha, epochs) in RUNS.items():
            rows = range(len(data.pool)) if count is None else stratified_rows(data.pool.labels, count, seed=seed)
            p.epochs, part = epochs, TextData(data.pool, data.pool.take(rows), data.validation, data.test)
            student, _ = call(distil, p, part, logits[list(rows)], Run(f"{seed} {name}", {}, outputs=tmp_path), alpha=alpha)
            scores.setdefault(name, []).append(accuracy(call(predict, p, student, data.test), data.test))
    means = report(scores)
    assert means["all rows, no labels"] > means["200 rows, labels only"] > 0.25


def test_soft_labels_against_labels_alone_on_the_built_in_texts(tmp_path):
    """The notebook's own parameters, teacher and student."""
    given, scores = defaults("soft_distill_text"), {}
    for seed in SEEDS:
        p = check_params(given | {"seed": seed}, "soft_distill_text")
        data = call(load_data, p)
        teacher = call(build_teacher, p, data)
        scores.setdefault("teacher", []).append(accuracy(call(predict, p, teacher, data.test), data.test))
        logits = call(predict, p, teacher, data.train)
        for alpha in (0.0, p.alpha, 1.0):
            student, _ = call(distil, p, data, logits, Run(f"{seed} {alpha}", {}, outputs=tmp_path), alpha=alpha)
            scores.setdefault(f"alpha {alpha}", []).append(accuracy(call(predict, p, student, data.test), data.test))
    assert min(report(scores).values()) > 2 / len(data.classes)


def test_a_step_with_cached_logits_costs_what_a_supervised_step_costs(real_data, tmp_path):
    p = parameters(real_data / "ag_news", seed=0)
    data = call(load_data, p)
    p.teacher, p.student = small(tmp_path / "t", data, TEACHER, 0), small(tmp_path / "s", data, STUDENT, 0)
    student, teacher = call(build_student, p, data).train(), call(build_teacher, p, data)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    soft = DistillationLoss("soft_targets", temperature=3.0, alpha=0.7)
    cached, live = CachedLogits(call(predict, p, teacher, data.train)), LiveTextTeacher(teacher)
    losses = {
        "supervised": lambda output, batch: cross_entropy(output["logits"], batch["label"]),
        "cached": lambda output, batch: soft([output], cached([], batch), batch["label"])["loss"],
        "live": lambda output, batch: soft([output], live([], batch), batch["label"])["loss"],
    }
    tokenizers = {"text": student.tokenizer, "teacher_text": teacher.tokenizer}
    loader = build_loader(data.train, tokenizers, max_length=p.max_length, batch_size=p.batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number, batch in enumerate(loader.batches(0)):
        for name in sorted(losses, key=lambda name: (number * len(name)) % 5):  # no kind always comes first
            start = time.perf_counter()
            losses[name](student(batch["text"]), batch).backward()
            optimizer.step()
            optimizer.zero_grad()
            if number >= 5:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print()
    for name, value in medians.items():
        print(f"{name:12s} {1000 * value:6.2f} ms a step, {value / medians['supervised']:.3f} of supervised")
    assert all(len(values) > 100 for values in seconds.values())
