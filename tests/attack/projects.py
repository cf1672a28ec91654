"""Small projects for the attacks: digits as PNG files, short texts, teachers, and all that kdnb makes of them, by its own calls.

A piece of work takes a project's folder, which is the current one, and returns {name: plain value}: what has to be the same,
whatever happened on the way.
"""

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path

import accelerate  # noqa: F401 - as what follows without a use: a forked process would import it each time
import numpy as np
import torch
import torch._dynamo
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from text_models import make_text_model
from torch.nn.functional import cross_entropy
from transformers.models.bert import modeling_bert  # noqa: F401
from transformers.models.modernbert import modeling_modernbert  # noqa: F401

import kdnb
from kdnb.data.cache import read_index
from kdnb.data.reader import ShardReader
from kdnb.distillation.teacher import open_teacher
from kdnb.evaluation.evaluate import build_evaluator, evaluate_run, find_overlap
from kdnb.evaluation.trained_run import open_run
from kdnb.models import cifar_resnet  # noqa: F401
from kdnb.models.folder import load_model
from kdnb.models.vision import FeatureModel, build_model
from kdnb.runs import Run, set_seed
from kdnb.text.classifier import load_classifier, predict
from kdnb.text.soft_labels import build_student, distil
from kdnb.text.text_data import TextData, load_data
from kdnb.text.text_teacher import cached_logits

IMAGES, SIZE, CACHE = 240, 16, "outputs/cache"
REGIMES = {
    "full": {"regime": "full"},
    "random": {"regime": "random", "samples_per_epoch": 96},
    "shards": {"regime": "random", "shards_per_epoch": 3, "draw": "dealt"},
    "fixed": {"regime": "fixed", "fixed_shards": 3},
}
STORED = {"cache_teacher_features": True, "teacher_views": 2}
_TEXTS = {"max_length": 12, "batch_size": 16}
_TEXT_RUN = {"student": "builtin", "temperature": 3.0, "alpha": 0.7, "epochs": 3, "learning_rate": 2e-3, "save_every_steps": 1}
_WORDS = {"sport": "team match goal league coach", "food": "rice butter oven salt soup"}


NOTEBOOKS = Path(__file__).resolve().parent.parent.parent / "notebooks"
_JOB = {
    "dataset": "pictures", "cache_dir": CACHE, "image_size": SIZE, "cache_shard_size": 16, "fixed_shards": 3,
    "teacher": "cifar_resnet8", "teacher_checkpoint": "teacher.pt", "teacher_args": {"width": 4, "num_classes": 10},
    "student_args": {"width": 4}, "epochs": 12, "batch_size": 16, "warmup_steps": 0, "eval_split": None, "run_name": "job",
}  # fmt: skip


def write_raw(folder: Path) -> dict:
    """Pictures in a folder a class, texts, a teacher of each kind, the notebooks."""
    (folder / "outputs").mkdir()
    (folder / "notebooks").symlink_to(NOTEBOOKS)
    (folder / "job.yaml").write_text(yaml.safe_dump(_JOB))
    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:IMAGES], digits.target, strict=False)):
        path = folder / f"pictures/{label}/{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(pixels * 15.9)).save(path)
    set_seed(0)
    teacher = FeatureModel(build_model("cifar_resnet8", num_classes=10, width=4))
    images = torch.tensor(digits.images[:IMAGES] / 16, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    images, labels = torch.nn.functional.interpolate(images, SIZE), torch.tensor(digits.target[:IMAGES])
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=1e-2)
    for rows in torch.arange(IMAGES).repeat(30).split(60):
        optimizer.zero_grad()
        cross_entropy(teacher(images[rows])["logits"], labels[rows]).backward()
        optimizer.step()
    torch.save(teacher.model.state_dict(), folder / "teacher.pt")
    texts = {}
    for split, count in {"train": 96, "test": 30}.items():
        rng, lines = np.random.default_rng(count), ["text,label"]
        for number in range(count):
            label = sorted(_WORDS)[number % 2]
            lines.append(f"{' '.join(rng.choice(_WORDS[label].split(), 6))} {number},{label}")
        texts[split] = lines
        (folder / "texts").mkdir(exist_ok=True)
        (folder / f"texts/{split}.csv").write_text("\n".join(lines))
    make_text_model(folder / "text_teacher", "bert", texts=texts["train"], classes=sorted(_WORDS))
    return {}


def precompute(folder: Path, *, cache: str = CACHE, num_workers: int = 0) -> dict:
    """The shards, and the index that lists them."""
    kdnb.precompute(
        "pictures", cache, image_size=SIZE, cache_shard_size=16, held_out=0.2, num_workers=num_workers, progress=False
    )  # fmt: skip
    return {"shards": _digests(folder / cache, "images_*.pt"), "index": read_index(folder / cache), "left": _left(folder)}


