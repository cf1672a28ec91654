"""Linear probe: multinomial logistic regression on frozen features, the common measure of what a model has learnt.

The objective is mean cross-entropy + l2 / 2 |W|^2, the bias free, as scikit-learn's with C = 1 / (l2 n). It is minimised by
L-BFGS (Nocedal & Wright 2006, section 7.2) that starts from a preconditioner made of the Hessian. Kept instead of
`torch.optim.LBFGS(line_search_fn="strong_wolfe")`, measured on one thread: 50,000 x 64 take 0.04 to 0.09 s against 0.15 to
0.9 s at the same optimum, and on features whose scales span four decades torch's stops 55% above the optimum.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdnb.evaluation.features import Features, check_features, check_labels, check_pair, exact_matmul, stratified_split

L2_GRID = tuple(10 ** (-exponent / 2) for exponent in range(13))  # 1 to 1e-6, two per decade
_PATIENCE = 4  # strengths (two decades) without a better validation accuracy, after which weaker ones are not tried
_TRIAL = 200  # iterations at most while a strength is only tried: on separable classes the last digits take hundreds more
_MEMORY = 10  # pairs of steps that L-BFGS keeps
_RENEW = 20  # steps after which the curvature is computed anew; on separable classes it shrinks by orders of magnitude
_CHUNK = 2**24  # logits at a time
_TOLERANCE = 1e-7  # estimated remaining decrease of the objective, relative to it


@dataclass(frozen=True)
class ProbeResult:
    """A fitted probe and how it did on the test part; tensors lie on the CPU.

    Attributes:
        top1: share of test rows that are right. per_class: the same per class, float64 [C], NaN without test rows.
        confusion: int64 [C, C], rows are true classes, columns predicted ones. predictions: int64 [M].
        l2: chosen strength, 1 / (C n) in scikit-learn's terms, on standardised features.
        validation: (l2, validation accuracy), strong to weak, as far as tried; empty if the grid has a single value.
        weight: float32 [C, D], bias: float32 [C], for the features as they are (standardisation folded in).
    """

    top1: float
    per_class: torch.Tensor
    confusion: torch.Tensor
    predictions: torch.Tensor
    l2: float
    validation: list[tuple[float, float]]
    weight: torch.Tensor
    bias: torch.Tensor


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
    """Fit logistic regression on `train` and count how many rows of `test` it gets right.

    The L2 strength is chosen on a stratified, seeded part of `train`, then all of `train` is fitted; `test` is looked at once.
    Features are standardised with the mean and deviation of `train`; a feature that never changes counts as zero.
    Strengths are tried from strong to weak until four in a row were no better; of two equal ones the stronger is chosen.

    Args:
        train, test: features float32 [N, D] and [M, D] with labels int64 [N] and [M], see `extract_features`.
        num_classes: None: one more than the largest label. l2_grid: strengths to choose from.
        device: of the fit; the CPU where that has no float64, as Apple's MPS. max_iter: of the last fit.

    Raises:
        ValueError: labels missing or out of range, one class only, other widths, values not finite, a bad grid.

    Example:
        >>> import torch
        >>> from sklearn.datasets import load_digits
        >>> from kdnb import linear_probe
        >>> from kdnb.evaluation.features import Features
        >>> images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        >>> digits = [Features(images[part].float(), labels[part], part) for part in torch.arange(1797).split(1500)]
        >>> round(linear_probe(*digits).top1, 1)
        0.9
    """
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

    fits: dict[float, torch.Tensor | None] = {grid[0]: None}
    table = []
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
    )


@torch.no_grad()
def fit_logistic(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_classes: int,
    C: float = 1.0,
    device: str | torch.device = "cpu",
    max_iter: int = 1000,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [num_classes, D] and bias [num_classes], float32 on the CPU, of scikit-learn's LogisticRegression(C=C).

    `features` [N, D] are taken as they are, not standardised; `labels` are int64 [N].
    """
    check_features(features, "the")
    check_labels(labels, len(features), num_classes, "the", several=True)
    if C <= 0:
        raise ValueError(f"C is {C}; allowed is any number above 0, larger for weaker regularisation.")
    mean = features.mean(0, dtype=torch.float64)  # the bias is free, so centring changes the numbers' quality only
    std = torch.ones_like(mean)
    rows = Rows(features, labels, mean=mean, std=std, device=device)
    parameters = minimise(rows, num_classes, l2=1 / (C * len(features)), start=None, max_iter=max_iter)
    return unfold(parameters, mean, std)


