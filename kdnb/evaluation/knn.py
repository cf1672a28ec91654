"""Weighted k-nearest-neighbour classification on frozen features: no training, so nothing to tune on the test part.

As in Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4.
Cost: N x M x D multiplications, but never an N x M matrix: 64 MB of similarities at a time.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from kdnb.evaluation.features import Features, check_pair, exact_matmul

_SIMILARITIES = 2**24  # at a time


@dataclass(frozen=True)
class KnnResult:
    """Accuracy of the vote; tensors lie on the CPU.

    Attributes:
        top1: share of test rows that are right. per_class: the same per class, float64 [C], NaN without test rows.
        predictions: int64 [M].
    """

    top1: float
    per_class: torch.Tensor
    predictions: torch.Tensor


def knn_classify(
    train: Features,
    test: Features,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
) -> KnnResult:
    """Classify each row of `test` by its `k` nearest rows of `train` (Wu et al. 2018).

    The `k` training rows of largest cosine similarity vote for their class with weight exp(similarity / temperature); of
    classes with equal votes the lowest number wins.

    Args:
        train, test: features float32 [N, D] and [M, D] with labels int64 [N] and [M], see `extract_features`.
        num_classes: None: one more than the largest label. device: where the similarities are computed.

    Raises:
        ValueError: k outside 1..N, labels missing or out of range, one class only, other widths, values not finite.

    Example:
        >>> import torch
        >>> from sklearn.datasets import load_digits
        >>> from kdnb import knn_classify
        >>> from kdnb.evaluation.features import Features
        >>> images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
        >>> digits = [Features(images[part].float(), labels[part], part) for part in torch.arange(1797).split(1500)]
        >>> round(knn_classify(*digits, k=20).top1, 2)
        0.95
    """
    classes = check_pair(train, test, num_classes)
    assert train.labels is not None and test.labels is not None  # or check_pair had refused them
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; allowed is any number above 0, usually 0.07.")
    similarity, rows = nearest(train.features, test.features, k=k, device=device)
    # Relative to the nearest row's weight: the same vote, but exp cannot overflow at a small temperature.
    weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
    votes = torch.zeros(len(rows), classes, dtype=torch.float64).scatter_add_(1, train.labels[rows], weights)
    predictions = votes.argmax(1)
    right = torch.bincount(test.labels[predictions == test.labels], minlength=classes)
    return KnnResult(
        top1=right.sum().item() / len(predictions),
        per_class=right.double() / torch.bincount(test.labels, minlength=classes),
        predictions=predictions,
    )


@torch.no_grad()
def nearest(
    bank: torch.Tensor, queries: torch.Tensor, *, k: int, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` rows of `bank` [N, D] most similar to each of `queries` [M, D], most similar first; equal ones in any order.

    Returns:
        Cosine similarities, float32 [M, k], and rows, int64 [M, k], on the CPU. A row of zeros has similarity 0 to everything.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}, but the bank has {len(bank)} rows; choose 1 to {len(bank)}.")
    bank = normalize(bank.to(device, torch.float32)).T
    with exact_matmul():
        parts = [
            (normalize(query.to(device, torch.float32)) @ bank).topk(k)
            for query in queries.split(max(1, _SIMILARITIES // bank.shape[1]))
        ]
    return torch.cat([part.values.cpu() for part in parts]), torch.cat([part.indices.cpu() for part in parts])
