"""The tokenizer of a published model, checked: it must give back what it encodes.

Versions of transformers differ in how they read some published tokenizers (a byte-level BPE that is called a Llama's, a bare
vocabulary of BERT's), and a tokenizer that drops spaces or capitals would go unnoticed in a loss.
"""

import json
import re
from pathlib import Path

# A byte-level BPE must give these back letter for letter.
_EXACT = ("two words", "  Spaces  and a\ttab,\nnew lines\n\nand accents: café, naïve; 漢字 1234 don't!")
# Any other tokenizer may change letters, but must keep as many words.
_WORDS = "one small step for a man and one giant leap"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(name: str, config=None):
    """The tokenizer of a model folder or of a model on the Hub.

    Args:
        config: the model's, where config.json does not say which model it is.

    Raises:
        ValueError: a tokenizer that does not give back what it encodes. OSError: a name that cannot be fetched.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings, whole = {}, published_file(name, "tokenizer.json")
    vocabulary = published_file(name, "vocab.txt")
    if vocabulary is not None and whole is None and published_file(name, "tokenizer_config.json") is None:
        # A bare vocabulary of BERT's; transformers' versions differ in what they take for its default.
        tokens = vocabulary.read_text(encoding="utf-8").split("\n")
        settings["do_lower_case"] = not any(token != token.lower() for token in tokens if not token.startswith("["))
    if config is not None:
        settings["config"] = config
    tokenizer = AutoTokenizer.from_pretrained(name, **settings)
    byte_level = _is_byte_level(tokenizer, whole)
    fault = _fault(tokenizer, byte_level)
    if fault is not None and whole is not None:
        print(f"tokenizer of {name}: read from tokenizer.json as it stands, because as a {type(tokenizer).__name__} {fault}")
        facts = _facts(name)
        special = {key: _content(facts[key]) for key in _SPECIAL if facts.get(key)}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(whole), **special)
        tokenizer.model_max_length = facts.get("model_max_length") or tokenizer.model_max_length
        fault = _fault(tokenizer, byte_level)
    if fault is not None:
        raise ValueError(
            f"the tokenizer of {name} does not give back what it encodes: as a {type(tokenizer).__name__} {fault}; install "
            "another version of transformers, or give a model folder with the tokenizer.json that the model was trained with."
        )
    return tokenizer


def published_file(name: str, file: str) -> Path | None:
    """`file` of a model folder or of a model on the Hub; None where it has none, or where it cannot be fetched."""
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception:  # of many kinds, from version to version
        return None


def _fault(tokenizer, byte_level: bool) -> str | None:
    """What is wrong with what comes back, in words; None where nothing is."""

    def there_and_back(text: str) -> str:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    for text in _EXACT if byte_level else ():
        expected = text if normalizer is None else normalizer.normalize_str(text)
        if (back := there_and_back(text)).removeprefix(" ") != expected.removeprefix(" "):  # some begin every text with a space
            return f"{text!r} comes back as {back!r}"
    if len((back := there_and_back(_WORDS)).split()) < len(_WORDS.split()):
        return f"{_WORDS!r} comes back as {back!r}"
    joined, apart = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("twowords", "two words"))
    return None if joined != apart else "'two words' and 'twowords' are the same"


def _is_byte_level(tokenizer, whole: Path | None) -> bool:
    """Whether tokenizer.json, or without one the tokenizer itself, is a byte-level BPE, as GPT-2's was the first."""
    if whole is None and not tokenizer.is_fast:
        return False
    text = whole.read_text(encoding="utf-8") if whole is not None else tokenizer.backend_tokenizer.to_str()
    return re.search(r'"type"\s*:\s*"ByteLevel"', text) is not None


def _facts(name: str) -> dict:
    """What the published files say of special tokens."""
    facts: dict = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = published_file(name, file)
        facts |= {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    return facts


def _content(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token
