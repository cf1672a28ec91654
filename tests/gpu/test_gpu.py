"""On a GPU it is as on the CPU: batches bitwise, training resumed in every precision, stored outputs, two ranks."""

import time

import pytest
import torch
from caches import write_cache
from test_distributed import launch
from training import frozen_teacher, mse, run_training

from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.loader import BatchReader, WorkerLoader, build_pretraining_dataloader
from kdnb.data.reader import ShardReader
from kdnb.data.views import SimpleTransform
from kdnb.distillation.device_memory import DeviceLoader, step_bytes
from kdnb.distillation.teacher import CachedTeacher
from kdnb.distillation.teacher_outputs import OutputCodec, TeacherCache
from kdnb.text.batches import TextLoader
from kdnb.text.tokens import TokenTable


def flat(batch: dict) -> dict[str, torch.Tensor]:
    """A batch with the tokens of texts beside its other tensors, in memory of its own."""
    found = {}
    for name, value in batch.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        found |= {name + part: tensor.clone() for part, tensor in parts}
    return found


def slowly(batches, device) -> list[dict]:
    """Copies of all batches, made on a device that is busy: memory that is filled again too early would show."""
    found = []
    for batch in batches:
        if device.type == "cuda":
            torch.cuda._sleep(10_000_000)  # clock cycles, some milliseconds
        else:
            time.sleep(0.002)
        found.append(flat(batch))
    return found


def same(first: list[dict], second: list[dict]) -> bool:
    return len(first) == len(second) > 0 and all(
        a.keys() == b.keys() and all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)
        for a, b in zip(first, second, strict=True)
    )


def image_batches(kind: str, folder, device) -> list[dict]:
    dataset, settings = CachedTensorDataset(folder, shuffle="all", seed=3), {"batch_size": 16, "device": device}
    if kind == "workers":
        loader = WorkerLoader(dataset, num_workers=1, **settings)
    else:
        loader = BatchReader(dataset, reuse_buffers=True, **settings)
    if kind == "device's memory":
        loader = DeviceLoader(loader, epochs=2)
    batches = [batch for epoch in range(2) for batch in slowly(loader.batches(epoch), device)]
    assert {batch["image"].device.type for batch in batches} == {device.type} and batches[0]["id"].device.type == "cpu"
    return batches


@pytest.mark.parametrize("kind", ["one thread", "workers", "device's memory"])
def test_batches_of_images_are_bitwise_those_of_the_cpu(tmp_path, device, kind):
    """Streams and pinned buffers, of 200 kB, that are filled again while a busy GPU still copies from them."""
    write_cache(tmp_path / "cache", (100, 100, 56), size=64)
    plain = image_batches("one thread", tmp_path / "cache", torch.device("cpu"))
    assert same(image_batches(kind, tmp_path / "cache", device), plain) and len(plain) == 32


def test_batches_of_texts_are_bitwise_those_of_the_cpu(device):
    lengths = torch.randint(1, 40, (300,))
    rows = TokenTable(torch.arange(int(lengths.sum())).numpy(), lengths.numpy())
    found = {}
    for where in (device, torch.device("cpu")):
        loader = TextLoader({"text": (rows, 0)}, torch.arange(300) % 5, batch_size=8, device=where)
        found[where] = slowly(loader.batches(0), where)
    assert same(found[device], found[torch.device("cpu")])


class Crash(Exception):
    pass


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_goes_on_after_a_crash_as_if_undisturbed(cache, tmp_path, device, precision):
    """Bitwise on the CPU; on a GPU, whose sums may be added in another order, as closely as they can be."""
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("the CPU trains in no or bf16, and the GPU in fp16 as well")
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bf16")
    settings, calls = {"device": device, "mixed_precision": precision}, []

    def crashing(*arguments):
        calls.append(1)
        if len(calls) == 10:
            raise Crash
        return mse(*arguments)

    student, history, whole = run_training(cache[0], tmp_path / "a", "full", **settings)
    with pytest.raises(Crash):
        run_training(cache[0], tmp_path / "b", "full", crashing, **settings)
    resumed, again, run = run_training(cache[0], tmp_path / "b", "full", **settings)
    tolerance = 0 if device.type == "cpu" else 1e-3
    assert [r["loss"] for r in again["steps"]] == pytest.approx([r["loss"] for r in history["steps"]], rel=tolerance, abs=0)
    for name, value in student.state_dict().items():
        assert torch.allclose(resumed.state_dict()[name].float(), value.float(), rtol=tolerance, atol=tolerance), name
    scaler = run.load_checkpoint()["scaler"]
    assert scaler == whole.load_checkpoint()["scaler"] and (scaler is not None) == (precision == "fp16")


