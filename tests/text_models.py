"""Small text models with random weights, of families that users bring: BERT's, and Qwen2's with a head or without."""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from stand_ins import byte_pairs

from kdnb.text.small_text import learn_wordpiece


def make_text_model(
    folder: str | Path, kind: str, *, texts: Sequence[str], classes: Sequence[str], hidden=32, causal=False, seed=0
):  # fmt: skip
    """Write a classifier of `kind` bert or qwen2 (`causal`: the language model, which has no head) to `folder`."""
    shape = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": hidden // 32, "intermediate_size": 4 * hidden}
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}
    if kind == "bert":
        tokenizer = learn_wordpiece(texts, 400)
        config = transformers.BertConfig(**shape, **labels, vocab_size=len(tokenizer), max_position_embeddings=128)
    else:  # as Qwen2's: no beginning, no padding token, an end of text
        end = "<|endoftext|>"
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_pairs(texts, [end], 400), eos_token=end)
        shape |= {"num_key_value_heads": hidden // 32, "tie_word_embeddings": True}
        config = transformers.Qwen2Config(**shape, **labels, vocab_size=len(tokenizer), max_position_embeddings=128)
    family = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
