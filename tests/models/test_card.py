"""The model card says where a student comes from; a fingerprint tells models apart by their content."""

import pytest
import torch
from huggingface_hub import ModelCard

from kdnb.models.folder import describe_regime, model_card, save_model, write_cards
from kdnb.models.vision import FeatureModel, build_model
from kdnb.models.weights import weights_fingerprint

PARAMETERS = {
    "teacher": "cifar_resnet56", "teacher_checkpoint": "weights/resnet56.th", "student": "cifar_resnet8",
    "student_args": {"width": 8}, "dataset": "digits", "split": "train", "image_size": 32, "loss": "mse",
    "augmentation": "simple", "batch_size": 32, "gradient_accumulation_steps": 2, "epochs": 3, "max_steps_per_epoch": 5,
    "seed": 1, "fixed_shards": 25, "fixed_choice": "first",
}  # fmt: skip
CONFIG = {"parameters": PARAMETERS, "versions": {"kdnb": "0.1.0"}}
INPUTS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
SUMMARY = {"steps": 15, "images_seen": 960, "unique_seen": 500, "probe_accuracy": {"teacher": 0.98, "distilled student": 0.5}}
SUMMARY |= {"probe_test_images": 300}


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"fixed_shards": 25, "fixed_choice": "first"}, "fixed: the same 25 shards"),
        ({"samples_per_epoch": 1200, "draw": "dealt"}, "random: 1,200 images each epoch, drawn without replacement"),
        ({"samples_per_epoch": None, "shards_per_epoch": 2, "draw": "independent"}, "random: 2 shards each epoch"),
        ({}, "full: the whole cache"),
    ],
)
def test_the_regime_in_words(parameters, words):
    assert describe_regime(parameters).startswith(words)


def test_the_card_states_data_teacher_regime_budget_and_scores():
    card = model_card(CONFIG, SUMMARY, INPUTS)
    for fact in ("cifar_resnet56, weights resnet56.th", "digits, split train, 32x32", "the same 25 shards", "width 8",
                 "15 steps of 64 images in 3 epochs, each capped at 5 steps; 960 images, 500 different ones", "kdnb 0.1.0",
                 "linear probe on 300 held-out images", "| distilled student | 0.500 (0.444 to 0.556) |",
                 "mean (0.5, 0.4, 0.3) and deviation (0.2, 0.2, 0.2)", "import kdnb.models.cifar_resnet",
                 "local-dir:"):  # fmt: skip
        assert fact in card
    assert ModelCard(card).data.library_name == "timm"  # as the Hub reads it
    earlier = model_card(CONFIG, {name: value for name, value in SUMMARY.items() if name != "probe_test_images"}, INPUTS)
    assert "| distilled student | 0.500 |" in earlier
    assert "None were measured" in model_card(CONFIG, SUMMARY | {"probe_accuracy": {}}, INPUTS)


def test_cards_go_into_the_model_folders_that_are_there(tmp_path):
    save_model(build_model("cifar_resnet8", width=4), tmp_path / "final_model", **INPUTS)
    write_cards(tmp_path, CONFIG, SUMMARY)
    assert (tmp_path / "final_model" / "README.md").read_text() == model_card(CONFIG, SUMMARY, INPUTS)
    assert not (tmp_path / "best_model").exists()


def test_a_fingerprint_follows_the_weights_and_nothing_else():
    torch.manual_seed(0)
    model = build_model("cifar_resnet8", width=4)
    before = weights_fingerprint(FeatureModel(model))
    torch.manual_seed(0)
    assert weights_fingerprint(FeatureModel(build_model("cifar_resnet8", width=4))) == before
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert weights_fingerprint(FeatureModel(model)) != before
    assert weights_fingerprint(torch.nn.Linear(2, 2).bfloat16())  # a type that NumPy does not know


def test_the_same_weights_behind_another_normalisation_are_another_model():
    model = build_model("cifar_resnet8", width=4)
    before = weights_fingerprint(FeatureModel(model))
    model.pretrained_cfg = model.pretrained_cfg | {"mean": (0.5, 0.5, 0.5)}
    assert weights_fingerprint(FeatureModel(model)) != before
