"""A teacher is measured before it is believed."""

import math

import pytest
import torch
from torch import nn

from kdnb.data.views import CleanTransform
from kdnb.distillation.teacher import LiveTeacher
from kdnb.distillation.teacher_check import feature_statistics, measure_teacher, require_better_than_chance

PLAIN = CleanTransform(size=4)


class Brightness(nn.Module):
    """Features: mean of each channel; logits: one-hot of the brightest channel, made soft by `scale`."""

    def __init__(self, scale: float = 100.0):
        super().__init__()
        self.scale = scale

    def forward(self, images):
        means = images.mean((2, 3))
        return {"features": means, "logits": means * self.scale}


def batches(count=4):
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        images = torch.randint(0, 100, (5, 3, 4, 4), dtype=torch.uint8, generator=generator)
        labels = torch.arange(5) % 3
        images[torch.arange(5), labels] += 150
        yield {"image": images, "id": torch.arange(5) + 5 * number, "label": labels}


def test_statistics_are_those_of_the_first_images():
    teacher = LiveTeacher(Brightness().eval())
    mean, std = feature_statistics(teacher, batches(), PLAIN, num_images=10)
    features = torch.cat([batch["image"].double().mean((2, 3)) / 255 for batch in batches(2)])
    assert torch.allclose(mean.double(), features.mean(0), atol=1e-6)
    assert torch.allclose(std.double(), features.std(0, correction=0), atol=1e-6)


def test_scores_is_accuracy_entropy_and_chance():
    scores = measure_teacher(LiveTeacher(Brightness(1000.0).eval()), batches(), PLAIN)
    assert scores["accuracy"] == 1 and scores["examples"] == 20 and scores["chance"] == pytest.approx(1 / 3)
    assert scores["entropy"] < 0.01
    unsure = measure_teacher(LiveTeacher(Brightness(0.0).eval()), batches(), PLAIN)
    assert unsure["entropy"] == pytest.approx(math.log(3))


@pytest.mark.parametrize("accuracy, fine", [(0.10, False), (0.12, False), (0.125, True), (0.9, True)])
def test_what_chance_explains_is_refused(accuracy, fine):
    """Ten classes, 2,000 images: chance 0.1, three standard deviations 0.0201."""
    scores = {"accuracy": accuracy, "chance": 0.1, "examples": 2000, "entropy": 1.0}
    if fine:
        require_better_than_chance(scores, head_is_random=False)
    else:
        with pytest.raises(ValueError, match="of 2000 held-out examples .* that is chance level.* set loss to mse or cosine"):
            require_better_than_chance(scores, head_is_random=False)


def test_a_random_head_is_refused_whatever_its_luck():
    with pytest.raises(ValueError, match="its classification head was not in the checkpoint"):
        require_better_than_chance({"accuracy": 0.9, "chance": 0.1, "examples": 100, "entropy": 1.0}, head_is_random=True)
