"""Token ids of texts, made once and kept on disk: every epoch, and every run with the same tokenizer, reads them from there.

A fast tokenizer makes about 1 MB of text a second and core; the file takes two bytes a token (four where a vocabulary is
larger than 65,536), is memory mapped and costs no memory but the pages in use.

File: magic, the header's length (8 bytes), a header in JSON, then at multiples of 64 bytes int64 offsets [N + 1] and the ids
of all texts one after another. Whatever does not fit its header is made again.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kdnb.files import write_atomically
from kdnb.text.texts import Texts

_MAGIC = b"kdnbtok1"


_AT_ONCE = 1000  # texts given to the tokenizer together


_ALIGN = 64


class TokenTable:
    """Token ids of N texts, special tokens included.

    Attributes:
        ids: uint16 or int32 [number of tokens], of all texts one after another. offsets: int64 [N + 1] into them.
        lengths: int64 [N]. truncated: how many texts were longer than the tokenizer was allowed to make them.
    """

    def __init__(self, ids: np.ndarray, offsets: np.ndarray, *, truncated: int = 0):
        self.ids, self.offsets, self.truncated = ids, offsets, truncated
        self.lengths = np.diff(offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> np.ndarray:
        """Token ids of text `number`, int64 [its length]."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of a table of {len(self)} texts")
        return self.ids[self.offsets[number] : self.offsets[number + 1]].astype(np.int64)


def tokenise(texts: Texts, tokenizer, *, max_length: int, cache_dir: str | Path) -> TokenTable:
    """Token ids of `texts`, from `cache_dir` where they were made before.

    Args:
        tokenizer: of transformers; adds its special tokens as it does for single texts. A text of which it makes no token
            at all becomes one unknown (else end, else padding) token, since no model takes an empty one.
        max_length: tokens that are kept of a text, special tokens included.

    Raises:
        ValueError: max_length leaves no room for a text, or there is no text.
    """
    if not len(texts):
        raise ValueError(f"{texts.name} holds no text to tokenise.")
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if max_length <= special:
        raise ValueError(f"max_length is {max_length}, but the tokenizer adds {special} special tokens to every text; "
                         f"choose at least {special + 1}.")  # fmt: skip
    key = hashlib.sha256(f"{texts.fingerprint} {tokenizer_fingerprint(tokenizer)} {max_length}".encode()).hexdigest()
    path = Path(cache_dir) / f"tokens_{key[:20]}.bin"
    table = _read(path, key, len(texts))
    if table is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: _make(file, key, texts.texts, tokenizer, max_length))
        table = _read(path, key, len(texts))
    return table


def tokenizer_fingerprint(tokenizer) -> str:
    """SHA-256 of what decides the tokens of a text: vocabulary, rules, special tokens, side of truncation."""
    facts = [type(tokenizer).__name__, tokenizer.truncation_side]
    facts += [tokenizer.all_special_ids, [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]]
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # These two change with every call that truncates or pads.
        facts.append({name: value for name, value in backend.items() if name not in ("truncation", "padding")})
    else:
        facts += [sorted(tokenizer.get_vocab().items()), str(sorted(tokenizer.init_kwargs.items(), key=lambda item: item[0]))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _make(file: BinaryIO, key: str, texts: list[str], tokenizer, max_length: int):
    parts, lengths, truncated = [], [], 0
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.int32)
    spare = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    blank = [next((token for token in spare if token is not None), 0)]
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        plain = {"return_attention_mask": False, "return_token_type_ids": False}
        made = tokenizer(some, truncation=True, max_length=max_length, **plain)
        if tokenizer.is_fast:
            truncated += sum(bool(encoding.overflowing) for encoding in made.encodings)
        else:
            whole = tokenizer(some, truncation=False, verbose=False, **plain)["input_ids"]
            truncated += sum(len(row) > max_length for row in whole)
        rows = [row or blank for row in made["input_ids"]]
        lengths += [len(row) for row in rows]
        parts.append(np.array([token for row in rows for token in row], dtype=dtype))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    header = {"key": key, "rows": len(texts), "tokens": int(offsets[-1]), "dtype": dtype.name, "truncated": truncated}
    encoded = json.dumps(header).encode()
    file.write(_MAGIC + np.int64(len(encoded)).tobytes() + encoded)
    for array in (offsets, *parts):
        if array is offsets or array is parts[0]:
            file.write(bytes(-file.tell() % _ALIGN))
        file.write(array.tobytes())


def _read(path: Path, key: str, rows: int) -> TokenTable | None:
    """The table in `path`; None where there is none, or the file is cut short, or not that table."""
    try:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            size = int(np.frombuffer(file.read(8), dtype=np.int64)[0])
            header = json.loads(file.read(size))
            start = file.tell() + -file.tell() % _ALIGN
        if (header["key"], header["rows"]) != (key, rows):
            return None
        tokens, dtype = header["tokens"], np.dtype(header["dtype"])
        behind = start + 8 * (rows + 1)
        behind += -behind % _ALIGN
        if path.stat().st_size != behind + tokens * dtype.itemsize:
            return None
        offsets = np.fromfile(path, dtype=np.int64, count=rows + 1, offset=start)
        if offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 1).any():
            return None
        return TokenTable(np.memmap(path, dtype, "r", behind, (tokens,)), offsets, truncated=header["truncated"])
    except (FileNotFoundError, ValueError, KeyError, IndexError, TypeError):
        return None


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
        if (found := there_and_back(text)).removeprefix(" ") != expected.removeprefix(" "):  # some begin every text with a space
            return f"{text!r} comes back as {found!r}"
    if len((found := there_and_back(_WORDS)).split()) < len(_WORDS.split()):
        return f"{_WORDS!r} comes back as {found!r}"
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
    facts = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = published_file(name, file)
        facts |= {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    return facts


def _content(token: str | dict) -> str:
    return token["content"] if isinstance(token, dict) else token
