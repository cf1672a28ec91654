"""Losses that compare with images of other batches: all of them in a bank of teacher outputs, or the last ones in a queue."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from kdnb import distributed
from kdnb.losses.operands import full_precision, in_range, require_same_shape, unit


class ContrastiveLoss(nn.Module):
    """Tell the teacher's output for the same image from its outputs for others, by noise-contrastive estimation.

    -log h(positive) - sum over K negatives of log(1 - h), mean over images; h = e / (e + K / N), e = exp(cosine / T) / Z. Z makes
    the mean of e over the first batch's positives and negatives 1 / N, and is kept with the state. Tian et al. 2020, CRD,
    arXiv:1910.10699, without an embedding of the teacher's own, which would have to be trained: so the bank is exact, not a
    moving average, and stored teacher outputs are one.

    Args:
        bank: the teacher's features of all images by their id, [N, D].
        negatives: K, other images each image is compared with; drawn from torch's generator of the bank's device, whose state a
            checkpoint keeps.
        temperature: T; the paper takes 0.07.

    Called as `loss(student, teacher, ids)` with features [B, D] and int64 ids [B] of the images, rows of the bank.

    Raises:
        ValueError: a bank that is not [N, D] of 2 rows or more, negatives outside 1 to N - 1, a temperature that is not above 0;
            when called: other shapes.

    Example:
        >>> import torch
        >>> bank, ids = torch.randn(100, 16), torch.tensor([3, 50])
        >>> loss = ContrastiveLoss(bank, negatives=20)
        >>> loss(torch.randn(2, 16), bank[ids], ids).shape
        torch.Size([])
    """

    bank: torch.Tensor

    def __init__(self, bank: torch.Tensor, *, negatives: int, temperature: float = 0.07):
        super().__init__()
        if bank.ndim != 2 or len(bank) < 2:
            raise ValueError(f"bank is {list(bank.shape)}; allowed is [N, D] of at least 2 images.")
        in_range("negatives", negatives, 1 <= negatives < len(bank), f"from 1 to {len(bank) - 1}, the other images of the bank")
        in_range("temperature", temperature, temperature > 0, "above 0")
        with full_precision(bank) as (rows,):
            self.register_buffer("bank", unit(rows))
        self.negatives, self.temperature = negatives, temperature
        self.normaliser: float | None = None  # log Z, from the first batch on

    def get_extra_state(self) -> float | None:
        """Part of the state dict: log Z."""
        return self.normaliser

    def set_extra_state(self, state: float | None):
        """Take `get_extra_state` over."""
        self.normaliser = state

    def forward(self, student: torch.Tensor, teacher: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        _require_width(student, teacher, self.bank.shape[1])
        if ids.shape != student.shape[:1]:
            raise ValueError(f"ids is {list(ids.shape)} for {len(student)} images; give each the number of its row in the bank.")
        ids, size = ids.to(self.bank.device), len(self.bank)
        steps = torch.randint(1, size, (len(ids), self.negatives), device=ids.device)  # so that none comes to its own row
        others = (ids[:, None] + steps) % size
        with full_precision(student, teacher) as (own, positive):
            candidates = torch.cat([unit(positive)[:, None], self.bank[others].to(own.dtype)], dim=1)
            scores = (candidates @ unit(own)[:, :, None])[:, :, 0] / self.temperature
            if self.normaliser is None:
                means = distributed.gather(scores.detach().double().cpu().exp().mean().item())
                self.normaliser = math.log(size * sum(means) / len(means))
            logits = scores - self.normaliser - math.log(self.negatives / size)  # h is their sigmoid
            return -(F.logsigmoid(logits[:, 0]) + F.logsigmoid(-logits[:, 1:]).sum(1)).mean()


class QueueLoss(nn.Module):
    """KL(teacher || student) of softmax(cosines to a queue of teacher features / T), mean over images.

    The queue holds the last images of training, this batch's among them: every image says how much it resembles each of them. The
    strongest open recipe for teachers without classes (lightly-train's distillation). Batches of several processes enter the
    queue in the order in which one process has them, so it is the same for any number of processes.

    Args:
        queue_size: images in the queue when it is full. width: D of the features. temperature: T.
        num_images: in the data set; a longer queue would hold images twice.

    Called as `loss(student, teacher)` with features [B, D]. What is in the queue is kept with the state.

    Raises:
        ValueError: a queue larger than the data or smaller than 2, a temperature that is not above 0; when called: other shapes,
            or a batch larger than the queue.

    Example:
        >>> import torch
        >>> loss, teacher = QueueLoss(queue_size=8, width=16, num_images=100), torch.randn(4, 16)
        >>> loss(3 * teacher, teacher).item() < 1e-5, loss(torch.randn(4, 16), teacher).item() > 0.01
        (True, True)
    """

    queue: torch.Tensor

    def __init__(self, *, queue_size: int, width: int, num_images: int, temperature: float = 0.07):
        super().__init__()
        in_range("queue_size", queue_size, 2 <= queue_size <= num_images, f"from 2 to {num_images:,}, the images of the data set")
        in_range("temperature", temperature, temperature > 0, "above 0")
        self.register_buffer("queue", torch.zeros(queue_size, width))
        self.temperature, self.filled = temperature, 0  # rows in the queue, known on the host

    def get_extra_state(self) -> int:
        """Part of the state dict: how many rows are in the queue."""
        return self.filled

    def set_extra_state(self, state: int):
        """Take `get_extra_state` over."""
        self.filled = state

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """See the class."""
        _require_width(student, teacher, self.queue.shape[1])
        with full_precision(student, teacher) as (own, wanted):
            own, wanted = unit(own), unit(wanted)
            self._push(wanted.detach())
            queue = self.queue[: self.filled].to(own.dtype)
            of_student, of_teacher = (F.log_softmax(rows @ queue.T / self.temperature, dim=1) for rows in (own, wanted))
            return F.kl_div(of_student, of_teacher, log_target=True, reduction="batchmean")

    def _push(self, teacher: torch.Tensor):
        """Put the rows of all processes first, and let as many of the oldest go."""
        rows = _interleaved(teacher).to(self.queue)
        in_range("the batch", len(rows), len(rows) <= len(self.queue), f"at most the {len(self.queue)} images of queue_size")
        self.queue = torch.cat([rows, self.queue])[: len(self.queue)]
        self.filled = min(self.filled + len(rows), len(self.queue))


def _interleaved(rows: torch.Tensor) -> torch.Tensor:
    """The rows [B, D] of all processes, as one process would have them: rank r has every world-th row from r on."""
    if distributed.world() == 1:
        return rows
    parts = distributed.gather(rows.cpu())
    whole = torch.empty(sum(map(len, parts)), rows.shape[1], dtype=rows.dtype)
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def _require_width(student: torch.Tensor, teacher: torch.Tensor, width: int):
    require_same_shape(student, teacher)
    if student.ndim != 2 or student.shape[1] != width:
        raise ValueError(f"the features are {list(student.shape)}; allowed are [B, {width}], as the loss was made for.")
