"""A tiny training run on a cache, for the tests of the loop; run as a script, it is the process that gets killed."""

import sys
import time
from pathlib import Path

import torch
from torch import nn

from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.views import RepeatedViews, SimpleTransform
from kdnb.distillation.teacher import LiveTeacher
from kdnb.distillation.train import train
from kdnb.losses import standardised_mse
from kdnb.runs import Run, set_seed

REGIMES = {
    "full": {"regime": "full"},
    "random_samples": {"regime": "random", "samples_per_epoch": 16},
    "random_shards": {"regime": "random", "shards_per_epoch": 2},
    "dealt": {"regime": "random", "samples_per_epoch": 16, "draw": "dealt"},
    "fixed": {"regime": "fixed", "fixed_shards": 2, "max_steps_per_epoch": 3},
}


class Net(nn.Module):
    """Images [B, 3, 4, 4] to {"features": [B, 5]}; by default with dropout and batch norm: both must survive a kill."""

    def __init__(self, plain: bool = False):
        super().__init__()
        extra = [] if plain else [nn.BatchNorm1d(8), nn.Dropout(0.2)]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.GELU(), *extra, nn.Linear(8, 5))

    def forward(self, images):
        return {"features": self.body(images)}


def frozen_teacher(device="cpu") -> LiveTeacher:
    set_seed(1)
    return LiveTeacher(Net(plain=True).eval().requires_grad_(False).to(device))


def mse(outputs, answers, labels):
    student, teacher = outputs[0]["features"], answers[0]["features"]
    mean, std = torch.zeros(5, device=student.device), torch.ones(5, device=student.device)
    return {"loss": standardised_mse(student, teacher, mean=mean, std=std)}


def run_training(cache: Path, outputs: Path, name: str, loss=mse, *, teacher=None, device="cpu", repeats=None, **settings):
    """Train a new student under regime `name` (resuming the run of that name); returns (student, history, run).

    With `repeats`, an image has so many views.
    """
    teacher = frozen_teacher(device) if teacher is None else teacher
    set_seed(0)
    student = Net(settings.pop("plain", False))
    regime = REGIMES[name] | {"batch_size": settings.pop("batch_size", 4)}
    regime |= {"gradient_accumulation_steps": settings.get("gradient_accumulation_steps", 1)}
    reading = {"shuffle": "within_shards", "reuse_buffers": True, "device": device}
    loader = build_pretraining_dataloader(cache_dir=cache, **reading, **regime)
    views = SimpleTransform(size=4)
    views = views if repeats is None else RepeatedViews(transform=views, repeats=repeats)
    run = Run(name, {"regime": name}, outputs=outputs)
    settings = {"epochs": 3, "learning_rate": 1e-2, "warmup_steps": 2, "save_every_steps": 2} | settings
    history = train(student, teacher, loader, views=views, loss=loss, run=run, **settings)
    return student, history, run


if __name__ == "__main__":

    def slow(outputs, answers, labels):
        time.sleep(0.03)  # so that a kill falls in the middle of an epoch
        return mse(outputs, answers, labels)

    for regime in REGIMES:
        trained, _, _ = run_training(Path(sys.argv[1]), Path(sys.argv[2]), regime, slow)
        torch.save(trained.state_dict(), Path(sys.argv[2]) / f"{regime}.pt")
    print("done", flush=True)
