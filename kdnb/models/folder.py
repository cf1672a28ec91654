"""Model folders: config.json and model.safetensors, as timm's own `local-dir:` scheme reads them.

A folder appears whole or not at all: it is written under a temporary name, flushed to the disk and renamed. Its SHA256SUMS
holds the checksums of its files, which are compared when it is loaded. Cost: the model's size once, one fsync per file.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from operator import methodcaller
from pathlib import Path

from kdnb.evaluation.statistics import format_accuracy
from kdnb.files import SUMS, Damaged, check_sums, set_aside, write_atomically, write_sums
from kdnb.losses.methods import CHOICES, loss_weights
from kdnb.models.weights import TimmModel
from kdnb.runs import Run

# Facts of a timm configuration that stay true of other weights: what the architecture needs, and the images that it takes.
_FACTS = (
    "num_classes", "first_conv", "classifier", "fixed_input_size", "input_size", "interpolation", "crop_pct", "crop_mode", "mean",
    "std",
)  # fmt: skip
_CARD = """---
{metadata}
---

# A distilled student

{facts}

## Scores

{scores}

## Use

```python
import timm
{imports}student = timm.create_model("local-dir:<this folder>", pretrained=True).eval()
```

`timm.data.create_transform(**timm.data.resolve_data_config(model=student))` prepares images as it was trained: RGB in \
[0, 1], {size}x{size} pixels, normalised with mean {mean} and deviation {std}.
"""


def save_model(model: TimmModel, folder: str | Path, *, card: str | None = None, **inputs):
    """Write a timm model as config.json and model.safetensors, and `card` as README.md; replaces an older folder.

    The configuration says what is known of these weights: nothing of the origin, tag or licence of others that the architecture
    was published with. `inputs` replaces facts about the images that it was trained on, under timm's names (`input_size`, `mean`,
    `std`, `crop_pct`, `crop_mode`, `interpolation`), so that `timm.data.create_transform(**resolve_data_config(model=model))`
    prepares images in the same way.

    `timm.create_model("local-dir:<folder>", pretrained=True)` loads it; without `pretrained=True` timm builds the same
    architecture with random weights. For a CIFAR ResNet, import kdnb.models.cifar_resnet first.
    """
    from timm.models import save_for_hf

    def fill(fresh: Path):
        # The newest timm records these itself; older ones would rebuild the name's default architecture.
        save_for_hf(model, fresh, model_args=getattr(model, "kdnb_args", None), safe_serialization=True)
        config = json.loads((fresh / "config.json").read_text(encoding="utf-8"))
        facts = config["pretrained_cfg"] | {name: model.pretrained_cfg[name] for name in ("mean", "std")} | inputs
        config["pretrained_cfg"] = {name: facts[name] for name in _FACTS if name in facts}
        (fresh / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")

    write_folder(folder, fill, card=card)


def write_folder(folder: str | Path, fill: Callable[[Path], None], *, card: str | None = None):
    """Let `fill` write a model's files, with `card` as README.md, into a folder that appears whole, in place of an older one."""
    folder = Path(folder)
    fresh, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)  # killed between the two renames below: the old one is the only whole one
    if folder.is_file():
        set_aside(folder)
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    fill(fresh)
    write_sums(fresh)
    if card is not None:
        (fresh / "README.md").write_text(card, encoding="utf-8")
    for path in fresh.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_folder(folder: str | Path):
    """Refuse a model folder whose files are not those that were written; one that says nothing of them is taken as it is.

    Raises:
        Damaged: names a file that is missing or altered.
    """
    try:
        check_sums(Path(folder))
    except Damaged as error:
        ways = f"restore it, or delete the folder and run again what made it; if you changed it yourself, delete {SUMS} there"
        raise Damaged(f"{error}; {ways}.") from None


def is_whole(folder: Path) -> bool:
    """Whether there is a model folder whose files are those that were written."""
    with contextlib.suppress(Damaged):
        check_sums(folder)
        return (folder / "config.json").is_file()
    return False


def trained_once(run: Run, train: Callable[[], object]) -> Path:
    """final_model of `run`; where the run is not finished, or the folder was damaged, `train()` makes it, in one job alone."""
    folder = run.folder / "final_model"
    if not (run.finished and is_whole(folder)):
        with run.held(wait=True):  # by another job, which then has trained it
            if not (run.finished and is_whole(folder)):
                train()  # goes on from the last checkpoint
    return folder


def load_model(folder: str | Path, **settings) -> TimmModel:
    """The timm model that `save_model` wrote to `folder`; `settings` replace arguments that it was built with.

    A head of another width (`num_classes`) starts at random, and `head_is_random` says so.
    Raises FileNotFoundError where there is no model folder, Damaged where a file of it was altered.
    """
    import timm

    from kdnb.models import cifar_resnet  # noqa: F401 - registers its models with timm

    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no config.json; give one that save_model wrote.")
    check_folder(folder)
    config = json.loads(path.read_text(encoding="utf-8"))
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, **settings)
    model.head_is_random = model.num_classes > 0 and model.num_classes != config["num_classes"]
    model.kdnb_args = config.get("model_args", {}) | settings
    model.kdnb_args.pop("num_classes", None)  # config.json keeps it beside the arguments
    return model


