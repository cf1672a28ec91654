"""Text classifiers: the logits are transformers' own, whatever the padding; what lacks a head, a token or a network is said."""

import json
import shutil

import pytest
import torch
import transformers
from text_models import make_text_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdnb.text.classifier import explain_out_of_memory, load_classifier, save_classifier, set_head
from kdnb.text.small_text import make_small_classifier

CLASSES = ["sport", "science", "food"]
TEXTS = [
    "the team won the match after extra time", "atoms and molecules", "boil the rice, then add salt and a little butter",
    "a striker scored twice", "the telescope saw a distant galaxy near the edge of the visible universe", "bread",
]  # fmt: skip


@pytest.fixture(scope="module", params=["bert", "modernbert", "qwen2", "distilbert", "roberta"])
def folder(request, tmp_path_factory):
    """A small classifier of each family, with random weights and a head of its own."""
    path, kind = tmp_path_factory.mktemp(request.param) / "model", request.param
    if kind == "modernbert":
        make_small_classifier(path, texts=TEXTS, classes=CLASSES, vocab_size=400, hidden=32)
        return path
    make_text_model(path, kind if kind == "qwen2" else "bert", texts=TEXTS, classes=CLASSES)
    if kind not in ("bert", "qwen2"):
        shape = {"vocab_size": 400, "pad_token_id": 0, "num_labels": 3}
        if kind == "distilbert":
            config = transformers.DistilBertConfig(**shape, dim=32, n_layers=2, n_heads=1, hidden_dim=64)
        else:
            shape |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 64}
            config = transformers.RobertaConfig(**shape)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A decoder without a classification head, as Qwen2.5 and DeepSeek-R1-Distill-Qwen are published."""
    path = tmp_path_factory.mktemp("lm") / "model"
    make_text_model(path, "qwen2", texts=TEXTS, classes=CLASSES, causal=True)
    return path


def tokens_of(classifier, texts=TEXTS):
    encoded = classifier.tokenizer(texts, padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def test_logits_are_those_of_transformers_one_text_at_a_time(folder):
    """Batched and padded here; unpadded there, so that neither padding token nor side can play a part."""
    ours = load_classifier(folder, frozen=True)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        got = ours(tokens_of(ours))
        expected = torch.cat([theirs(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    assert got["logits"].shape == (6, 3) and got["features"].shape == (6, ours.feature_dim) == (6, 32)
    assert torch.allclose(got["logits"], expected, atol=1e-5)
    assert ours.model.config.pad_token_id == ours.tokenizer.pad_token_id is not None
    assert not ours.head_is_random and not ours.training and not any(w.requires_grad for w in ours.parameters())


def test_what_is_saved_loads_with_from_pretrained_with_the_same_logits(folder, tmp_path):
    classifier = load_classifier(folder, classes=CLASSES).eval()
    save_classifier(classifier, tmp_path / "saved")
    model, tokenizer = (kind.from_pretrained(tmp_path / "saved") for kind in (AutoModelForSequenceClassification, AutoTokenizer))
    assert model.config.id2label == dict(enumerate(CLASSES))
    with torch.no_grad():
        expected = classifier(tokens_of(classifier))["logits"]
        assert torch.allclose(model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits, expected, atol=1e-5)


def test_a_head_that_the_checkpoint_lacks_is_noticed_and_can_be_given(language_model, tmp_path):
    classifier = load_classifier(language_model, num_classes=3, classes=CLASSES).eval()
    assert classifier.head_is_random
    weight, bias = torch.randn(3, 32), torch.tensor([1.0, -2.0, 3.0])
    set_head(classifier, weight, bias)
    with torch.no_grad():
        outputs = classifier(tokens_of(classifier))
    assert not classifier.head_is_random
    assert torch.allclose(outputs["logits"], outputs["features"] @ weight.T + bias, atol=1e-5)


def without_tokens(source, folder, *names):
    """A copy of a model folder whose tokenizer lacks the named special tokens."""
    shutil.copytree(source, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(names)))
    return folder


def test_a_tokenizer_without_padding_gets_its_end_of_text_and_pads_on_the_right(language_model, tmp_path):
    folder = without_tokens(language_model, tmp_path / "bare", "pad_token")
    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    classifier = load_classifier(folder, num_classes=3)
    assert classifier.tokenizer.pad_token == "<|endoftext|>" and classifier.tokenizer.padding_side == "right"
    assert classifier.model.config.pad_token_id == classifier.tokenizer.pad_token_id


def test_a_tokenizer_that_can_neither_pad_nor_end_is_refused(language_model, tmp_path):
    folder = without_tokens(language_model, tmp_path / "bare", "pad_token", "eos_token")
    with pytest.raises(ValueError, match="neither a padding nor an end-of-text token"):
        load_classifier(folder, num_classes=3)


def test_a_trained_head_of_another_width_is_refused(folder):
    with pytest.raises(ValueError, match="classifies 3 classes, but the data has 4"):
        load_classifier(folder, num_classes=4)


def test_gradient_checkpointing_changes_memory_not_gradients(folder):
    gradients = []
    for checkpointing in (False, True):
        classifier = load_classifier(folder, gradient_checkpointing=checkpointing).train()
        for module in classifier.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        classifier(tokens_of(classifier))["logits"].square().sum().backward()
        gradients.append(torch.cat([w.grad.flatten() for w in classifier.parameters() if w.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-5)


def test_a_folder_without_a_model_and_a_name_without_a_network(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty is no model folder: it has no config.json"):
        load_classifier(tmp_path / "empty")
    from transformers import AutoConfig

    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ConnectionError, match="model Qwen/Qwen2.5-0.5B is no folder here and cannot be reached"):
        load_classifier("Qwen/Qwen2.5-0.5B")


def test_out_of_memory_names_what_to_lower():
    numbers = {"batch_size": 64, "max_length": 512, "gradient_accumulation_steps": 2}
    sentence = "batch_size 64, max_length 512 and gradient_accumulation_steps 2; halve batch_size"
    with pytest.raises(MemoryError, match=sentence), explain_out_of_memory(**numbers):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    with pytest.raises(RuntimeError, match="shapes do not fit"), explain_out_of_memory(**numbers):
        raise RuntimeError("shapes do not fit")


def test_small_models_are_the_same_for_the_same_seed(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_small_classifier(tmp_path / name, texts=TEXTS, classes=CLASSES, vocab_size=300, hidden=32, layers=1, seed=seed)
    a, b, c = (load_classifier(tmp_path / name).head.weight for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
