"""The text recipe: data that is split and refused as it says, the gate, cached logits that equal the live teacher's."""

import json
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from text_models import make_text_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kdnb.distributed import Preempted
from kdnb.params import arguments_of
from kdnb.runs import Run
from kdnb.text import soft_labels
from kdnb.text.classifier import accuracy, load_classifier, predict
from kdnb.text.small_text import make_small_classifier
from kdnb.text.soft_labels import compare, distil, sweep
from kdnb.text.text_data import load_data
from kdnb.text.text_teacher import build_teacher, cached_logits, check_teacher

WORDS = {
    "sport": ["team", "match", "goal", "striker", "referee", "stadium", "league", "coach"],
    "science": ["atom", "galaxy", "cell", "theory", "telescope", "enzyme", "quantum", "fossil"],
    "food": ["rice", "butter", "oven", "salt", "soup", "bread", "onion", "recipe"],
}


def write_texts(folder, rows: dict[str, int], *, labelled=True, skip=()):
    """CSV files with so many rows a split; a text is six words of its class and four of any."""
    rng, every = np.random.default_rng(0), sorted(sum(WORDS.values(), []))
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in rows.items():
        bare = not labelled and split == "train"
        lines = ["text" if bare else "text,label"]
        for number in range(count):
            name = sorted(WORDS)[number % 3]
            if name not in skip or split != "test":
                words = [*rng.choice(WORDS[name], 3), *rng.choice(every, 5)]
                lines.append(" ".join([*words, str(number)]) + ("" if bare else f",{name}"))
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def p(tmp_path, monkeypatch):
    """Parameters of a small run; caches and runs stay in the test's folder."""
    for folder in ("notebooks", "outputs"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)  # a project of its own
    values = {
        "dataset": str(write_texts(tmp_path / "texts", {"train": 240, "test": 90})), "split": "train", "eval_split": "test",
        "text_columns": "", "label_column": None, "validation_split": 0.25, "max_train_samples": 90, "max_val_samples": None,
        "on_short": "refuse", "max_length": 24, "teacher": "builtin", "teacher_head": "keep", "student": "builtin",
        "temperature": 3.0, "alpha": 0.7, "epochs": 3, "max_steps_per_epoch": None, "batch_size": 16,
        "gradient_accumulation_steps": 1, "learning_rate": 2e-3, "weight_decay": 0.01, "warmup_steps": 3, "clip_grad_norm": 1.0,
        "mixed_precision": "no", "gradient_checkpointing": False, "early_stopping": None, "seed": 0, "save_every_steps": None,
        "keep_checkpoints": 1, "sweep_temperatures": [1.0, 3.0], "sweep_alphas": [0.0, 1.0], "sweep_epochs": 1,
    }  # fmt: skip
    return SimpleNamespace(**values)


def call(function, p, *arguments, **changes):
    """The function with those parameters that it takes."""
    return function(*arguments, **arguments_of(function, p) | changes)


def run_of(tmp_path, name="run") -> Run:
    return Run(name, {}, outputs=tmp_path / "outputs")


def test_splits_keep_every_class_and_share_no_text(p):
    data = call(load_data, p)
    assert [len(part.texts) for part in (data.pool, data.train, data.validation, data.test)] == [180, 90, 60, 90]
    assert torch.bincount(data.train.labels).tolist() == [30, 30, 30]
    assert not set(data.train.texts) & set(data.validation.texts) and set(data.train.texts) <= set(data.pool.texts)


def test_asking_for_more_than_there_is(p, capsys):
    p.max_train_samples = 1000
    with pytest.raises(ValueError, match="max_train_samples is 1000, but there are 180 texts"):
        call(load_data, p)
    p.on_short = "take_all"
    assert len(call(load_data, p).train.texts) == 180
    assert "max_train_samples is 1000, but there are 180 texts; all of them are taken." in capsys.readouterr().out


def test_a_class_missing_from_a_split_is_refused(p, tmp_path):
    p.dataset = str(write_texts(tmp_path / "lacking", {"train": 240, "test": 60}, skip=("food",)))
    with pytest.raises(ValueError, match="food has no test text"):
        call(load_data, p)


