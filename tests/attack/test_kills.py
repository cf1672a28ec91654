"""SIGKILL, or SIGTERM, at random moments: what is started anew never refuses, and ends as if nothing had happened."""

import signal
from functools import partial

import projects
import pytest
from harness import Worker, brief, differing, run

WORK = {
    "precompute, in one process": ("raw", projects.precompute),
    "precompute, 2 workers": ("raw", partial(projects.precompute, num_workers=2)),
    **{f"training, {regime}": ("cached", partial(projects.train, regime=regime)) for regime in projects.REGIMES},
    "training, outputs stored": ("cached", partial(projects.train, stored=True)),
    "training on texts": ("cached", projects.train_text),
}
pytestmark = pytest.mark.attack


@pytest.mark.parametrize("name", WORK)
def test_killed_work_goes_on_and_ends_as_undisturbed(attack, templates, name):
    template, work = WORK[name]
    undisturbed = run(work, attack.fresh(templates / template))
    assert undisturbed.how == "done", undisturbed.said
    for rng in attack.tries():
        project, kills = attack.fresh(templates / template), 0
        for _ in range(rng.choice([1, 1, 2, 3])):
            worker = Worker(work, project)
            kills += not worker.wait(rng.uniform(0, undisturbed.seconds))
            worker.kill(alone=rng.random() < 0.5)
            worker.ended()
        ended = run(work, project)
        lost = "lost" if ended.how in ("done", "sentence") else ended.how
        outcome = "healed" if ended.how == "done" and ended.result == undisturbed.result else lost
        attack.count(f"kills of {name}", outcome, differing(ended, undisturbed), tries=kills)


def test_a_notebook_that_is_told_to_stop_goes_on(attack, templates):
    whole = run(projects.train_by_papermill, attack.fresh(templates / "cached"))
    undisturbed = run(projects.job_result, attack.project)
    assert undisturbed.how == "done", whole.said
    for rng in attack.tries():
        worker = Worker(projects.train_by_papermill, attack.fresh(templates / "cached"))
        worker.wait(rng.uniform(0, whole.seconds))
        worker.kill(signal.SIGTERM, alone=True)
        ended = worker.ended()
        if ended.how in ("done", "stopped"):
            ended = run(projects.train_by_papermill, attack.project)
        result = run(projects.job_result, attack.project).result
        outcome = ended.how if ended.how != "done" else "healed" if result == undisturbed.result else "lost"
        attack.count("SIGTERM of kdnb.papermill", outcome, brief(ended.said))
