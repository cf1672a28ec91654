"""Milliseconds of a small training step, alone and beside a busy process, by how long OpenMP's threads spin at a barrier.

    pytest -m benchmark -s tests/benchmarks/test_busy_neighbour.py

One interleaved run, medians of 3 rounds; about four minutes on an otherwise idle machine of two cores. A step is forward and
backward of cifar_resnet8 with 8 channels on 32 images of 32 x 32. Neighbours keep none, half or all of the cores busy. "300000"
is what libgomp takes by itself, "kdnb" what `import kdnb` sets.
"""

import os
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.benchmark
ROUNDS, SECONDS = 3, 3
STEP = """
import time
import kdnb
import torch
from kdnb.models.vision import build_model

torch.set_num_threads({threads})
model, images = build_model("cifar_resnet8", width=8), torch.randn(32, 3, 32, 32)
times, end = [], time.perf_counter() + {seconds}
while time.perf_counter() < end:
    begun = time.perf_counter()
    model(images).square().mean().backward()
    times.append(time.perf_counter() - begun)
print(sorted(times)[len(times) // 2] * 1000, sum(times) / len(times) * 1000)
"""
CORES = len(os.sched_getaffinity(0))
SETTINGS = {
    "300000": ({"GOMP_SPINCOUNT": "300000"}, CORES),
    "kdnb": ({}, CORES),
    "passive": ({"OMP_WAIT_POLICY": "PASSIVE"}, CORES),
    "half of the threads": ({}, max(1, CORES // 2)),
}
NEIGHBOURS = (0, max(1, CORES // 2), CORES)


def measure(environment: dict[str, str], threads: int) -> tuple[float, float]:
    """Median and mean milliseconds of a step."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    clean.pop("OMP_NUM_THREADS", None)
    code = STEP.format(threads=threads, seconds=SECONDS)
    out = subprocess.run([sys.executable, "-c", code], env=clean | environment, check=True, capture_output=True, text=True)
    median, mean = map(float, out.stdout.split())
    return median, mean


def test_a_small_step_alone_and_beside_busy_processes():
    times: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for count in NEIGHBOURS:
            neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
            try:
                for name, (environment, threads) in SETTINGS.items():
                    times.setdefault((name, count), []).append(measure(environment, threads))
            finally:
                for neighbour in neighbours:
                    neighbour.kill()
                    neighbour.wait()
    heads = "".join(f"{f'{count} busy: median':>18} {'mean':>6}" for count in NEIGHBOURS)
    print(f"\n{'spin count':>20}{heads}   ms a step")
    for name in SETTINGS:
        pairs = [[statistics.median(values) for values in zip(*times[name, count], strict=True)] for count in NEIGHBOURS]
        print(f"{name:>20}" + "".join(f"{median:18.1f} {mean:6.1f}" for median, mean in pairs))
    assert all(value > 0 for values in times.values() for pair in values for value in pair)
