"""Milliseconds of a small training step, alone and beside a busy process, by how long OpenMP's threads spin at a barrier.

    pytest -m benchmark -s tests/benchmarks/test_busy_neighbour.py

One interleaved run, medians of 3 rounds; about three minutes on an otherwise idle machine. A step is forward and backward of
cifar_resnet8 with 8 channels on 32 images of 32 x 32, on as many threads as there are cores. The neighbours keep half of the
cores busy. "300000" is what libgomp takes by itself, "kdnb" what `import kdnb` sets.
"""

import os
import statistics
import subprocess
import sys

import pytest

pytestmark = pytest.mark.benchmark
ROUNDS, SECONDS = 3, 6
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
    "10000": ({"GOMP_SPINCOUNT": "10000"}, CORES),
    "kdnb": ({}, CORES),
    "100": ({"GOMP_SPINCOUNT": "100"}, CORES),
    "passive": ({"OMP_WAIT_POLICY": "PASSIVE"}, CORES),
    "half of the cores": ({}, max(1, CORES // 2)),
}


def measure(environment: dict[str, str], threads: int) -> tuple[float, float]:
    """Median and mean milliseconds of a step."""
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    clean.pop("OMP_NUM_THREADS", None)
    code = STEP.format(threads=threads, seconds=SECONDS)
    out = subprocess.run([sys.executable, "-c", code], env=clean | environment, check=True, capture_output=True, text=True)
    median, mean = map(float, out.stdout.split())
    return median, mean


def test_a_small_step_alone_and_beside_busy_processes():
    times: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for busy in (False, True):
            spin = [sys.executable, "-c", "while True: pass"]
            neighbours = [subprocess.Popen(spin) for _ in range(max(1, CORES // 2) if busy else 0)]
            try:
                for name, (environment, threads) in SETTINGS.items():
                    times.setdefault((name, busy), []).append(measure(environment, threads))
            finally:
                for neighbour in neighbours:
                    neighbour.kill()
                    neighbour.wait()
    print(f"\n{'spin count':>18}  {'alone: median':>13} {'mean':>6}  {'busy: median':>13} {'mean':>6}   ms a step")
    for name in SETTINGS:
        row = [statistics.median(values) for busy in (False, True) for values in zip(*times[name, busy], strict=True)]
        print(f"{name:>18}  {row[0]:13.1f} {row[1]:6.1f}  {row[2]:13.1f} {row[3]:6.1f}")
    assert all(value > 0 for values in times.values() for pair in values for value in pair)
