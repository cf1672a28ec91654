"""The batch scripts, run with stand-ins for Slurm's commands that start the processes here with Slurm's variables."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from PIL import Image
from test_rank_papermill import SUMS, begun, notebook, outputs, wait_for

from kdnb.data.cache import open_shard, read_index
from kdnb.data.keyed import permutation
from kdnb.params import TABLE

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = PROJECT / "params" / "slurm"
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


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sbatch")), ids=lambda path: path.stem)
def test_a_script_names_a_notebook_a_params_file_and_parameters_that_fit(script):
    text = script.read_text()
    notebook = re.search(r"NOTEBOOK:-notebooks/(\w+)\.ipynb", text)[1]
    params = yaml.safe_load((PROJECT / re.search(r"PARAMS:-(params/\w+\.yaml)", text)[1]).read_text())
    names = set(re.findall(r" -p (\w+)", text))
    assert names and names | params.keys() <= TABLE[notebook].keys()


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


@pytest.mark.parametrize("script, threads", [("precompute.sbatch", "12"), ("train.sbatch", "6")])
@pytest.mark.parametrize("users", [None, "5"])
def test_threads_are_what_slurm_gave_where_the_user_does_not_say(start, tmp_path, script, threads, users):
    """A stand-in for python says what it was started with; of training, each of two processes gets half."""
    (tmp_path / "bin/python").write_text('#!/bin/bash\necho "threads $OMP_NUM_THREADS"\n')
    (tmp_path / "bin/python").chmod(0o755)
    given = {"SLURM_CPUS_PER_TASK": "12", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "here", "GPUS": "2"}
    printed = start(script, OMP_NUM_THREADS=users or "", **given).communicate()[0]
    assert f"threads {users or threads}\n" in printed


@pytest.fixture
def shipped(start, tmp_path, monkeypatch):
    """Function that runs precompute.sbatch with the params file and the notebook that it names itself, on a small data set with
    the columns of the documented one; the cache is in tmp_path / cache."""
    import datasets

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "arrow"))
    for name in ("notebooks", "params"):
        (tmp_path / name).symlink_to(PROJECT / name)
    pictures = [Image.new("RGB", (9, 8 + number), (number, 0, 0)) for number in range(25)]
    rows = datasets.Dataset.from_dict({"jpg": pictures, "cls": [number // 5 for number in range(25)]})
    (tmp_path / "images").mkdir()
    rows.cast_column("jpg", datasets.Image()).to_parquet(tmp_path / "images/train-0.parquet")
    # Half a million images would have to have room on this disk.
    changed = {"dataset": tmp_path / "images", "cache_dir": tmp_path / "cache", "max_samples": 30}

    def run(*arguments: str, **variables):
        given = [str(word) for name, value in changed.items() for word in ("-p", name, value)]
        process = start("precompute.sbatch", *given, *arguments, SLURM_CPUS_PER_TASK="2", **variables)
        said = process.communicate()[0]
        assert process.returncode == 0, said

    return run


def stored_ids(cache: Path) -> list[int]:
    return [id for entry in read_index(cache)["shards"] for id in open_shard(cache / entry["file"])["ids"].tolist()]


def test_the_shipped_script_and_the_shipped_params_fill_a_cache(shipped, tmp_path):
    shipped()
    assert stored_ids(tmp_path / "cache") == list(range(25)) and read_index(tmp_path / "cache")["image_size"] == 224
    assert "is streamed, so it is stored in the order in which it comes" in outputs(tmp_path / "outputs/precompute.ipynb")


def test_an_array_of_the_shipped_script_shares_what_is_not_streamed(shipped, tmp_path):
    """As its comment says: the index appears with the second task, and the images are permuted."""
    for task in ("1", "0"):
        assert not (tmp_path / "cache/index.json").exists()
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2"}
        shipped("-p", "streaming", "false", "-p", "held_out", "0", "-p", "cache_shard_size", "10", **array)
    files = [f"images_shard_0000{number}.pt" for number in range(3)]
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [*files, "index.json"]
    assert stored_ids(tmp_path / "cache") == permutation(25, 0).tolist()


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