def test_stored_outputs_train_as_the_live_teacher_does(cache, tmp_path, device):
    """While the store fills, and when all of it is read; float32, so that nothing is rounded."""
    live, codec = frozen_teacher(device), OutputCodec(feature_dim=5, storage="float32")
    store = TeacherCache(tmp_path / "outputs", ShardReader(cache[0]), row=codec.row, num_views=2, facts={})
    losses = {}
    for name in ("live", "filling", "reading"):
        cached = CachedTeacher(store, codec, lambda: live.model, repeats=2)
        settings = {"device": device, "repeats": 2, "mixed_precision": "no", "epochs": 4, "plain": True}
        settings |= {"teacher": live if name == "live" else cached}
        _, history, _ = run_training(cache[0], tmp_path / name, "full", **settings)
        losses[name] = [record["loss"] for record in history["steps"]]
        if name == "reading":
            assert cached.misses == 0 and cached.hits > 0
    assert losses["filling"] == pytest.approx(losses["live"], rel=1e-5)
    assert losses["reading"] == pytest.approx(losses["live"], rel=1e-5)


def test_what_a_step_takes_is_measured_and_running_out_is_noticed(cache, device):
    """A layer of 49 million weights: 196 MB, of which gradients and both moments take three times as much in a step."""
    if device.type == "cpu":
        pytest.skip("the CPU has no counter of its memory; stand-ins for it are in tests/distillation/test_device_memory.py")
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1_000_000)).to(device)
    loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4, device=device)
    views, weights = SimpleTransform(size=4), sum(w.nbytes for w in student.parameters())

    def measure() -> int | None:
        loss = lambda outputs, answers, labels: {"loss": outputs[0].square().mean()}  # noqa: E731
        settings = {"mixed_precision": "no", "gradient_accumulation_steps": 2}
        return step_bytes(student, loader, lambda views, batch: [], views, loss, **settings)

    assert 3 * weights <= measure() <= 8 * weights
    before = torch.cuda.memory_allocated(device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + weights // 2) / total, device)
    try:
        assert measure() is None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert torch.cuda.memory_allocated(device) == before


def on_one_and_on_two(cache, folder, what: str) -> tuple[dict, list[dict]]:
    """What one process found on a GPU, and each of two on one of its own."""
    for name in "12":
        (folder / name).mkdir()
    (alone,), together = (launch(count, cache[0], folder / str(count), what, gpus=True) for count in (1, 2))
    return alone, together


def test_two_ranks_train_as_one_does(cache, tmp_path, two_gpus):
    """NCCL: losses, weights, numbers of their own, and a killed job that goes on."""
    alone, together = on_one_and_on_two(cache, tmp_path, "all")
    for rank in together:
        for what in ("images", "accumulated", "texts"):
            assert rank[what]["losses"] == pytest.approx(alone[what]["losses"], rel=1e-4)
        assert rank["images"]["weights"] == together[0]["images"]["weights"]
    first, second = (rank["dropout"] for rank in together)
    assert all(mine != other for mine, other in zip(first["masks"], second["masks"], strict=True))
    launch(2, cache[0], tmp_path, "killed", survives=False, gpus=True)
    resumed = launch(2, cache[0], tmp_path, "go on after a kill", gpus=True)
    assert [rank["masks"] for rank in resumed] == [first["masks"][8:], second["masks"][8:]]
    assert resumed[0]["losses"] == pytest.approx(first["losses"], rel=1e-4)


def test_two_ranks_share_the_statistics_of_batch_norm(cache, tmp_path, two_gpus):
    alone, together = on_one_and_on_two(cache, tmp_path, "sync")
    assert together[0]["losses"] == pytest.approx(alone["losses"], rel=1e-3)
