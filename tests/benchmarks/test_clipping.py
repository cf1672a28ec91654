"""Should clipping count the projection, which is thrown away after training? Held-out loss and probe with, without, unclipped.

CIFAR-10, ResNet-56 to ResNet-8, stored clean features, 384 steps of 64, at a limit that binds; KDNB_SEEDS paired seeds (6), about
20 s each and way on one core. `pytest -m benchmark -s tests/benchmarks/test_clipping.py` prints the table of RESULTS.md.
"""

import os

import numpy as np
import pytest
import torch

from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.loader import BatchReader, build_pretraining_dataloader
from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source
from kdnb.data.views import CleanTransform
from kdnb.distillation.train import train
from kdnb.evaluation.features import Features, extract_features
from kdnb.evaluation.probe import linear_probe
from kdnb.evaluation.statistics import mean_interval
from kdnb.losses import DistillationLoss
from kdnb.models.vision import FeatureModel, Student, build_model, freeze
from kdnb.runs import Run, set_seed

pytestmark = pytest.mark.benchmark
VIEW, LIMIT = CleanTransform(size=32), 0.25
IMAGES = {"train": 8192, "test": 2000}


def features_of(model, folder) -> Features:
    return extract_features(model, BatchReader(CachedTensorDataset(folder), batch_size=250, drop_last=False), transform=VIEW)


def distil(way: str, seed: int, folders: dict, answers: dict, out, monkeypatch) -> tuple[float, float]:
    """(held-out loss, probe accuracy) of a student whose gradient is clipped over `all` weights, its `own`, or `none`."""
    table = torch.zeros(int(answers["train"].ids.max()) + 1, answers["train"].features.shape[1])
    table[answers["train"].ids] = answers["train"].features
    set_seed(seed)
    student = Student(build_model("cifar_resnet8", num_classes=0), teacher_dim=table.shape[1])
    if way == "own":
        from accelerate import Accelerator

        clip, dropped = Accelerator.clip_grad_norm_, {id(weight) for weight in student.projection.parameters()}

        def only_own(self, weights, limit):
            return clip(self, [weight for weight in weights if id(weight) not in dropped], limit)

        monkeypatch.setattr(Accelerator, "clip_grad_norm_", only_own)
    taught = answers["train"].features
    loss = DistillationLoss("mse", mean=taught.mean(0), std=taught.std(0, correction=0))
    loader = build_pretraining_dataloader(cache_dir=folders["train"], shuffle="all", seed=seed, batch_size=64)
    settings = {"epochs": 3, "learning_rate": 2e-3, "warmup_steps": 50, "mixed_precision": "no", "keep_checkpoints": 1}
    settings |= {"clip_grad_norm": None if way == "none" else LIMIT, "seed": seed}
    train(
        student, lambda views, batch: [{"features": table[batch["id"]]}], loader, views=VIEW, loss=loss,
        run=Run(f"{way}_{seed}", {}, outputs=out), **settings,
    )  # fmt: skip
    monkeypatch.undo()
    found = {split: features_of(student, folder) for split, folder in folders.items()}
    with torch.no_grad():
        projected = [{"features": student.projection(found["test"].features)}]
    held_out = loss(projected, [{"features": answers["test"].features}], None)["loss"].item()
    return held_out, linear_probe(found["train"], found["test"]).top1


def test_clipping_with_and_without_the_projection(real_data, tmp_path, monkeypatch):
    os.environ["KDNB_PROGRESS"] = "none"
    folders, seeds = {}, range(int(os.environ.get("KDNB_SEEDS", 6)))
    for split, count in IMAGES.items():
        folders[split] = tmp_path / split
        source = open_source(str(real_data / "cifar10"), split=split)
        precompute(source, folders[split], image_size=32, max_samples=count)
    checkpoint = real_data / "cifar_resnet/resnet56-4bfd9763.th"
    teacher = freeze(FeatureModel(build_model("cifar_resnet56", num_classes=10, checkpoint=checkpoint)))
    answers = {split: features_of(teacher, folder) for split, folder in folders.items()}
    ways = ("all", "own", "none")
    found = {way: np.array([distil(way, seed, folders, answers, tmp_path, monkeypatch) for seed in seeds]) for way in ways}
    print(f"\nclipping at {LIMIT} over | held-out loss | minus all | probe | minus all, points")
    for way in ways:
        loss, probe = found[way].mean(0)
        cells = []
        for column, scale in ((0, 1), (1, 100)):
            difference = mean_interval(scale * (found[way] - found["all"])[:, column])
            cells.append(f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})" if way != "all" else "")
        print(f"{way} | {loss:.4f} | {cells[0]} | {probe:.4f} | {cells[1]}")
    assert np.isfinite(np.concatenate(list(found.values()))).all()
