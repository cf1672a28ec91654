"""From a run's folder to what its checkpoints are worth: the pieces of `evaluate.ipynb` and `compare_regimes.ipynb`."""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch

from kdnb.data import prepare
from kdnb.data.audit import image_digests, overlap
from kdnb.data.cache import read_index
from kdnb.data.reader import ShardReader
from kdnb.data.views import CleanTransform, SimpleTransform
from kdnb.distillation.records import epochs_since_best
from kdnb.distillation.teacher_model import build_teacher
from kdnb.distributed import find_device
from kdnb.evaluation.compare import ModelReport, compare_models
from kdnb.evaluation.evaluator import Evaluator, Scores, gap_closed
from kdnb.evaluation.quality import agreement, expected_calibration_error, linear_cka
from kdnb.evaluation.sweep import Planned, run_all
from kdnb.models.vision import FeatureModel, build_model, freeze
from kdnb.params import arguments_of
from kdnb.runs import Run, anchored, set_seed

_DEMO = Planned("fixed", 0, "train_fixed", {"run_name": "digits_fixed", "eval_split": None, "keep_checkpoints": None})


@dataclass(frozen=True)
class Checkpoint:
    """A student's weights at one step: its folder's or file's path, and how far training was."""

    path: Path
    step: int
    images_seen: int


@dataclass(frozen=True)
class TrainedRun:
    """A run's folder as evaluation sees it.

    Attributes:
        p: the parameters that it was trained with. summary: its summary.json, None while it is not finished.
        checkpoints: oldest first.
    """

    folder: Path
    config: dict
    history: dict
    summary: dict | None
    checkpoints: list[Checkpoint] = field(repr=False)

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def p(self) -> SimpleNamespace:
        return SimpleNamespace(**self.config["parameters"])


def find_runs(p: SimpleNamespace) -> list[TrainedRun]:
    """The runs that `p.checkpoint_dir` names; where it names none, a short one on the digits, trained now if it is not there.

    Raises:
        FileNotFoundError, ValueError: see `open_run`; runs with the same name.
    """
    if p.checkpoint_dir is None:
        run_all([_DEMO], parallel=1)
        return [open_run(_DEMO.folder)]
    folders = [folder.strip() for folder in p.checkpoint_dir.split(",") if folder.strip()]
    return [open_run(folder) for folder in folders]


def data_for(p: SimpleNamespace, run: TrainedRun) -> SimpleNamespace:
    """What `p` asks to evaluate on: `p.dataset`, or where that is None the data that `run` was trained on."""
    own = run.p if p.dataset is None else p
    chosen = {name: getattr(own, name) for name in ("dataset", "split", "image_column", "label_column")}
    if p.eval_split is None:
        raise ValueError("eval_split is None; evaluation needs a held-out split, such as test.")
    chosen["streaming"] = getattr(p, "streaming", False) or getattr(own, "streaming", False)
    return SimpleNamespace(**chosen, eval_split=p.eval_split, probe_samples=p.probe_samples)


