"""Memory does not grow with the cache: an epoch over 50,000 images at 96x96 (1.4 GB) against one over a tenth of them.

    pytest -m benchmark -s tests/benchmarks/test_peak_memory.py

Counted is anonymous memory (RssAnon): mapped pages of the shards belong to the kernel, which drops them when it needs to.
"""

import subprocess
import sys

import pytest

from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source

pytestmark = pytest.mark.benchmark

TRAINING = """
import re, sys, threading, time
from pathlib import Path
import torch
from torch import nn
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.views import SimpleTransform
from kdnb.losses import DistillationLoss
from kdnb.runs import Run
from kdnb.distillation.teacher import LiveTeacher
from kdnb.distillation.train import train

peak = 0
def watch():
    global peak
    while True:
        kilobytes = int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
        peak = max(peak, kilobytes)
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 32))
    def forward(self, images):
        return {"features": self.body(images)}

cache, outputs, batches = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
loader = build_pretraining_dataloader(cache_dir=cache, regime="full", shuffle="all", batch_size=64, reuse_buffers=True)
views = SimpleTransform(size=96)
teacher = LiveTeacher(Net().eval().requires_grad_(False))
epochs = batches // loader.num_batches(0)
run = Run("memory", {}, outputs=outputs)
history = train(Net(), teacher, loader, views=views, loss=DistillationLoss("cosine"), run=run, epochs=epochs, learning_rate=1e-3)
steps, images = history["epochs"][-1]["step"], loader.dataset.order.num_samples
print(f"PEAK {peak / 1000:.0f} MB anonymous, {steps} steps over {images:,} images")
"""


def test_peak_anonymous_memory(real_data, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    source, peaks = open_source(str(real_data / "cifar10")), {}
    for count in (50_000, 5_000):
        cache = tmp_path / str(count)
        precompute(source, cache, image_size=96, max_samples=count, num_workers=2)
        command = [sys.executable, "-c", TRAINING, cache, tmp_path / f"run{count}", "781"]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        line = next(line for line in output.splitlines() if line.startswith("PEAK"))
        peaks[count] = int(line.split()[1])
        print(f"\n{sum(path.stat().st_size for path in cache.iterdir()) / 1e9:.2f} GB of shards: {line}")
    assert peaks[50_000] - peaks[5_000] < 300
