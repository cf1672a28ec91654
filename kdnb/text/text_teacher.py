"""The teacher of `soft_distill_text.ipynb`: built, given a head where it lacks one, measured, and asked once."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from kdnb.distillation.optim import count_steps
from kdnb.distillation.teacher_check import measure_logits, require_better_than_chance
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.evaluation.probe import fit_logistic
from kdnb.files import write_atomically
from kdnb.models.weights import weights_fingerprint
from kdnb.runs import Run, anchored, local_or_hub, set_seed
from kdnb.text.classifier import TextClassifier, load_classifier, save_classifier, set_head
from kdnb.text.soft_labels import Data, answers, build_loader, small_model, text_views
from kdnb.text.texts import Texts
from kdnb.text.tokens import tokenizer_fingerprint

_TEACHER = {"epochs": 8, "batch_size": 32, "learning_rate": 1e-3}


_SHAPE = {"kind": "modernbert", "hidden": 128, "layers": 2, "vocab_size": 4096, "dropout": 0.2, "seed": 0}


_WAYS = (
    "set teacher_head to linear (logistic regression on the frozen features), finetune (train the teacher on the labels first) "
    "or labels (score the class names by the language model's likelihood), or give a trained teacher"
)


def build_teacher(p: SimpleNamespace, data: Data) -> TextClassifier:
    """The frozen teacher on the device: a model folder, the Hub, or a small ModernBERT trained here on the labels of the pool."""
    name = _builtin_teacher(p, data) if p.teacher == "builtin" else local_or_hub(p.teacher)
    return load_classifier(name, num_classes=len(data.classes), classes=data.classes, frozen=True).to(find_device())


def check_teacher(p: SimpleNamespace, teacher: TextClassifier, data: Data) -> dict[str, torch.Tensor] | None:
    """The gate: measure the teacher on validation before any step, give it a head where `teacher_head` says how, or stop.

    Returns:
        With teacher_head labels, the zero-shot logits of "train" and "test" texts, which take the teacher's place; else None.

    Raises:
        ValueError: the teacher knows nothing, with the ways out.
    """
    replaced = None
    require_labels(p, data)
    if p.teacher_head == "linear":
        features = answers(p, teacher, data.train, features=True)
        weight, bias = fit_logistic(features, data.train.labels, num_classes=len(data.classes), device="cpu")
        set_head(teacher, weight, bias)
    elif p.teacher_head == "finetune":
        _finetune(p, teacher, data)
    elif p.teacher_head == "labels":
        settings = {"max_length": p.max_length, "batch_size": p.batch_size, "device": find_device()}
        parts = {"validation": data.validation, "train": data.train, "test": data.test}
        name = local_or_hub(p.teacher)
        replaced = {part: label_logits(name, texts.texts, data.classes, **settings) for part, texts in parts.items()}
        teacher.head_is_random = False
    logits = replaced["validation"] if replaced else answers(p, teacher, data.validation)
    scores = measure_logits(logits, data.validation.labels)
    print("teacher on validation: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    require_better_than_chance(scores, head_is_random=teacher.head_is_random, ways=_WAYS)
    return replaced


def require_labels(p: SimpleNamespace, data: Data):
    """Refuse a `teacher_head` that is learnt from labels where the training texts have none: ValueError."""
    if p.teacher_head in ("linear", "finetune") and data.train.labels is None:
        raise ValueError(f"teacher_head is {p.teacher_head}, but the training texts have no labels; choose labels.")


def cached_logits(p: SimpleNamespace, teacher: TextClassifier, texts: Texts) -> torch.Tensor:
    """The teacher's logits of `texts`, float32 [N, C], computed once and kept by teacher, texts and max_length."""
    path = anchored("outputs/cache_teacher_logits") / f"{_key(teacher, texts, p.max_length)}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    logits = answers(p, teacher, texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(logits, file))
    print(f"{len(logits):,} x {logits.shape[1]} teacher logits written, {path.stat().st_size / 1e6:.1f} MB")
    return logits


