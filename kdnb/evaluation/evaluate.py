"""From a run's folder to what its checkpoints are worth: `kdnb.evaluate`, and the pieces of it that the notebooks show."""

import math
from pathlib import Path
from typing import Any

from kdnb.data import prepare
from kdnb.data.audit import image_digests, overlap
from kdnb.data.cache import read_index
from kdnb.data.reader import ShardReader
from kdnb.data.views import CleanTransform, SimpleTransform
from kdnb.distributed import find_device
from kdnb.evaluation.compare import ModelReport, compare_models
from kdnb.evaluation.evaluator import Evaluator, Scores
from kdnb.evaluation.quality import agreement, expected_calibration_error, linear_cka
from kdnb.evaluation.report import Evaluation, gap_closed, teacher_warning
from kdnb.evaluation.statistics import accuracy_interval
from kdnb.evaluation.trained_run import (
    TrainedRun,
    best_model,
    data_to_judge_on,
    load_student,
    load_teacher,
    open_run,
    random_student,
)
from kdnb.params import arguments_of
from kdnb.runs import Run, anchored


def evaluate(
    run: Run | str | Path, dataset: str | None = None, *, split: str = "train", eval_split: str = "test",
    probe_samples: int = 10_000, image_column: str | None = None, label_column: str | None = None, streaming: bool = False,
) -> Evaluation:  # fmt: skip
    """What every checkpoint of `run` is worth: linear probe, weighted k-NN and feature quality on frozen features, between the
    floors (raw pixels, the random student) and the teacher.

    What was measured before, of the same weights on the same data, is read from outputs/cache_evaluation.

    Args:
        run: from `distill`, or the folder of any run. dataset: labelled images; None: those that the run was trained on.
        split, probe_samples: training images that the probe is fitted on, at most. eval_split: held-out images that judge.
        image_column, label_column, streaming: how `dataset` is read, see `kdnb.data.sources.open_source`.

    Returns:
        A list of dicts, which shows itself as a table: the references first, then every checkpoint. "probe" and "knn" are
        top-1 accuracies from 0 to 1 on "test_images" held-out images, "probe_low" to "probe_high" (and "knn_...") their 95%
        intervals (Wilson 1927), "probe_gap_closed" the share of the way from the higher floor to the teacher.

    Raises:
        FileNotFoundError: no run there, or no checkpoint yet. ValueError: no labels, or no such split.

    Example:
        >>> import kdnb
        >>> cache = kdnb.precompute("digits", "cache_digits", image_size=32, max_samples=200, cache_shard_size=50)
        >>> teacher = kdnb.load_teacher("builtin")
        >>> student = kdnb.build_student("cifar_resnet8", teacher, width=4)
        >>> run = kdnb.distill(student, teacher, cache, regime="fixed", fixed_shards=2, epochs=1, batch_size=50)
        >>> [(line["model"], line["step"]) for line in kdnb.evaluate(run, probe_samples=200)]
        [('raw pixels', 0), ('random student', 0), ('teacher', 0), ('student', 2)]
    """
    trained = open_run(run.folder if isinstance(run, Run) else run)
    data: dict[str, Any] = {"dataset": dataset, "split": split, "eval_split": eval_split, "probe_samples": probe_samples}
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "streaming": streaming}
    return evaluate_run(trained, build_evaluator(trained, **data, **columns))


def require_held_out(eval_split: str | None):
    """Refuse an evaluation without a held-out split: ValueError."""
    if eval_split is None:
        raise ValueError("eval_split is None; evaluation needs a held-out split, such as test.")


def build_evaluator(
    run: TrainedRun, *, dataset: str | None = None, split: str = "train", eval_split: str = "test", probe_samples: int = 10_000,
    image_column: str | None = None, label_column: str | None = None, streaming: bool = False,
) -> Evaluator:  # fmt: skip
    """An evaluator on labelled images, sized as `run` was trained; see `evaluate` for the arguments.

    The training part comes from the run's own cache where that holds it; what does not is cached once (`kdnb.data.prepare`).

    Raises:
        ValueError: no held-out split, no labels, or splits with other classes.
    """
    require_held_out(eval_split)
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    images = data_to_judge_on(run, dataset=dataset, split=split, streaming=streaming, **columns)
    dataset, split = images["dataset"], images["split"]
    test = prepare.held_out_batches(eval_split=eval_split, **arguments_of(prepare.held_out_batches, images))
    names = None if test is None else test.dataset.reader.index["classes"]
    train = None if test is None else prepare.training_batches(probe_samples, classes=names, **images)
    for name, batches in ((eval_split, test), (split, train)):
        if batches is None:
            raise ValueError(f"dataset {dataset}, split {name}, has no labels; evaluation needs a labelled data set.")
    if train.dataset.reader.index["classes"] != names:
        raise ValueError(f"{dataset} has other classes in {split} than in {eval_split}; choose splits that agree.")
    crop = {"scale": (run.p.crop_scale_min, 1.0), "horizontal_flip": run.p.horizontal_flip}
    return Evaluator(
        train,
        test,
        view=CleanTransform(size=run.p.image_size),
        second_view=SimpleTransform(size=run.p.image_size, **crop),
        device=find_device(),
        classes=prepare.class_names(test.dataset.reader, train.dataset.reader),
        folder=anchored(prepare.STORE) / "scores",
    )


