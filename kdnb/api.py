"""What a run's checkpoints are worth, in one call."""

from pathlib import Path
from types import SimpleNamespace

from kdnb.evaluation import evaluate as evaluation
from kdnb.evaluation.report import format_table
from kdnb.params import TABLE
from kdnb.runs import Run


class Evaluation(list):
    """The lines of an evaluation (dicts: references first, then every checkpoint); printed, a table of the main columns."""

    def __str__(self) -> str:
        return format_table(self)


def evaluate(
    run: Run | str | Path, dataset: str | None = None, *, split: str = "train", eval_split: str = "test",
    probe_samples: int = 10_000, image_column: str | None = None, label_column: str | None = None, streaming: bool = False,
) -> Evaluation:  # fmt: skip
    """What every checkpoint of `run` is worth: linear probe, weighted k-NN and feature quality on frozen features, between the
    floors (raw pixels, the untrained student) and the teacher.

    Args:
        run: from `distill`, or the folder of any run. dataset: labelled images; None: those that the run was trained on.
        split, probe_samples: training images that the probe is fitted on, at most. eval_split: held-out images that judge.

    Raises:
        ValueError: no labels, or no such split. FileNotFoundError: no run there, or no checkpoint yet.
    """
    found = evaluation.open_run(run.folder if isinstance(run, Run) else run)
    asked = {name: value for name, value in locals().items() if name in TABLE["evaluate"]}
    data = evaluation.data_for(SimpleNamespace(**asked), found)
    lines, _ = evaluation.evaluate_run(found, evaluation.build_evaluator(found, data))
    return Evaluation(lines)
