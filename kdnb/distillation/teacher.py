"""The teacher of an image run: loaded where somebody asks it, and its answers stored where `cache_teacher_features` says so.

What a stored answer belongs to is a hash over the teacher's weights, the image cache, the global views and their seed; each such
combination has a folder of its own below `teacher_feature_dir`. So that a run whose answers are all there need not load the
teacher even to learn its hash, `known_teachers/` keeps the facts of each by name, arguments and the checkpoint's size and time.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from kdnb.data.cache_writer import CacheError
from kdnb.data.reader import ShardReader
from kdnb.data.views import RepeatedViews
from kdnb.distillation import teacher_model
from kdnb.distillation.teacher_outputs import OutputCodec, TeacherCache
from kdnb.files import write_json
from kdnb.models.folder import weights_fingerprint
from kdnb.models.vision import FeatureModel, count_parameters
from kdnb.progress import format_bytes
from kdnb.runs import anchored


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

    def __init__(self, store: TeacherCache, codec: "OutputCodec", load: Callable[[], nn.Module], *, repeats: int = 1):
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


_LOCAL = ("local_size", "local_crops_number", "use_local_crops", "local_scale")  # crops that the teacher does not see


@dataclass
class Teacher:
    """What is known of the frozen teacher of a run, and the model where it is loaded."""

    p: SimpleNamespace
    feature_dim: int
    num_classes: int
    layer_dims: tuple[int, ...]
    head_is_random: bool
    num_parameters: int
    fingerprint: str
    normalisation: dict  # "mean" and "std" of its inputs
    token_shape: tuple[int, ...] = ()  # (N, D) where tokens are imitated
    model: FeatureModel | None = None

    def load(self) -> FeatureModel:
        """The model on the training device, loaded now where it is not."""
        if self.model is None:
            self.model = teacher_model.build_teacher(self.p)
            if weights_fingerprint(self.model) != self.fingerprint:
                raise ValueError(f"teacher {self.p.teacher} has other weights than when its answers were stored, but the same "
                                 "name, size and time; delete known_teachers/ in teacher_feature_dir.")  # fmt: skip
        return self.model

    def memoize(self, name: str, about: object, compute: Callable[[], object]):
        """`compute()`, or what it gave for this teacher and `about` before, where answers are stored."""
        if not self.p.cache_teacher_features:
            return compute()
        key = _hash([self.fingerprint, name, about])
        path = anchored(self.p.teacher_feature_dir) / "known_teachers" / f"{name}_{key}.json"
        if not path.exists():
            _save(path, compute())
        return json.loads(path.read_text())


def open_teacher(p: SimpleNamespace) -> Teacher:
    """The teacher of `p`: loaded, unless its answers are stored and its facts are known."""
    path = None
    if p.cache_teacher_features:
        check_modes(p)
        path = anchored(p.teacher_feature_dir) / "known_teachers" / f"{_hash(_identity(p))}.json"
        if path.exists():
            facts = json.loads(path.read_text())
            return _storable(Teacher(p, **facts | {name: tuple(facts[name]) for name in ("layer_dims", "token_shape")}))
    return known_teacher(p, teacher_model.build_teacher(p), save_to=path)


def known_teacher(p: SimpleNamespace, model: FeatureModel, *, save_to: Path | None = None) -> Teacher:
    """What is known of a teacher that is loaded; written to the file `save_to`, for runs that need not load it."""
    names = ("feature_dim", "num_classes", "layer_dims", "head_is_random", "normalisation")
    facts = {name: getattr(model, name) for name in names}
    fingerprint = weights_fingerprint(model) if p.cache_teacher_features else ""  # which costs a third of a second for a ViT-B
    facts |= {"num_parameters": count_parameters(model), "fingerprint": fingerprint}
    if p.teacher_tokens:
        facts["token_shape"] = teacher_model.token_shape(model, p.image_size)
    if save_to:
        _save(save_to, {"token_shape": ()} | facts)
    return _storable(Teacher(p, **facts, model=model))


def _storable(teacher: Teacher) -> Teacher:
    """`teacher`, if its answers can be stored as they are to be (`teacher_top_k`, say); a ValueError otherwise."""
    if teacher.p.cache_teacher_features:
        _codec(teacher)
    return teacher


def check_modes(p: SimpleNamespace):
    """Refuse to store answers to views that never come again, or without shards to store them beside."""
    if p.augmentation != "clean" and p.teacher_views is None:
        raise ValueError(
            f"cache_teacher_features is true, but with augmentation {p.augmentation} every epoch has new views, and an answer "
            "belongs to one view; set teacher_views to a number of stored views per image, such as 4, or augmentation to clean."
        )
    if not getattr(p, "use_cached", True):
        raise ValueError("cache_teacher_features is true, but use_cached is false; answers are stored beside image shards.")


def build_teacher_call(p: SimpleNamespace, teacher: Teacher, loader, views) -> LiveTeacher | CachedTeacher:
    """What the loop asks: the live teacher, or its stored answers, of which missing ones are added on the way.

    Prints what the answers to all that `loader` may visit will take.

    Raises:
        CacheError: a disk without room for it.
    """
    if not p.cache_teacher_features:
        return LiveTeacher(teacher.load())
    reader = loader.dataset.reader
    codec, store = _store(p, teacher, reader, views)
    order = loader.dataset.order
    positions = order.epoch(0) if order.regime == "fixed" else np.arange(len(reader))
    needed, free = store.bytes_needed(positions), shutil.disk_usage(store.folder).free
    count = f"{len(positions):,} images x {store.num_views} views x {codec.row.itemsize:,} bytes"
    if needed > free:
        raise CacheError(f"{store.folder} needs {format_bytes(needed)} more for {count}, but its disk has {format_bytes(free)} "
                         "free; choose another teacher_feature_dir, or fewer teacher_views.")  # fmt: skip
    there = np.mean([store.present(positions, view).mean() for view in range(store.num_views)])
    print(f"teacher answers: {count}, {there:.0%} stored; {format_bytes(needed)} to write, {format_bytes(free)} free", flush=True)
    return CachedTeacher(store, codec, teacher.load, repeats=store.num_views // views.num_global)


def _store(p: SimpleNamespace, teacher: Teacher, reader: ShardReader, views) -> tuple[OutputCodec, TeacherCache]:
    codec = _codec(teacher)
    facts = {"teacher": teacher.fingerprint, "layers": p.feature_layers, "images": reader.index["fingerprint"]}
    seen = _describe(views) | teacher.normalisation  # what enters the teacher's first layer
    facts |= {"tokens": p.teacher_tokens, "views": seen, "storage": p.teacher_storage, "top_k": p.teacher_top_k}
    folder = anchored(p.teacher_feature_dir) / _hash(facts)
    repeats = views.repeats if isinstance(views, RepeatedViews) else 1
    return codec, TeacherCache(folder, reader, row=codec.row, num_views=repeats * views.num_global, facts=facts)


def _codec(teacher: Teacher) -> OutputCodec:
    names = ("feature_dim", "num_classes", "layer_dims", "token_shape")
    how = {"storage": teacher.p.teacher_storage, "top_k": teacher.p.teacher_top_k}
    return OutputCodec(**{name: getattr(teacher, name) for name in names}, **how)


def _describe(views) -> dict:
    """What decides on the teacher's views: the transform's class and settings, without the crops that only the student sees."""
    if isinstance(views, RepeatedViews):
        return _describe(views.transform) | {"repeats": views.repeats}
    if not is_dataclass(views):
        raise TypeError(f"views is a {type(views).__name__}, whose settings cannot be told.")
    settings = {name: value for name, value in asdict(views).items() if name not in _LOCAL}
    return {"class": type(views).__name__} | settings


def _identity(p: SimpleNamespace) -> list:
    """What tells a teacher without loading it: name, arguments, versions, and its files' sizes and times."""
    from importlib.metadata import version

    path = teacher_model.builtin_teacher() if p.teacher == "builtin" else anchored(p.teacher)
    paths = [path, None if p.teacher_checkpoint is None else anchored(p.teacher_checkpoint)]
    files = [file for path in paths if path is not None and path.exists() for file in _files(path)]
    stamps = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    # The last word tells these facts from those of older versions, which knew one normalisation only.
    return [p.teacher, p.teacher_args, p.feature_layers, p.teacher_tokens, p.image_size, version("timm"), stamps, "normalised"]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _hash(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _save(path: Path, content: object):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
