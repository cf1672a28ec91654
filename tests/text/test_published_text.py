"""Text models as they are published: a BERT that does not say that it is one, a tokenizer that is called what it is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from kdnb.text.classifier import load_classifier, save_classifier
from kdnb.text.text_teacher import label_logits
from kdnb.text.tokenizer import load_tokenizer

DEEPSEEK = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
TEXT = "A naïve café,\n  two  spaces; 漢字 isn't 1234!"


@pytest.fixture
def published(hub_server, tmp_path):
    """Function that copies a published model to a folder whose name tells nothing."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(hub_server.folder / "models" / name, tmp_path / "model"))

    return copy


@pytest.fixture
def spaces_are_dropped(monkeypatch):
    """AutoTokenizer takes tokenizer_config.json at its word, as transformers 5.1 to 5.8 did."""

    def as_named(name, **kwargs):
        return transformers.LlamaTokenizer.from_pretrained(name)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", as_named)


def test_they_load_from_the_hub_by_their_names(with_hub):
    code = """
        import sys, torch
        from kdnb.text.classifier import load_classifier
        for name in sys.argv[1:]:
            model = load_classifier(name, num_classes=14).eval()
            tokens = model.tokenizer(["two words", "one"], padding=True, return_tensors="pt")
            with torch.no_grad():
                outputs = model({key: tokens[key] for key in ("input_ids", "attention_mask")})
            print(name, type(model.model).__name__, list(outputs["logits"].shape), model.head_is_random)
    """
    names = ["prajjwal1/bert-tiny", "Qwen/Qwen2.5-0.5B", DEEPSEEK]
    kinds = ["Bert", "Qwen2", "Qwen2"]
    expected = [f"{name} {kind}ForSequenceClassification [2, 14] True" for name, kind in zip(names, kinds, strict=True)]
    assert with_hub(code, *names).splitlines()[-3:] == expected


def test_a_configuration_of_bert_without_a_model_type_is_berts(published, tmp_path):
    folder = published("prajjwal1/bert-tiny")
    assert "model_type" not in json.loads((folder / "config.json").read_text())
    classifier = load_classifier(folder, num_classes=3, classes=["a", "b", "c"], frozen=True)
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    encoder = classifier.model.bert.state_dict()
    assert all(torch.equal(weight, stored[f"bert.{name}"]) for name, weight in encoder.items())
    save_classifier(classifier, tmp_path / "saved")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    tokens = tokenizer(["The Athlete was near", "filmish"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = classifier({name: tokens[name] for name in ("input_ids", "attention_mask")})["logits"]
        assert torch.allclose(model(**tokens).logits, expected, atol=1e-5) and model.config.model_type == "bert"


def test_a_bare_vocabulary_is_lower_case_where_it_has_no_capitals(published):
    folder = published("prajjwal1/bert-tiny")
    small = load_classifier(folder, num_classes=2).tokenizer
    assert small("AThleteness")["input_ids"] == small("athleteness")["input_ids"]
    with open(folder / "vocab.txt", "a") as file:
        file.write("Capital\n")
    large = load_tokenizer(str(folder), transformers.BertConfig())
    assert large.tokenize("Capital") == ["Capital"] and large.tokenize("Filmish") != large.tokenize("filmish")


def test_what_is_not_berts_is_not_taken_for_it(published):
    folder = published("prajjwal1/bert-tiny")
    (folder / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="model_type"):
        load_classifier(folder, num_classes=2)


def ids(tokenizer, text: str = TEXT) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_a_tokenizer_that_drops_spaces_is_read_from_its_file(published, tmp_path, spaces_are_dropped, capsys, monkeypatch):
    folder = published(DEEPSEEK)
    broken = transformers.AutoTokenizer.from_pretrained(folder)
    assert " " not in broken.decode(ids(broken, "two words"), skip_special_tokens=True), "the fault that is simulated"
    classifier = load_classifier(folder, num_classes=2)
    tokenizer = classifier.tokenizer
    assert tokenizer.decode(ids(tokenizer), skip_special_tokens=True) == TEXT
    assert (tokenizer.bos_token, tokenizer.pad_token) == ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    assert ids(tokenizer)[0] == tokenizer.bos_token_id and tokenizer.model_max_length == 16384
    printed = capsys.readouterr().out
    assert "read from tokenizer.json as it stands, because as a LlamaTokenizer 'two words' comes back as 'twowords'" in printed
    save_classifier(classifier, tmp_path / "saved")
    monkeypatch.undo()
    assert ids(transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")) == ids(tokenizer)


def test_class_names_are_scored_with_the_same_tokens(published, monkeypatch):
    folder = str(published(DEEPSEEK))
    settings = {"max_length": 64, "batch_size": 8, "device": torch.device("cpu")}
    right = label_logits(folder, ["two words", "filmish"], ["an Athlete", "Film"], **settings)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", transformers.LlamaTokenizer.from_pretrained)
    assert torch.equal(label_logits(folder, ["two words", "filmish"], ["an Athlete", "Film"], **settings), right)


def test_without_a_file_to_read_it_is_refused(published, tmp_path, monkeypatch):
    folder = published(DEEPSEEK)
    broken = transformers.LlamaTokenizer.from_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: broken)
    with pytest.raises(ValueError, match="tokenizer of .*model does not give back .*: as a LlamaTokenizer 'one small"):
        load_classifier(folder, num_classes=2)


def test_word_pieces_that_run_together_are_refused(published, monkeypatch):
    from tokenizers import normalizers

    folder = published("prajjwal1/bert-tiny")
    broken = transformers.BertTokenizer(str(folder / "vocab.txt"))
    broken.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *args, **kwargs: broken)
    with pytest.raises(ValueError, match="does not give back what it encodes"):
        load_classifier(folder, num_classes=2)
