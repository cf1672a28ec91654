"""How the tests are spread over cores: a file, or a notebook, is one worker's, those that take longest first."""

import os
from pathlib import Path

import pytest

# Of more than 20 seconds. The notebooks share outputs/: the first makes the cache and the teacher before the others come.
LONGEST = [
    "compare_regimes.ipynb", "test_published_runs.py", "test_run_again.py", "test_precompute.py", "soft_distill_text.ipynb",
    "train_optimized.ipynb", "evaluate.ipynb", "train_fixed.ipynb", "train_random.ipynb", "test_sources.py",
    "test_distributed.py", "test_train.py", "test_rank_papermill.py", "test_papermill.py", "test_prepare.py", "test_splits.py",
    "test_slurm.py", "test_launch.py", "precompute.ipynb", "test_my_images.py", "test_kernels.py",
]  # fmt: skip
MOST_WORKERS = 4  # of 1 to 2 GB each

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch: workers that fight for cores are many times slower
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))


@pytest.hookimpl(tryfirst=True)  # before xdist reads its options
def pytest_cmdline_main(config):
    """A worker a core, unless `-n` says otherwise, something is measured or attacked, or there is one file."""
    options = config.option
    if not config.pluginmanager.hasplugin("xdist") or options.numprocesses is not None or "PYTEST_XDIST_WORKER" in os.environ:
        return
    paths = {argument.split("::")[0] for argument in config.args}
    files = len(paths) if all(Path(path).is_file() for path in paths) else MOST_WORKERS
    if min(files, os.cpu_count() or 1) > 1 and options.markexpr == "not benchmark and not attack" and not options.usepdb:
        options.numprocesses, options.dist = min(files, os.cpu_count(), MOST_WORKERS), "loadfile"
        options.loadscopereorder = False  # xdist's own order: files with many tests first


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_terminal_summary(terminalreporter):
    """What a newcomer needed in tests/walks."""
    for report in terminalreporter.getreports(""):  # of fixtures that ended
        for commands, failures, seconds in (value for name, value in report.user_properties if name == "walk"):
            terminalreporter.write_line(f"{report.nodeid}: {commands} commands, {failures} failed, {seconds:.0f} s")
