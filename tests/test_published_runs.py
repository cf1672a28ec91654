"""Every file in params/ runs, by the names that are written there, against a Hub on this machine; only sizes are smaller.

The runs take place in a copy of the project, whose outputs/ is its own. What a run needs first, the cache that another file
makes, is made first. Each notebook is run from the command line once; further files of it in one kernel, which has imported
the libraries.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import stand_ins
import yaml
from nbclient import NotebookClient
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from test_notebooks import PARAMS_FILES as ALL_FILES
from test_notebooks import ROOT, defaults, notebook_of

from kdnb.params import TABLE

PARAMS_FILES = [path for path in ALL_FILES if path.stem != "my_images"]  # which names no images: see test_my_images.py
# A name is never replaced, and neither is a None.
SIZES = {
    "epochs": 1, "max_steps_per_epoch": 2, "batch_size": 4, "gradient_accumulation_steps": 1, "warmup_steps": 1, "num_workers": 0,
    "cache_shard_size": 4, "max_samples": 120, "probe_samples": 20, "samples_per_epoch": 12, "save_every_steps": 1,
    "tour_steps": 0, "seeds": "0", "regimes": "full fixed", "max_train_samples": 112, "max_val_samples": 14, "max_length": 32,
}  # fmt: skip
# Small images for a ViT of 14x14 and one of 16x16 patches.
PATCHES = {"image_size": 112, "teacher_args": "img_size=112", "student_args": "img_size=112"}


class Project:
    """A copy of the project, in which params files are run, each once."""

    def __init__(self, root: Path, hub):
        self.root, self.hub, self.done, self.fetched = root, hub, {}, {}
        mine = {"PYTHONPATH": str(root), "KDNB_PROGRESS": "text", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.environment = os.environ | hub.environment(root / "home") | mine
        self.from_command_line, self.kernel = set(), NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
        for name in ("kdnb", "notebooks", "params"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "outputs").mkdir(exist_ok=True)

    def run(self, path: Path) -> nbformat.NotebookNode:
        """The executed notebook of a params file."""
        if path not in self.done:
            given, notebook = yaml.safe_load(path.read_text()), notebook_of(path)
            for other in PARAMS_FILES:
                makes = yaml.safe_load(other.read_text()).get("cache_dir", "")
                if notebook != "precompute" and notebook_of(other) == "precompute" and makes == given.get("cache_dir"):
                    self.run(other)
            self.done[path] = self.execute(path, notebook, given)
        return self.done[path]

    def execute(self, path: Path, notebook: str, given: dict, **changes: str) -> nbformat.NotebookNode:
        """The same, now, with some parameters changed."""
        values = defaults(notebook) | given
        sizes = {name: size for name, size in SIZES.items() if name in TABLE[notebook] and values[name] is not None}
        if given.get("image_size") == 224:
            sizes |= {name: size for name, size in PATCHES.items() if name in TABLE[notebook]}
        smaller = self.root / f"{path.stem}_sizes.yaml"
        smaller.write_text(yaml.safe_dump(sizes | changes))
        before = len(self.hub.requests)
        run = self.in_kernel if notebook in self.from_command_line else self.papermill
        executed = run(notebook, self.root / "params" / path.name, smaller)
        self.from_command_line.add(notebook)
        self.fetched[path] = [f"{request.repo}/{request.path}" for request in self.hub.requests[before:] if request.bytes]
        return executed

    def papermill(self, notebook: str, *files: Path) -> nbformat.NotebookNode:
        out = self.root / f"{files[0].stem}.ipynb"
        command = [sys.executable, "-m", "kdnb.papermill", f"notebooks/{notebook}.ipynb", out, "--no-progress-bar"]
        command += [word for file in files for word in ("-f", file)]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return nbformat.read(out, 4)

    def in_kernel(self, notebook: str, *files: Path) -> nbformat.NotebookNode:
        parameters = {name: value for file in files for name, value in yaml.safe_load(file.read_text()).items()}
        content = parameterize_notebook(load_notebook_node(f"{self.root}/notebooks/{notebook}.ipynb"), parameters)
        content.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
        client = NotebookClient(content, timeout=300, km=self.kernel.km)
        client.kc = self.kernel.kc
        for number, cell in enumerate(content.cells):
            client.execute_cell(cell, number)
        return content


@pytest.fixture(scope="module")
def project(hub_server, tmp_path_factory, digits_teacher):
    root = tmp_path_factory.mktemp("project")
    stand_ins.timm_model(hub_server.folder / "models", "vit_base_patch14_dinov2.lvd142m")
    shutil.copytree(digits_teacher, root / "outputs/teacher_digits")
    stand_ins.cifar_teacher(root / "outputs/weights/resnet56-4bfd9763.th")
    hub_server.requests.clear()
    project = Project(root, hub_server)
    with project.kernel.setup_kernel(env=project.environment, cwd=str(root)):
        yield project


@pytest.mark.parametrize("path", PARAMS_FILES, ids=lambda path: path.stem)
def test_a_params_file_runs_by_the_names_that_are_in_it(path, project):
    notebook = project.run(path)
    assert not [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert not project.hub.unknown, f"tests/hub.py does not know {', '.join(project.hub.unknown)}"


def test_what_they_fetched(project):
    """Whole files once for all runs, which share what they fetch as one user's do; training images only for a cache."""
    for path in PARAMS_FILES:
        if path.stem in ("cifar10_random", "soft_distill_dbpedia"):  # at least, where the others were not run
            project.run(path)
    fetched = [file for files in project.fetched.values() for file in files]
    whole = [file for file in fetched if not file.endswith(".tar")]
    assert sorted(whole) == sorted(set(whole))
    for path, files in project.fetched.items():
        training = [file for file in files if re.search("train-", file) and "dbpedia" not in file]
        assert bool(training) == (notebook_of(path) == "precompute"), f"{path.name} fetched {training}"


def test_bert_tiny_teaches_and_learns_through_the_notebook(project):
    """By its name, as both: it is published without a model type, as a pytorch_model.bin, with a bare vocabulary."""
    (path,) = [path for path in PARAMS_FILES if path.stem == "soft_distill_dbpedia"]
    names = dict.fromkeys(("teacher", "student"), "prajjwal1/bert-tiny")
    project.execute(path, "soft_distill_text", yaml.safe_load(path.read_text()), **names, run_name="tiny")
    config = project.root / "outputs/student_soft_distill/tiny/best_model/config.json"
    assert json.loads(config.read_text())["model_type"] == "bert"
