"""Labels that are missing (-1) or beyond the head: passed over where nothing needs them, refused early where something does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.loader import BatchReader
from kdnb.data.prepare import held_out_batches
from kdnb.distillation import build, teacher
from kdnb.distillation.run import distill_parameters
from kdnb.distillation.teacher_check import check_head
from kdnb.evaluation import student_probe
from kdnb.params import arguments_of
from kdnb.runs import Run

LABELS = {
    "all missing": torch.full((60,), -1),
    "some missing": torch.arange(60) % 4 - 1,
    "beyond the head": torch.arange(60) % 7,
}


@pytest.fixture(params=LABELS)
def labelled(request, p, make_cache, tmp_path):
    """The parameters of a run on such labels; the teacher has 3 classes."""
    make_cache(tmp_path / "odd", (20, 20, 20), size=8, labels=LABELS[request.param])
    p.cache_dir, p.loss, p.epochs, p.kind = str(tmp_path / "odd"), "soft_targets", 1, request.param
    return p


def test_soft_targets_alone_train_without_looking_at_labels(labelled, tmp_path, capsys):
    run = Run("a", vars(labelled), outputs=tmp_path)
    distill_parameters(labelled, run)
    history = run.read("history.json")
    assert len(history["steps"]) == 5
    assert not {"cross_entropy", "student_accuracy", "teacher_accuracy"} & history["steps"][0].keys()
    printed = "but the teacher has 3 classes: accuracies are left out" in capsys.readouterr().out
    assert printed == (labelled.kind != "all missing")


def test_labels_that_fit_are_counted_and_change_nothing_else(p, make_cache, tmp_path):
    p.loss, p.epochs = "soft_targets", 2
    run = Run("a", vars(p), outputs=tmp_path)
    student, history = distill_parameters(p, run), run.read("history.json")
    assert {"cross_entropy", "student_accuracy", "teacher_accuracy"} <= history["steps"][0].keys()
    make_cache(tmp_path / "without", (20, 20, 20), size=8, labelled=False)
    p.cache_dir = str(tmp_path / "without")
    same = distill_parameters(p, Run("b", vars(p), outputs=tmp_path))
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("loss, alpha", [("soft_targets", 0.5), ("mse", 0.5), ("cosine", 0.0)])
def test_a_loss_that_needs_labels_is_refused_with_the_student_before_anything_is_measured(labelled, loss, alpha):
    labelled.loss, labelled.alpha = loss, alpha
    sentence = {"all missing": "the images have no labels", "some missing": "15 of 60 images have no label"}
    sentence |= {"beyond the head": "labels go up to 6 and the head has 3 classes"}
    with pytest.raises(ValueError, match=f"alpha is {alpha}, but {sentence[labelled.kind]}"):
        build.head_width(
            teacher.open_teacher(**arguments_of(teacher.open_teacher, labelled)), **arguments_of(build.head_width, labelled)
        )


def test_a_student_without_class_names_has_a_head_for_every_label():
    assert build.num_classes(np.array([0, 4, 1]), None) == 5
    assert build.num_classes(np.array([0, 1]), ["a", "b", "c"]) == 3 and build.num_classes(None, None) == 0


def test_a_cache_of_missing_labels_is_unlabelled(make_cache, tmp_path):
    make_cache(tmp_path / "none", labels=torch.full((27,), -1))
    make_cache(tmp_path / "one", labels=torch.cat([torch.full((26,), -1), torch.ones(1, dtype=torch.int64)]))
    none, one = CachedTensorDataset(tmp_path / "none"), CachedTensorDataset(tmp_path / "one")
    assert not none.reader.labelled and none.labels is None and one.reader.labelled and one.labels[-1] == 1
    assert all("label" not in batch for batch in BatchReader(none, batch_size=9).batches(0))
    assert all("label" in batch for batch in BatchReader(one, batch_size=9).batches(0))


def test_a_probe_says_before_it_measures_why_there_is_none(labelled):
    labelled.eval_split, labelled.probe_samples, labelled.image_size = "test", 60, 8
    probe = student_probe.Probe(**arguments_of(student_probe.Probe, labelled))
    if labelled.kind == "beyond the head":  # the digits' test labels count up to 9, the cache names 3 classes
        assert not probe.available and probe.why_not == "some images of digits have no label, or one beyond its 3 classes"
    else:
        reasons = {"all missing": "digits has no labels", "some missing": "some images of digits have no label"}
        assert not probe.available and probe.why_not.startswith(reasons[labelled.kind])


def test_a_teacher_of_other_classes_is_not_measured_on_labels_beyond_them(p, capsys):
    p.loss, p.eval_split = "soft_targets", "test"  # digits: labels up to 9; the teacher has 3 classes
    frozen = teacher.open_teacher(**arguments_of(teacher.open_teacher, p))
    check_head(frozen, held_out_batches(**arguments_of(held_out_batches, p)))
    assert "the teacher's head is not measured: eval_split gives no labels of its 3 classes" in capsys.readouterr().out
    frozen.head_is_random = True
    with pytest.raises(ValueError, match="the teacher's head was not in its checkpoint, and eval_split gives no labels of its 3"):
        check_head(frozen, held_out_batches(**arguments_of(held_out_batches, p)))


def test_soft_targets_of_a_teacher_without_a_head_are_refused_with_the_student(p):
    with pytest.raises(ValueError, match="the teacher has no classification head; choose mse or cosine"):
        build.head_width(SimpleNamespace(num_classes=0), loss="soft_targets", alpha=1.0, cache_dir=p.cache_dir)
