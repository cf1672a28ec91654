"""Several processes on real data: the losses of one, the bytes of one, how much sooner, and what a kill costs.

    pytest -m benchmark -s tests/benchmarks/test_rank_runs.py

About 15 minutes on two cores. KDNB_REAL_DATA holds cifar10/, cifar_resnet/ and imagenet_sample/.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source
from kdnb.runs import anchored

pytestmark = pytest.mark.benchmark
ROOT = Path(__file__).resolve().parents[2]
RANKS = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
RANKS += ["--rdzv-endpoint", "localhost:0"]
QUIET = os.environ | {"KDNB_PROGRESS": "none", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def train(ranks: int, out: Path, **parameters) -> subprocess.Popen:
    command = [*(RANKS if ranks == 2 else [sys.executable]), "-m", "kdnb.papermill", ROOT / "notebooks/train_fixed.ipynb"]
    options = [word for name, value in parameters.items() for word in ("-p", name, str(value))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, out / "out.ipynb", *options, "--no-progress-bar"], env=QUIET, cwd=ROOT, **pipes)


def history(name: str) -> list[float]:
    return [step["loss"] for step in json.loads((anchored("outputs") / name / "history.json").read_text())["steps"]]


@pytest.fixture
def runs():
    """A name below outputs/ for runs that are removed afterwards."""
    name = f"benchmark_ranks_{os.getpid()}"
    yield name
    shutil.rmtree(anchored("outputs") / name, ignore_errors=True)


def test_losses_of_one_and_two_processes_on_cifar10(real_data, tmp_path, runs):
    """50 steps of a small vision transformer, which has neither dropout nor batch statistics, in float32."""
    source = {"dataset": str(real_data / "cifar10"), "split": "train"}
    precompute(open_source(**source), tmp_path / "cache", image_size=32, max_samples=2 * 2048)
    shape = "img_size=32 patch_size=4 depth=4 embed_dim=64 num_heads=2"
    given = source | {
        "cache_dir": tmp_path / "cache", "cache_shard_size": 2048, "fixed_shards": 2, "eval_split": "none", "epochs": 1,
        "teacher": "cifar_resnet20", "teacher_args": "num_classes=10",
        "teacher_checkpoint": real_data / "cifar_resnet/resnet20-12fca82f.th", "student": "vit_tiny_patch16_224",
        "student_args": shape, "batch_size": 64, "max_steps_per_epoch": 50, "warmup_steps": 5, "mixed_precision": "no",
    }  # fmt: skip
    for ranks in (1, 2):
        process = train(ranks, tmp_path, run_name=f"{runs}/{ranks}", **given)
        said = process.communicate()[0]
        assert process.returncode == 0, said[-3000:]
    one, two = history(f"{runs}/1"), history(f"{runs}/2")
    worst = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
    print(f"\n{len(one)} steps, {one[0]:.4f} to {one[-1]:.4f}; losses of two processes differ by at most {worst:.1e}, relative")
    assert len(one) == 50 and worst < 1e-5


def test_a_rank_that_is_killed_ends_the_other_and_the_run_goes_on(tmp_path, runs):
    """Ten kills at random moments of two-rank runs on the digits; seconds until everything has ended."""
    given = {"fixed_shards": 25, "epochs": 20, "eval_split": "none", "save_every_steps": 20}
    assert train(2, tmp_path, run_name=f"{runs}/whole", **given).wait() == 0
    dice, seconds, kills = random.Random(0), [], 0
    while True:
        process = train(2, tmp_path, run_name=f"{runs}/killed", **given)
        checkpoints = anchored("outputs") / runs / "killed/checkpoints"
        before = {path.name for path in checkpoints.glob("*")}
        while kills < 10 and process.poll() is None and {path.name for path in checkpoints.glob("*")} == before:
            time.sleep(0.05)
        if kills < 10 and process.poll() is None:
            time.sleep(dice.random() * 2)
            children = psutil.Process(process.pid).children(recursive=True)
            found = [child for child in children if "ipykernel" in str(child.cmdline())]
            begun = time.monotonic()
            if found:
                dice.choice(found).kill()
                kills += 1
        process.communicate()
        if process.returncode == 0:
            break
        seconds.append(time.monotonic() - begun)
        assert not any("ipykernel" in str(child.cmdline()) for child in found if child.is_running())
    whole, killed = history(f"{runs}/whole"), history(f"{runs}/killed")
    worst = max(abs(a - b) / a for a, b in zip(whole, killed, strict=True))
    print(f"\n{kills} kills; everything ended after {statistics.median(seconds):.1f} s (at most {max(seconds):.1f} s)")
    print(f"losses of the run that went on differ by at most {worst:.1e}, relative")
    assert max(seconds) < 15 and worst < 1e-3


JOB = """
import sys
import time
from pathlib import Path
from kdnb import distributed
from kdnb.data.sources import open_source
from kdnb.data.precompute import precompute
source, begun = open_source(sys.argv[1]), time.monotonic()
precompute(source, sys.argv[2], image_size=224, cache_shard_size=256, part=distributed.rank(), parts=distributed.world())
Path(sys.argv[2] + f"_seconds{distributed.rank()}").write_text(str(time.monotonic() - begun))
"""


def test_precompute_of_4096_photographs_by_one_and_two_processes(real_data, tmp_path):
    (path,) = (real_data / "imagenet_sample").glob("*.parquet")  # of 256 photographs
    (tmp_path / "images").mkdir()
    for copy in range(16):
        (tmp_path / f"images/train-{copy:05d}-of-00016.parquet").symlink_to(path)
    (tmp_path / "job.py").write_text(JOB)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for ranks in (1, 2):
            folder = tmp_path / f"cache{ranks}"
            shutil.rmtree(folder, ignore_errors=True)
            command = [*(RANKS if ranks == 2 else [sys.executable]), tmp_path / "job.py", tmp_path / "images", folder]
            subprocess.run(command, env=QUIET, check=True, capture_output=True)
            each = [float((tmp_path / f"cache{ranks}_seconds{rank}").read_text()) for rank in range(ranks)]
            seconds[ranks].append(max(each))
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / f"cache{ranks}").iterdir()} for ranks in (1, 2))
    assert one == two and len(one) == 17
    medians = {ranks: statistics.median(values) for ranks, values in seconds.items()}
    speed = {ranks: 4096 / value for ranks, value in medians.items()}
    print(f"\none process {speed[1]:.0f} images/s, two {speed[2]:.0f}: {medians[1] / medians[2]:.2f} times as fast")
