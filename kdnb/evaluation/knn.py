"""Weighted k-nearest-neighbour classification on frozen features: no training, so nothing to tune on the test part.

As in Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4: the k training
rows of largest cosine similarity vote for their class with weight exp(similarity / temperature).
Cost: N x M x D multiplications, but never an N x M matrix: one block of query_chunk x bank_chunk float64 values at a time
(32 MB by default) and k running neighbours per query.
"""

import time
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from kdnb.evaluation.features import Features, check_pair, float64_device

# A similarity and the row it belongs to share one float64: 28 bits and a sign beside 24 bits.
_GRID, _ROWS = 2.0**28, 2.0**24


@dataclass(frozen=True)
class KnnResult:
    """Accuracy of the vote, and what it was made with; tensors lie on the CPU.

    Attributes:
        top1: share of test rows that are right. per_class: the same per class, float64 [C], NaN without test rows.
        predictions: int64 [M]. k, temperature: as given. seconds: all of it.
    """

    top1: float
    per_class: torch.Tensor
    predictions: torch.Tensor
    k: int
    temperature: float
    seconds: float


def knn_classify(
    train: Features,
    test: Features,
    *,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    device: str | torch.device = "cpu",
    query_chunk: int = 1024,
    bank_chunk: int = 4096,
) -> KnnResult:
    """Classify each row of `test` by its `k` nearest rows of `train`.

    The result does not depend on the chunks. Of equally similar rows the first in `train` comes first; of classes with
    equal votes the lowest number wins.

    Raises:
        ValueError: k outside 1..N, labels missing or out of range, one class only, other widths, values not finite.
    """
    began = time.perf_counter()
    classes = check_pair(train, test, num_classes)
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; allowed is any number above 0, usually 0.07.")
    similarity, rows = nearest(train.features, test.features, k=k, device=device, query_chunk=query_chunk, bank_chunk=bank_chunk)
    # Relative to the nearest row's weight: the same vote, but exp cannot overflow at a small temperature.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = torch.zeros(len(rows), classes, dtype=torch.float64).scatter_add_(1, train.labels[rows], weights)
    predictions = votes.argmax(1)
    right = torch.bincount(test.labels[predictions == test.labels], minlength=classes)
    return KnnResult(
        top1=right.sum().item() / len(predictions),
        per_class=right.double() / torch.bincount(test.labels, minlength=classes),
        predictions=predictions,
        k=k,
        temperature=temperature,
        seconds=time.perf_counter() - began,
    )


@torch.no_grad()
def nearest(
    bank: torch.Tensor,
    queries: torch.Tensor,
    *,
    k: int,
    device: str | torch.device = "cpu",
    query_chunk: int = 1024,
    bank_chunk: int = 4096,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` rows of `bank` [N, D] most similar to each of `queries` [M, D], most similar first, earlier row first.

    Returns:
        Cosine similarities, float64 [M, k] on a grid of 4e-9, and rows, int64 [M, k], on the CPU. A row of zeros has
        similarity 0 to everything.
    """
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k}, but the bank has {len(bank)} rows; choose 1 to {len(bank)}.")
    if len(bank) > _ROWS:
        raise ValueError(f"the bank has {len(bank)} rows; at most {int(_ROWS)} are allowed, take a subset.")
    device, found = float64_device(device), []
    bank = bank.to(device)
    for query in queries.split(query_chunk):
        # float64: its rounding is far below the grid, so that a product cut up in another way gives the same key.
        query = normalize(query.to(device).double()).mul_(_GRID)
        best = query.new_empty(len(query), 0)
        for start in range(0, len(bank), bank_chunk):
            part = normalize(bank[start : start + bank_chunk].double())
            row = torch.arange(start, start + len(part), dtype=torch.float64, device=query.device)
            keys = (query @ part.T).round_().mul_(_ROWS).sub_(row)  # exact integers below 2^53, all different
            keys = keys.topk(min(k, len(part)), sorted=False).values
            best = torch.cat([best, keys], 1)
            if best.shape[1] > k:
                best = best.topk(k, sorted=False).values
        found.append(best.sort(descending=True).values.cpu())
    keys = torch.cat(found) if found else torch.empty(0, k, dtype=torch.float64)
    grid = (keys / _ROWS).ceil()
    return grid / _GRID, (grid * _ROWS - keys).long()
