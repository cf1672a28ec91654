"""A trained run as evaluation sees it: opened from its folder, with the models of its checkpoints."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdnb.distillation.records import epochs_since_best
from kdnb.distillation.teacher_model import build_teacher
from kdnb.distributed import find_device
from kdnb.evaluation.sweep import Planned, run_all
from kdnb.files import Damaged, read_tensors
from kdnb.models.vision import FeatureModel, build_model, freeze
from kdnb.params import arguments_of
from kdnb.runs import Run, anchored, read_config, set_seed

_DEMO = Planned(
    "fixed", 0, "train_fixed",
    {"run_name": "digits_fixed", "epochs": 6, "eval_split": None, "save_every_steps": None, "keep_checkpoints": None},
)  # fmt: skip


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


def data_to_judge_on(
    run: TrainedRun, *, dataset: str | None, split: str, image_column: str | None, label_column: str | None, streaming: bool
) -> dict[str, Any]:
    """Arguments of `kdnb.data.prepare` for the labelled images of `dataset`, sized as `run` was trained; for None, of its own."""
    if dataset is None:
        dataset, split, image_column, label_column = run.p.dataset, run.p.split, run.p.image_column, run.p.label_column
        streaming = streaming or getattr(run.p, "streaming", False)  # which an older run's parameters do not know
    images: dict[str, Any] = {"dataset": dataset, "split": split, "image_column": image_column, "label_column": label_column}
    images |= {"streaming": streaming, "num_workers": getattr(run.p, "num_workers", 0)}
    return images | {"image_size": run.p.image_size, "resize": run.p.resize, "cache_dir": run.p.cache_dir}


def find_runs(*, checkpoint_dir: str | None) -> list[TrainedRun]:
    """The runs that `checkpoint_dir` names, separated by commas; for None a short one on the digits, trained now if it is not
    there.

    Raises:
        FileNotFoundError: see `open_run`.
    """
    if checkpoint_dir is None:
        run_all([_DEMO], parallel=1)
        return [open_run(_DEMO.folder)]
    folders = [folder.strip() for folder in checkpoint_dir.split(",") if folder.strip()]
    return [open_run(folder, parameter="checkpoint_dir") for folder in folders]


def open_run(folder: str | Path, *, parameter: str = "run") -> TrainedRun:
    """The run in `folder`, a path from the project's root; errors call it `parameter`.

    Raises:
        FileNotFoundError: no such folder, no run in it, or no checkpoint yet.
    """
    folder = anchored(folder)
    config = read_config(folder)
    if config is None:
        problem = "does not exist" if not folder.exists() else "holds no run (no config.json)"
        raise FileNotFoundError(
            f"{parameter} {folder} {problem}; give the folder of a run, as a training notebook or kdnb.distill writes it below "
            "outputs."
        )
    run, checkpoints = Run(folder.name, config["parameters"], outputs=folder.parent), []
    for path in run.checkpoints():
        try:
            position = read_tensors(path, mmap=True, whole=False)["position"]
        except FileNotFoundError:  # a run that trains has just replaced it by a newer one
            continue
        except Damaged as error:
            print(f"{error}; left out", flush=True)
            continue
        checkpoints.append(Checkpoint(path, position["step"], position["images_seen"]))
    if not checkpoints:
        raise FileNotFoundError(f"{parameter} {folder} holds no checkpoint yet; wait for the first one, or train again.")
    return TrainedRun(folder, config, run.history(), run.read("summary.json"), checkpoints)


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


def load_teacher(run: TrainedRun) -> FeatureModel:
    """The teacher of the run, frozen, on the device."""
    return build_teacher(**arguments_of(build_teacher, run.p))
