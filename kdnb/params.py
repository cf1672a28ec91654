"""The one table of notebook parameters, and the check of what a notebook was given.

Papermill hands YAML's `1e-3` over as a string, `-p flag false` as a string, too, and only logs a name that it does not know.
`check_params` therefore stands in the first cell after the parameters: it converts what is meant clearly, and reports
everything else in one error.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType, ModuleType, SimpleNamespace

TRAIN = ("train_optimized", "train_random", "train_fixed")
IMAGES = ("precompute", *TRAIN)


@dataclass(frozen=True)
class Param:
    """One parameter: its type (int, float, bool, str, `list` of ints, `dict` of key=value words) and what is allowed."""

    name: str
    kind: type
    help: str
    notebooks: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    optional: bool = False  # None is allowed, and means "off" or "find out"

    def allowed(self) -> str:
        """What is allowed, in words."""
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        words |= {list: "whole numbers such as 0,2", dict: "words such as depth=2 num_heads=4"}
        text = words[self.kind]
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        elif self.low is not None and self.high is not None:
            text += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            text += f" of at least {self.low:g}"
        return text + (", or None" if self.optional else "")

    def convert(self, value):
        """`value` as this parameter's type. Raises ValueError where that is not clear, or outside the range."""
        if self.optional and (value is None or (isinstance(value, str) and value.lower() in ("none", "null", ""))):
            return None
        converted = _CONVERTERS[self.kind](value)
        low = float("-inf") if self.low is None else self.low
        high = float("inf") if self.high is None else self.high
        if self.kind in (int, float) and not low <= converted <= high:  # NaN is refused here as well
            raise ValueError
        if self.choices and converted not in self.choices:
            raise ValueError
        return converted


def _bool(value) -> bool:
    word = str(value).lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError


def _int(value) -> int:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if number != int(number):  # int() itself refuses infinity and NaN
        raise ValueError
    return int(value) if isinstance(value, (int, str)) and str(value).lstrip("+-").isdigit() else int(number)


def _float(value) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _str(value) -> str:
    if value is None or isinstance(value, (bool, list, dict)):
        raise ValueError
    return str(value)


def _ints(value) -> list[int]:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else value.replace(",", " ").split()
    elif isinstance(value, int):
        value = [value]
    return [_int(entry) for entry in value]


