"""JupyterLab without its page: three notebooks, a kernel each; parameters edited in their cell, one of them wrong at first."""

import shutil

from nbconvert import HTMLExporter
from notebook_session import Session, kernel_of


def test_precompute_a_mistake_train_and_evaluate(project, digits_teacher, walk):
    shutil.copytree(digits_teacher, project / "outputs/teacher_digits")

    def opened(name: str) -> Session:
        return Session(project / "notebooks" / f"{name}.ipynb", kernel)

    with kernel_of(project, JPY_SESSION_NAME="precompute.ipynb") as kernel:
        opened("precompute").run()
        walk.count()

    with kernel_of(project, JPY_SESSION_NAME="train_fixed.ipynb") as kernel:
        training = opened("train_fixed")
        training.edit(run_name="hers", epochs=1, fixed_shards=99)
        training.run(training.parameters)
        error = training.fail(training.check)
        walk.count(failed=True)
        assert training.check.outputs[0] is error and len(error.traceback) == 1
        assert "fixed_shards is 99, but the cache holds 32 shards" in error.traceback[0].splitlines()[0]
        training.edit(fixed_shards=25)
        training.run()
        walk.count()
    page, _ = HTMLExporter().from_notebook_node(training.notebook)
    assert 'class="kdnb-progress kdnb-done"' in page and "hers: step 37/37 | " in page

    with kernel_of(project, JPY_SESSION_NAME="evaluate.ipynb") as kernel:
        judging = opened("evaluate")
        judging.edit(checkpoint_dir="outputs/hers")
        judging.run()
        walk.count()
    page, _ = HTMLExporter().from_notebook_node(judging.notebook)
    assert 'class="kdnb-evaluation"' in page and "hers: 1 checkpoints, finished" in page
