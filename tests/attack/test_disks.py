"""Full and read-only disks: a sentence, and once there is room again, work that ends as if nothing had happened."""

import contextlib
import resource
import shutil
import subprocess
from functools import partial
from pathlib import Path

import projects
import pytest
from harness import brief, differing, run

WORK = {
    "precompute": ("raw", projects.precompute),
    "training, outputs stored": ("cached", partial(projects.train, stored=True)),
    "training on texts": ("cached", projects.train_text),
}
pytestmark = pytest.mark.attack


@pytest.fixture
def disk(attack):
    """The project's folder on a disk of its own, and the function that gives it other options."""
    folder = attack.project
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.strip()}")
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


def judge(attack, row: str, first, work, undisturbed):
    """`first` met the disk; with room again, the same work has to end as undisturbed."""
    if first.how in ("traceback", "hang"):
        attack.count(row, first.how, brief(first.said))
        return
    ended = run(work, attack.project)
    whole = ended.how == "done" and ended.result == undisturbed.result
    outcome = "lost" if not whole else "found" if first.how == "sentence" else "harmless"
    attack.count(row, outcome, differing(ended, undisturbed))


@pytest.mark.parametrize("name", WORK)
def test_a_disk_that_runs_full(attack, disk, templates, name):
    template, work = WORK[name]
    before = shutil.disk_usage(attack.fresh(templates / template)).used
    undisturbed = run(work, attack.project)
    after = shutil.disk_usage(attack.project).used
    for rng in attack.tries():
        attack.fresh(templates / template)
        disk(f"size={rng.randint(before, after)}")
        first = run(work, attack.project)
        disk("size=50%")
        judge(attack, f"a full disk under {name}", first, work, undisturbed)


@pytest.mark.parametrize("name", WORK)
def test_a_disk_that_is_read_only(attack, disk, templates, name):
    template, work = WORK[name]
    attack.fresh(templates / template)
    undisturbed = run(work, attack.project)
    for _ in attack.tries():
        attack.fresh(templates / template)
        disk("ro")
        first = run(work, attack.project)
        disk("rw")
        judge(attack, f"a read-only disk under {name}", first, work, undisturbed)


@pytest.mark.parametrize("name", WORK)
def test_files_that_may_not_grow(attack, templates, name):
    """What a quota does, and where no disk can be mounted."""
    template, work = WORK[name]
    undisturbed = run(work, attack.fresh(templates / template))
    for rng in attack.tries():
        attack.fresh(templates / template)
        first = run(partial(limited, work, int(2 ** rng.uniform(13, 18))), attack.project)
        judge(attack, f"files of limited size under {name}", first, work, undisturbed)


def limited(work, most: int, folder: Path) -> dict:
    """`work(folder)` while no file may have more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return work(folder)