def find_overlap(run: TrainedRun, evaluator: Evaluator) -> dict[str, int]:
    """How many test images lie, pixel for pixel, in the probe's training part and in the cache that `run` learnt from.

    A cache that is gone, or holds images of another size or number format, is left out.
    """
    drawn = evaluator.train.dataset
    readers = {"probe's training images": (drawn.reader, drawn.order.epoch(0))}
    held_out, store = evaluator.test.dataset.reader, anchored(prepare.STORE)
    try:
        index = read_index(anchored(run.p.cache_dir))
        if all(index[name] == held_out.index[name] for name in ("image_size", "resize", "storage")):
            readers["images distilled from"] = (ShardReader(anchored(run.p.cache_dir)), slice(None))
    except FileNotFoundError:
        print(f"{run.p.cache_dir} is gone: test images are not compared with what {run.name} learnt from")
    digests = image_digests(held_out.cache_dir, store)
    there = {name: image_digests(reader.cache_dir, store)[part] for name, (reader, part) in readers.items()}
    return {name: overlap(digests, training) for name, training in there.items()}


def evaluate_run(run: TrainedRun, evaluator: Evaluator) -> Evaluation:
    """The references (raw pixels, the student before training, the teacher), then every checkpoint and, where the last epoch was
    not the best one, the folder best_model/."""
    models = {"random student": random_student(run), "teacher": load_teacher(run)}
    references = {"raw pixels": evaluator.pixels()} | {name: evaluator(model) for name, model in models.items()}
    if warning := teacher_warning({name: its.probe for name, its in references.items()}):
        print(f"{run.name}: {warning}")
    start = {"run": run.name, "step": 0, "images_seen": 0}
    lines, scores = [_line(references[name], references, model=name, **start) for name in references], dict(references)
    best = best_model(run)
    checkpoints = [("student", checkpoint) for checkpoint in run.checkpoints] + ([("best model", best)] if best else [])
    for name, checkpoint in checkpoints:
        scores[name] = evaluator(load_student(run, checkpoint))
        where = {"run": run.name, "step": checkpoint.step, "images_seen": checkpoint.images_seen}
        lines.append(_line(scores[name], references, model=name, **where))
    return Evaluation(lines, scores)


def _line(scores: Scores, references: dict[str, Scores], **where) -> dict:
    """One line of the table: `where`, accuracies and their intervals, the share of the gap that they close, feature quality,
    likeness to the teacher. The probe's logits stand in for a head that a feature student does not have."""
    teacher = references["teacher"]
    images = len(scores.test.labels)
    line = where | {"probe": scores.probe, "knn": scores.knn, "test_images": images}
    for name in ("probe", "knn"):
        line[f"{name}_low"], line[f"{name}_high"] = accuracy_interval(line[name], images)
        line[f"{name}_gap_closed"] = gap_closed(line[name], {model: getattr(its, name) for model, its in references.items()})
    line |= scores.quality
    line["cka_teacher"] = linear_cka(scores.test.features, teacher.test.features)
    line["probe_agreement_teacher"] = agreement(scores.logits, teacher.logits)
    line["probe_calibration_error"] = expected_calibration_error(scores.logits, scores.test.labels)
    own = [side.test.logits for side in (scores, teacher)]
    if all(logits is not None for logits in own) and own[0].shape == own[1].shape:
        line["agreement_teacher"] = agreement(*own)
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}


def compare_to_teacher(run: TrainedRun, evaluator: Evaluator, scores: dict[str, Scores], folder: Path) -> dict:
    """Teacher and last student side by side, into `folder`: see `kdnb.evaluation.compare.compare_models`.

    Either predicts with its own head where that knows the data's classes, else with its probe.
    """
    models = {"teacher": load_teacher(run), "student": load_student(run, run.checkpoints[-1])}
    batch = next(iter(evaluator.test))
    inputs = evaluator.view(batch["image"].to(evaluator.device), batch["id"], 0)[0]
    sides = []
    for name, model in models.items():
        own = scores[name].test.logits
        fits = own is not None and own.shape[1] == len(evaluator.classes) and not model.head_is_random
        calls = {"one": lambda model=model: model(inputs[:1]), "many": lambda model=model: model(inputs)}
        logits, predicts = (own, "own head") if fits else (scores[name].logits, "linear probe")
        sides.append(ModelReport(name, model.model, logits, batch_size=len(inputs), predicts=predicts, **calls))
    labels = scores["student"].test.labels
    return compare_models(*sides, labels=labels, classes=evaluator.classes, device=evaluator.device, folder=folder)


def teacher_note(run: TrainedRun, evaluator: Evaluator) -> str:
    """What to know about the teacher's head on this data."""
    teacher = load_teacher(run)
    if not teacher.num_classes:
        return "the teacher has no classification head: it is judged by a probe of its features"
    if teacher.head_is_random:
        return "the teacher's head was not in its checkpoint: it is judged by a probe of its features"
    if teacher.num_classes != len(evaluator.classes):
        return (
            f"the teacher's head knows {teacher.num_classes} classes and the data set has {len(evaluator.classes)}: the head is "
            "not used, the teacher is judged by a probe of its features"
        )
    return f"the teacher's own head knows the {teacher.num_classes} classes"