def stored_images(folder: Path, *, num_workers: int = 0) -> dict:
    """The images of a cache, in no order: that depends on how many there are."""
    cache = kdnb.precompute("pictures", "outputs/all", image_size=8, num_workers=num_workers, progress=False)
    reader = ShardReader(cache)
    batch = reader.read(np.arange(len(reader)))
    return {"images": sorted(zip(batch["label"].tolist(), (image.numpy().tobytes() for image in batch["image"]), strict=True))}


def prepare(folder: Path) -> dict:
    """What every run needs: the cache, and the tokenizer of text students, which is another each time that it is learnt."""
    build_student(_texts(), student="builtin", max_length=_TEXTS["max_length"])
    return precompute(folder)


def train(folder: Path, *, regime: str = "full", stored: bool = False, name: str | None = None) -> dict:
    """Weights, records and stored outputs of a run of three epochs."""
    p = {"teacher_checkpoint": "teacher.pt", "teacher_args": {"width": 4, "num_classes": 10}, "image_size": SIZE}
    outputs = STORED if stored else {}
    teacher = open_teacher(teacher="cifar_resnet8", **p, cache_teacher_features=stored)
    student = kdnb.build_student("cifar_resnet8", teacher, width=4, num_classes=10)
    run = kdnb.distill(
        student, teacher, CACHE, **REGIMES[regime], **outputs, loss="soft_targets", eval_split="test", epochs=3, batch_size=16,
        learning_rate=1e-2, save_every_steps=4, run_name=name or regime,
    )  # fmt: skip
    return result_of(run) | {"stored": _digests(folder / "outputs/cache_teacher", "*/view_*/*"), "left": _left(folder)}


def train_text(folder: Path, *, name: str = "text") -> dict:
    """Weights and records of a text student's run, from logits that are kept."""
    data = _texts()
    teacher = load_classifier("text_teacher", num_classes=2, classes=data.classes, frozen=True)
    logits = cached_logits(teacher, data.train, **_TEXTS)
    student, _ = distil(data, logits, Run(name, {}), **_TEXTS, **_TEXT_RUN)
    models = {f"{part}_model": predict(load_classifier(folder / f"outputs/{name}/{part}_model"), data.test, **_TEXTS).tolist()
              for part in ("best", "final")}  # fmt: skip
    return result_of(Run(name, {})) | models | {"logits": logits.tolist(), "left": _left(folder)}


def _texts() -> TextData:
    return load_data(dataset="texts", validation_split=0.25, max_train_samples=None, max_val_samples=None)


half_image_run = partial(train, regime="full", stored=True, name="half")
half_text_run = partial(train_text, name="half_text")


def everything(folder: Path) -> dict:
    """All that can be read or gone on with in a project, in the order in which a fault is found first.

    Of shards and stored outputs, what is read counts: a file has bytes that mean nothing, and a finished run reads no outputs.
    """
    precompute(folder)
    reader = ShardReader(folder / CACHE)
    results = {"cache": {name: values.tolist() for name, values in reader.read(np.arange(len(reader))).items()}}
    done = folder / "outputs/done"
    if done.exists():
        images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        models = {name: load_model(done / name).eval() for name in ("best_model", "final_model")}
        results["models"] = {name: model(images).tolist() for name, model in models.items()}
    else:
        train(folder, stored=True, name="done")
        train_text(folder, name="done_text")
    trained = open_run(done)
    evaluator = build_evaluator(trained, probe_samples=100)
    results["evaluation"] = json.dumps([list(evaluate_run(trained, evaluator)), find_overlap(trained, evaluator)])
    results["done"] = train(folder, stored=True, name="done")
    results["done_text"] = train_text(folder, name="done_text")
    if (folder / "outputs/half").exists():
        results["half"], results["half_text"] = half_image_run(folder), half_text_run(folder)
    for name in ("done", "half"):
        results.get(name, {}).pop("stored", None)
    return results


def train_by_papermill(folder: Path):
    """Become the job."""
    command = [sys.executable, "-m", "kdnb.papermill", "notebooks/train_fixed.ipynb", "outputs/out.ipynb", "-f", "job.yaml"]
    os.execv(sys.executable, [*command, "-k", "python3", "--no-progress-bar"])


def job_result(folder: Path) -> dict:
    """What the run of a notebook left."""
    run = open_run("outputs/job")
    return result_of(Run("job", run.config["parameters"]))


def result_of(run: Run) -> dict:
    """What training left: without times."""
    history = run.read("history.json")
    records = [[{k: v for k, v in record.items() if not k.endswith("_s")} for record in part] for part in history.values()]
    models = {f"{name}_model": _digests(run.folder / f"{name}_model", "*.safetensors") for name in ("best", "final")}
    weights = hashlib.sha256(b"".join(values.numpy().tobytes() for values in run.load_checkpoint()["student"].values()))
    return models | {"records": records, "summary": run.read("summary.json"), "checkpoint": weights.hexdigest()}


def _digests(folder: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of files by their path."""
    paths = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _left(folder: Path) -> list[str]:
    """Temporary files that nobody has removed."""
    return sorted(str(path.relative_to(folder)) for path in (folder / "outputs").rglob(".*.tmp"))
