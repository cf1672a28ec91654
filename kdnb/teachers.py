"""The frozen teacher behind one call, `teacher(views, batch)`.

Live or cached, the loop cannot tell. A stored answer belongs to one view of one image: the caller's views must repeat
(`kdnb.data.views.RepeatedViews`, `CleanTransform`), and batch["epoch"] says which of them a batch holds.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from kdnb.data.answers import AnswerStore


class LiveTeacher:
    """A teacher that is asked anew for every batch.

    Args:
        model: frozen, in eval mode (`kdnb.models.vision.freeze`), on the device of the batches; returns a dict of
            "features" [B, D] and, with a head, "logits" [B, C].
    """

    def __init__(self, model: nn.Module):
        if model.training or any(weight.requires_grad for weight in model.parameters()):
            raise ValueError("the teacher's model is not frozen; pass it through kdnb.models.vision.freeze first.")
        self.model = model

    @torch.no_grad()
    def __call__(self, views: list[torch.Tensor], batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """One answer per view [B, 3, H, W]; `batch` is the batch that the views were made from."""
        return [self.model(view) for view in views]


class CachedTeacher:
    """A teacher whose answers are stored: it is asked for those that are missing, and loaded only where some are.

    Args:
        store: rows of `codec.row`, `codec` for this teacher's answers.
        load: returns the frozen model on the device of the batches.
        repeats: how many times `views.num_global` views are stored per image; epoch e sees those of e modulo `repeats`.

    Attributes:
        asked, read: answers that the model gave, and that came from the disk.

    An answer that the model gave just now takes the same way through the stored format, so that it does not matter when it
    was given. Reading costs 0.1 ms for 64 images and 64 features.
    """

    def __init__(self, store: AnswerStore, codec: "AnswerCodec", load: Callable[[], nn.Module], *, repeats: int = 1):
        self.store, self.codec, self.load, self.repeats = store, codec, load, repeats
        self.asked = self.read = 0

    @torch.no_grad()
    def __call__(self, views: list[torch.Tensor], batch: dict) -> list[dict[str, torch.Tensor]]:
        """One answer a view, float32 on the views' device."""
        ids, first = batch["id"].numpy(), batch["epoch"] % self.repeats * len(views)
        answers = []
        for number, view in enumerate(views, start=first):
            rows, present = self.store.read(ids, number)
            if missing := np.flatnonzero(~present).tolist():
                model = LiveTeacher(self.load())
                fresh = self.codec.encode(model([view if len(missing) == len(ids) else view[missing]], batch)[0])
                self.store.write(ids[missing], number, fresh)
                rows[missing] = fresh
            self.asked, self.read = self.asked + len(missing), self.read + len(ids) - len(missing)
            answers.append(self.codec.decode(rows, view.device))
        return answers


class AnswerCodec:
    """Answers as rows: pooled features, logits, features of further layers, patch tokens.

    Args:
        feature_dim, num_classes, layer_dims: widths of the answer's parts; 0 classes where there is no head.
        token_shape: (N, D) of the tokens, where the answer has some.
        storage: `float16` or `float32`.
        top_k: keep the k largest logits and the logarithm of the remaining probability, which is spread evenly over the
            other classes when read: exact for those k at temperature 1, and a fraction of the bytes for many classes.

    Attributes:
        row: NumPy's structured type.
    """

    def __init__(
        self, *, feature_dim: int, num_classes: int = 0, layer_dims: Sequence[int] = (), token_shape: Sequence[int] = (),
        storage: str = "float16", top_k: int | None = None,
    ):  # fmt: skip
        if storage not in ("float16", "float32"):
            raise ValueError(f"teacher_storage is {storage!r}; allowed are float16, float32 (bfloat16 loses too much).")
        if top_k is not None and not 1 <= top_k < num_classes:
            raise ValueError(f"teacher_top_k is {top_k}, but the teacher has {num_classes} classes; choose fewer.")
        kind = {"float16": "<f2", "float32": "<f4"}[storage]
        parts = [("features", kind, (feature_dim,))]
        if top_k is not None:
            parts += [("top", kind, (top_k,)), ("classes", "<i4", (top_k,)), ("rest", kind, (1,))]
        elif num_classes:
            parts += [("logits", kind, (num_classes,))]
        parts += [(f"layer{number}", kind, (width,)) for number, width in enumerate(layer_dims)]
        parts += [("tokens", kind, tuple(token_shape))] if token_shape else []
        self.row, self.num_classes, self.num_layers, self.top_k = np.dtype(parts), num_classes, len(layer_dims), top_k

    def encode(self, answer: dict) -> np.ndarray:
        """Rows [B] of an answer. Raises ValueError for a number that the format cannot hold."""
        parts = {"features": answer["features"]}
        if self.top_k is not None:
            parts["top"], parts["classes"] = (part.cpu() for part in answer["logits"].float().log_softmax(-1).topk(self.top_k))
            rest = (1 - parts["top"].double().exp().sum(-1, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny)
            parts["rest"] = rest.log()
        elif self.num_classes:
            parts["logits"] = answer["logits"]
        parts |= {f"layer{number}": layer for number, layer in enumerate(answer.get("layers", ()))}
        parts |= {"tokens": answer["tokens"]} if "tokens" in self.row.names else {}
        rows = np.empty(len(answer["features"]), dtype=self.row)
        for name, values in parts.items():
            given = values.cpu().numpy() if values.dtype == torch.int64 else values.float().cpu().numpy()
            with np.errstate(over="ignore"):
                rows[name] = given
            if not np.isfinite(rows[name]).all():
                why = "does not fit into float16; set teacher_storage to float32" if np.isfinite(given).all() else "is not finite"
                raise ValueError(f"{name} of the teacher {why}.")
        return rows

    def decode(self, rows: np.ndarray, device: torch.device) -> dict:
        """The answer in float32 on `device`."""

        def part(name: str) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(rows[name])).to(device, non_blocking=True).float()

        answer = {"features": part("features")}
        if self.top_k is not None:
            spread = part("rest") - math.log(self.num_classes - self.top_k)
            classes = torch.from_numpy(rows["classes"].astype(np.int64)).to(device)
            answer["logits"] = spread.expand(-1, self.num_classes).scatter(1, classes, part("top"))
        elif self.num_classes:
            answer["logits"] = part("logits")
        if self.num_layers:
            answer["layers"] = [part(f"layer{number}") for number in range(self.num_layers)]
        if "tokens" in self.row.names:
            answer["tokens"] = part("tokens")
        return answer


class LiveTextTeacher(LiveTeacher):
    """A text classifier that is asked anew for every batch, which holds its own tokens as "teacher_text"."""

    @torch.no_grad()
    def __call__(self, views: list, batch: dict) -> list[dict[str, torch.Tensor]]:
        """One answer to the batch's texts."""
        return [self.model(batch["teacher_text"])]


class CachedLogits:
    """A teacher whose logits [N, C] are known: a fixed text gets the same answer every epoch, from a frozen teacher.

    `batch["id"]` are rows of the table.
    """

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def __call__(self, views: list, batch: dict) -> list[dict[str, torch.Tensor]]:
        """One answer to the batch's texts."""
        device = batch["text"]["input_ids"].device
        return [{"logits": self.logits[batch["id"]].to(device, non_blocking=True)}]
