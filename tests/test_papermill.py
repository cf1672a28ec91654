"""The notebooks from the command line, where papermill's own habits bite: what is refused, and what each refusal says."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent


def papermill(notebook: str, out: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", ROOT / "notebooks" / f"{notebook}.ipynb", out / "out.ipynb"]
    options = [*arguments, "--no-progress-bar", "-k", "python3"]
    environment = os.environ | {"KDNB_PROGRESS": "text"}
    return subprocess.run([*command, *options], cwd=out, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["-p", "fixed_shard", "25"], "train_fixed has no parameter fixed_shard (given: 25); did you mean fixed_shards?"),
        (["-p", "batch_size", "0"], "batch_size is 0; allowed is a whole number from 1 to"),
        (["-p", "fixed_shards", "99"], "fixed_shards is 99, but the cache holds 32 shards"),
        (["-p", "dataset", "none/such", "-p", "cache_dir", "nowhere"], "Index file not found: "),
    ],
    ids=["near miss", "batch size", "too many shards", "no cache"],
)
def test_bad_input_ends_with_its_sentence(tmp_path, arguments, sentence):
    result = papermill("train_fixed", tmp_path, *arguments)
    *_, last = result.stderr.rstrip().splitlines()
    assert result.returncode == 1 and sentence in last
    (error,) = [output for cell in nbformat.read(tmp_path / "out.ipynb", 4).cells for output in cell.get("outputs", ())
                if output.output_type == "error"]  # fmt: skip
    assert last == f"{error.ename}: {error.evalue}" and error.traceback == [last]


def test_a_run_from_raw_images_with_soft_targets_local_crops_and_strings(tmp_path):
    """What YAML hands over as strings is converted, and the choices that are off by default work together."""
    settings = {
        "use_cached": "false", "learning_rate": "1e-3", "loss": "soft_targets", "alpha": "0.5", "augmentation": "multicrop",
        "use_local_crops": "True", "local_crops_number": "2", "epochs": "2", "max_steps_per_epoch": "3", "warmup_steps": "1",
        "gradient_accumulation_steps": "2", "batch_size": "16", "feature_layers": "1", "student_layers": "1",
        "probe_samples": "200", "tour_steps": "0",
    }  # fmt: skip
    arguments = [word for name, value in settings.items() for word in ("-p", name, value)]
    result = papermill("train_optimized", tmp_path, *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    text = (tmp_path / "out.ipynb").read_text()
    assert "teacher's own head on held-out images, 95% interval: accuracy 0.9" in text and "6 steps, 192 images" in text
