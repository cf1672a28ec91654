"""What a stored teacher costs and what its views are worth, on CIFAR-10 with real ResNet teachers.

    pytest -m benchmark -s tests/benchmarks/test_teacher_cache.py

About 25 minutes on two cores. KDNB_REAL_DATA holds cifar10/ (Parquet) and cifar_resnet/ (weights).
"""

import statistics
import time
from types import SimpleNamespace

import pytest
import torch

from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source
from kdnb.distillation.build import build_student
from kdnb.distillation.run import build_pieces, distill_parameters
from kdnb.distillation.teacher import open_teacher
from kdnb.evaluation.student_probe import Probe
from kdnb.params import arguments_of
from kdnb.runs import Run, set_seed

pytestmark = pytest.mark.benchmark
SEEDS, STEPS, EPOCHS = (0, 1, 2), 45, 16
FIXED = {"regime": "fixed", "fixed_shards": 2}
MODES = {
    "live": {}, "clean": {"augmentation": "clean", "cache_teacher_features": True},
    "views, K = 1": {"teacher_views": 1, "cache_teacher_features": True},
    "views, K = 4": {"teacher_views": 4, "cache_teacher_features": True},
    "views, K = 16": {"teacher_views": 16, "cache_teacher_features": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cifar")


@pytest.fixture
def p(real_data, folder) -> SimpleNamespace:
    """Parameters as in params/cifar10_fixed.yaml: two shards of 2,048 images, batches of 64."""
    source = {"dataset": str(real_data / "cifar10"), "split": "train", "image_column": None, "label_column": None}
    precompute(open_source(**source), folder / "cache", image_size=32, max_samples=10 * 2048)
    given = source | FIXED | {
        "eval_split": "test", "probe_samples": 10_000, "cache_dir": str(folder / "cache"), "image_size": 32, "resize": "crop",
        "cache_shard_size": 2048, "use_cached": True, "shuffle": "within_shards", "num_workers": 0, "persistent_workers": False,
        "teacher": "cifar_resnet56", "teacher_args": {"num_classes": 10},
        "teacher_checkpoint": str(real_data / "cifar_resnet/resnet56-4bfd9763.th"),
        "student": "cifar_resnet8", "student_args": {},
        "feature_layers": [], "student_layers": [], "projection_width": None, "loss": "mse", "loss_args": None,
        "temperature": 2.0, "alpha": 1.0, "augmentation": "simple",
        "crop_scale_min": 0.5, "horizontal_flip": True, "use_local_crops": False, "local_crops_number": 2, "local_crop_size": 16,
        "teacher_tokens": False,
        "cache_teacher_features": False, "teacher_feature_dir": str(folder / "outputs"), "teacher_views": None,
        "teacher_storage": "float16", "teacher_top_k": None, "cache_on_device": "false", "epochs": EPOCHS,
        "max_steps_per_epoch": STEPS, "batch_size": 64, "gradient_accumulation_steps": 1, "learning_rate": 2e-3,
        "weight_decay": 0.05, "warmup_steps": 50, "clip_grad_norm": 1.0, "mixed_precision": "no", "compile_student": False,
        "batch_norm": "local",
        "seed": 0, "save_every_steps": None, "keep_checkpoints": 1,
    }  # fmt: skip
    return SimpleNamespace(**given)


class RandomTargets:
    """Outputs that cost nothing: what the student alone takes."""

    def __init__(self, width: int):
        self.outputs = {"features": torch.randn(64, width)}

    def __call__(self, views, batch):
        return [self.outputs for _ in views]


@pytest.mark.parametrize("student", ["resnet20", "resnet8"])
def test_a_step_with_stored_outputs_costs_what_the_student_costs(p, student):
    p.student, p.teacher_views, p.augmentation = f"cifar_{student}", 1, "simple"
    q = SimpleNamespace(**vars(p) | {"cache_teacher_features": True})
    teacher = open_teacher(p)
    model = build_student(p.student, teacher, **p.student_args)
    (loader, views, live, loss), (_, _, stored, _) = build_pieces(p, model, teacher), build_pieces(q, model, open_teacher(q))
    for batch in loader.batches(0):  # all of what follows is stored before it is timed
        stored(views(batch["image"], batch["id"], 0), batch | {"epoch": 0})
    ways = {"random targets": RandomTargets(64), "stored": stored, "live": live}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    misses = stored.misses
    for epoch in range(2):
        for number, batch in enumerate(loader.batches(0)):
            batch["epoch"] = 0
            for name in sorted(ways, key=lambda name: (number * len(name)) % 7):  # no way always comes first
                start = time.perf_counter()
                inputs = views(batch["image"], batch["id"], 0)
                with torch.no_grad():
                    outputs = ways[name](inputs, batch)
                loss([model(view) for view in inputs], outputs, None)["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
                if epoch or number > 3:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print()
    for name, value in medians.items():
        ratio = value / medians["random targets"]
        print(f"{student}: {name:15s} {1000 * value:7.2f} ms a step, {ratio:.3f} of the student alone")
    assert stored.misses == misses


def test_what_stored_views_are_worth(p, folder, capsys):
    found: dict[str, list[float]] = {name: [] for name in MODES}
    seconds: dict[str, list[float]] = {name: [] for name in MODES}
    for seed in SEEDS:
        for name, changes in MODES.items():
            q = SimpleNamespace(**vars(p) | changes | {"seed": seed})
            set_seed(seed)
            run = Run(f"{name}_{seed}", vars(q), outputs=folder / "runs")
            student = distill_parameters(q, run, regime="fixed")
            history = run.read("history.json")
            found[name].append(Probe(**arguments_of(Probe, q)).accuracy(student))
            seconds[name].append(sum(epoch["step_s"] + epoch["data_wait_s"] for epoch in history["epochs"]))
    with capsys.disabled():
        print(f"\nprobe accuracy after {STEPS * EPOCHS} steps, mean and standard deviation over {len(SEEDS)} seeds")
        for name, values in found.items():
            spread = f"{statistics.mean(values):.4f} +- {statistics.stdev(values):.4f}"
            print(f"{name:15s} {spread}  {[round(v, 4) for v in values]}  {statistics.mean(seconds[name]):.0f} s of training")
    assert all(0.3 < value < 0.9 for values in found.values() for value in values)
