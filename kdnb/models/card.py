"""The README.md of a model folder: what the student was distilled from, how, and how good it is."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdnb.files import write_atomically


def describe_regime(parameters: Mapping) -> str:
    """Which images an epoch visits, in words, from a training notebook's parameters."""
    if "fixed_shards" in parameters:
        return f"fixed: the same {parameters['fixed_shards']} shards each epoch ({parameters['fixed_choice']})"
    if parameters.get("samples_per_epoch"):
        return f"random: {parameters['samples_per_epoch']:,} images each epoch, drawn {_drawn(parameters)}"
    if parameters.get("shards_per_epoch"):
        return f"random: {parameters['shards_per_epoch']} shards each epoch, drawn {_drawn(parameters)}"
    return "full: the whole cache, reshuffled each epoch"


def _drawn(parameters: Mapping) -> str:
    return {"independent": "independently", "dealt": "without replacement (dealt)"}[parameters["draw"]]


def model_card(config: Mapping, summary: Mapping, inputs: Mapping) -> str:
    """Markdown with data, teacher, loss, regime, budget and scores, below the metadata that the Hub reads.

    Args:
        config: a run's config.json; "source", where it is there, names the images that were learnt from. summary: its
            summary.json; "probe_accuracy" {name: number} holds the scores.
        inputs: "mean" and "std" that images are normalised with.
    """
    from huggingface_hub import ModelCardData

    p = config["parameters"]
    teacher = p["teacher"] + (f", weights {Path(p['teacher_checkpoint']).name}" if p.get("teacher_checkpoint") else "")
    cap = f", each capped at {p['max_steps_per_epoch']} steps" if p.get("max_steps_per_epoch") else ""
    facts = {
        "student": p["student"] + (f" ({_words(p['student_args'])})" if p.get("student_args") else ""),
        "teacher": teacher,
        "data": config.get("source", f"{p['dataset']}, split {p['split']}") + f", {p['image_size']}x{p['image_size']} pixels",
        "regime": describe_regime(p),
        "loss": p["loss"] + (f", temperature {p['temperature']}, alpha {p['alpha']}" if p["loss"] == "soft_targets" else ""),
        "augmentation": p["augmentation"],
        "budget": f"{summary['steps']:,} steps of {p['batch_size'] * p['gradient_accumulation_steps']} images in "
        f"{p['epochs']} epochs{cap}; {summary['images_seen']:,} images, {summary['unique_seen']:,} different ones",
        "seed": p["seed"],
        "made with": ", ".join(f"{name} {number}" for name, number in config["versions"].items()),
    }
    tags = ["knowledge-distillation", "timm"]
    metadata = ModelCardData(library_name="timm", pipeline_tag="image-feature-extraction", tags=tags)
    lines = ["---", metadata.to_yaml(), "---", "", "# A distilled student", ""]
    lines += [*[f"- **{name}**: {fact}" for name, fact in facts.items()], "", "## Scores", ""]
    scores = summary.get("probe_accuracy") or {}
    if scores:
        lines += ["Accuracy of a linear probe on held-out images:", "", "| features | accuracy |", "| --- | --- |"]
        lines += [f"| {name} | {value:.3f} |" for name, value in scores.items()]
    else:
        lines += ["None were measured; `notebooks/evaluate.ipynb` does."]
    lines += ["", "## Use", "", "```python", "import timm"]
    if p["student"].startswith("cifar_resnet"):
        lines += ["import kdnb.models.cifar_resnet  # registers the architecture"]
    lines += ['student = timm.create_model("local-dir:<this folder>", pretrained=True).eval()', "```", ""]
    lines += [
        "`timm.data.create_transform(**timm.data.resolve_data_config(model=student))` prepares images as it was trained: RGB in "
        f"[0, 1], {p['image_size']}x{p['image_size']} pixels, normalised with mean {_numbers(inputs['mean'])} and deviation "
        f"{_numbers(inputs['std'])}.", ""]  # fmt: skip
    return "\n".join(lines)


def write_cards(folder: Path, config: Mapping, summary: Mapping):
    """Write the card into `folder`/best_model and `folder`/final_model, where they are."""
    for name in ("best_model", "final_model"):
        if (folder / name).is_dir():
            inputs = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
            card = model_card(config, summary, inputs).encode()
            write_atomically(folder / name / "README.md", lambda file, card=card: file.write(card))


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _words(arguments: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in arguments.items())
