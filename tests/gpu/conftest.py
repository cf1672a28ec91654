"""`pytest tests/gpu`: what needs a GPU. Each check takes a device and runs on the CPU as well, so that it is run everywhere."""

import pytest
import torch

from kdnb.distributed import find_device


def need_gpus(count: int):
    """Skip the test where there are fewer GPUs."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < count:
        pytest.skip(f"it wants {count} GPU(s), and torch.cuda finds {there}")


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch) -> torch.device:
    """The device that `find_device` finds: the CPU, or the GPU."""
    if request.param == "cuda":
        need_gpus(1)
    else:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert find_device().type == request.param
    return find_device()


@pytest.fixture
def two_gpus():
    """Skips the test where there are fewer."""
    need_gpus(2)


def pytest_terminal_summary(terminalreporter):
    """Say why checks were skipped, which pytest itself does only where it is asked to."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "tests/gpu/" in report.nodeid]
    for why in sorted({report.longrepr[2] for report in skipped}):
        count = sum(report.longrepr[2] == why for report in skipped)
        terminalreporter.write_line(f"tests/gpu, {count} of {len(skipped)} skipped checks: {why.removeprefix('Skipped: ')}")
