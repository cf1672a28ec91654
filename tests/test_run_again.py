"""A notebook is run again and again in one kernel: as it is, with a parameter changed, with a name misspelt and corrected."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from notebook_session import Session, kernel_of
from sklearn.datasets import load_digits
from torch.nn import functional as F

from kdnb.models.vision import build_model

ROOT = Path(__file__).resolve().parent.parent
TRAINING = {
    "teacher": "cifar_resnet8", "teacher_checkpoint": "outputs/teacher.pt", "student_args": {"width": 4}, "probe_samples": 100,
    "epochs": 1, "max_steps_per_epoch": 2, "batch_size": 8, "warmup_steps": 0,
}  # fmt: skip
# Parameters that make it quick, and what is changed then.
NOTEBOOKS = {
    "precompute": ({"cache_dir": "outputs/few", "max_samples": 60}, {"cache_dir": "outputs/fewer", "max_samples": 30}),
    "train_fixed": (TRAINING | {"run_name": "fixed", "fixed_shards": 2}, {"run_name": "other", "fixed_shards": 3}),
    "train_random": (TRAINING | {"samples_per_epoch": 32}, {"samples_per_epoch": 48}),
    "train_optimized": (TRAINING | {"run_name": "optimized", "tour_steps": 1}, {"tour_steps": 0}),
    "evaluate": ({"checkpoint_dir": "outputs/fixed", "probe_samples": 100, "run_name": "judged"}, {"run_name": None}),
    "compare_regimes": (
        TRAINING | {"regimes": "full fixed", "seeds": [0], "subset_shards": 2, "parallel_runs": 1},
        {"baseline": "full"},
    ),
    "soft_distill_text": (
        {"max_train_samples": 60, "max_val_samples": 30, "max_length": 8, "epochs": 1, "warmup_steps": 0, "run_name": "text",
         "sweep_temperatures": [2], "sweep_alphas": [1], "sweep_epochs": 1, "validation_split": 0.7},
        {"temperature": 2.0, "run_name": None},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project whose outputs hold nothing but a teacher's weights."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("kdnb", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "outputs").mkdir()
    torch.save(trained_teacher().state_dict(), folder / "outputs" / "teacher.pt")
    return folder


def trained_teacher() -> torch.nn.Module:
    """A ResNet-8 after two epochs on the digits: better than raw pixels, and made in seconds."""
    digits = load_digits()
    pixels = torch.tensor(digits.images[:1500] / 16 - 0.5, dtype=torch.float32).mul(4)[:, None].expand(-1, 3, -1, -1)
    images, labels = F.interpolate(pixels, 32, mode="bilinear"), torch.tensor(digits.target[:1500])
    model = build_model("cifar_resnet8", num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for rows in (rows for _ in range(2) for rows in torch.randperm(1500).split(48)):
        optimizer.zero_grad()
        F.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def kernel(project):
    """The client of a kernel that all notebooks are opened in, one after the other: libraries are imported once."""
    with kernel_of(project, KDNB_PROGRESS="text") as client:
        yield client


def checked(session: Session) -> dict:
    """The parameters as the check has left them in the kernel."""
    return json.loads(session.run_beside("import json; print(json.dumps(vars(p)))").outputs[0].text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs_twice_then_with_a_change_and_after_a_wrong_name(project, kernel, name):
    small, change = NOTEBOOKS[name]
    if name == "evaluate" and not (project / "outputs/fixed").exists():
        session = Session(project / "notebooks/train_fixed.ipynb", kernel)
        session.edit(**NOTEBOOKS["train_fixed"][0])
        session.run()
    session = Session(project / "notebooks" / f"{name}.ipynb", kernel)
    session.edit(**small)
    session.run()
    first = checked(session)
    assert first.items() >= small.items()
    session.run()
    assert checked(session) == first

    session.run(session.check)  # alone, after cells that have put a model under the name of a parameter
    assert checked(session) == first

    session.edit(**change)
    session.run()
    assert checked(session) == first | change

    right = session.parameters.source
    session.parameters.source = right.replace("\nrun_name:", "\nrunname:").replace("\ncache_dir:", "\ncache_dri:")
    session.run(session.parameters)
    error = session.fail(session.check)
    assert "did you mean" in error.traceback[0] and len(error.traceback) == 1
    session.parameters.source = right
    session.run(session.parameters, session.check)
    assert checked(session) == first | change
