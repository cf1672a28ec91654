"""Text classifiers of transformers as teacher or student, from a folder or the Hub, that return logits and features.

Supported are models whose logits come from a linear layer: decoders with `score` on the last token (Qwen2, Llama, GPT-2 ...),
and encoders with `classifier` (BERT, DistilBERT, ModernBERT ...) or `classifier.out_proj` (RoBERTa ...), behind whatever
pooling they have. For decoders, pooling is done here, on the last token that is no padding, so that it does not matter what
the padding token is, nor whether the text itself ends in it.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdnb.hub import WITHOUT_NETWORK, without_retries
from kdnb.models.folder import check_folder, write_folder
from kdnb.text.batches import build_loader
from kdnb.text.texts import Texts
from kdnb.text.tokenizer import load_tokenizer, published_file

# Keys of a configuration of BERT that does not say that it is one, as the oldest do not (prajjwal1/bert-tiny).
_BERT = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"}


class TextClassifier(nn.Module):
    """A sequence classifier with its tokenizer.

    Attributes:
        model, tokenizer: of transformers. head: the linear layer of the logits. num_classes, feature_dim: its widths.
        head_is_random: whether the head was not in the checkpoint.

    `forward({"input_ids", "attention_mask"}: int64 [B, T], padded on the right)` returns {"logits": float32 [B, num_classes],
    "features": [B, feature_dim]}, the features being what enters the head.
    """

    def __init__(self, model: nn.Module, tokenizer, *, head_is_random: bool):
        super().__init__()
        self.model: Any = model
        self.tokenizer, self.head_is_random = tokenizer, head_is_random
        self._decoder = isinstance(getattr(model, "score", None), nn.Linear)
        if not isinstance(self.head, nn.Linear):
            raise ValueError(
                f"{type(model).__name__} has no head that ends in a linear layer called score, classifier or "
                "classifier.out_proj; choose a decoder such as Qwen2 or an encoder such as BERT."
            )

    @property
    def head(self) -> nn.Linear:
        """The linear layer that makes the logits."""
        if self._decoder:
            return self.model.score
        classifier: Any = getattr(self.model, "classifier", None)
        return getattr(classifier, "out_proj", classifier)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def num_classes(self) -> int:
        """Width of the logits."""
        return self.head.out_features

    @property
    def feature_dim(self) -> int:
        """Width of the features."""
        return self.head.in_features

    def forward(self, tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See the class."""
        inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        if self._decoder:
            hidden, last = self.model.base_model(**inputs).last_hidden_state, tokens["attention_mask"].sum(1) - 1
            features = hidden[torch.arange(len(hidden), device=hidden.device), last]
            return {"logits": self.head(features).float(), "features": features}
        features = []
        hook = self.head.register_forward_pre_hook(lambda head, inputs: features.append(inputs[0]))
        try:
            logits = self.model(**inputs).logits
        finally:
            hook.remove()
        return {"logits": logits.float(), "features": features[0]}


def load_classifier(
    name: str | Path,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    frozen: bool = False,
    gradient_checkpointing: bool = False,
) -> TextClassifier:
    """A classifier from a folder or from the Hub, with its own tokenizer.

    Args:
        num_classes: width of the head; one that the checkpoint lacks starts at random. None: the checkpoint's own.
        classes: names, for the configuration.
        frozen: a teacher: in bf16 on a GPU that has it (float32 elsewhere), eval mode, without gradients. Students keep
            float32 weights, and run in mixed precision where training says so.
        gradient_checkpointing: less memory for a third more time in training.

    Raises:
        FileNotFoundError: a folder without config.json. ConnectionError: a name that cannot be fetched.
        Damaged: a folder whose files were altered.
        ValueError: a trained head of another width, an unsupported architecture, a tokenizer that does not give back what it
            encodes, or one without a token that can pad.
    """
    from transformers import AutoModelForSequenceClassification

    name = str(name)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(f"{name} is no model folder: it has no config.json; give one that save_pretrained wrote.")
    check_folder(name)
    with fetching(name):
        config = _load_config(name)
        tokenizer = load_tokenizer(name, config)
    trained = any("ForSequenceClassification" in kind for kind in config.architectures or ())
    if trained and num_classes is not None and config.num_labels != num_classes:
        raise ValueError(
            f"{name} classifies {config.num_labels} classes, but the data has {num_classes}; choose a model for these classes, "
            "or one without a classification head."
        )
    if num_classes is not None:
        config.num_labels = num_classes
    if classes is not None:
        config.id2label = dict(enumerate(classes))
        config.label2id = {label: number for number, label in enumerate(classes)}
    _set_padding(name, tokenizer, config)
    dtype = torch.float32
    if frozen and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False):
        dtype = torch.bfloat16
    with fetching(name), quiet():
        loaded = AutoModelForSequenceClassification.from_pretrained(name, config=config, dtype=dtype, output_loading_info=True)
    model, missing = loaded[0], list(loaded[1]["missing_keys"])
    broken = [key for key in missing if not key.startswith(("score.", "classifier."))]
    if broken:
        raise ValueError(f"the weights of {name} lack {len(broken)} tensors, such as {broken[0]}; the checkpoint is broken.")
    classifier = TextClassifier(model, tokenizer, head_is_random=bool(missing))
    if gradient_checkpointing:
        model.config.use_cache = False
        # The name that older versions of transformers know ends with version 6.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return classifier.requires_grad_(not frozen).train(not frozen)


