"""Cached tokens are what the tokenizer makes of each text alone; whatever changes them makes them anew."""

import numpy as np
import pytest
import torch

from kdnb.text import tokens
from kdnb.text.texts import Texts, open_texts
from kdnb.text.tokens import tokenise

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "oil", "fell", "stock", "##s", "up"]


def wordpiece(words=WORDS, **settings):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special, **settings)


def byte_level(texts, size=400):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", padding_side="left")


def made(*texts) -> Texts:
    return Texts("made", list(texts), None, None, torch.arange(len(texts)))


def rows(table) -> list[list[int]]:
    return [table.ids[start:][:length].tolist() for start, length in zip(table.starts, table.lengths, strict=True)]


def test_tokens_by_hand(tmp_path):
    table = tokenise(made("Oil fell", "stocks", "up up up up"), wordpiece(), max_length=5, cache_dir=tmp_path / "new")
    assert rows(table) == [[2, 4, 5, 3], [2, 6, 7, 3], [2, 8, 8, 8, 3]]
    assert table.lengths.tolist() == [4, 4, 5] and table.starts.tolist() == [0, 4, 8] and len(table) == 3
    again = tokenise(made("Oil fell", "stocks", "up up up up"), wordpiece(), max_length=5, cache_dir=tmp_path / "new")
    assert table.ids.dtype == again.ids.dtype == np.uint16


@pytest.mark.parametrize("kind", ["wordpiece", "byte_level"])
def test_tokens_of_real_texts_are_those_of_each_text_alone(tmp_path, real_data, kind):
    texts = open_texts(str(real_data / "ag_news")).take(range(2300))  # three calls of the tokenizer
    tokenizer = byte_level(texts.texts[:300]) if kind == "byte_level" else wordpiece(WORDS + list("abcdefgh"))
    table = tokenise(texts, tokenizer, max_length=48, cache_dir=tmp_path)
    plain = [tokenizer(text, truncation=True, max_length=48)["input_ids"] for text in texts.texts]
    assert rows(table) == plain
    assert max(map(len, plain)) == 48


def test_tokens_are_made_once(tmp_path, monkeypatch):
    texts, tokenizer = made("oil fell", "up"), wordpiece()
    first = tokenise(texts, tokenizer, max_length=8, cache_dir=tmp_path)
    monkeypatch.setattr(tokens, "_encode", lambda *args: pytest.fail("made a second time"))
    tokenizer(["oil", "up up"], padding=True, truncation=True, max_length=3)  # leaves its settings in the tokenizer
    again = tokenise(texts, tokenizer, max_length=8, cache_dir=tmp_path)
    fresh = tokenise(made("oil fell", "up"), wordpiece(), max_length=8, cache_dir=tmp_path)
    assert rows(first) == rows(again) == rows(fresh)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_changes_the_tokens_makes_another_file(tmp_path):
    texts = made("oil fell up", "up")
    expected = [[2, 4, 5, 8, 3], [2, 8, 3]]
    assert rows(tokenise(texts, wordpiece(), max_length=8, cache_dir=tmp_path)) == expected
    swapped = wordpiece(WORDS[:4] + ["fell", "oil", "stock", "##s", "up"])
    assert rows(tokenise(texts, swapped, max_length=8, cache_dir=tmp_path))[0] == [2, 5, 4, 8, 3]
    assert rows(tokenise(texts, wordpiece(), max_length=4, cache_dir=tmp_path))[0] == [2, 4, 5, 3]
    left = wordpiece(truncation_side="left")
    assert rows(tokenise(texts, left, max_length=4, cache_dir=tmp_path))[0] == [2, 5, 8, 3]
    assert rows(tokenise(made("up", "oil fell up"), wordpiece(), max_length=8, cache_dir=tmp_path)) == expected[::-1]
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b[:20], lambda b: b"", lambda b: b"PK\x03\x04" + bytes(200)])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    texts, tokenizer = made("oil fell up", "up"), wordpiece()
    expected = rows(tokenise(texts, tokenizer, max_length=8, cache_dir=tmp_path))
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert rows(tokenise(texts, tokenizer, max_length=8, cache_dir=tmp_path)) == expected
    assert path.read_bytes() == good


def test_large_vocabularies_take_four_bytes(tmp_path):
    large = wordpiece(WORDS + [f"w{n}" for n in range(70000)])
    table = tokenise(made("oil w69999"), large, max_length=8, cache_dir=tmp_path)
    assert table.ids.dtype == np.int32 and rows(table) == [[2, 4, len(WORDS) + 69999, 3]]


def test_a_tokenizer_without_a_fast_backend(tmp_path):
    class Slow:  # what a tokenizer written in Python offers
        is_fast, truncation_side, all_special_ids = False, "right", [2, 3]
        unk_token_id, bos_token_id, eos_token_id, pad_token_id = None, None, 3, 0
        init_kwargs = {}

        def num_special_tokens_to_add(self, pair):
            return 1

        def get_vocab(self):
            return {"a": 7}

        def __len__(self):
            return 8

        def __call__(self, texts, truncation, max_length=None, **settings):
            cut = max_length - 1 if truncation else None
            return {"input_ids": [[7] * len(text[:cut]) + [3] for text in texts]}

    table = tokenise(made("aaa", "aaaaaa"), Slow(), max_length=4, cache_dir=tmp_path)
    assert rows(table) == [[7, 7, 7, 3], [7, 7, 7, 3]]


def test_a_text_without_tokens_gets_one(tmp_path):
    from tokenizers import normalizers

    tokenizer = byte_level(["some text"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    table = tokenise(made("\u3000", "ab"), tokenizer, max_length=8, cache_dir=tmp_path)
    assert rows(table)[0] == [tokenizer.eos_token_id] and table.lengths[1] == 2


def test_what_cannot_be_tokenised(tmp_path):
    with pytest.raises(ValueError, match="max_length is 2, but the tokenizer adds 2 special tokens .* choose at least 3"):
        tokenise(made("oil"), wordpiece(), max_length=2, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="made holds no text to tokenise"):
        tokenise(made(), wordpiece(), max_length=8, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
