"""Views/s against torchvision and uint8 `F.interpolate`, sample by sample; with and without the reader.

    OMP_NUM_THREADS=2 pytest -m benchmark -s tests/benchmarks/test_view_speed.py

One interleaved run of short rounds: median, best, and the processor time of this process for 64 images, which a busy machine
changes least. Crop, resize, mirror, to float in [0, 1]; batches of 64, about 1 GB of memory and a minute.
"""

import statistics
import time
from importlib.metadata import version

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from kdnb.data.datasets import RandomSubsetCachedDataset
from kdnb.data.loader import BatchReader
from kdnb.data.views import CleanTransform, FastMultiCropTransform, SimpleTransform

pytestmark = pytest.mark.benchmark
BATCH, ROUNDS, SCALE, RATIO = 64, 9, (0.25, 1.0), (3 / 4, 4 / 3)


class PerSample(torch.utils.data.Dataset):
    """What a training script with torchvision does; two workers."""

    def __init__(self, images, size):
        self.images = images
        crop = v2.RandomResizedCrop(size, scale=SCALE, ratio=RATIO, antialias=True)
        self.transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i])


def interpolated(images, size):
    """The shortest loop: torch's uint8 kernel for each sample, into memory that is kept."""
    out, crop = torch.empty(BATCH, 3, size, size), v2.RandomResizedCrop(size, scale=SCALE, ratio=RATIO)
    for k in range(0, len(images), BATCH):
        mirror = torch.rand(BATCH) < 0.5
        for view, image, mirrored in zip(out, images[k : k + BATCH], mirror.tolist(), strict=True):
            top, left, height, width = crop.make_params([image]).values()
            box = image[None, :, top : top + height, left : left + width]
            resized = F.interpolate(box, (size, size), mode="bilinear", antialias=True)[0]
            view.copy_(resized.flip(-1) if mirrored else resized).mul_(1 / 255)
        yield out


@pytest.mark.parametrize("size, count", [(224, 512), (32, 8192)])
def test_views_per_second(make_cache, tmp_path, size, count):
    images = make_cache(tmp_path / "cache", [count // 2] * 2, size=size)
    reader = RandomSubsetCachedDataset(tmp_path / "cache", samples_per_epoch=count, shuffle="all")
    reader = BatchReader(reader, batch_size=BATCH, reuse_buffers=True)
    workers = {"batch_size": BATCH, "num_workers": 2, "persistent_workers": True, "shuffle": True}
    torchvision = torch.utils.data.DataLoader(PerSample(images, size), **workers)
    simple = SimpleTransform(size=size, scale=SCALE, ratio=RATIO)
    local = {"local_size": {224: 96, 32: 16}[size], "use_local_crops": True}
    few = count // 4

    def alone(views, limit=count):
        ids = torch.arange(BATCH)
        return (views(images[k : k + BATCH], ids + k, 0) for k in range(0, limit, BATCH))

    work = {
        "crop and mirror": (count, lambda: alone(simple)),
        "reader, crop and mirror": (count, lambda: (simple(b["image"], b["id"], 0) for b in reader.batches(0))),
        "without a crop": (count, lambda: alone(CleanTransform(size=size))),
        "two global and six local crops, colours": (few, lambda: alone(FastMultiCropTransform(global_size=size, **local), few)),
        "the same, colours as they are": (
            few, lambda: alone(FastMultiCropTransform(global_size=size, photometric=False, **local), few)
        ),
        "torchvision, sample by sample, two workers": (count, lambda: torchvision),
        "uint8 F.interpolate, sample by sample": (count, lambda: interpolated(images, size)),
    }  # fmt: skip
    wall, own = {name: [] for name in work}, {name: [] for name in work}
    for _ in range(1 + ROUNDS):  # the first one warms up
        for name, (_, make) in work.items():
            begun, used = time.perf_counter(), time.process_time()
            for _ in make():
                pass
            wall[name].append(time.perf_counter() - begun)
            own[name].append(time.process_time() - used)
    versions = ", ".join(f"{package} {version(package)}" for package in ("kdnb", "torch", "torchvision"))
    print(f"\n{size}x{size}, {torch.get_num_threads()} threads, {versions}")
    for name, (images_made, _) in work.items():
        times, processor = wall[name][1:], min(own[name][1:]) / images_made * BATCH * 1000
        speeds = images_made / statistics.median(times), images_made / min(times)
        processor = "in the workers" if "workers" in name else f"{processor:8.2f} ms"
        print(f"  {name:44s} {speeds[0]:9,.0f} images/s, best {speeds[1]:9,.0f}; processor, 64 images: {processor}")
    assert all(min(times) > 0 for times in wall.values())