def fetch_classifier(name: str):
    """Fetch what `load_classifier` reads of a model on the Hub: configuration, tokenizer and weights, which are not loaded.

    Raises:
        ConnectionError, ValueError: see `load_classifier`.
    """
    from transformers import AutoModelForSequenceClassification

    with fetching(name), quiet():
        config = _load_config(name)
        load_tokenizer(name, config)
        AutoModelForSequenceClassification.from_pretrained(name, config=config, device_map="meta")
        published_file(name, "generation_config.json")  # of a language model that scores the names of the classes


def save_classifier(classifier: TextClassifier, folder: str | Path, *, card: str | None = None):
    """Write model and tokenizer such that `AutoModelForSequenceClassification` and `AutoTokenizer` load them from `folder`."""

    def fill(fresh: Path):
        with quiet():
            classifier.model.save_pretrained(fresh)
        classifier.tokenizer.save_pretrained(fresh)

    write_folder(folder, fill, card=card)


def set_head(classifier: TextClassifier, weight: torch.Tensor, bias: torch.Tensor):
    """Write a linear head that was fitted on the features: weight [C, D], bias [C].

    A decoder's head, which has no bias, gets one; transformers would leave it out when it loads a saved copy.
    """
    head = classifier.head
    with torch.no_grad():
        head.weight.copy_(weight)
    head.bias = nn.Parameter(bias.to(head.weight.device, head.weight.dtype), requires_grad=head.weight.requires_grad)
    classifier.head_is_random = False


@torch.no_grad()
def predict(
    classifier: TextClassifier, texts: Texts, *, max_length: int, batch_size: int, features: bool = False
) -> torch.Tensor:
    """Logits float32 [N, C] of `texts` in their order, or features [N, D]; in eval mode on the training device, on the CPU."""
    tokenizers, training, rows = {"text": classifier.tokenizer}, classifier.training, []
    loader = build_loader(texts, tokenizers, max_length=max_length, batch_size=batch_size, shuffle=False)
    classifier.to(loader.device).eval()
    for batch in loader.batches(0):
        rows.append(classifier(batch["text"])["features" if features else "logits"].float().cpu())
    classifier.train(training)
    return torch.cat(rows)


def accuracy(logits: torch.Tensor, texts: Texts) -> float:
    """Share of `texts` whose label has the largest of its logits [N, C]."""
    return logits.argmax(1).eq(texts.known_labels).double().mean().item()


@contextlib.contextmanager
def explain_out_of_memory(*, batch_size: int, max_length: int, gradient_accumulation_steps: int):
    """Turn running out of memory into a sentence that says what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise MemoryError(
            f"out of memory with batch_size {batch_size}, max_length {max_length} and gradient_accumulation_steps "
            f"{gradient_accumulation_steps}; halve batch_size and double gradient_accumulation_steps (the same step in less "
            "memory), lower max_length, or set gradient_checkpointing."
        ) from error


def _load_config(name: str):
    """The configuration of a model; one without a model_type is BERT's where it has BERT's keys and a vocabulary of WordPieces.

    Weights that are not BERT's would be missed when they are loaded.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name)
    except ValueError:
        config = None
    path = published_file(name, "config.json")
    facts = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    if config is not None and "model_type" in facts:  # without one, transformers 5.0 guesses from the model's path
        return config
    if facts.keys() >= _BERT and not facts.keys() & {"model_type", "embedding_size"} and published_file(name, "vocab.txt"):
        return AutoConfig.for_model("bert", **facts)
    kind = facts.get("model_type")
    why = f"model_type is {kind!r}, which this transformers does not know" if kind else "there is no model_type"
    raise ValueError(f"config.json of {name} cannot be read as a text model's: {why}, and it does not look like BERT's.")


def _set_padding(name: str, tokenizer, config):
    """Pad on the right, with the tokenizer's padding token or, where it has none, with its end-of-text token."""
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer of {name} has neither a padding nor an end-of-text token; set tokenizer.pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
    config.pad_token_id = tokenizer.pad_token_id


@contextlib.contextmanager
def fetching(name: str):
    """Turn a model that cannot be had into a ConnectionError with its name."""
    try:
        with without_retries() if not Path(name).is_dir() else contextlib.nullcontext():
            yield
    except OSError as error:
        reason = " ".join(str(error).split())[:140]
        raise ConnectionError(
            f"model {name} is no folder here and cannot be reached on the Hugging Face Hub ({reason}); {WITHOUT_NETWORK}, or "
            "give a model folder."
        ) from error


@contextlib.contextmanager
def quiet():
    """Without transformers' progress bars, and its own report of a head that starts at random: the gate says more."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
