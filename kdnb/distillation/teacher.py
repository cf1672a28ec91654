"""The teacher of an image run: what is known of it without loading it, and its outputs, computed or read from the disk.

`open_teacher` returns a `Teacher`, which knows widths, normalisation and fingerprint, and loads the model where it is needed;
`build_teacher_call` returns what the training loop calls as `teacher(views, batch)`: a `LiveTeacher` or a `CachedTeacher`.

Stored outputs belong to a hash over the teacher's weights, the image cache, the global views and their seed; each combination has
a folder of its own below `teacher_feature_dir`. `known_teachers/` there holds the facts of each teacher by name, arguments, and
the sizes and times of its files, so that a run whose outputs are all stored does not load the teacher at all.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kdnb import distributed
from kdnb.data.cache_writer import CacheError
from kdnb.data.datasets import RawImageDataset
from kdnb.data.views import CleanTransform, RepeatedViews
from kdnb.distillation import teacher_model
from kdnb.distillation.teacher_outputs import OutputCodec, TeacherCache
from kdnb.files import hash_of, memoize
from kdnb.models.vision import FeatureModel, count_parameters, looks_untrained
from kdnb.models.weights import weights_fingerprint
from kdnb.progress import format_bytes
from kdnb.runs import anchored

_LOCAL = ("local_size", "local_crops_number", "use_local_crops", "local_scale")  # crops that the teacher does not see


@dataclass
class Teacher:
    """What is known of the frozen teacher of a run, and the model where it is loaded; from `open_teacher`."""

    feature_dim: int
    num_classes: int
    layer_dims: tuple[int, ...]
    token_shape: tuple[int, ...]  # (N, D) where tokens are imitated, else ()
    normalisation: dict[str, tuple[float, ...]]  # "mean" and "std" of its inputs
    head_is_random: bool
    looks_untrained: bool
    num_parameters: int
    fingerprint: str  # of its weights, where outputs are stored, else ""
    build: partial[FeatureModel]  # loads the model
    cache_dir: Path | None  # teacher_feature_dir where outputs are stored, else None
    output_settings: dict  # what stored outputs depend on, beside weights, images and views
    model: FeatureModel | None = None

    def load(self) -> FeatureModel:
        """The model on the training device, loaded now where it is not."""
        if self.model is None:
            self.model = self.build()
            if weights_fingerprint(self.model) != self.fingerprint:
                raise ValueError("the teacher has other weights than when its outputs were stored, but the same name, size and "
                                 "time; delete known_teachers/ in teacher_feature_dir.")  # fmt: skip
        return self.model

    @property
    def made_with(self) -> dict:
        """The parameters that it is loaded with."""
        return self.build.keywords

    @property
    def tokens(self) -> bool:
        """Whether it returns patch tokens."""
        return bool(self.token_shape)

    @property
    def token_dim(self) -> int:
        """Their width; 0 without tokens."""
        return self.token_shape[1] if self.token_shape else 0

    def codec(self) -> OutputCodec:
        """How its outputs are stored. Raises ValueError where they cannot be stored so (`teacher_top_k`, say)."""
        names = ("feature_dim", "num_classes", "layer_dims", "token_shape")
        storage = {name: self.output_settings[name] for name in ("storage", "top_k")}
        return OutputCodec(**{name: getattr(self, name) for name in names}, **storage)

    def memoize(self, name: str, key: object, compute: Callable[[], object]):
        """`compute()`, kept on disk by these weights and `key` where outputs are stored."""
        if self.cache_dir is None:
            return compute()
        return memoize(_facts_path(self.cache_dir, [self.fingerprint, name, key], prefix=f"{name}_"), compute)


def open_teacher(
    *,
    teacher: str,
    image_size: int,
    teacher_args: dict | None = None,
    teacher_checkpoint: str | None = None,
    feature_layers: Sequence[int] = (),
    teacher_tokens: bool = False,
    cache_teacher_features: bool = False,
    teacher_feature_dir: str | Path = "outputs/cache_teacher",
    teacher_storage: str = "float16",
    teacher_top_k: int | None = None,
    model: FeatureModel | None = None,
) -> Teacher:
    """The teacher of a run from its parameters: loaded, unless its outputs are stored and its facts are known.

    Args:
        model: the teacher itself, where it is loaded already.

    Raises:
        ValueError: outputs that cannot be stored as the parameters say; and what `load_teacher` raises.
    """
    arguments: dict[str, Any] = {"teacher": teacher, "teacher_args": teacher_args or {}, "teacher_checkpoint": teacher_checkpoint}
    arguments |= {"feature_layers": list(feature_layers), "teacher_tokens": teacher_tokens}
    build = partial(teacher_model.build_teacher, **arguments)
    cache_dir = anchored(teacher_feature_dir) if cache_teacher_features else None

    def facts_of_model() -> dict:
        nonlocal model
        model = build() if model is None else model
        return _facts(model, image_size, fingerprint=cache_teacher_features)

    if cache_dir is None or model is not None:
        facts = facts_of_model()
    else:
        key = [teacher, teacher_args or {}, list(feature_layers), teacher_tokens, image_size, version("timm")]
        # The last word tells these facts from those of older versions, which knew fewer of them.
        key += [_files(teacher, teacher_checkpoint), "looks_untrained"]
        facts = memoize(_facts_path(cache_dir, key), facts_of_model)
    facts |= {name: tuple(facts[name]) for name in ("layer_dims", "token_shape")}
    settings = {"layers": list(feature_layers), "tokens": teacher_tokens, "storage": teacher_storage, "top_k": teacher_top_k}
    opened = Teacher(**facts, build=build, cache_dir=cache_dir, output_settings=settings, model=model)
    if cache_dir is not None:
        opened.codec()  # refuses what cannot be stored
    if opened.looks_untrained and distributed.rank() == 0:
        why = "its normalisation layers are as they were initialised, so that the student imitates a random network"
        print(f"WARNING: the teacher {teacher} was never trained: {why}; give a trained teacher_checkpoint.", flush=True)
    return opened


def build_teacher_call(teacher: Teacher, loader, views) -> "LiveTeacher | CachedTeacher":
    """What the loop calls: the live teacher, or its stored outputs, to which missing ones are added on the way.

    Prints how many bytes the outputs for all images that `loader` may visit will take.

    Raises:
        CacheError: a disk without room for them. ValueError: views or images that never come again.
    """
    if teacher.cache_dir is None:
        return LiveTeacher(teacher.load())
    kind = "clean" if isinstance(views, CleanTransform | RepeatedViews) else type(views).__name__
    raw = isinstance(loader.dataset, RawImageDataset)
    require_recurring_views(augmentation=kind, teacher_views=None, use_cached=not raw)
    reader, order = loader.dataset.reader, loader.dataset.order
    facts = {"teacher": teacher.fingerprint, "images": reader.index["fingerprint"]} | teacher.output_settings
    facts["views"] = _describe(views) | teacher.normalisation  # what enters the teacher's first layer
    folder, codec = teacher.cache_dir / hash_of(facts, length=20), teacher.codec()
    repeats = views.repeats if isinstance(views, RepeatedViews) else 1
    store = TeacherCache(folder, reader, row=codec.row, num_views=repeats * views.num_global, facts=facts)
    positions = order.epoch(0) if order.regime == "fixed" else np.arange(len(reader))
    needed = store.bytes_needed(positions)
    count = f"{len(positions):,} images x {store.num_views} views x {store.row.itemsize:,} bytes"
    free = require_space(store.folder, needed, count)
    stored = np.mean([store.present(positions, view).mean() for view in range(store.num_views)])
    room = f"{format_bytes(needed)} to write, {format_bytes(free)} free"
    print(f"teacher outputs: {count}, {stored:.0%} stored; {room}", flush=True)
    return CachedTeacher(store, codec, teacher.load, repeats=repeats)


def require_space(folder: Path, needed: int, count: str) -> int:
    """Free bytes of the disk on which `folder` is or will be; CacheError where outputs, `count` in words, need more."""
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if needed > free:
        raise CacheError(f"{folder} needs {format_bytes(needed)} more for {count}, but its disk has {format_bytes(free)} "
                         "free; choose another teacher_feature_dir, or fewer teacher_views.")  # fmt: skip
    return free


def require_recurring_views(
    *, cache_teacher_features: bool = True, augmentation: str, teacher_views: int | None, use_cached: bool = True
):  # fmt: skip
    """Refuse to store outputs for views that never come again, or without shards to store them beside: ValueError."""
    if cache_teacher_features and augmentation != "clean" and teacher_views is None:
        raise ValueError(
            f"cache_teacher_features is true, but with augmentation {augmentation} every epoch has new views, and an output "
            "belongs to one view; set teacher_views to a number of stored views per image, such as 4, or augmentation to clean."
        )
    if cache_teacher_features and not use_cached:
        raise ValueError("cache_teacher_features is true, but use_cached is false; outputs are stored beside image shards.")


class LiveTeacher:
    """A teacher that computes its outputs for every batch.

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
        """The outputs for each view [B, 3, H, W]; `batch` is the batch that the views were made from."""
        return [self.model(view) for view in views]


