"""Small text classifiers made on this machine: a tokenizer learnt from the texts, and random weights.

For runs without a download, and for tests of the documented families: `bert` has a lower-case WordPiece tokenizer as
bert-tiny has, `qwen2` a byte-level BPE and a decoder as Qwen2.5 has. `modernbert` (Warner et al. 2024), with the tokenizer of
`bert`, learns most from few texts. Takes a second for 3,000 short texts.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from kdnb.models.folder import write_folder
from kdnb.text.classifier import quiet


def make_small_classifier(
    folder: str | Path,
    *,
    texts: Sequence[str],
    classes: Sequence[str],
    kind: str = "bert",
    vocab_size: int = 4096,
    hidden: int = 128,
    layers: int = 2,
    max_length: int = 128,
    dropout: float = 0.1,
    seed: int = 0,
    causal: bool = False,
):
    """Write a classifier with random weights to `folder`, for `kdnb.text.classifier.load_classifier`.

    Args:
        kind: `bert`, `modernbert` or `qwen2`. hidden: width, 32 for each attention head. max_length: of texts, in tokens.
        dropout: of the encoders, everywhere.
        causal: qwen2 as a language model, so that a classifier's head is missing.
    """
    import transformers

    if kind not in ("bert", "modernbert", "qwen2"):
        raise ValueError(f"kind is {kind!r}; allowed are bert, modernbert, qwen2.")
    tokenizer = (_byte_pairs if kind == "qwen2" else _wordpiece)(list(texts), vocab_size)
    heads = max(1, hidden // 32)
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": len(tokenizer)}
    shape |= {"intermediate_size": 4 * hidden, "max_position_embeddings": max(max_length, 16)}
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    if kind == "bert":
        shape |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        config = transformers.BertConfig(**shape, **labels, pad_token_id=tokenizer.pad_token_id)
        build = transformers.BertForSequenceClassification
    elif kind == "modernbert":
        shape |= {f"{where}_dropout": dropout for where in ("embedding", "mlp", "attention", "classifier")}
        shape |= {"intermediate_size": 2 * hidden}  # gated, so that it has half as many weights again
        ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
        ends |= {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        config = transformers.ModernBertConfig(**shape, **labels, **ends)
        build = transformers.ModernBertForSequenceClassification
    else:
        config = transformers.Qwen2Config(**shape, **labels, num_key_value_heads=heads, tie_word_embeddings=True)
        build = transformers.Qwen2ForCausalLM if causal else transformers.Qwen2ForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)

    def fill(fresh: Path):
        with quiet():
            model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)

    write_folder(folder, fill)


def _wordpiece(texts: list[str], vocab_size: int):
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


def _byte_pairs(texts: list[str], vocab_size: int):
    """As Qwen2's: no beginning, no padding token, an end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
