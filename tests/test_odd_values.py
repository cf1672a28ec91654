"""Whatever is given for a parameter is taken, or refused in sentences that name it: by every notebook's first cell."""

import odd_values
import pytest

from kdnb.params import TABLE


@pytest.mark.parametrize("notebook", TABLE)
def test_odd_values_are_taken_or_refused_in_sentences(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert odd_values.faults(notebook, 45, seed=1) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"clip_grad_norm": 0}, {"learning_rate": 0}, {"temperature": "inf"}, {"weight_decay": float("nan")}, {"seed": 2**64},
        {"student_args": 8}, {"student_args": [8]}, {"student_args": "num_classes=3"}, {"student_args": "width=0"},
        {"student_args": "width=1000000"}, {"teacher_args": 8}, {"teacher_args": "width=4"}, {"teacher_views": 1_000_000},
        {"augmentation": "multicrop", "use_local_crops": True, "local_crop_size": 5000},
        {"student_layers": [9], "feature_layers": [0]}, {"student": "vit_tiny_patch16_224"}, {"run_name": "a" * 300},
    ],
    ids=str,
)  # fmt: skip
def test_what_would_fail_later_or_learn_nothing_is_refused_at_first(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {name: row.default for name, row in TABLE["train_fixed"].items()}
    assert odd_values.refused("train_fixed", values) == []
    (sentence,) = odd_values.refused("train_fixed", values | change)
    assert odd_values.is_sentence(sentence, "train_fixed")
