"""The losses that the parameter `loss` names: they train, from stored outputs as from a live teacher, and say what they lack."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from kdnb import distill
from kdnb.distillation import checks
from kdnb.distillation.run import distill_parameters
from kdnb.losses.methods import CHOICES
from kdnb.models.vision import build_model
from kdnb.params import TABLE, ParameterError
from kdnb.runs import Run


def losses_of(p, tmp_path, name, **changes) -> list[float]:
    p = SimpleNamespace(**vars(p) | {"epochs": 2} | changes)
    run = Run(name, vars(p), outputs=tmp_path)
    distill_parameters(p, run)
    return [record["loss"] for record in run.read("history.json")["steps"]]


@pytest.mark.parametrize("loss", CHOICES)
def test_stored_outputs_train_as_the_live_teacher_does(p, tmp_path, loss):
    p.loss = loss
    live = losses_of(p, tmp_path, "live")
    assert len(live) == 10 and len(set(live)) == 10
    for name in ("filling", "reading"):
        assert losses_of(p, tmp_path, name, cache_teacher_features=True) == pytest.approx(live, rel=1e-6)


@pytest.mark.parametrize("loss", [name for name, method in CHOICES.items() if method.weights])
def test_weights_change_the_loss(p, tmp_path, loss):
    p.loss, p.epochs = loss, 1
    name, usual = next(iter(CHOICES[loss].weights.items()))
    first = losses_of(p, tmp_path, "usual")[0]
    assert losses_of(p, tmp_path, "given", loss_args={name: usual})[0] == first
    assert losses_of(p, tmp_path, "other", loss_args={name: usual / 2})[0] != pytest.approx(first, rel=1e-6)


def test_the_relations_of_the_students_own_features_are_learnt(p, tmp_path):
    """Not those of a projection, which is thrown away: it stays as it was."""
    p.loss, p.feature_layers, p.student_layers = "similarity", [], []
    run = Run("a", vars(p), outputs=tmp_path)
    student = distill_parameters(p, run)
    first = distill_parameters(SimpleNamespace(**vars(p) | {"epochs": 1}), Run("b", vars(p) | {"epochs": 1}, outputs=tmp_path))
    assert student.projection.weight.equal(first.projection.weight)
    assert not student.model.conv1.weight.equal(first.model.conv1.weight)


def test_a_projection_with_a_hidden_layer_is_trained_and_thrown_away(p, tmp_path):
    p.projection_width, p.epochs = 12, 1
    run = Run("a", vars(p), outputs=tmp_path)
    student = distill_parameters(p, run)
    assert [tuple(weight.shape) for weight in student.projection.parameters()] == [(12, 8), (12,), (16, 12), (16,)]
    saved = build_model(str(run.folder / "final_model"))
    assert all(torch.equal(value, student.model.state_dict()[name]) for name, value in saved.state_dict().items())


@pytest.mark.parametrize("notebook", ["train_fixed", "compare_regimes"])
def test_the_table_of_parameters_and_that_of_losses_name_the_same(notebook):
    assert set(TABLE[notebook]["loss"].choices) == set(CHOICES)
    assert "loss_args" in inspect.signature(distill).parameters


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"loss": "dist", "loss_args": {"betta": 1}}, "loss_args has betta, but loss is dist, which takes beta, gamma"),
        ({"loss": "mse", "loss_args": {"beta": 1}}, "loss is mse, which takes none"),
        ({"loss": "dist", "loss_args": {"beta": -1}}, "beta in loss_args is -1; allowed is a number of at least 0"),
        ({"loss": "dist", "loss_args": {"beta": "much"}}, "beta in loss_args is 'much'"),
        ({"loss": "dist", "cache_teacher_features": True, "teacher_top_k": 2},
         "teacher_top_k is 2, but loss is dist, which compares all logits"),
    ],
)  # fmt: skip
def test_what_a_loss_cannot_do_is_said_before_anything_is_built(p, changes, sentence):
    with pytest.raises(ParameterError, match=sentence):
        checks.check_run(SimpleNamespace(**vars(p) | changes), "any")


@pytest.mark.parametrize("loss", ["decoupled", "normalised"])
def test_a_loss_with_labels_is_refused_without_labels(p, make_cache, tmp_path, loss):
    make_cache(tmp_path / "without", (20, 20, 20), size=8, labelled=False)
    p.loss, p.cache_dir = loss, str(tmp_path / "without")
    with pytest.raises(ValueError, match=f"loss is {loss}, which needs labels, but the images have no labels; set loss to one"):
        distill_parameters(p, Run("a", vars(p), outputs=tmp_path))
    with pytest.raises(ParameterError, match=f"loss is {loss}, which needs labels, but the images have no labels"):
        checks.check_run(p, "any")
