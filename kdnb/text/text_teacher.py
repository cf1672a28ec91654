"""The teacher of `soft_distill_text.ipynb`: built, given a head where it lacks one, measured; its logits, computed once.

Ways to a head for a model without one: logistic regression on its frozen features, training on the labels, or, for a causal
language model such as DeepSeek-R1-Distill-Qwen, no head at all: the class names scored by their likelihood.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from kdnb.distillation.optim import count_steps
from kdnb.distillation.teacher_check import describe_logits, measure_logits, require_better_than_chance
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.evaluation.probe import fit_logistic
from kdnb.files import hash_of, memoize
from kdnb.models.folder import trained_once
from kdnb.models.weights import weights_fingerprint
from kdnb.runs import Run, anchored, local_or_hub, set_seed
from kdnb.text.batches import build_loader, text_views
from kdnb.text.classifier import TextClassifier, fetching, load_classifier, predict, quiet, save_classifier, set_head
from kdnb.text.small_text import small_classifier
from kdnb.text.text_data import TextData, require_labels
from kdnb.text.texts import Texts
from kdnb.text.tokenizer import load_tokenizer
from kdnb.text.tokens import tokenizer_fingerprint

_BUILTIN_TRAINING: dict = {"epochs": 8, "batch_size": 32, "learning_rate": 1e-3}
_BUILTIN_SHAPE = {"hidden": 128, "layers": 2, "vocab_size": 4096, "dropout": 0.2, "seed": 0}
_WAYS = (
    "set teacher_head to linear (logistic regression on the frozen features), finetune (train the teacher on the labels first) "
    "or labels (score the class names by the language model's likelihood), or give a trained teacher"
)
_QUESTION = "\nThis text is about:"
_IGNORED = -100  # a target of cross_entropy that does not count


def build_teacher(data: TextData, *, teacher: str, max_length: int) -> TextClassifier:
    """The frozen teacher on the training device: a model folder, the Hub, or `builtin`, a small ModernBERT trained here on the
    labels of the pool."""
    require_labels(data.pool, teacher=teacher)
    name = _builtin_teacher(data, max_length) if teacher == "builtin" else local_or_hub(teacher)
    return load_classifier(name, num_classes=len(data.classes), classes=data.classes, frozen=True).to(find_device())


def check_teacher(
    model: TextClassifier,
    data: TextData,
    *,
    teacher: str,
    teacher_head: str = "keep",
    max_length: int,
    batch_size: int,
    epochs: int,
    learning_rate: float,
) -> dict[str, torch.Tensor] | None:
    """Give the teacher a head where `teacher_head` says how, measure it on validation, and refuse one that knows nothing.

    Args:
        teacher: the name that `model` was built from. epochs, learning_rate: of a teacher_head finetune.

    Returns:
        With teacher_head labels, the zero-shot logits {"train", "validation", "test": [N, C]}, which replace the teacher's;
        else None.

    Raises:
        ValueError: the teacher knows nothing, with the ways out.
    """
    size: dict = {"max_length": max_length, "batch_size": batch_size}
    zero_shot = None
    require_labels(data.train, teacher_head=teacher_head)
    if teacher_head == "linear":
        features = predict(model, data.train, features=True, **size)
        weight, bias = fit_logistic(features, data.train.known_labels, num_classes=len(data.classes), device="cpu")
        set_head(model, weight, bias)
    elif teacher_head == "finetune":
        _finetune(model, data.pool, max_length=max_length, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
    elif teacher_head == "labels":
        parts = {"validation": data.validation, "train": data.train, "test": data.test}
        name, size["device"] = local_or_hub(teacher), find_device()
        zero_shot = {part: label_logits(name, texts.texts, data.classes, **size) for part, texts in parts.items()}
        model.head_is_random = False
    logits = zero_shot["validation"] if zero_shot else predict(model, data.validation, **size)
    scores = measure_logits(logits, data.validation.known_labels)
    print(f"teacher on validation texts, 95% interval: {describe_logits(scores)}")
    require_better_than_chance(scores, head_is_random=model.head_is_random, ways=_WAYS)
    return zero_shot


def cached_logits(model: TextClassifier, texts: Texts, *, max_length: int, batch_size: int) -> torch.Tensor:
    """The frozen teacher's logits of `texts`, float32 [N, C], computed once and kept by teacher, texts and max_length."""

    def compute() -> torch.Tensor:
        logits = predict(model, texts, max_length=max_length, batch_size=batch_size)
        print(f"{len(logits):,} x {logits.shape[1]} teacher logits written, {logits.nbytes / 1e6:.1f} MB")
        return logits

    return memoize(anchored("outputs/cache_teacher_logits") / f"{_key(model, texts, max_length)}.pt", compute)


