"""The batch scripts, run with stand-ins for Slurm's commands that start the processes here with Slurm's variables."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from test_rank_papermill import SUMS, begun, notebook, outputs, wait_for

SCRIPTS = Path(__file__).resolve().parent.parent / "params" / "slurm"
STAND_INS = {
    # Starts the task here, and hands signals on to it, as srun does.
    "srun": "\"$@\" & task=$!\ntrap 'kill -USR1 $task' USR1\nwait $task; code=$?\n"
    "while kill -0 $task 2>/dev/null; do wait $task; code=$?; done\nexit $code\n",
    "scontrol": 'if [ "$1" = requeue ]; then echo "$2" > requeued; else echo localhost; fi\n',
}


@pytest.fixture
def start(tmp_path):
    """Function that starts a script in a folder of its own with variables of Slurm's."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (tmp_path / "outputs").mkdir()
    for name, body in STAND_INS.items():
        (bin_folder / name).write_text("#!/bin/bash\n" + body)
        (bin_folder / name).chmod(0o755)
    path = f"{bin_folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(script: str, *arguments: str, **variables) -> subprocess.Popen:
        environment = {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "SLURM_JOB_ID": "4242"} | variables
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = ["bash", SCRIPTS / script, *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=os.environ | environment, **pipes)

    return run


def test_each_task_of_the_array_makes_its_part(start, tmp_path):
    given = {"part": 0, "parts": 1, "num_workers": 0, "cache_dir": ""}
    book = notebook(tmp_path / "toy.ipynb", "print(part, parts, num_workers, cache_dir)", **given)
    (tmp_path / "p.yaml").write_text("cache_dir: there\n")
    for task in range(2):
        variables = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "3"}
        process = start("precompute.sbatch", NOTEBOOK=str(book), PARAMS="p.yaml", **variables)
        said = process.communicate()[0]
        assert process.returncode == 0, said
        assert outputs(tmp_path / f"outputs/precompute_{task}.ipynb") == f"{task} 2 2 there\n"


def test_the_array_fills_a_real_cache(start, tmp_path):
    """The project's notebook: two tasks, the index appears with the second one."""
    project = SCRIPTS.parent.parent
    (tmp_path / "p.yaml").write_text(f"cache_dir: {tmp_path / 'cache'}\nimage_size: 8\ncache_shard_size: 400\n")
    for task in (1, 0):
        assert not (tmp_path / "cache/index.json").exists()
        variables = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        process = start("precompute.sbatch", NOTEBOOK=str(project / "notebooks/precompute.ipynb"), PARAMS="p.yaml", **variables)
        said = process.communicate()[0]
        assert process.returncode == 0, said
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        *(f"images_shard_0000{number}.pt" for number in range(4)), "index.json",
    ]  # fmt: skip


def test_a_preempted_training_job_checkpoints_and_queues_itself_again(start, tmp_path):
    book = notebook(tmp_path / "toy.ipynb", SUMS, out=str(tmp_path), run_name="")
    (tmp_path / "p.yaml").write_text("{}\n")
    variables = {"SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "here", "GPUS": "2"}
    process = start("train.sbatch", NOTEBOOK=str(book), PARAMS="p.yaml", **variables)
    wait_for(lambda: begun(tmp_path), 120, process=process)
    time.sleep(0.5)
    process.send_signal(signal.SIGUSR1)  # to the script alone, as `--signal=B:USR1@120` does
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 0 and (tmp_path / "requeued").read_text() == "4242\n", said
    assert said.count("of 2: stopped at step") == 2, said
    (book,) = (tmp_path / "outputs").glob("p_4242*.ipynb")
    assert "stopped at step" in str(nbformat.read(book, 4).cells)


def test_a_training_job_that_fails_is_not_queued_again(start, tmp_path):
    book = notebook(tmp_path / "toy.ipynb", "raise ValueError('batch_size is 3')", run_name="")
    (tmp_path / "p.yaml").write_text("{}\n")
    variables = {"SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "here", "GPUS": "1"}
    process = start("train.sbatch", NOTEBOOK=str(book), PARAMS="p.yaml", **variables)
    said = process.communicate(timeout=90)[0]
    assert process.returncode != 0 and "ValueError: batch_size is 3" in said
    assert not (tmp_path / "requeued").exists()
