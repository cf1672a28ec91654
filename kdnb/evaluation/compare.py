"""Teacher and student side by side: accuracy, calibration, size and speed, as numbers and as one picture.

Works on logits of the same test rows and on calls that run either model, so it serves images and texts alike. Quality
takes milliseconds (seconds with a thousand classes); speed `seconds`, or three rounds if these take longer. The two are
measured in turn, so that what slows the machine down for a while slows down both.
"""

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from kdnb.evaluation.features import check_labels, stratified_split
from kdnb.evaluation.quality import agreement, classification_scores
from kdnb.evaluation.statistics import accuracy_interval
from kdnb.files import only_process, write_atomically, write_json
from kdnb.models.vision import count_parameters

_WARM_UP, _LEAST_ROUNDS = 3, 3


def interleaved_seconds(
    calls: Mapping[str, Callable[[], object]], *, device: str | torch.device, rounds: int = 15, seconds: float = 3.0
) -> dict[str, list[float]]:
    """Seconds that each of `calls` took in each round, under inference mode, until the device had done it.

    Every round makes each call once, in the order given and then in the opposite one, by turns. Ends after `rounds`
    rounds, or earlier once `seconds` are over, but never before three. Up to three rounds before do not count: they
    load, compile and tune; they end once they took a fifth of the budget.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, device = list(calls), torch.device(device)
    begun = perf_counter()
    with torch.inference_mode():
        for _ in range(_WARM_UP):
            for name in order:
                calls[name]()
            _synchronise(device)
            if perf_counter() - begun > seconds / 5:
                break
        for number in range(max(rounds, _LEAST_ROUNDS)):
            if number >= _LEAST_ROUNDS and perf_counter() - begun > seconds:
                break
            for name in order:
                start = perf_counter()
                calls[name]()
                _synchronise(device)
                taken[name].append(perf_counter() - start)
            order.reverse()
    return taken


def _synchronise(device: torch.device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class ModelReport:
    """One of the two models.

    Attributes:
        name: in the picture. model: for its parameters, its size and its mode.
        logits: float32 [N, C] of the test rows, the same on both sides.
        one: runs the model forward on one example. many: on a batch of `batch_size`. Their inputs lie on the device.
        predicts: what made the logits, "own head" or "linear probe": two different measures of one model.
    """

    name: str
    model: nn.Module
    logits: torch.Tensor
    one: Callable[[], object]
    many: Callable[[], object]
    batch_size: int
    predicts: str = "own head"


def compare_models(
    teacher: ModelReport,
    student: ModelReport,
    *,
    labels: torch.Tensor | None,
    classes: Sequence[str] | None,
    device: str | torch.device,
    folder: str | Path,
    seed: int = 0,
    rounds: int = 15,
    seconds: float = 6.0,
) -> dict:
    """Measure both, and write `comparison_results.json` and `teacher_student_comparison.png` to `folder`.

    Calibration is measured on a seeded, stratified half of the rows, before and after a temperature that was fitted on
    the other half. The modes of all modules are put back after.

    Args:
        labels: int64 [N], or None: then only agreement, sizes and speeds are measured.
        classes: names of the C classes; None: their numbers.
        rounds: of batches; ten times as many of single examples. seconds: budget of both together.

    Returns:
        {"teacher": {...}, "student": {...}, "agreement", "ratios" (student / teacher, and speed-ups), "rows", "classes",
        "device", "threads", "rounds"}; what cannot be known is None. A side has "name", "parameters", "bytes",
        "batch_size", "latency_ms" {"median", "p10", "p90"}, "throughput" (examples/s, median), and with labels also
        "accuracy", "accuracy_interval" (95%, Wilson's), "predicts", "macro_f1", "per_class_accuracy", "temperature",
        "calibration_error", "calibration_error_scaled".

    Raises:
        ValueError: logits of other shapes or not finite, labels of another length or out of range, other class names.
    """
    sides, device, folder = {"teacher": teacher, "student": student}, torch.device(device), Path(folder)
    _check_logits(teacher, student)
    logits = {role: side.logits.detach().float().cpu() for role, side in sides.items()}
    rows, count = logits["teacher"].shape
    if classes is not None and len(classes) != count:
        raise ValueError(f"classes holds {len(classes)} names, but the logits have {count} columns; give one for each.")
    measured: dict[str, dict[str, Any]] = {
        role: {"name": side.name, "parameters": count_parameters(side.model), "bytes": _bytes_of(side.model)}
        for role, side in sides.items()
    }
    if labels is not None:
        check_labels(labels, rows, count, "the")
        labels = labels.detach().cpu().long()
        several = labels.bincount().max() > 1  # else no class can be split
        held_out = stratified_split(labels, fraction=0.5, seed=seed) if several else None
        for role in sides:
            measured[role] |= classification_scores(logits[role], labels, held_out)
            interval = accuracy_interval(measured[role]["accuracy"], rows)
            measured[role] |= {"accuracy_interval": list(interval), "predicts": sides[role].predicts}
    speeds, counted = _speed(sides, device=device, rounds=rounds, seconds=seconds)
    measured = {role: measured[role] | speeds[role] for role in sides}
    results = measured | {
        "agreement": agreement(logits["teacher"], logits["student"]),
        "ratios": _ratios(**measured),
        "rows": rows,
        "classes": [str(name) for name in classes or range(count)],
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "rounds": counted,
    }
    folder.mkdir(parents=True, exist_ok=True)
    from kdnb import plots

    figure = plots.comparison_figure(results)
    picture = folder / "teacher_student_comparison.png"
    with only_process(folder / ".lock", wait=True):  # as whoever writes to the folder of a run
        write_json(folder / "comparison_results.json", results, allow_nan=False, ensure_ascii=False)
        write_atomically(picture, lambda file: figure.savefig(file, dpi=150, format="png"))
    return results


def _speed(sides: dict[str, ModelReport], *, device: torch.device, rounds: int, seconds: float) -> tuple[dict, dict]:
    """Per role latency and throughput; and how many rounds of either kind there were."""
    modules = [module for side in sides.values() for module in side.model.modules()]
    modes = [module.training for module in modules]
    try:
        for side in sides.values():
            side.model.eval()
        calls = [{role: getattr(side, kind) for role, side in sides.items()} for kind in ("one", "many")]
        one = interleaved_seconds(calls[0], device=device, rounds=10 * rounds, seconds=seconds / 2)
        left = seconds - sum(map(sum, one.values()))
        many = interleaved_seconds(calls[1], device=device, rounds=rounds, seconds=left)
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
    speeds = {}
    for role, side in sides.items():
        tenths = [1000 * tenth for tenth in statistics.quantiles(one[role], n=10, method="inclusive")]
        latency = {"median": tenths[4], "p10": tenths[0], "p90": tenths[8]}
        throughput = _ratio(side.batch_size, statistics.median(many[role]))
        speeds[role] = {"batch_size": side.batch_size, "latency_ms": latency, "throughput": throughput}
    return speeds, {"one": len(one["student"]), "many": len(many["student"])}


def _ratios(teacher: dict, student: dict) -> dict[str, float | None]:
    keys = ("accuracy", "macro_f1", "calibration_error", "calibration_error_scaled", "parameters", "bytes")
    return {key: _ratio(student[key], teacher[key]) for key in keys if key in student} | {
        "latency_speedup": _ratio(teacher["latency_ms"]["median"], student["latency_ms"]["median"]),
        "throughput_speedup": _ratio(student["throughput"], teacher["throughput"]),
    }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if whole and part is not None else None


def _bytes_of(model: nn.Module) -> int:
    """Of the state dict, which is what a saved model takes; tensors that share memory count once."""
    tensors = [value for value in model.state_dict().values() if isinstance(value, torch.Tensor) and value.numel()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device} ({platform.processor() or platform.machine()})"


def _check_logits(teacher: ModelReport, student: ModelReport):
    for side in (teacher, student):
        if side.logits.ndim != 2 or 0 in side.logits.shape or not torch.isfinite(side.logits).all():
            shape = list(side.logits.shape)
            raise ValueError(f"the {side.name}'s logits {shape} are not [N, C] with at least one row and all finite.")
    if teacher.logits.shape != student.logits.shape:
        (n, c), (m, k) = teacher.logits.shape, student.logits.shape
        raise ValueError(
            f"the {teacher.name}'s logits have {n} rows and {c} classes, the {student.name}'s {m} rows and {k} classes; both "
            "must be of the same test rows and the same classes."
        )