def _key(model: TextClassifier, texts: Texts, *others) -> str:
    """A name for what `model` makes of `texts`. The same weights behind another tokenizer or pooling are another teacher."""
    config = model.model.config.to_diff_dict()
    config = {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}
    return hash_of([weights_fingerprint(model), tokenizer_fingerprint(model.tokenizer), texts.fingerprint, config, *others])


def _builtin_teacher(data: TextData, max_length: int) -> Path:
    """Folder of a small ModernBERT trained on the labels of the pool, by an earlier run or now."""
    base = small_classifier(data.pool, data.classes, max_length=max_length, **_BUILTIN_SHAPE)
    run = Run(f"teacher_text_{base.name}", _BUILTIN_TRAINING)

    def learn():
        model = load_classifier(base, classes=data.classes).to(find_device())
        history = _train_on_labels(model, data.pool, run, max_length=max_length, **_BUILTIN_TRAINING)
        run.finish({"loss": history["epochs"][-1]["loss"]})

    return trained_once(run, learn)


def _finetune(model: TextClassifier, texts: Texts, *, max_length: int, **training):
    """Train the teacher on labels, in a run of its own, and freeze it again."""
    run = Run(f"teacher_text_{_key(model, texts, max_length, training)}", training)
    model.float().requires_grad_(True).train()
    with run.held(wait=True):  # by another job, whose last checkpoint is then this one's
        _train_on_labels(model, texts, run, max_length=max_length, **training)
    model.requires_grad_(False).eval()
    model.head_is_random = False


def _train_on_labels(
    model: TextClassifier, texts: Texts, run: Run, *, max_length: int, epochs: int, batch_size: int, learning_rate: float
) -> dict:
    set_seed(0)
    loader = build_loader(texts, {"text": model.tokenizer}, max_length=max_length, batch_size=batch_size)
    return train(
        model,
        lambda views, batch: [],  # nobody teaches it: it learns from labels
        loader,
        views=text_views,
        loss=_labels_only,
        run=run,
        epochs=epochs,
        learning_rate=learning_rate,
        warmup_steps=min(10, count_steps(loader, epochs=epochs) // 10),
        clip_grad_norm=1.0,
        keep_checkpoints=1,
        save_model=lambda trained, folder: save_classifier(model, folder),
    )


def _labels_only(outputs: Sequence[dict], teachers: Sequence[dict], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"loss": cross_entropy(outputs[0]["logits"], labels, label_smoothing=0.1)}


@torch.inference_mode()
def label_logits(
    name: str, texts: Sequence[str], classes: Sequence[str], *, max_length: int, batch_size: int, device: torch.device
) -> torch.Tensor:
    """Zero-shot logits float32 [N, C] of `texts` for `classes`, by the causal language model `name` (a folder, or on the Hub).

    Mean log-probability of the class name's tokens after the text and a question, minus that after the question alone
    (Zhao et al. 2021, arXiv:2102.09690). A text is cut such that it, the question and the longest class name fit into
    `max_length` tokens.

    Raises:
        ValueError: a `max_length` too small for question and name, a tokenizer that does not give back what it encodes.
        ConnectionError: a name that cannot be fetched.
    """
    from transformers import AutoModelForCausalLM

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
    ids = pad_sequence([torch.tensor(prompt + label) for prompt, label in rows], batch_first=True).to(device)
    counted = [torch.tensor([_IGNORED] * len(prompt) + label) for prompt, label in rows]
    targets = pad_sequence(counted, batch_first=True, padding_value=_IGNORED)[:, 1:].to(device)
    lengths = torch.tensor([len(prompt) + len(label) for prompt, label in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long().to(device)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    losses = cross_entropy(logits.transpose(1, 2), targets, ignore_index=_IGNORED, reduction="none")
    return -(losses.sum(1) / targets.ne(_IGNORED).sum(1)).cpu()
