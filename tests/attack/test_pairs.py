"""Two jobs that want one cache, one run, one store of outputs: one works, the other waits or is told, and nothing is mixed up."""

import time
from functools import partial

import projects
import pytest
from harness import Worker, brief, differing, run

STORING = partial(projects.train, stored=True)
PAIRS = {
    "one cache": ("raw", projects.precompute, projects.precompute),
    "one run": ("cached", projects.train, projects.train),
    "one run on texts": ("cached", projects.train_text, projects.train_text),
    "one store of outputs": ("cached", partial(STORING, name="a"), partial(STORING, name="b")),
}
pytestmark = pytest.mark.attack


@pytest.mark.parametrize("name", PAIRS)
def test_two_jobs_at_once(attack, templates, name):
    template, *works = PAIRS[name]
    project = attack.fresh(templates / template)
    undisturbed = [run(work, project) for work in works]
    for rng in attack.tries():
        attack.fresh(templates / template)
        workers = []
        for work in works:
            workers.append(Worker(work, project))
            time.sleep(rng.choice([0, rng.uniform(0, undisturbed[0].seconds)]))
        ended = [worker.ended() for worker in workers]
        bad = [one for one in ended if one.how not in ("done", "sentence")]
        again = [run(work, project) for work in works]
        if bad:
            outcome, detail = bad[0].how, brief(bad[0].said)
        else:
            wrong = [i for i, one in enumerate(again) if one.how != "done" or one.result != undisturbed[i].result]
            outcome = "lost" if wrong else "found" if any(one.how == "sentence" for one in ended) else "harmless"
            detail = "".join(differing(again[i], undisturbed[i]) for i in wrong)
        attack.count(f"two jobs with {name}", outcome, detail)