class CachedTeacher:
    """A teacher whose outputs are stored: the missing ones are computed and added, and the model is loaded only for those.

    Args:
        store: holds rows of `codec.row`, `codec` for this teacher's outputs.
        load: returns the frozen model on the device of the batches.
        repeats: how many times `views.num_global` views are stored per image; epoch e sees those of e modulo `repeats`.

    Attributes:
        hits, misses: outputs, one an image and view, that were read from the disk, and that the model computed.

    What was computed just now also passes through the stored format, so that it does not matter when it was computed. Reading
    costs 0.1 ms for 64 images and 64 features.
    """

    def __init__(self, store: TeacherCache, codec: OutputCodec, load: Callable[[], nn.Module], *, repeats: int = 1):
        self.store, self.codec, self.load, self.repeats = store, codec, load, repeats
        self.hits = self.misses = 0

    @torch.no_grad()
    def __call__(self, views: list[torch.Tensor], batch: dict) -> list[dict[str, torch.Tensor]]:
        """The outputs for each view, float32 on the views' device."""
        ids, first = batch["id"].numpy(), batch["epoch"] % self.repeats * len(views)
        outputs = []
        for number, view in enumerate(views, start=first):
            rows, present = self.store.read(ids, number)
            if missing := np.flatnonzero(~present).tolist():
                model = LiveTeacher(self.load())
                computed = self.codec.encode(model([view if len(missing) == len(ids) else view[missing]], batch)[0])
                self.store.write(ids[missing], number, computed)
                rows[missing] = computed
            self.misses, self.hits = self.misses + len(missing), self.hits + len(ids) - len(missing)
            outputs.append(self.codec.decode(rows, view.device))
        return outputs