class Rows:
    """Standardised features with a row of ones for the bias, x [D + 1, N], and labels [N], on `device` if that has float64.

    One sample is a column: with few classes the softmax then runs along N, which is several times faster on a CPU.
    """

    def __init__(self, features, labels, *, mean, std, device, basis=None):
        if basis is not None:
            features = ((features - mean) / std) @ basis
            mean, std = torch.zeros(features.shape[1]), torch.ones(features.shape[1])
        width, device = features.shape[1], torch.device(device)
        device = device if device.type in ("cpu", "cuda") else torch.device("cpu")  # Apple's MPS has no float64
        self.x = torch.empty((width + 1, len(features)), device=device)
        self.x[:width] = features.T
        self.x[:width].sub_(mean.float().to(device)[:, None]).div_(std.float().to(device)[:, None])
        self.x[width] = 1
        self.labels = labels.to(device)

    def preconditioner(self, parameters: torch.Tensor, penalty: torch.Tensor):
        """Solves H d = g for [C, D + 1], H = X' diag(w) X / N + penalty the same for all classes.

        A sample's Hessian over the classes, diag(p) - pp', is replaced by its mean eigenvalue but for the 0 it always
        has, w = sum p (1 - p) / (C - 1): exact at W = 0, where p = 1/C. A random choice of rows suffices.
        """
        width, count = self.x.shape
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: max(8192, 4 * width)]
        some = self.x[:, rows.to(self.x.device)]
        p = torch.softmax(parameters @ some, 0)
        weight = (p * (1 - p)).sum(0).div(len(p) - 1).clamp_min(1e-12)  # 0 where float32 is sure of every sample
        hessian = ((some * weight) @ some.T / some.shape[1]).double() + penalty.double().diag()
        hessian.diagonal().mul_(1 + 1e-5)  # features may be linearly dependent; relative, as they may differ in scale
        factor = torch.linalg.cholesky(hessian).float()
        return lambda gradient: torch.cholesky_solve(gradient.T, factor).T

    def objective(self, parameters: torch.Tensor, penalty: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Objective and gradient [C, D + 1] at `parameters` [C, D + 1]; `penalty` [D + 1] is l2, and 0 for the bias."""
        count = self.x.shape[1]
        loss = torch.zeros((), dtype=torch.float64, device=self.x.device)
        gradient = torch.zeros_like(parameters)
        for x, labels in self.blocks(len(parameters)):
            residual = torch.log_softmax(parameters @ x, 0)  # [C, n]
            loss -= residual.gather(0, labels[None]).sum(dtype=torch.float64)
            residual.exp_().scatter_add_(0, labels[None], residual.new_full((1, len(labels)), -1))
            gradient.addmm_(residual, x.T)
        gradient.div_(count).addcmul_(parameters, penalty)
        loss = loss / count + 0.5 * (parameters.double().square() * penalty).sum()
        return loss.item(), gradient

    def predict(self, parameters: torch.Tensor) -> torch.Tensor:
        return torch.cat([(parameters @ x).argmax(0) for x, _ in self.blocks(len(parameters))])

    def blocks(self, classes: int):
        """Pairs of x [D + 1, n] and labels [n], such that the logits of one take 64 MB at most."""
        size = max(1, _CHUNK // classes)
        return zip(self.x.split(size, 1), self.labels.split(size), strict=True)


def minimise(rows: Rows, classes: int, *, l2: float, start, max_iter: int, quiet: bool = False) -> torch.Tensor:
    """Parameters [C, D + 1] that minimise the objective, from `start` or zero; in float32, sums in float64."""
    penalty = rows.x.new_full((len(rows.x),), l2)
    penalty[-1] = 0
    with exact_matmul():  # TF32 would stop the descent early
        at = rows.x.new_zeros(classes, len(rows.x)) if start is None else start
        value, gradient = rows.objective(at, penalty)
        pairs = []
        for number in range(max_iter):
            if number % _RENEW == 0:
                solve = rows.preconditioner(at, penalty)
            step = _direction(gradient, pairs, solve)
            slope = (gradient * step).sum().item()
            if -slope / 2 <= _TOLERANCE * value:  # what a quadratic model of the objective still promises
                return at
            length = 1.0
            while True:
                after = at + length * step
                new_value, new_gradient = rows.objective(after, penalty)
                if new_value <= value + 1e-4 * length * slope + 1e-7 * value:  # Armijo, up to float32 rounding
                    break
                if length < 1e-4:
                    return at  # nothing below this point that float32 can see
                length /= 2
            moved, turned = after - at, new_gradient - gradient
            product = (moved * turned).sum().item()
            if product > 0:  # always, but for rounding: the objective is convex
                pairs = [*pairs[1 - _MEMORY :], (moved, turned, product)]
            at, value, gradient = after, new_value, new_gradient
    if not quiet:
        warnings.warn(f"the logistic regression stopped at max_iter={max_iter} before it converged.", stacklevel=4)
    return at


def _direction(gradient: torch.Tensor, pairs: list, solve) -> torch.Tensor:
    """The two loops of L-BFGS: minus the gradient times the inverse Hessian that `solve` begins and `pairs` improve."""
    rest, factors = gradient.clone(), []
    for moved, turned, product in reversed(pairs):
        factors.append((moved * rest).sum() / product)
        rest -= factors[-1] * turned
    step = solve(rest)
    if pairs:
        _, turned, product = pairs[-1]
        step *= product / (turned * solve(turned)).sum()  # the scale of the curvature, from the newest pair
    for (moved, turned, product), factor in zip(pairs, reversed(factors), strict=True):
        step += (factor - (turned * step).sum() / product) * moved
    return -step


def span(features: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor | None:
    """Orthonormal directions [D, r] that the standardised rows span, where there are more features than rows, else None.

    The penalised weights lie in that span, so fitting r of them instead of D is exact: 1,500 digits have 3,072 pixels
    but a rank of some dozens, and the fit takes a second instead of a minute.
    """
    if features.shape[1] <= len(features):
        return None
    x = (features - mean) / std
    values, vectors = torch.linalg.eigh(x @ x.T)
    keep = values > 1e-10 * values[-1]
    return x.T @ (vectors[:, keep] / values[keep].sqrt())


def unfold(
    parameters: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, basis: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias for features that are neither centred nor scaled, nor turned to a basis."""
    weight = parameters[:, :-1].cpu().double()
    weight = (weight if basis is None else weight @ basis.T) / std.cpu()
    bias = parameters[:, -1].cpu().double() - weight @ mean.cpu()
    return weight.float(), bias.float()
