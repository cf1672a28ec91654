"""Small text classifiers made on this machine, for runs without a download.

A ModernBERT (Warner et al. 2024, arXiv:2412.13663) with random weights, of the kinds tried the one that learns most from few
texts, and a lower-case WordPiece tokenizer learnt from the texts. Takes a second for 3,000 short texts.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from kdnb import distributed
from kdnb.models.folder import write_folder
from kdnb.runs import anchored
from kdnb.text.classifier import quiet
from kdnb.text.texts import Texts


def small_classifier(texts: Texts, classes: Sequence[str], **settings) -> Path:
    """Folder of a small classifier of these texts, made where it is missing; `settings` of `make_small_classifier`."""
    # With the word and the separators of earlier versions, whose folders, and teachers trained from them, are read again.
    facts = sorted({"kind": "modernbert", **settings}.items())
    folder = anchored("outputs/small_text") / hashlib.sha256(f"{texts.fingerprint} {facts}".encode()).hexdigest()[:16]
    with distributed.rank_0_first():  # a tokenizer that is learnt twice is not quite the same
        if not folder.is_dir():
            make_small_classifier(folder, texts=texts.texts, classes=classes, **settings)
    return folder


def make_small_classifier(
    folder: str | Path,
    *,
    texts: Sequence[str],
    classes: Sequence[str],
    vocab_size: int = 4096,
    hidden: int = 128,
    layers: int = 2,
    max_length: int = 128,
    dropout: float = 0.1,
    seed: int = 0,
):
    """Write a classifier with random weights to `folder`, for `kdnb.text.classifier.load_classifier`.

    Args:
        texts: what the tokenizer learns from. hidden: width, 32 for each attention head. max_length: of texts, in tokens.
        dropout: everywhere. seed: of the weights.
    """
    import transformers

    tokenizer = learn_wordpiece(texts, vocab_size)
    shape: dict = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": max(1, hidden // 32)}
    shape |= {"vocab_size": len(tokenizer), "max_position_embeddings": max(max_length, 16)}
    shape |= {"intermediate_size": 2 * hidden}  # gated, so that it has half as many weights again
    shape |= {f"{where}_dropout": dropout for where in ("embedding", "mlp", "attention", "classifier")}
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    ends |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.ModernBertConfig(**shape, **labels, **ends)
        model = transformers.ModernBertForSequenceClassification(config)

    def fill(fresh: Path):
        with quiet():
            model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)

    write_folder(folder, fill)


def learn_wordpiece(texts: Sequence[str], vocab_size: int):
    """A tokenizer as BERT's, lower case, with a vocabulary learnt from `texts`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
