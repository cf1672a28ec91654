"""Token ids of texts, made once and kept on disk: every epoch, and every run with the same tokenizer, reads them from there.

A fast tokenizer makes about 1 MB of text a second and core. A file holds the ids of all texts one after another, in two bytes a
token (four where a vocabulary is larger than 65,536), and the number of tokens of each text; it is memory mapped.
"""

import json
from pathlib import Path

import numpy as np
import torch

from kdnb.files import hash_of, memoize
from kdnb.text.texts import Texts

_AT_ONCE = 1000  # texts given to the tokenizer together


class TokenTable:
    """Token ids of N texts, special tokens included.

    Attributes:
        ids: uint16 or int32 [number of tokens], of all texts one after another. lengths: int64 [N].
        starts: int64 [N], where in `ids` each text begins.
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray):
        self.ids, self.lengths, self.starts = ids, lengths, np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        return len(self.lengths)


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
    key = hash_of([texts.fingerprint, tokenizer_fingerprint(tokenizer), max_length], length=20)

    def encode() -> list[torch.Tensor]:
        return [torch.from_numpy(part) for part in _encode(texts.texts, tokenizer, max_length)]

    return TokenTable(*(part.numpy() for part in memoize(Path(cache_dir) / f"tokens_{key}.pt", encode)))


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
    return hash_of(facts, length=64)


def _encode(texts: list[str], tokenizer, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, lengths) of a `TokenTable`."""
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.int32)
    spare = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    blank = [next((token for token in spare if token is not None), 0)]
    plain = {"return_attention_mask": False, "return_token_type_ids": False}
    chunks: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(texts), _AT_ONCE):
        some = texts[start : start + _AT_ONCE]
        rows = [row or blank for row in tokenizer(some, truncation=True, max_length=max_length, **plain)["input_ids"]]
        lengths += map(len, rows)
        chunks.append(np.array([token for row in rows for token in row], dtype=dtype))
    return np.concatenate(chunks), np.array(lengths, dtype=np.int64)