def _key(teacher: TextClassifier, texts: Texts, *others) -> str:
    """A name for what `teacher` makes of `texts`. The same weights behind another tokenizer or pooling are another teacher."""
    config = teacher.model.config.to_diff_dict()
    config = {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}
    facts = [weights_fingerprint(teacher), tokenizer_fingerprint(teacher.tokenizer), texts.fingerprint, config, *others]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _builtin_teacher(p: SimpleNamespace, data: Data) -> Path:
    """Folder of a small ModernBERT trained on the labels of the pool: found from an earlier run, or trained now."""
    base = small_model(data, _SHAPE | {"max_length": p.max_length})
    run = Run(f"teacher_text_{base.name}", _TEACHER)
    if not run.finished:
        with run.held(wait=True):  # by another job, which then has trained it
            if not run.finished:
                teacher = load_classifier(base, classes=data.classes).to(find_device())
                history = _train_on_labels(p, teacher, data.pool, run, _TEACHER)
                run.finish({"loss": history["epochs"][-1]["loss"]})
    return run.folder / "final_model"


def _finetune(p: SimpleNamespace, teacher: TextClassifier, data: Data):
    """Train the teacher on the labels of the pool, in a run of its own, and freeze it again."""
    settings = {name: getattr(p, name) for name in ("epochs", "batch_size", "learning_rate")}
    run = Run(f"teacher_text_{_key(teacher, data.pool, p.max_length, settings)}", settings)
    teacher.float().requires_grad_(True).train()
    with run.held(wait=True):  # by another job, whose last checkpoint is then this one's
        _train_on_labels(p, teacher, data.pool, run, settings)
    teacher.requires_grad_(False).eval()
    teacher.head_is_random = False


def _train_on_labels(p: SimpleNamespace, model: TextClassifier, texts: Texts, run: Run, settings: dict) -> dict:
    set_seed(0)
    loader = build_loader(p, texts, model, batch_size=settings["batch_size"], seed=0)
    return train(
        model,
        lambda views, batch: [],  # nobody teaches it: it learns from labels
        loader,
        views=text_views,
        loss=_labels_only,
        run=run,
        epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        warmup_steps=min(10, count_steps(loader, epochs=settings["epochs"]) // 10),
        clip_grad_norm=1.0,
        keep_checkpoints=1,
        save_model=lambda trained, folder: save_classifier(trained, folder),
    )


def _labels_only(outputs: Sequence[dict], teachers: Sequence[dict], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"loss": torch.nn.functional.cross_entropy(outputs[0]["logits"], labels, label_smoothing=0.1)}


_QUESTION = "\nThis text is about:"


@torch.inference_mode()
def label_logits(
    name: str, texts: Sequence[str], classes: Sequence[str], *, max_length: int, batch_size: int, device: torch.device
) -> torch.Tensor:
    """Logits float32 [N, C] of `texts` for `classes`, by the causal language model `name` (a folder, or on the Hub).

    A text is cut such that it, the question and the longest class name fit into `max_length` tokens.

    Raises:
        ValueError: a `max_length` too small for question and name, a tokenizer that does not give back what it encodes.
        ConnectionError: a name that cannot be fetched.
    """
    from transformers import AutoModelForCausalLM

    from kdnb.text.classifier import fetching, quiet
    from kdnb.text.tokens import load_tokenizer

    with fetching(name), quiet():
        tokenizer = load_tokenizer(name)
        model = AutoModelForCausalLM.from_pretrained(name).to(device).eval()
    names = [tokenizer(" " + label, add_special_tokens=False)["input_ids"] for label in classes]
    question = tokenizer(_QUESTION, add_special_tokens=False)["input_ids"]
    room = max_length - len(question) - max(map(len, names))
    if room < 1:
        raise ValueError(f"max_length is {max_length}, but question and class name take {max_length - room} tokens; raise it.")
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"][:room] for text in ["", *texts]]
    rows = [(text + question, label) for text in encoded for label in names]
    scores = []
    for start in range(0, len(rows), batch_size):
        scores.append(_mean_log_probability(model, rows[start : start + batch_size], device))
    table = torch.cat(scores).view(len(encoded), len(names))
    return table[1:] - table[0]


def _mean_log_probability(model, rows: list[tuple[list[int], list[int]]], device) -> torch.Tensor:
    """Of the second part's tokens after the first part, float32 [B] on the CPU; padded on the right, where nothing looks."""
    width = max(len(prompt) + len(label) for prompt, label in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    mask, counted = torch.zeros_like(ids), torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, label) in enumerate(rows):
        end = len(prompt) + len(label)
        ids[row, :end], mask[row, :end] = torch.tensor(prompt + label), 1
        counted[row, len(prompt) : end] = True
    ids, mask, counted = ids.to(device), mask.to(device), counted.to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    chosen = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.logsumexp(2)
    return ((chosen * counted[:, 1:]).sum(1) / counted[:, 1:].sum(1)).cpu()
