"""A notebook is run again and again in one kernel: as it is, with a parameter changed, with a name misspelt and corrected."""

import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
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
    client = NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
    environment = os.environ | {"PYTHONPATH": str(project), "KDNB_PROGRESS": "text"}
    with client.setup_kernel(env=environment, cwd=str(project / "notebooks")):
        yield client


class Session:
    """A notebook open in a kernel without variables, as somebody has it who edits cells and runs them."""

    def __init__(self, path: Path, kernel: NotebookClient):
        self.notebook = nbformat.read(path, 4)
        self.cells = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        self.parameters, self.check = self.cells[:2]
        self.client = NotebookClient(self.notebook, timeout=300, km=kernel.km)
        self.client.kc = kernel.kc
        self.run_beside("%reset -f")

    def edit(self, values: dict):
        """Change defaults in the parameters cell."""
        for name, value in values.items():
            self.parameters.source, found = re.subn(
                rf"^({name}: \S+ =) .*?  #", rf"\1 {value!r}  #", self.parameters.source, flags=re.MULTILINE
            )
            assert found == 1, name

    def run(self, *cells):
        for cell in cells:
            self.client.execute_cell(cell, self.notebook.cells.index(cell))

    def checked(self) -> dict:
        """The parameters as the check has left them in the kernel."""
        return json.loads(self.run_beside("import json; print(json.dumps(vars(p)))").outputs[0].text)

    def run_beside(self, source: str):
        """A cell that is not the notebook's, executed."""
        cell = nbformat.v4.new_code_cell(source)
        self.notebook.cells.append(cell)
        self.run(cell)
        return cell


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_cell_runs_twice_then_with_a_change_and_after_a_wrong_name(project, kernel, name):
    small, change = NOTEBOOKS[name]
    if name == "evaluate" and not (project / "outputs/fixed").exists():
        session = Session(project / "notebooks/train_fixed.ipynb", kernel)
        session.edit(NOTEBOOKS["train_fixed"][0])
        session.run(*session.cells)
    session = Session(project / "notebooks" / f"{name}.ipynb", kernel)
    session.edit(small)
    session.run(*session.cells)
    first = session.checked()
    assert first.items() >= small.items()
    session.run(*session.cells)
    assert session.checked() == first

    session.run(session.check)  # alone, after cells that have put a model under the name of a parameter
    assert session.checked() == first

    session.edit(change)
    session.run(*session.cells)
    assert session.checked() == first | change

    right = session.parameters.source
    session.parameters.source = right.replace("\nrun_name:", "\nrunname:").replace("\ncache_dir:", "\ncache_dri:")
    session.run(session.parameters)
    session.check.metadata["tags"] = ["raises-exception"]  # or else a kernel may pass over cells that follow at once
    session.run(session.check)
    (error,) = [output for output in session.check.outputs if output.output_type == "error"]
    assert "did you mean" in error.traceback[0] and len(error.traceback) == 1
    session.parameters.source, session.check.metadata["tags"] = right, []
    session.run(session.parameters, session.check)
    assert session.checked() == first | change
