"""How long the attacks go on, and their table.

KDNB_ATTACK_SECONDS (60) is shared equally by the tests that are chosen; KDNB_ATTACK_SEED (0) is the first try's seed: with
KDNB_ATTACK_SECONDS=0 and the seed of a bad try, that try is repeated alone.
"""

import os
import shutil

import projects
import pytest
from harness import Attack, Ended, Table, Worker, run


@pytest.fixture(scope="session")
def table():
    table = Table()
    yield table
    print(f"\n{table}")


@pytest.fixture
def attack(request, table, templates):
    """One family's tries; the test fails at its end where one went badly."""
    seconds = float(os.environ.get("KDNB_ATTACK_SECONDS", 60)) / len(request.session.items)
    attack = Attack(table, templates / "project", seconds, int(os.environ.get("KDNB_ATTACK_SEED", 0)))
    yield attack
    assert not attack.bad, f"{len(attack.bad)} tries went badly, such as {attack.bad[0]}"


def _made(work, folder) -> Ended:
    ended = run(work, folder)
    assert ended.how == "done", ended.said
    return ended


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    """Projects by name: `raw` (pictures, texts, teachers), `cached` (also shards), `trained` (also a run that was killed halfway,
    a finished one, and what its evaluation keeps), and `project`, where they are worked with, as parameters name paths."""
    folder = tmp_path_factory.mktemp("templates")
    project = folder / "project"
    project.mkdir()
    for name, work in (("raw", projects.write_raw), ("cached", projects.prepare), ("trained", projects.everything)):
        _made(work, project)
        if name == "trained":
            halfway(project / "outputs/half", projects.half_image_run)
            halfway(project / "outputs/half_text", projects.half_text_run)
        shutil.copytree(project, folder / name)
    return folder


def halfway(run_folder, work):
    """Kill a run after its third checkpoint."""
    worker = Worker(work, run_folder.parent.parent)
    while len(list(run_folder.glob("checkpoints/step_*.pt"))) < 3 and not worker.wait(0.005):
        pass
    assert worker.status is None, worker.ended().said
    worker.kill()
