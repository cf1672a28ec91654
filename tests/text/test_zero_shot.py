"""Class names scored by a language model: worked out without padding, and right where the model has seen such texts."""

import pytest
import torch
from text_models import make_text_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdnb.text.text_teacher import _QUESTION, label_logits

CLASSES = ["sport", "fine science"]
TEXTS = ["the team won the match", "atoms, molecules and a galaxy far away", "goal"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "model"
    corpus = [f"{text}{_QUESTION} {name}" for text in TEXTS for name in CLASSES]
    make_text_model(path, "qwen2", texts=corpus, classes=CLASSES, causal=True)
    return str(path)


def by_hand(model, prompt: str, label: str) -> float:
    """Mean log-probability of the label's tokens, from one unpadded sequence."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    first, second = tokenizer(prompt)["input_ids"], tokenizer(" " + label)["input_ids"]
    with torch.no_grad():
        log_p = network(input_ids=torch.tensor([first + second])).logits[0].log_softmax(-1)
    return sum(log_p[len(first) + i - 1, token].item() for i, token in enumerate(second)) / len(second)


def test_scores_are_calibrated_mean_log_probabilities(model):
    got = label_logits(model, TEXTS, CLASSES, max_length=64, batch_size=4, device=torch.device("cpu"))
    assert got.shape == (3, 2) and got.dtype == torch.float32
    for row, text in enumerate(TEXTS):
        for column, name in enumerate(CLASSES):
            expected = by_hand(model, text + _QUESTION, name) - by_hand(model, _QUESTION, name)
            assert got[row, column].item() == pytest.approx(expected, abs=2e-4)


def test_a_model_that_learnt_the_class_names_gives_them(model, tmp_path):
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    right = [0, 1]  # balanced, so that calibration has nothing to take back
    for _ in range(60):
        for text, label in [*zip(TEXTS[:2], right, strict=True), ("", 0), ("", 1)]:
            ids = tokenizer(f"{text}{_QUESTION} {CLASSES[label]}", return_tensors="pt")["input_ids"]
            network(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    network.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    settings = {"max_length": 64, "batch_size": 8, "device": torch.device("cpu")}
    assert label_logits(str(tmp_path / "trained"), TEXTS[:2], CLASSES, **settings).argmax(1).tolist() == right


def test_no_room_for_question_and_name_is_refused(model):
    with pytest.raises(ValueError, match="max_length is 3, but question and class name take .* tokens; raise it"):
        label_logits(model, TEXTS, CLASSES, max_length=3, batch_size=4, device=torch.device("cpu"))
