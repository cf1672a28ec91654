"""Batches from the device's memory are bitwise those from the shards, and only what is visited is copied; what a step takes is
measured as training takes it, with stand-ins for the GPU's counters, and running out of memory is a result, too."""

import weakref

import pytest
import torch
from torch import nn

from kdnb import distributed
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.distillation import device_memory
from kdnb.distillation.device_memory import DeviceLoader, bytes_on_device, fits_in_memory, step_bytes, visited_shards

REGIMES = [
    {"regime": "full"}, {"regime": "full", "max_steps_per_epoch": 2}, {"regime": "random", "samples_per_epoch": 11},
    {"regime": "random", "shards_per_epoch": 2}, {"regime": "fixed", "fixed_shards": 2, "fixed_choice": "seeded"},
]  # fmt: skip


@pytest.mark.parametrize("settings", REGIMES, ids=str)
@pytest.mark.parametrize("shuffle", ["none", "within_shards", "all"])
def test_the_same_batches_bitwise(cache, settings, shuffle):
    loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4, shuffle=shuffle, seed=3, **settings)
    there = DeviceLoader(loader, epochs=3)
    for epoch, start in ((0, 0), (1, 1), (2, 0)):
        pairs = list(zip(loader.batches(epoch, start), there.batches(epoch, start), strict=True))
        assert len(pairs) == loader.num_batches(epoch) - start > 0
        for a, b in pairs:
            assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_only_visited_shards_are_copied(cache):
    """Shards of 10, 10 and 7 rows of 48 bytes and a label."""
    fixed = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4, regime="fixed", fixed_shards=2)
    assert visited_shards(fixed, 5) == [0, 1] and bytes_on_device(fixed, 5) == 20 * (48 + 8)
    capped = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4, shuffle="none", max_steps_per_epoch=2)
    assert visited_shards(capped, 5) == [0]  # in stored order, 8 images an epoch never leave the first shard
    assert visited_shards(build_pretraining_dataloader(cache_dir=cache[0], batch_size=4), 1) == [0, 1, 2]


@pytest.fixture
def emptied(monkeypatch) -> list:
    """What was alive of `Net.copies` each time that the GPU's cache was emptied; 100 bytes are allocated, 700 at the peak."""
    seen = []
    for name, value in {"memory_allocated": 100, "max_memory_allocated": 700}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append([copy() is not None for copy in Net.copies]))
    Net.copies.clear()
    return seen


class Net(nn.Module):
    """A student that remembers what it was called with, and which of it are alive."""

    calls, copies = [], []

    def __init__(self, *, room: float = float("inf")):
        super().__init__()
        self.body, self.room = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)), room

    def forward(self, view):
        if not self.copies or self.copies[-1]() is not self:
            self.copies.append(weakref.ref(self))
        if len(self.calls) >= self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        out = self.body(view)
        waiting = self.body[2].weight.grad is not None
        self.calls.append({"rows": len(view), "dtype": out.dtype, "training": self.training, "gradients": waiting})
        return out


def views(images, ids, epoch):
    return [images.float()]


views.num_global = 1


@pytest.fixture
def measure(cache, emptied):
    """Function that measures a step of `student` on batches of 4; returns (bytes, its calls, the teacher's)."""

    def run(student: nn.Module, **settings):
        loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4)
        teacher_calls = []

        def teacher(images, batch):
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
            teacher_calls.append((batch["id"].tolist(), dtype, torch.is_grad_enabled()))

        def loss(outputs, targets, labels):
            assert outputs[0].dtype == torch.float32 and len(labels) == len(outputs[0])
            return {"loss": outputs[0].square().mean()}

        Net.calls.clear()
        settings = {"mixed_precision": "no", "gradient_accumulation_steps": 1} | settings
        taken = step_bytes(student, loader, teacher, views, loss, **settings)
        assert len(next(loader.batches(0))["id"]) == 4  # the loader reads whole batches again
        return taken, list(Net.calls), teacher_calls

    return run


