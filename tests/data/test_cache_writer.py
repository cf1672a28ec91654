"""Several jobs fill one folder: byte for byte the cache of one process, in any order, after any kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdnb import distributed
from kdnb.data.cache import missing, read_index, verify
from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source

SETTINGS = {"image_size": 8, "cache_shard_size": 100}  # 1,500 digits: 15 shards


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def fill(folder, part=0, parts=1, **changes):
    return precompute(open_source("digits"), folder, part=part, parts=parts, **SETTINGS | changes)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("one") / "cache"
    fill(folder)
    return files(folder)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 1, 0, 2, 2]])
def test_jobs_in_any_order_and_repeated_give_the_same_bytes(tmp_path, expected, order):
    for part in order:
        fill(tmp_path, part, 3)
    assert files(tmp_path) == expected
    fill(tmp_path, 1, 3)  # again, when all is done: nothing changes
    assert files(tmp_path) == expected


def test_verify_names_what_is_missing_until_the_last_job_is_done(tmp_path):
    fill(tmp_path, 0, 3)
    fill(tmp_path, 2, 3)
    faults = verify(tmp_path)
    assert [fault.file for fault in faults] == [f"images_shard_{number:05d}.pt" for number in range(1, 15, 3)]
    assert faults[0].what == "is missing: part 1 of 3 has not made it yet"
    with pytest.raises(FileNotFoundError):
        read_index(tmp_path)
    fill(tmp_path, 1, 3)
    assert verify(tmp_path) == [] and read_index(tmp_path)["num_images"] == 1500


def test_jobs_with_different_parts_are_refused(tmp_path):
    fill(tmp_path, 0, 3)
    with pytest.raises(ValueError, match="parts is 4, but other jobs fill .* in 3 parts; give the same number to all"):
        fill(tmp_path, 1, 4)
    with pytest.raises(ValueError, match="part is 3 of parts 3; parts count from 0"):
        fill(tmp_path, 3, 3)


def test_jobs_that_begin_later_take_the_order_of_what_is_there(tmp_path):
    fill(tmp_path / "straight", permutation_seed=None)
    fill(tmp_path / "parts", 1, 2, permutation_seed=None)
    fill(tmp_path / "parts", 0, 2)
    assert files(tmp_path / "parts") == files(tmp_path / "straight")


def test_jobs_with_other_settings_are_refused(tmp_path):
    fill(tmp_path, 1, 2)
    with pytest.raises(ValueError, match="image_size was 8 and is now 16"):
        fill(tmp_path, 0, 2, image_size=16)


def test_a_job_does_not_touch_what_another_one_is_writing(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    mine, other = tmp_path / ".images_shard_00001.pt.1234abcd.tmp", tmp_path / ".images_shard_00002.pt.1234abcd.tmp"
    for path in (mine, other):
        path.write_bytes(b"half")
    fill(tmp_path, 1, 3)
    assert not mine.exists() and other.exists()


def test_one_process_completes_what_jobs_left(tmp_path, expected):
    fill(tmp_path, 0, 3)
    fill(tmp_path)
    assert files(tmp_path) == expected


def test_a_shard_that_was_altered_after_all_was_done_is_made_again(tmp_path, expected):
    for part in range(2):
        fill(tmp_path, part, 2)
    path = tmp_path / "images_shard_00003.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    fill(tmp_path, 1, 2, verify=True)
    assert files(tmp_path) == expected


def test_the_processes_of_one_run_share_the_shards(tmp_path, expected, monkeypatch):
    left = []
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(distributed, "barrier", lambda: left.append(len(missing(tmp_path) or [])))
    for rank in (2, 0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert fill(tmp_path, parts=None) == tmp_path
    assert left == [10, 5, 0] and files(tmp_path) == expected


JOB = """
import sys
from kdnb.data.sources import open_source
from kdnb.data.precompute import precompute
precompute(open_source("digits"), sys.argv[1], part=int(sys.argv[2]), parts=2, image_size=8, cache_shard_size=100)
"""


def test_two_jobs_at_once_of_which_one_is_killed(tmp_path, expected):
    dice, kills = random.Random(0), 0
    command = [sys.executable, "-c", JOB, str(tmp_path / "cache")]
    jobs = {part: subprocess.Popen([*command, str(part)]) for part in range(2)}
    deadline = time.monotonic() + 120
    while jobs and time.monotonic() < deadline:
        for part, job in list(jobs.items()):
            if job.poll() is None and kills < 2 and any((tmp_path / "cache").glob("images*")):
                time.sleep(dice.random() * 0.02)
                os.kill(job.pid, signal.SIGKILL)
                kills += 1
            if job.poll() is not None:
                del jobs[part]
                if job.returncode != 0:
                    jobs[part] = subprocess.Popen([*command, str(part)])
        time.sleep(0.005)
    assert not jobs and kills >= 1 and files(tmp_path / "cache") == expected
    assert json.loads((tmp_path / "cache/index.json").read_text())["num_images"] == 1500