def test_unlabelled_texts_suffice_for_pure_distillation(p, tmp_path):
    trained = call(build_teacher, p, call(load_data, p))
    p.dataset = str(write_texts(tmp_path / "bare", {"train": 120, "test": 90}, labelled=False))
    data = call(load_data, p)
    with pytest.raises(ValueError, match="have no labels, but alpha is 0.7; set label_column, or alpha to 1"):
        call(distil, p, data, torch.zeros(90, 3), run_of(tmp_path, "refused"))
    with pytest.raises(ValueError, match="have no labels, but the built-in teacher learns from labels"):
        call(build_teacher, p, data)
    p.alpha, p.teacher, p.epochs = 1.0, str(tmp_path / "teacher"), 10
    assert data.train.labels is None and len(data.train.texts) == 90 and len(data.validation.texts) == 24
    assert data.classes == ["food", "science", "sport"]
    logits = call(cached_logits, p, trained, data.train)
    _, history = call(distil, p, data, logits, run_of(tmp_path))
    assert "cross_entropy" not in history["steps"][0] and history["epochs"][-1]["val_accuracy"] > 0.5
    p.teacher_head = "linear"
    with pytest.raises(ValueError, match="have no labels, but teacher_head is linear"):
        call(check_teacher, p, trained, data)


def test_cached_logits_give_the_losses_of_the_live_teacher(p, tmp_path):
    p.teacher = str(tmp_path / "teacher")
    data = call(load_data, p)
    make_text_model(p.teacher, "bert", texts=data.pool.texts, classes=data.classes, seed=5)
    teacher = call(build_teacher, p, data)
    logits = call(cached_logits, p, teacher, data.train)
    again = call(cached_logits, p, teacher, data.train)
    assert torch.equal(logits, again) and logits.dtype == torch.float32
    _, cached = call(distil, p, data, logits, run_of(tmp_path, "cached"))
    _, live = call(distil, p, data, teacher, run_of(tmp_path, "live"))
    pairs = [(a["soft_targets"], b["soft_targets"]) for a, b in zip(cached["steps"], live["steps"], strict=True)]
    assert len(pairs) == 18 and max(abs(a - b) for a, b in pairs) < 1e-5


def test_logits_are_kept_by_teacher_not_by_weights_alone(p, tmp_path):
    data, path = call(load_data, p), tmp_path / "teacher"
    shape = {"classes": data.classes, "vocab_size": 60, "hidden": 32, "layers": 1, "seed": 5}
    make_small_classifier(path, texts=data.pool.texts, **shape)
    make_small_classifier(tmp_path / "other", texts=data.pool.texts[:60], **shape)  # the same weights, another tokenizer
    shutil.copytree(path, tmp_path / "copy")
    logits = {}
    for name, changes in {"teacher": {}, "copy": {}, "other": {}, "mean": {"classifier_pooling": "mean"}}.items():
        p.teacher = str(tmp_path / name) if name != "mean" else str(path)
        teacher = call(build_teacher, p, data)
        teacher.model.config.update(changes)
        logits[name] = call(cached_logits, p, teacher, data.train)
        assert torch.equal(logits[name], call(predict, p, teacher, data.train)), name
    assert torch.equal(logits["teacher"], logits["copy"])
    assert len(list((tmp_path / "outputs" / "cache_teacher_logits").iterdir())) == 3


def test_distilling_end_to_end_learns_and_leaves_models_that_reload(p, tmp_path):
    data = call(load_data, p)
    teacher = call(build_teacher, p, data)
    assert call(check_teacher, p, teacher, data) is None
    run = run_of(tmp_path)
    p.epochs = 6
    student, history = call(distil, p, data, call(cached_logits, p, teacher, data.train), run)
    assert {"soft_targets", "cross_entropy", "teacher_entropy"} <= history["steps"][0].keys()
    best = max(epoch["val_accuracy"] for epoch in history["epochs"])
    assert accuracy(call(predict, p, student, data.validation), data.validation) == best > 0.6
    assert sorted(path.name for path in run.folder.glob("*_model")) == ["best_model", "final_model"]
    for name in ("best_model", "final_model"):
        model = AutoModelForSequenceClassification.from_pretrained(run.folder / name)
        assert model.config.num_labels == 3 and AutoTokenizer.from_pretrained(run.folder / name).pad_token_id is not None
    results = call(compare, p, teacher, student, data, run.folder)
    written = run.read("comparison_results.json")
    assert 0 <= written["agreement"] <= 1 and written.keys() == results.keys()
    assert (run.folder / "teacher_student_comparison.png").stat().st_size > 10_000


def test_early_stopping_ends_after_so_many_epochs_without_a_better_one(p, tmp_path):
    p.epochs, p.early_stopping, p.learning_rate, p.warmup_steps = 9, 2, 1e-9, 0  # nothing is learnt: the first epoch stays best
    data = call(load_data, p)
    _, history = call(distil, p, data, torch.zeros(len(data.train.texts), 3), run_of(tmp_path))
    assert len(history["epochs"]) == 3