def test_the_student_stays_as_it_was_and_the_copy_goes(measure, emptied):
    student = Net()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert measure(student, mixed_precision="bf16")[0] == 600
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(weight.grad is None for weight in student.parameters())
    assert emptied[-1] == [False]


def test_a_step_is_taken_in_the_precision_of_training(measure):
    _, calls, teacher_calls = measure(Net(), mixed_precision="bf16")
    assert {(call["dtype"], call["training"]) for call in calls} == {(torch.bfloat16, True)}
    assert {call[1:] for call in teacher_calls} == {(torch.bfloat16, False)}
    assert {call["dtype"] for call in measure(Net())[1]} == {torch.float32}


@pytest.mark.parametrize("accumulation, gradients", [(1, [False, False]), (2, [False, True] * 2), (9, [False, True] * 2)])
def test_gradients_wait_for_the_next_batch_and_moments_for_the_next_step(measure, accumulation, gradients):
    assert [call["gradients"] for call in measure(Net(), gradient_accumulation_steps=accumulation)[1]] == gradients


def test_a_rank_measures_its_part_of_the_batch_and_room_to_exchange_gradients(measure, monkeypatch):
    whole = measure(Net())[2][0][0]
    alone = device_memory.accelerator_for("no", torch.device("cpu"))
    monkeypatch.setattr(device_memory, "accelerator_for", lambda *arguments: alone)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    taken, _, teacher_calls = measure(Net())
    assert taken == 600 + 4 * (6 + 98) and teacher_calls[0][0] == whole[1::2]


@pytest.mark.parametrize("room", [0, 1])
def test_running_out_of_memory_says_so_and_frees_what_the_trial_took(measure, emptied, room):
    """In the first step, or in the second, when the moments are there."""
    assert measure(Net(room=room), mixed_precision="bf16")[0] is None
    assert emptied[-1] == [False]


def test_other_errors_are_told(measure):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        measure(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))


def test_room_is_left_for_the_step():
    gigabyte = 10**9
    assert fits_in_memory(10 * gigabyte, free=20 * gigabyte, peak=5 * gigabyte)[0]
    fits, reason = fits_in_memory(10 * gigabyte, free=14 * gigabyte, peak=5 * gigabyte)
    assert not fits and reason.endswith("read from the shards") and "a step may take 5" in reason
    fits, reason = fits_in_memory(1, free=90 * gigabyte, peak=None)
    assert not fits and reason == "1 B of images, 90 GB free, not enough for a step: read from the shards"


@pytest.fixture
def place(cache, monkeypatch, capsys):
    """Function that places data beside a stand-in for 90 GB of a GPU; returns (whether they stay on disk, what was printed)."""

    def run(choice: str, *, peak, copied: bool = True):
        loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4)
        loader.device = torch.device("cuda", 0)

        def copy(loader, epochs):
            if not copied:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return "on the device"

        monkeypatch.setattr(device_memory, "step_bytes", lambda *arguments, **settings: peak)
        monkeypatch.setattr(device_memory, "DeviceLoader", copy)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (90 * 10**9, 10**11))
        p = {"cache_on_device": choice, "epochs": 1, "mixed_precision": "auto", "gradient_accumulation_steps": 1}
        placed = device_memory.maybe_cache_on_device(loader, None, None, None, None, **p)
        return placed is loader, capsys.readouterr().out

    return run


def test_auto_reads_the_shards_where_a_step_or_the_images_run_out_of_memory(place):
    assert place("auto", peak=10**9) == (False, "cache_on_device: 1.51 kB of images, 90 GB free, of which a step may take 1 GB: "
                                         "kept on the device\n")  # fmt: skip
    stays, printed = place("auto", peak=None)
    assert stays and "not enough for a step" in printed
    stays, printed = place("auto", peak=10**9, copied=False)
    assert stays and printed.endswith("of images do not fit on cuda:0: read from the shards\n")


def test_images_that_have_to_fit_and_do_not_are_refused_in_a_sentence(place):
    with pytest.raises(MemoryError, match="cache_on_device is true, but .* of images do not fit on cuda:0; set it to auto"):
        place("true", peak=None, copied=False)
