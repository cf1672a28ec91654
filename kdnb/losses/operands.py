"""What every loss does with its inputs first: full precision, and a sentence about what does not fit."""

import contextlib
from collections.abc import Iterator, Sequence

import torch


@contextlib.contextmanager
def full_precision(*tensors: torch.Tensor) -> Iterator[Sequence[torch.Tensor]]:
    """The tensors in float32 (float64 stays as it is), and no autocast in the block, which would multiply in half precision."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        yield [widened(tensor) for tensor in tensors]


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 if it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def unit(rows: torch.Tensor) -> torch.Tensor:
    """`rows` [..., D] divided by their lengths. Zeros stay zeros, with a gradient of 1, where that of F.normalize is 1e12."""
    lengths = rows.norm(dim=-1, keepdim=True)
    return rows / lengths.masked_fill(lengths == 0, 1)


def require_same_shape(student: torch.Tensor, teacher: torch.Tensor):
    """Raise ValueError unless both have one shape."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's output is {list(student.shape)} and the teacher's {list(teacher.shape)}; they must be the same."
        )


def require_rows(student: torch.Tensor, teacher: torch.Tensor, *, at_least: int):
    """Raise ValueError unless both are [B, width], of one B that is not too small; the widths may differ."""
    if not student.ndim == teacher.ndim == 2 or len(student) != len(teacher):
        raise ValueError(f"the student's output is {list(student.shape)} and the teacher's {list(teacher.shape)}; allowed are "
                         "[B, D] of the same images.")  # fmt: skip
    if len(student) < at_least:
        raise ValueError(f"the batch has {len(student)} images; relations between images need at least {at_least}, so take a "
                         "larger batch_size.")  # fmt: skip


def require_logits(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None = None, *, temperature: float):
    """Raise ValueError unless both are [B, C] of two classes or more, `labels` [B] among them, and `temperature` is above 0.

    Labels are only looked at on the host: on a GPU, the step would wait for them, and `labels_fit` has seen them all.
    """
    require_same_shape(student, teacher)
    if student.ndim != 2 or student.shape[1] < 2:
        raise ValueError(f"the logits are {list(student.shape)}; allowed are [B, C] of at least 2 classes.")
    in_range("temperature", temperature, temperature > 0, "above 0")
    if labels is None:
        return
    if labels.shape != student.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} of {list(labels.shape)} for logits of {list(student.shape)}; allowed is one "
                         "int64 class for each row.")  # fmt: skip
    if labels.device.type == "cpu" and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < student.shape[1]:
        raise ValueError(f"labels go from {int(labels.min())} to {int(labels.max())}, but the logits have {student.shape[1]} "
                         f"classes; allowed is 0 to {student.shape[1] - 1}.")  # fmt: skip


def in_range(name: str, value, fine: bool, allowed: str):
    """Raise ValueError with `name`, `value` and what is `allowed`, unless that is `fine`."""
    if not fine:
        raise ValueError(f"{name} is {value!r}; allowed is {allowed}.")