def _describe(views) -> dict:
    """What decides on the teacher's views: the transform's class and settings, without the crops that only the student sees."""
    if isinstance(views, RepeatedViews):
        return _describe(views.transform) | {"repeats": views.repeats}
    if not is_dataclass(views) or isinstance(views, type):
        raise TypeError(f"views is a {type(views).__name__}, but only a dataclass tells all of its settings.")
    settings = {name: value for name, value in asdict(views).items() if name not in _LOCAL}
    return {"class": type(views).__name__} | settings


def _facts(model: FeatureModel, image_size: int, *, fingerprint: bool) -> dict:
    """What a `Teacher` knows of a loaded model; hashing the weights of a ViT-B takes a third of a second."""
    names = ("feature_dim", "num_classes", "layer_dims", "head_is_random", "normalisation")
    facts = {name: getattr(model, name) for name in names}
    facts |= {"num_parameters": count_parameters(model), "looks_untrained": looks_untrained(model)}
    facts |= {"fingerprint": weights_fingerprint(model) if fingerprint else ""}
    return facts | {"token_shape": model.token_shape(image_size) if model.tokens else ()}


def _facts_path(cache_dir: Path, key: object, *, prefix: str = "") -> Path:
    return cache_dir / "known_teachers" / f"{prefix}{hash_of(key, length=20)}.pt"


def _files(teacher: str, teacher_checkpoint: str | None) -> list:
    """[path, size, time] of the files that a teacher is loaded from, where they are on this machine."""
    path = teacher_model.builtin_teacher() if teacher == "builtin" else anchored(teacher)
    paths = [path] if teacher_checkpoint is None else [path, anchored(teacher_checkpoint)]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