def open_run(folder: str | Path) -> TrainedRun:
    """The run in `folder`, a path from the project's root.

    Raises:
        FileNotFoundError: no such folder, no run in it, or no checkpoint yet.
    """
    folder = anchored(folder)
    if not (folder / "config.json").exists():
        there = "does not exist" if not folder.exists() else "holds no run (no config.json)"
        raise FileNotFoundError(f"checkpoint_dir {folder} {there}; give the folder that a training notebook wrote below outputs.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    run, found = Run(folder.name, config["parameters"], outputs=folder.parent), []
    for path in run.checkpoints():
        try:
            position = torch.load(path, weights_only=True, mmap=True)["position"]
        except FileNotFoundError:  # a run that trains has just replaced it by a newer one
            continue
        found.append(Checkpoint(path, position["step"], position["images_seen"]))
    if not found:
        raise FileNotFoundError(f"checkpoint_dir {folder} holds no checkpoint yet; wait for the first one, or train again.")
    history = run.read("history.json") or {"steps": [], "epochs": []}
    return TrainedRun(folder, config, history, run.read("summary.json"), found)


def load_student(run: TrainedRun, checkpoint: Checkpoint) -> FeatureModel:
    """The student of one checkpoint, frozen, on the device; its pooled features are what is judged.

    Raises:
        ValueError: the checkpoint is of another architecture than the run's config says.
    """
    if checkpoint.path.is_dir():  # a model folder, which knows its architecture
        model = build_model(str(checkpoint.path))
    else:
        model = build_model(run.p.student, checkpoint=checkpoint.path, **run.p.student_args)
    return freeze(FeatureModel(model).to(find_device()))


def best_model(run: TrainedRun) -> Checkpoint | None:
    """The folder best_model/ where it holds another epoch than the last; None where the last epoch was the best."""
    epochs, folder = run.history["epochs"], run.folder / "best_model"
    ago = epochs_since_best(epochs)
    best = epochs[-1 - ago] if ago else None
    return Checkpoint(folder, best["step"], best["images_seen"]) if best and folder.is_dir() else None


def random_student(run: TrainedRun) -> FeatureModel:
    """The same student as the run began with, from its seed."""
    trained = load_student(run, run.checkpoints[0])
    set_seed(run.p.seed)
    arguments = run.p.student_args | trained.normalisation
    return freeze(FeatureModel(build_model(run.p.student, num_classes=trained.num_classes, **arguments)).to(find_device()))


def build_evaluator(run: TrainedRun, data: SimpleNamespace) -> Evaluator:
    """An evaluator on the labelled images that `data` names, sized as `run` was trained.

    The training part comes from the run's own cache where that holds it; what does not is cached once (`kdnb.data.prepare`).

    Args:
        data: dataset, split, eval_split, image_column, label_column, streaming, probe_samples.
    """
    sizes = {"image_size": run.p.image_size, "resize": run.p.resize, "cache_dir": run.p.cache_dir}
    p = SimpleNamespace(**vars(data), **sizes, num_workers=getattr(run.p, "num_workers", 0))
    test = prepare.held_out_batches(**arguments_of(prepare.held_out_batches, p))
    names = None if test is None else test.dataset.reader.index["classes"]
    drawn = {"classes": names} | arguments_of(prepare.training_batches, p)
    train = None if test is None else prepare.training_batches(data.probe_samples, **drawn)
    for split, batches in ((data.eval_split, test), (data.split, train)):
        if batches is None:
            raise ValueError(f"dataset {data.dataset}, split {split}, has no labels; evaluation needs a labelled data set.")
    if train.dataset.reader.index["classes"] != names:
        raise ValueError(f"{data.dataset} has other classes in {data.split} than in {data.eval_split}; choose splits that agree.")
    crop = {"scale": (run.p.crop_scale_min, 1.0), "horizontal_flip": run.p.horizontal_flip}
    return Evaluator(
        train,
        test,
        view=CleanTransform(size=run.p.image_size),
        second_view=SimpleTransform(size=run.p.image_size, **crop),
        device=find_device(),
        num_classes=len(prepare.class_names(test.dataset.reader, train.dataset.reader)),
        folder=anchored(prepare.STORE) / "scores",
    )


def class_names(evaluator: Evaluator) -> list[str]:
    """Names of the classes of the data that `evaluator` judges on."""
    return prepare.class_names(evaluator.test.dataset.reader, evaluator.train.dataset.reader)


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


def evaluate_references(run: TrainedRun, evaluator: Evaluator) -> dict[str, Scores]:
    """Floors and ceiling: raw pixels, the student before training, the teacher."""
    models = {"random student": random_student(run), "teacher": build_teacher(**arguments_of(build_teacher, run.p))}
    return {"raw pixels": evaluator.pixels()} | {name: evaluator(model) for name, model in models.items()}


def row(scores: Scores, references: dict[str, Scores], **where) -> dict:
    """One line of the table: `where`, accuracies, the share of the gap that they close, feature quality, likeness to the
    teacher. The probe's logits stand in for a head that a feature student does not have."""
    teacher = references["teacher"]
    floors = {name: [references[floor] for floor in ("raw pixels", "random student")] for name in ("probe", "knn")}
    line = where | {"probe": scores.probe, "knn": scores.knn}
    for name in ("probe", "knn"):
        reached = [getattr(floor, name) for floor in floors[name]]
        line[f"{name}_gap_closed"] = gap_closed(line[name], floors=reached, ceiling=getattr(teacher, name))
    line |= scores.quality
    line["cka_teacher"] = linear_cka(scores.test.features, teacher.test.features)
    line["probe_agreement_teacher"] = agreement(scores.logits, teacher.logits)
    line["probe_calibration_error"] = expected_calibration_error(scores.logits, scores.test.labels)
    own = [side.test.logits for side in (scores, teacher)]
    if all(logits is not None for logits in own) and own[0].shape == own[1].shape:
        line["agreement_teacher"] = agreement(*own)
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}