def _words(value) -> dict:
    if isinstance(value, dict):
        return dict(value)
    pairs = [word.split("=", 1) for word in value.split()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError
    return {name: _literal(text) for name, text in pairs}


def _literal(text: str):
    """`text` as JSON reads it (numbers, true, false, null, lists), else as itself."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


_CONVERTERS = {bool: _bool, int: _int, float: _float, str: _str, list: _ints, dict: _words}


def _table() -> dict[str, Param]:
    def p(name, kind, help, notebooks=TRAIN, low=None, high=None, choices=None, optional=False):
        return Param(name, kind, help, notebooks, low, high, choices, optional)

    rows = [
        p("dataset", str, "digits (built in), an image folder, a Parquet file or folder, or a data set on the Hub", IMAGES),
        p("split", str, "split of the data set", IMAGES),
        p("eval_split", str, "held-out split for the linear probe; None: no probe", optional=True),
        p("probe_samples", int, "cached images that the probe is fitted on, at most", low=10),
        p("image_column", str, "column of the images; None: the only one", IMAGES, optional=True),
        p("label_column", str, "column of the labels; None: found by its type and name", IMAGES, optional=True),
        p("streaming", bool, "read a Hub data set without storing it", ("precompute",)),
        p("cache_dir", str, "folder of the shards, from the project's root", IMAGES),
        p("cache_shard_size", int, "images per shard", IMAGES, low=1),
        p("image_size", int, "side of the stored images in pixels", IMAGES, low=1),
        p("resize", str, "crop: short side to image_size and centre crop; squash: both sides", IMAGES,
          choices=("crop", "squash")),
        p("storage", str, "number format of the shards", ("precompute",), choices=("uint8", "float16", "float32")),
        p("max_samples", int, "images to store; None: all", ("precompute",), low=1, optional=True),
        p("permutation_seed", int, "store in a seeded random order (for sources sorted by class); None: as they come",
          ("precompute",), low=0, optional=True),
        p("on_unreadable", str, "skip unreadable images (logged, recorded in the index) or refuse them", ("precompute",),
          choices=("skip", "refuse")),
        p("verify", bool, "compare every stored shard with its checksum first", ("precompute",)),
        p("num_workers", int, "worker processes; 0: none", IMAGES, low=0, high=256),
        p("use_cached", bool, "read the shards in cache_dir; false: decode the raw images on the fly"),
        p("persistent_workers", bool, "keep worker processes between epochs"),
        p("fixed_shards", int, "shards that every epoch reads", ("train_fixed",), low=1),
        p("fixed_choice", str, "the first shards, or a seeded choice", ("train_fixed",), choices=("first", "seeded")),
        p("samples_per_epoch", int, "random samples drawn per epoch; None: draw shards", ("train_random",), low=1,
          optional=True),
        p("shards_per_epoch", int, "random shards drawn per epoch; None: draw samples", ("train_random",), low=1,
          optional=True),
        p("draw", str, "draw each epoch independently, or deal without replacement", ("train_random",),
          choices=("independent", "dealt")),
        p("random_subset_seed", int, "seed of the random or fixed subset", ("train_random", "train_fixed"), low=0),
        p("shuffle", str, "order inside an epoch", choices=("none", "within_shards", "all")),
        p("teacher", str, "timm model, model folder, or builtin (trained here on the digits)"),
        p("teacher_args", dict, "keyword arguments of the teacher"),
        p("teacher_checkpoint", str, "file with the teacher's weights; None: pretrained from the Hub", optional=True),
        p("student", str, "timm model"),
        p("student_args", dict, "keyword arguments of the student"),
        p("feature_layers", list, "teacher layers to imitate beside the pooled features (cosine), by index"),
        p("student_layers", list, "the student's layers that imitate feature_layers"),
        p("loss", str, "what the student imitates: standardised features, their direction, or soft targets",
          choices=("mse", "cosine", "soft_targets")),
        p("temperature", float, "temperature of the soft targets", low=0.01, high=1000),
        p("alpha", float, "weight of the distillation term; 1 needs no labels", low=0, high=1),
        p("augmentation", str, "clean, simple (crop and flip), or multicrop (two DINO-style global crops)",
          choices=("clean", "simple", "multicrop")),
        p("crop_scale_min", float, "smallest share of the image's area in a (global) crop", low=0.01, high=1),
        p("horizontal_flip", bool, "mirror half of the views"),
        p("use_local_crops", bool, "multicrop: the student also sees small crops"),
        p("local_crops_number", int, "local crops per image", low=1, high=64),
        p("local_crop_size", int, "side of the local crops in pixels", low=1),
        p("epochs", int, "epochs", low=1),
        p("max_steps_per_epoch", int, "optimizer steps after which an epoch ends; None: no cap", low=1, optional=True),
        p("batch_size", int, "images per forward pass", low=1),
        p("gradient_accumulation_steps", int, "forward passes per optimizer step", low=1),
        p("learning_rate", float, "peak learning rate of AdamW", low=0),
        p("weight_decay", float, "weight decay of AdamW (matrices only)", low=0),
        p("warmup_steps", int, "steps of linear warm-up before the cosine decay", low=0),
        p("clip_grad_norm", float, "largest gradient norm; None: no clipping", low=0, optional=True),
        p("mixed_precision", str, "no, bf16, fp16, or auto: bf16 where the hardware has it",
          choices=("auto", "no", "bf16", "fp16")),
        p("compile_student", bool, "compile the student with torch.compile"),
        p("seed", int, "seed of initialisation, shuffling and views", low=0),
        p("run_name", str, "folder below outputs; the same name resumes; None: notebook name and time", optional=True),
        p("save_every_steps", int, "checkpoint every so many steps, beside one per epoch; None: epochs only", low=1,
          optional=True),
        p("keep_checkpoints", int, "how many checkpoints to keep; None: all", low=1, optional=True),
    ]  # fmt: skip
    return {row.name: row for row in rows}


PARAMS = _table()


def names_for(notebook: str) -> list[str]:
    """Names of the parameters of `notebook`, in the table's order."""
    return [name for name, row in PARAMS.items() if notebook in row.notebooks]


def check_params(values: Mapping, notebook: str) -> SimpleNamespace:
    """The notebook's parameters, converted and checked.

    Args:
        values: `globals()` of the notebook, in the first cell after the parameters. Imports and names with an underscore
            are passed over; every other name is taken for a parameter that somebody meant.
        notebook: the notebook's name, as in the table.

    Returns:
        A namespace with one attribute a parameter; `vars()` of it goes into the run's config.

    Raises:
        ValueError: one sentence for every fault: an unknown name (with the nearest known one), a missing parameter, a value
            that is no such type or outside its range.
    """
    known, faults, checked = names_for(notebook), [], {}
    for name in (name for name, value in values.items() if _is_parameter(name, value)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            others = PARAMS[name].notebooks if name in PARAMS else ()
            hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(known)}."
            hint = f"it belongs to {', '.join(others)}." if others else hint
            faults.append(f"{notebook} has no parameter {name} (given: {values[name]!r}); {hint}")
    for name in known:
        if name not in values:
            faults.append(f"{name} is missing; add it to the notebook's parameters cell.")
            continue
        try:
            checked[name] = PARAMS[name].convert(values[name])
        except (ValueError, TypeError, OverflowError):
            faults.append(f"{name} is {values[name]!r}; allowed is {PARAMS[name].allowed()} ({PARAMS[name].help}).")
    if faults:
        raise ValueError("\n".join(faults))
    return SimpleNamespace(**checked)


def _is_parameter(name: str, value) -> bool:
    interactive = name in ("In", "Out", "exit", "quit", "open", "get_ipython")
    return not (name.startswith("_") or interactive or isinstance(value, (ModuleType, FunctionType, type)))
