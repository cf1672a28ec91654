"""Notebooks as jobs that are told to stop by SIGTERM at random moments: the same command goes on and ends as undisturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import projects
import pytest
import yaml
from harness import LIMIT, brief, run

pytestmark = pytest.mark.attack
ROW = "SIGTERM of kdnb.papermill"
PARAMETERS = {
    "dataset": "pictures", "cache_dir": projects.CACHE, "image_size": projects.SIZE, "cache_shard_size": 16, "fixed_shards": 3,
    "teacher": "cifar_resnet8", "teacher_checkpoint": "teacher.pt", "teacher_args": {"width": 4, "num_classes": 10},
    "student_args": {"width": 4}, "epochs": 12, "batch_size": 16, "warmup_steps": 0, "eval_split": None, "run_name": "job",
}  # fmt: skip


def start(project: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "kdnb.papermill", "notebooks/train_fixed.ipynb", "outputs/out.ipynb", "-f", "job.yaml"]
    settings = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([*command, "-k", "python3", "--no-progress-bar"], cwd=project, **settings)


def end(job: subprocess.Popen) -> str:
    """What it said on stderr; "hang" after too long a time."""
    try:
        return job.communicate(timeout=LIMIT)[1]
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        return "hang"


def test_a_job_that_is_stopped_goes_on(attack, templates):
    def fresh():
        project = attack.fresh(templates / "cached")
        (project / "notebooks").symlink_to(Path(__file__).resolve().parent.parent.parent / "notebooks")
        (project / "job.yaml").write_text(yaml.safe_dump(PARAMETERS))
        return project

    began = time.monotonic()
    job = start(fresh())
    said, seconds = end(job), time.monotonic() - began
    assert job.returncode == 0, said[-2000:]
    undisturbed = run(projects.job_result, attack.project)
    for rng in attack.tries():
        fresh()
        job = start(attack.project)
        time.sleep(rng.uniform(0, seconds))
        job.terminate()
        said = end(job)
        codes = (0, os.EX_TEMPFAIL, -signal.SIGTERM, 128 + signal.SIGTERM)
        if said == "hang" or job.returncode not in codes:
            attack.count(
                "SIGTERM of kdnb.papermill", "hang" if said == "hang" else "traceback", f"{job.returncode} {said[-300:]}"
            )
            continue
        again = start(attack.project)
        said = end(again)
        whole = again.returncode == 0 and run(projects.job_result, attack.project).result == undisturbed.result
        attack.count(ROW, "healed" if whole else "lost", brief(said))