def describe_regime(parameters: Mapping) -> str:
    """Which images an epoch visits, in words, from a training notebook's parameters."""
    if parameters.get("fixed_shards"):
        return f"fixed: the same {_size(parameters['fixed_shards'], 'shards')} each epoch ({parameters['fixed_choice']})"
    drawn = {"independent": "independently", "dealt": "without replacement (dealt)"}.get(str(parameters.get("draw")))
    if parameters.get("samples_per_epoch"):
        return f"random: {_size(parameters['samples_per_epoch'], 'images')} each epoch, drawn {drawn}"
    if parameters.get("shards_per_epoch"):
        return f"random: {_size(parameters['shards_per_epoch'], 'shards')} each epoch, drawn {drawn}"
    return "full: the whole cache, reshuffled each epoch"


def describe_loss(parameters: Mapping) -> str:
    """What was imitated, in words: the loss with what decides its value."""
    loss = parameters["loss"]
    names = ("temperature", "alpha") if CHOICES[loss].of_logits else ()
    settings = "".join(f", {name} {parameters[name]}" for name in names)
    weights = [f"{name} {value:g}" for name, value in loss_weights(loss, parameters.get("loss_args")).items()]
    return loss + (f" with {' and '.join(weights)}" if weights else "") + settings


def _size(value: int | float, unit: str) -> str:
    return f"{value:.0%} of the {unit}" if value < 1 else f"{value:,} {unit}"


def model_card(config: Mapping, summary: Mapping, inputs: Mapping) -> str:
    """Markdown with data, teacher, loss, regime, budget and scores, below the metadata that the Hub reads.

    Args:
        config: a run's config.json; "source", where it is there, names the images that were learnt from. summary: its
            summary.json; "probe_accuracy" {name: number} holds the scores, "probe_test_images" of how many images.
        inputs: "mean" and "std" that images are normalised with.
    """
    from huggingface_hub import ModelCardData

    p = config["parameters"]
    cap = f", each capped at {p['max_steps_per_epoch']} steps" if p.get("max_steps_per_epoch") else ""
    arguments = ", ".join(f"{name} {value}" for name, value in (p.get("student_args") or {}).items())
    facts = {
        "student": p["student"] + (f" ({arguments})" if arguments else ""),
        "teacher": p["teacher"] + (f", weights {Path(p['teacher_checkpoint']).name}" if p.get("teacher_checkpoint") else ""),
        "data": config.get("source", f"{p['dataset']}, split {p['split']}") + f", {p['image_size']}x{p['image_size']} pixels",
        "regime": describe_regime(p),
        "loss": describe_loss(p),
        "augmentation": p["augmentation"],
        "budget": f"{summary['steps']:,} steps of {p['batch_size'] * p['gradient_accumulation_steps']} images in "
        f"{p['epochs']} epochs{cap}; {summary['images_seen']:,} images, {summary['unique_seen']:,} different ones",
        "seed": p["seed"],
        "made with": ", ".join(f"{name} {number}" for name, number in config["versions"].items()),
    }
    images = summary.get("probe_test_images")  # not in the summaries of earlier versions
    scores = []
    for name, value in (summary.get("probe_accuracy") or {}).items():
        scores.append(f"| {name} | {format_accuracy(value, images) if images else f'{value:.3f}'} |")
    of = f"{images:,} held-out images (95% interval: Wilson's)" if images else "held-out images"
    table = [f"Accuracy of a linear probe on {of}:", "", "| features | accuracy |", "| --- | --- |", *scores]
    tags = ["knowledge-distillation", "timm"]
    own = p["student"].startswith("cifar_resnet")
    return _CARD.format(
        metadata=ModelCardData(library_name="timm", pipeline_tag="image-feature-extraction", tags=tags).to_yaml(),
        facts="\n".join(f"- **{name}**: {fact}" for name, fact in facts.items()),
        scores="\n".join(table) if scores else "None were measured; `notebooks/evaluate.ipynb` does.",
        imports="import kdnb.models.cifar_resnet  # registers the architecture\n" if own else "",
        size=p["image_size"],
        **{name: "(" + ", ".join(f"{value:g}" for value in inputs[name]) + ")" for name in ("mean", "std")},
    )


def write_cards(folder: Path, config: Mapping, summary: Mapping):
    """Write the card into `folder`/best_model and `folder`/final_model, where they are."""
    for name in ("best_model", "final_model"):
        if (folder / name).is_dir():
            check_folder(folder / name)
            inputs = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
            card = model_card(config, summary, inputs).encode()
            write_atomically(folder / name / "README.md", methodcaller("write", card))
