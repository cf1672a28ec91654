"""The memory bank and the queue: what is compared, what is remembered, and several processes."""

import math

import numpy as np
import pytest
import torch
from fixed_numbers import numbers
from torch.nn.functional import normalize

from kdnb.losses import ContrastiveLoss, QueueLoss
from kdnb.losses import contrastive as module


def test_noise_contrastive_estimation_by_hand():
    """Two images at right angles, one negative, T = 1: scores 1 and 0; Z = 2 (e + 1) / 2, so that K / N * Z = (e + 1) / 2."""
    bank, ids = torch.eye(2), torch.tensor([0])
    noise = (math.e + 1) / 2
    expected = -math.log(math.e / (math.e + noise)) - math.log(noise / (1 + noise))
    found = ContrastiveLoss(bank, negatives=1, temperature=1.0)(5 * bank[:1], 3 * bank[:1], ids)
    assert found.item() == pytest.approx(expected)


def test_the_number_is_that_of_torchdistill():
    """The student's half of CRDLoss, version 1.1.5, with this bank as the teacher's memory and the same negatives."""
    bank, ids = numbers(30, 5, start=7000), torch.tensor([3, 0, 29, 7, 11, 12])
    torch.manual_seed(0)
    steps = torch.randint(1, 30, (6, 8))
    loss = ContrastiveLoss(bank, negatives=8, temperature=0.5)
    torch.manual_seed(0)
    found = loss(numbers(6, 5, start=1), bank[ids], ids).item()  # which draws the same steps
    rows, positives = (normalize(tensor.double()).numpy() for tensor in (numbers(6, 5, start=1), bank[ids]))
    negatives = normalize(bank.double()).numpy()[(ids[:, None] + steps).numpy() % 30]
    powers = np.exp(np.einsum("bd,bkd->bk", rows, np.concatenate([positives[:, None], negatives], 1)) / 0.5)
    chance = powers / (powers.mean() * 30) / (powers / (powers.mean() * 30) + 8 / 30)
    assert found == pytest.approx(-(np.log(chance[:, 0]) + np.log(1 - chance[:, 1:]).sum(1)).mean(), rel=1e-5)
    assert found == pytest.approx(3.8740485, rel=1e-5)


def test_negatives_are_other_images_and_the_normaliser_is_kept():
    """With one other image in the bank it is always the negative; a loaded state goes on with the first batch's Z."""
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = ContrastiveLoss(bank, negatives=1, temperature=1.0)
    first = [loss(bank, bank, torch.tensor([0, 1])).item() for _ in range(5)]
    assert first == [first[0]] * 5
    other = ContrastiveLoss(torch.zeros(2, 2), negatives=1, temperature=1.0)
    other.load_state_dict(loss.state_dict())
    turned = torch.tensor([[0.0, 1.0]])
    assert other(turned, bank[:1], torch.tensor([0])).item() == loss(turned, bank[:1], torch.tensor([0])).item() > first[0]


def test_the_queue_by_hand():
    """Its own image and one from before, at right angles, T = 1: the teacher softmax(1, 0), the student (1/2, 1/2)."""
    loss = QueueLoss(queue_size=4, width=3, num_images=9, temperature=1.0)
    loss(torch.eye(3)[:1], torch.eye(3)[:1])
    high = math.e / (1 + math.e)
    expected = high * math.log(2 * high) + (1 - high) * math.log(2 * (1 - high))
    assert loss(torch.eye(3)[2:], 7 * torch.eye(3)[1:2]).item() == pytest.approx(expected, rel=1e-5)


def test_the_queue_holds_the_last_images_and_is_kept():
    loss = QueueLoss(queue_size=5, width=2, num_images=9)
    batches = [torch.randn(2, 2) for _ in range(4)]
    for batch in batches:
        loss(batch, batch)
    expected = normalize(torch.cat([batches[3], batches[2], batches[1][:1]]))
    assert torch.allclose(loss.queue, expected)
    other = QueueLoss(queue_size=5, width=2, num_images=9)
    other.load_state_dict(loss.state_dict())
    student = torch.randn(2, 2)
    assert other(student, batches[0]).item() == loss(student, batches[0]).item()


@pytest.mark.parametrize("processes", [2, 3])
def test_the_queue_is_that_of_one_process(processes, monkeypatch):
    """Rank r has every so many-th image of a batch; a batch that not all can share equally, too."""
    batches = [torch.randn(6, 4), torch.randn(5, 4)]
    alone = QueueLoss(queue_size=8, width=4, num_images=20)
    ranks = [QueueLoss(queue_size=8, width=4, num_images=20) for _ in range(processes)]
    for batch in batches:
        alone(batch, batch)
        parts = [batch[rank::processes] for rank in range(processes)]
        monkeypatch.setattr(module.distributed, "world", lambda: processes)
        monkeypatch.setattr(module.distributed, "gather", lambda rows, parts=parts: [normalize(part) for part in parts])
        for loss, part in zip(ranks, parts, strict=True):
            loss(part, part)
        monkeypatch.undo()
    for loss in ranks:
        assert torch.allclose(loss.queue, alone.queue) and loss.filled == alone.filled == 8


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: QueueLoss(queue_size=100, width=4, num_images=99), "queue_size is 100; allowed is from 2 to 99, the images"),
        (lambda: QueueLoss(queue_size=8, width=4, num_images=9, temperature=0), "temperature is 0"),
        (
            lambda: QueueLoss(queue_size=3, width=4, num_images=9)(torch.ones(4, 4), torch.ones(4, 4)),
            "the batch is 4; allowed .* 3",
        ),
        (lambda: QueueLoss(queue_size=8, width=4, num_images=9)(torch.ones(4, 5), torch.ones(4, 5)), r"allowed are \[B, 4\]"),
        (lambda: ContrastiveLoss(torch.ones(9, 4), negatives=9), "negatives is 9; allowed is from 1 to 8"),
        (lambda: ContrastiveLoss(torch.ones(9), negatives=1), r"bank is \[9\]"),
        (
            lambda: ContrastiveLoss(torch.ones(9, 4), negatives=1)(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([1])),
            "each the number of its row",
        ),
    ],
)
def test_memories_that_do_not_fit_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
