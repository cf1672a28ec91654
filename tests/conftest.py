"""What several test files need."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import stand_ins
import torch
from caches import write_cache
from hub import Hub

from kdnb.distillation.teacher_model import builtin_teacher

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images, teachers and texts; tests that need it are skipped, and say so, where it is absent."""
    folder = Path(os.environ.get("KDNB_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.name}/: set KDNB_REAL_DATA to a folder with cifar10/, cifar_resnet/, ...")
    return folder.resolve()


@pytest.fixture(scope="session")
def digits_teacher() -> Path:
    """outputs/teacher_digits of this checkout, which the notebooks use as well: trained once for all tests that copy it."""
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        return builtin_teacher().parent
    finally:
        os.chdir(here)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers and threads in every test, whatever ran before it: Accelerate gives a rank one thread for good."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_cache():
    """The function `write_cache`."""
    return write_cache


@pytest.fixture
def cache(tmp_path) -> tuple[Path, torch.Tensor]:
    """(folder, images [27, 3, 4, 4]) of a cache with shards of 10, 10 and 7 labelled images."""
    return tmp_path / "cache", write_cache(tmp_path / "cache")


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory):
    """A Hub on this machine with small stand-ins for the data sets and language models that params/ names."""
    folder = tmp_path_factory.mktemp("hub")
    stand_ins.data_sets(folder / "datasets")
    stand_ins.language_models(folder / "models")
    hub = Hub(folder)
    yield hub
    hub.close()


@pytest.fixture
def hub(hub_server):
    """That Hub, of which nothing was asked yet, and of which nothing unknown may be asked."""
    hub_server.requests.clear()
    yield hub_server
    assert not hub_server.unknown, f"tests/hub.py does not know {', '.join(hub_server.unknown)}"


@pytest.fixture
def with_hub(hub, tmp_path):
    """Function that runs code in a process that knows no other Hub, and returns what it prints."""

    def run(code: str, *arguments: str, home: Path = tmp_path / "home", code_of_exit: int = 0, **variables: str) -> str:
        command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
        environment = os.environ | hub.environment(home) | variables
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code_of_exit, done.stdout + done.stderr
        return done.stdout

    return run