def evaluate_run(run: TrainedRun, evaluator: Evaluator) -> tuple[list[dict], dict[str, Scores]]:
    """The table's lines of one run: references first, then every checkpoint and, where the last epoch was not the best one,
    best_model; and the scores of the references and, as "student", of the last checkpoint."""
    references = evaluate_references(run, evaluator)
    start = {"run": run.name, "step": 0, "images_seen": 0}
    lines, scores = [row(found, references, model=name, **start) for name, found in references.items()], dict(references)
    best = best_model(run)
    judged = [("student", checkpoint) for checkpoint in run.checkpoints] + ([("best model", best)] if best else [])
    for name, checkpoint in judged:
        found = evaluator(load_student(run, checkpoint))
        where = {"run": run.name, "step": checkpoint.step, "images_seen": checkpoint.images_seen}
        lines.append(row(found, references, model=name, **where))
        scores[name] = found
    return lines, scores


def compare_to_teacher(run: TrainedRun, evaluator: Evaluator, scores: dict[str, Scores], folder: Path) -> dict:
    """Teacher and last student side by side, into `folder`: see `kdnb.evaluation.compare.compare_models`.

    Each answers with its own head where that knows the data's classes, else with its probe.
    """
    models = {"teacher": build_teacher(**arguments_of(build_teacher, run.p)), "student": load_student(run, run.checkpoints[-1])}
    batch = next(iter(evaluator.test))
    inputs = evaluator.view(batch["image"].to(evaluator.device), batch["id"], 0)[0]
    sides = []
    for name, model in models.items():
        own = scores[name].test.logits
        fits = own is not None and own.shape[1] == evaluator.num_classes and not model.head_is_random
        calls = {"one": lambda model=model: model(inputs[:1]), "many": lambda model=model: model(inputs)}
        logits = own if fits else scores[name].logits
        sides.append(ModelReport(name=name, model=model.model, logits=logits, batch_size=len(inputs), **calls))
    labels = scores["student"].test.labels
    return compare_models(*sides, labels=labels, classes=class_names(evaluator), device=evaluator.device, folder=folder)


def teacher_note(run: TrainedRun, evaluator: Evaluator) -> str:
    """What to know about the teacher's head on this data."""
    teacher = build_teacher(**arguments_of(build_teacher, run.p))
    if not teacher.num_classes:
        return "the teacher has no classification head: it is judged by a probe of its features"
    if teacher.head_is_random:
        return "the teacher's head was not in its checkpoint: it is judged by a probe of its features"
    if teacher.num_classes != evaluator.num_classes:
        return (
            f"the teacher's head knows {teacher.num_classes} classes and the data set has {evaluator.num_classes}: the head is "
            "not used, the teacher is judged by a probe of its features"
        )
    return f"the teacher's own head knows the {teacher.num_classes} classes"
