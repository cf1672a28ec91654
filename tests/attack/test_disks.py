"""Full and read-only disks: a sentence, and once there is room again, work that ends as if nothing had happened."""

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
    """A function that gives other options to the disk of the project's folder, which is one of its own."""
    shutil.rmtree(attack.project, ignore_errors=True)
    attack.project.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "none", attack.project], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no disk can be mounted here: {mount.stderr.strip()}")
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", attack.project], check=True)
    subprocess.run(["umount", "-l", attack.project], check=True)


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("trouble", ["a full disk", "a read-only disk", "files that may not grow"])
def test_what_a_disk_refuses_is_said_and_nothing_is_lost(attack, templates, trouble, name, request):
    template, work = WORK[name]
    remount = None if trouble == "files that may not grow" else request.getfixturevalue("disk")
    before = shutil.disk_usage(attack.fresh(templates / template)).used
    undisturbed = run(work, attack.project)
    after = shutil.disk_usage(attack.project).used
    for rng in attack.tries():
        attack.fresh(templates / template)
        if remount is None:  # as a quota does, and where no disk can be mounted
            ended = run(partial(limited, work, int(2 ** rng.uniform(13, 18))), attack.project)
        else:
            remount("ro" if trouble == "a read-only disk" else f"size={rng.randint(before, after)}")
            ended = run(work, attack.project)
            remount("rw,size=50%")
        outcome, detail = {"sentence": "found", "done": "harmless"}.get(ended.how, ended.how), brief(ended.said)
        again = run(work, attack.project)
        if again.how != "done" or again.result != undisturbed.result:
            outcome, detail = "lost", differing(again, undisturbed)
        attack.count(f"{trouble} under {name}", outcome, detail)


def limited(work, most: int, folder: Path) -> dict:
    """`work(folder)` while no file may have more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        return work(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
