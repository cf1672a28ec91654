"""Losses of feature maps and tokens."""

import math

import pytest
import torch
from fixed_numbers import numbers
from torch import nn

from kdnb import losses


def test_attention_by_hand():
    """Means of squares over channels: (1, 0) and (0, 1) of length 1; one layer's mean squared difference is 1, the other's 0."""
    student = torch.tensor([[[[1.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 2.0]], [[0.0, -3.0]]]])
    assert losses.attention_transfer_loss([student, student], [teacher, 5 * student]).item() == pytest.approx(1)


def test_larger_maps_are_averaged():
    large, small = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 2, 2)
    pooled = nn.functional.avg_pool2d(large, 2)
    expected = losses.attention_transfer_loss([pooled], [small])
    assert losses.attention_transfer_loss([large], [small]).item() == pytest.approx(expected.item())
    assert losses.hint_loss([small], [large], [nn.Identity()]).item() == pytest.approx((pooled - small).square().mean().item())


def test_hints_are_squared_errors_behind_a_regressor_that_learns():
    """Two layers, errors 1 and 9: their mean is 5."""
    zeros, ones = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    assert losses.hint_loss([zeros, zeros], [ones, 3 * ones], [nn.Identity(), nn.Identity()]).item() == pytest.approx(5)
    regressor = losses.hint_regressor(2, 3)
    losses.hint_loss([torch.randn(2, 2, 4, 4)], [torch.randn(2, 3, 4, 4)], [regressor]).backward()
    assert all(weights.grad.abs().sum() > 0 for weights in regressor.parameters())


def test_hierarchical_context_by_hand():
    """Differences of 1 with both signs, which averages cancel: the whole map's error is left, 1 over 1 + 1/2 + 1/4 + 1/8."""
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    assert losses.hierarchical_context_loss(signs, torch.zeros(1, 1, 8, 8)).item() == pytest.approx(1 / 1.875)


def test_the_number_of_a_review_is_that_of_torchdistill():
    """Two layers, with its AttentionBasedFusion and HierarchicalContextLoss, version 1.1.5, and the same weights."""

    loss, first = losses.ReviewLoss([3, 5], [4, 7], width=6), 5000
    with torch.no_grad():
        for weights in loss.parameters():
            if weights.ndim > 1:
                weights.copy_(numbers(*weights.shape, start=first) / 4)
                first += weights.numel()
        loss.mixes[0].bias.zero_()
    student = [numbers(2, 3, 4, 4, start=1), numbers(2, 5, 2, 2, start=300)]
    teacher = [numbers(2, 4, 4, 4, start=2000), numbers(2, 7, 2, 2, start=3000)]
    assert loss.double()(student, teacher).item() == pytest.approx(3.8226988, rel=1e-5)


def test_a_shallow_layer_of_the_teacher_is_reviewed_by_deep_ones_of_the_student():
    maps = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4, requires_grad=True)]
    loss = losses.ReviewLoss([3, 5], [4, 4], width=6)
    teacher = [torch.randn(2, 4, 8, 8), torch.zeros(2, 4, 2, 2)]
    with torch.no_grad():  # the deep layer's own term says nothing
        loss.exits[1][1].weight.zero_()
    loss(maps, teacher).backward()
    assert maps[1].grad.abs().sum() > 0


def test_patch_relations_by_hand():
    """Two patches at T = 1: at right angles softmax(1, 0), in one direction (1/2, 1/2)."""
    right, same = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    high = math.e / (1 + math.e)
    expected = high * math.log(2 * high) + (1 - high) * math.log(2 * (1 - high))
    assert losses.patch_relation_loss(same, right, temperature=1.0).item() == pytest.approx(expected, rel=1e-5)


MAP = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: losses.attention_transfer_loss([MAP], []), "the student has 1 maps and the teacher 0"),
        (lambda: losses.attention_transfer_loss([MAP], [MAP[:1]]), r"a map of the student is \[2, 3, 4, 4\]"),
        (lambda: losses.hint_loss([MAP], [MAP], []), "0 regressors for 1 layers"),
        (lambda: losses.hint_loss([MAP], [MAP[:, :2]], [nn.Identity()]), "a regressor gives .* for the teacher's channels"),
        (lambda: losses.ReviewLoss([3], [3, 4], width=2), "student_channels has 1 layers, teacher_channels 2"),
        (lambda: losses.ReviewLoss([3], [4], width=2)([MAP], [MAP]), r"made for \[3\] and \[4\]"),
        (lambda: losses.hierarchical_context_loss(MAP, MAP[:, :1]), "two maps .* of one shape"),
        (lambda: losses.patch_relation_loss(torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)), "as many patches"),
        (lambda: losses.patch_relation_loss(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), temperature=0), "temperature is 0"),
    ],
)
def test_maps_that_do_not_fit_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
