"""Between two records, training never waits for the device: of no tensor's value the host asks there."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kdnb
from kdnb.distillation import records

WAYS = {
    "live": {},
    "stored": {"cache_teacher_features": True, "teacher_views": 2},
    "multicrop": {"augmentation": "multicrop", "use_local_crops": True, "local_crops_number": 2, "local_crop_size": 16},
    "soft targets": {"loss": "soft_targets", "alpha": 0.5},
}


class Waits(TorchDispatchMode):
    """Counts the operations whose result is a number for the host, or a shape that depends on numbers."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        masks = name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        self.count += name in self.NAMES or masks
        return function(*args, **(kwargs or {}))


def test_what_waits_is_counted():
    with Waits() as waits:
        assert torch.ones(3).sum().item() == 3 and torch.ones(3)[torch.ones(3) > 0].shape == (3,)
    assert waits.count == 2


@pytest.mark.parametrize("way", WAYS)
def test_more_steps_wait_no_more_often(way, digits_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = kdnb.load_teacher(str(digits_teacher / "final_model"))
    monkeypatch.setattr(records, "_FETCH_S", float("inf"))  # one record, at the epoch's end
    cache = kdnb.precompute("digits", "cache", image_size=32, max_samples=240, cache_shard_size=60)

    def count(steps: int) -> int:
        student = kdnb.build_student("cifar_resnet8", teacher, num_classes=10, width=4)
        settings = {"dataset": "digits", "epochs": 1, "max_steps_per_epoch": steps, "batch_size": 8} | WAYS[way]
        with Waits() as waits:
            kdnb.distill(student, teacher, cache, **settings)
        return waits.count

    count(1)  # measures the teacher, and stores its outputs
    assert count(30) == count(5)