def test_interrupted_and_run_again_it_ends_with_the_same_weights(p, tmp_path, monkeypatch):
    data, real, calls = call(load_data, p), soft_labels.CachedLogits, []
    logits = torch.nn.functional.one_hot(data.train.labels).float() * 5
    expected, _ = call(distil, p, data, logits, run_of(tmp_path, "undisturbed"))

    class Interrupting(real):
        def __call__(self, *arguments):
            calls.append(1)
            if len(calls) == 8:  # the second batch of the second epoch
                signal.raise_signal(signal.SIGINT)
            return super().__call__(*arguments)

    monkeypatch.setattr(soft_labels, "CachedLogits", Interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(Preempted, match="r was interrupted and wrote a checkpoint at step 8; run this cell again to go on"):
        call(distil, p, data, logits, run_of(tmp_path, "r"))
    signal.signal(signal.SIGINT, before)
    student, history = call(distil, p, data, logits, run_of(tmp_path, "r"))
    assert len(calls) == 18 == len(history["steps"])
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in student.state_dict().items())


def test_a_decoder_without_a_head_is_refused_and_has_three_ways_out(p, tmp_path, capsys):
    """The documented pair in small: a Qwen2 language model teaches a student of bert-tiny's family."""
    p.teacher = str(tmp_path / "lm")
    data = call(load_data, p)
    shape = {"texts": data.pool.texts, "classes": data.classes, "hidden": 128, "causal": True}
    make_text_model(p.teacher, "qwen2", **shape)
    teacher = call(build_teacher, p, data)
    with pytest.raises(ValueError, match="its classification head was not in the checkpoint.*linear .*finetune .*labels "):
        call(check_teacher, p, teacher, data)
    p.teacher_head = "linear"
    call(check_teacher, p, teacher, data)
    assert "teacher on validation texts, 95% interval: accuracy" in capsys.readouterr().out
    _, history = call(distil, p, data, teacher, run_of(tmp_path))  # two tokenizers, each with its own tokens
    assert len(history["steps"]) == 18

    p.teacher_head, p.epochs, tuned = "finetune", 8, call(build_teacher, p, data)
    call(check_teacher, p, tuned, data)
    assert not any(weight.requires_grad for weight in tuned.parameters())
    assert accuracy(call(predict, p, tuned, data.validation), data.validation) > 0.6

    p.teacher_head = "labels"  # an untrained language model knows nothing: its logits are measured and refused
    with pytest.raises(ValueError, match="that is chance level"):
        call(check_teacher, p, call(build_teacher, p, data), data)


def test_a_student_may_be_a_decoder(p, tmp_path):
    p.student = str(tmp_path / "qwen")
    data = call(load_data, p)
    make_text_model(p.student, "qwen2", texts=data.pool.texts, classes=data.classes, causal=True)
    student, _ = call(distil, p, data, torch.nn.functional.one_hot(data.train.labels).float() * 5, run_of(tmp_path))
    assert student.model.config.model_type == "qwen2" and load_classifier(p.student, num_classes=3).head_is_random


def test_a_teacher_of_other_classes_is_refused(p, tmp_path):
    p.teacher = str(tmp_path / "teacher")
    data = call(load_data, p)
    make_text_model(p.teacher, "bert", texts=data.pool.texts, classes=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="classifies 4 classes, but the data has 3"):
        call(build_teacher, p, data)


def test_the_built_in_teacher_learns_from_texts_that_make_a_step_an_epoch(p, tmp_path):
    p.dataset, p.max_train_samples = str(write_texts(tmp_path / "few", {"train": 24, "test": 30})), None
    teacher = call(build_teacher, p, call(load_data, p))
    assert teacher.num_classes == 3 and not teacher.head_is_random


def test_the_sweep_runs_alpha_zero_once(p, tmp_path):
    data, out = call(load_data, p), run_of(tmp_path)
    logits = torch.nn.functional.one_hot(data.train.labels).float() * 5
    table = call(sweep, p, data, logits, out, arguments_of(distil, p))
    assert set(table) == {1.0, 3.0} and set(table[1.0]) == {0.0, 1.0} and table[1.0][0.0] == table[3.0][0.0]
    histories = list((out.folder / "sweep").glob("*/history.json"))
    assert [len(json.loads(path.read_text())["epochs"]) for path in histories] == [p.sweep_epochs] * 3
