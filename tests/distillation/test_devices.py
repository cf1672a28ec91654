"""Which device a process works on, with stand-ins for two GPUs: the same one for batches, models and the loop, on every rank."""

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState

from kdnb import distributed
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.distillation import build, teacher_model
from kdnb.distillation.optim import accelerator_for
from kdnb.distributed import find_device
from kdnb.params import arguments_of


@pytest.fixture
def machine(monkeypatch):
    """Function that makes this process a rank on a machine with so many GPUs; the group of ranks is a stand-in, too."""
    current = [0]

    def become(local_rank: int, *, world: int = 2, gpus: int = 2):
        variables = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        fakes = {"is_available": lambda: gpus > 0, "device_count": lambda: gpus, "current_device": lambda: current[0]}
        fakes |= {"set_device": lambda device: current.__setitem__(0, getattr(device, "index", device))}
        fakes |= {"is_bf16_supported": lambda **settings: False}
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        group = {"is_initialized": lambda: True, "get_world_size": lambda *of: world, "get_rank": lambda *of: local_rank}
        for name, fake in group.items():
            monkeypatch.setattr(torch.distributed, name, fake)

    AcceleratorState._reset_state(reset_partial_state=True)
    yield become
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("local_rank", [0, 1])
@pytest.mark.parametrize("first", ["the loader", "the group"])
def test_batches_models_and_the_loop_are_on_one_device(machine, monkeypatch, p, local_rank, first):
    """Whoever asks first: the loader's cell comes before anything that connects the ranks."""
    machine(local_rank)
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, device: moved.append(device) or model)
    if first == "the group":
        distributed.init_distributed()
    loader = build_pretraining_dataloader(device=find_device(), **arguments_of(build_pretraining_dataloader, p))
    teacher = teacher_model.build_teacher(**arguments_of(teacher_model.build_teacher, p))
    build.build_student(p.student, teacher, student_layers=p.student_layers, **p.student_args)
    accelerator = accelerator_for("auto", loader.device)
    expected = torch.device("cuda", local_rank)
    assert {loader.device, accelerator.device, find_device(), *moved} == {expected} and len(moved) == 2
    assert torch.cuda.current_device() == local_rank and accelerator.process_index == local_rank


@pytest.mark.parametrize("local_rank", [0, 1])
def test_a_cpu_that_is_asked_for_is_the_device_of_all(machine, monkeypatch, local_rank):
    machine(local_rank)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    distributed.init_distributed()
    assert find_device() == torch.device("cpu") and accelerator_for("auto", find_device()).device.type == "cpu"


def test_ranks_on_a_mac_share_its_processor(machine, monkeypatch):
    """Its GPU knows no group of processes."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    machine(0, gpus=0, world=1)
    assert find_device() == torch.device("mps")
    machine(0, gpus=0)
    assert find_device() == torch.device("cpu")


def test_more_ranks_than_gpus_are_refused_before_they_are_connected(machine):
    machine(1, gpus=1)
    with pytest.raises(ValueError, match=r"LOCAL_RANK is 1, but this process sees 1 GPU\(s\); start as many processes"):
        distributed.init_distributed()


def test_one_process_may_choose_its_gpu(machine, monkeypatch):
    """Accelerate calls it cuda, without a number."""
    machine(0, world=1)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(accelerate.PartialState, "default_device", torch.device("cuda"))
    torch.cuda.set_device(1)
    assert find_device() == torch.device("cuda", 1)
    assert accelerator_for("no", find_device()).device == torch.device("cuda")
    with pytest.raises(ValueError, match="the loader's batches go to cuda:0, but this process trains on cuda; give the loader"):
        accelerator_for("no", torch.device("cuda", 0))


def test_a_loader_for_another_device_is_refused(cache, monkeypatch):
    loader = build_pretraining_dataloader(cache_dir=cache[0], batch_size=4, device="meta")
    monkeypatch.setattr(accelerate.PartialState, "default_device", torch.device("cpu"))
    with pytest.raises(ValueError, match="the loader's batches go to meta, but this process trains on cpu; give the loader"):
        accelerator_for("no", loader.device)
