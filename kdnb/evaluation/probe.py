"""Linear probe: multinomial logistic regression on frozen features, the common measure of what a model has learnt.

The L2 strength is chosen on a part of the training rows; see `kdnb.evaluation.logistic` for the fit and its cost.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdnb.evaluation.features import Features, check_pair, stratified_split
from kdnb.evaluation.logistic import Rows, minimise, span, unfold

L2_GRID = tuple(10 ** (-exponent / 2) for exponent in range(13))  # 1 to 1e-6, two per decade

_PATIENCE = 4  # strengths (two decades) without a better validation accuracy, after which weaker ones are not tried
_TRIAL = 200  # iterations at most while a strength is only tried: on separable classes the last digits take hundreds more


@dataclass(frozen=True)
class ProbeResult:
    """A fitted probe and how it did on the test part; tensors lie on the CPU.

    Attributes:
        top1: share of test rows that are right. per_class: the same per class, float64 [C], NaN without test rows.
        confusion: int64 [C, C], rows are true classes, columns predicted ones. predictions: int64 [M].
        l2: chosen strength, 1 / (C n) in scikit-learn's terms, on standardised features.
        validation: (l2, validation accuracy), strong to weak, as far as tried; empty if the grid has a single value.
        weight: float32 [C, D], bias: float32 [C], for the features as they are (standardisation folded in).
        seconds: all of it.
    """

    top1: float
    per_class: torch.Tensor
    confusion: torch.Tensor
    predictions: torch.Tensor
    l2: float
    validation: list[tuple[float, float]]
    weight: torch.Tensor
    bias: torch.Tensor
    seconds: float


@torch.no_grad()
def linear_probe(
    train: Features,
    test: Features,
    *,
    num_classes: int | None = None,
    l2_grid: Sequence[float] = L2_GRID,
    validation_fraction: float = 0.1,
    seed: int = 0,
    device: str | torch.device = "cpu",
    max_iter: int = 1000,
) -> ProbeResult:
    """Choose the L2 strength on a stratified part of `train`, refit on all of `train`, and look at `test` once.

    Features are standardised with the mean and deviation of `train`; a feature that never changes counts as zero.
    Strengths are tried from strong to weak until four in a row were no better; of two equal ones the stronger is chosen.

    Raises:
        ValueError: labels missing or out of range, one class only, other widths, values not finite, a bad grid.
    """
    began = time.perf_counter()
    classes = check_pair(train, test, num_classes)
    grid = sorted(l2_grid, reverse=True)
    if not grid or grid[-1] <= 0:
        raise ValueError(f"l2_grid is {list(l2_grid)}; give at least one strength, all above 0.")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; allowed is between 0 and 1, such as 0.1.")
    mean, std = train.features.mean(0, dtype=torch.float64), train.features.std(0, correction=0).double()
    std[std <= 1e-6 * mean.abs()] = torch.inf  # constant but for rounding
    basis = span(train.features, mean, std)

    def rows(part: Features, keep=slice(None)) -> Rows:
        return Rows(part.features[keep], part.labels[keep], mean=mean, std=std, basis=basis, device=device)

    fits, table = {grid[0]: None}, []
    if len(grid) > 1:
        held_out = stratified_split(train.labels, fraction=validation_fraction, seed=seed)
        fitted, validation = rows(train, ~held_out), rows(train, held_out)
        start = None
        for l2 in grid:
            fits[l2] = start = minimise(fitted, classes, l2=l2, start=start, max_iter=min(_TRIAL, max_iter), quiet=True)
            right = validation.predict(start) == validation.labels
            table.append((l2, right.double().mean().item()))
            if max(table, key=lambda row: row[1]) in table[:-_PATIENCE]:
                break  # weaker ones overfit, and on separable classes take ever longer to converge
        del fitted, validation
    l2 = max(table, key=lambda row: row[1])[0] if table else grid[0]
    parameters = minimise(rows(train), classes, l2=l2, start=fits[l2], max_iter=max_iter)
    predictions = rows(test).predict(parameters).cpu()
    confusion = torch.bincount(test.labels * classes + predictions, minlength=classes**2).view(classes, classes)
    weight, bias = unfold(parameters, mean, std, basis)
    return ProbeResult(
        top1=confusion.diagonal().sum().item() / len(predictions),
        per_class=confusion.diagonal().double() / confusion.sum(1),
        confusion=confusion,
        predictions=predictions,
        l2=l2,
        validation=table,
        weight=weight,
        bias=bias,
        seconds=time.perf_counter() - began,
    )
