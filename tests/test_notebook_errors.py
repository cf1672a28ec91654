"""A notebook shows the user's errors as sentences; bugs, libraries' errors and the user's own keep their traceback."""

import re
import subprocess
import sys
import threading
import weakref
from contextlib import contextmanager

import nbformat
import pytest
from caches import write_cache
from nbclient import NotebookClient

from kdnb.notebook_errors import find_sentence, release_frames
from kdnb.params.cell import cell_source

PRECOMPUTE = """
import signal
class Source:
    name, classes, num_images, labelled, fingerprint = "made", ["a"], 3, True, "f"
    def labels(self):
        return [0, 0, 0]
    def items(self, ids):
        signal.raise_signal(signal.SIGINT)  # the stop button
        yield
kdnb.precompute(Source(), "other", image_size=8)
"""
LOAD = "kdnb.build_pretraining_dataloader(cache_dir={0!r}, batch_size=4, regime='fixed', fixed_shards={1})"
NAMES = "{name: globals()[name] for name in [*TABLE['train_fixed'], 'batch_sise']}"
SENTENCES = {  # name: (cell, how the error begins)
    "too many shards": (LOAD.format("cache", 99), "ValueError: fixed_shards is 99, but the cache holds 3 shards"),
    "no cache": (LOAD.format("none", 2), "FileNotFoundError: Index file not found: "),
    "no run": ("kdnb.evaluate('nowhere')", "FileNotFoundError: run "),
    "misspelt": (
        f"batch_sise = 32\ncheck_params({NAMES}, 'train_fixed')",
        "ParameterError: train_fixed has no parameter batch_sise",
    ),
    "interrupt": (PRECOMPUTE, "KeyboardInterrupt: the cell was interrupted; "),
}
TRACEBACKS = {  # name: (cell, a line of its traceback)
    "%tb after a sentence": ("%tb", "in precompute("),
    "a bug": (
        "import kdnb.data.datasets as d\nd.ShardReader = None\n" + LOAD.format("cache", 2),
        "in build_pretraining_dataloader(",
    ),
    "a library's": ("kdnb.Run('r', {}, outputs='.').finish({'a': object()})", "in JSONEncoder.default("),
    "the user's own": ("def mine():\n    raise ValueError('mine is wrong')\nmine()", "in mine("),
    "the user's interrupt": ("signal.raise_signal(signal.SIGINT)", "Cell In["),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, list]:
    """Outputs by story, each a cell of one notebook."""
    folder = tmp_path_factory.mktemp("errors")
    write_cache(folder / "cache")
    begin = [cell_source("train_fixed"), "import kdnb\nfrom kdnb.params import TABLE, check_params"]
    stories = SENTENCES | TRACEBACKS
    sources = [*begin, *(cell for cell, _ in stories.values())]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", allow_errors=True, resources=resources).execute()
    assert not any(cell.outputs for cell in notebook.cells[: len(begin)])
    return {name: cell.outputs for name, cell in zip(stories, notebook.cells[len(begin) :], strict=True)}


@pytest.mark.parametrize("story", SENTENCES)
def test_a_users_error_is_its_sentence_with_the_traceback_folded_below(outputs, story):
    error, folded = [output for output in outputs[story] if output.output_type != "stream"]
    (line,) = error.traceback
    assert line.startswith(SENTENCES[story][1]) and line.startswith(f"{error.ename}: {error.evalue}")
    shown = folded.data["text/html"]
    assert shown.startswith("<details ") and "&quot;, line " in shown and "interactiveshell" not in shown


@pytest.mark.parametrize("story", TRACEBACKS)
def test_other_errors_keep_their_traceback(outputs, story):
    (error,) = outputs[story]
    text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))
    assert "Traceback (most recent call last)" in text and TRACEBACKS[story][1] in text


def test_a_script_ends_with_a_traceback_as_ever():
    done = subprocess.run([sys.executable, "-c", "import kdnb; kdnb.nothing"], capture_output=True, text=True)
    assert done.stderr.startswith("Traceback ") and "has no attribute 'nothing'" in done.stderr.splitlines()[-1]


RAISES = {
    "a sentence": ("raise ValueError('a is 1')", "ValueError: a is 1"),
    "from another": ("try: int('a')\n    except ValueError as error: raise OSError('b') from error", "OSError: b"),
    "cleaned up after": ("try: raise ValueError('a')\n    finally: len('b')", "ValueError: a"),
    "several lines": ("raise ValueError(\n        'a'\n        'b')", "ValueError: ab"),
    "no sentence": ("raise NotImplementedError", None),
    "an assert": ("assert False, 'a'", None),
    "a call": ("int('a')", None),
    "handed on": ("try: int('a')\n    except ValueError: raise", None),
    "while it is put together": ("raise ValueError(f'{int(1) / 0}')", None),
}


def caught(body: str, module: str = "kdnb.made", **names) -> Exception:
    """What a function with this body raises, as if it stood in `module`."""
    namespace = {"__name__": module, **names}
    exec(f"def f():\n    {body}", namespace)
    with pytest.raises(Exception) as raised:
        namespace["f"]()
    return raised.value


@pytest.mark.parametrize("body, sentence", RAISES.values(), ids=RAISES)
def test_a_raise_statement_of_kdnb_with_a_sentence_is_meant_for_the_user(body, sentence):
    assert find_sentence(caught(body)) == sentence
    assert find_sentence(caught(body, module="kdnbx")) is None


def test_what_counts_is_where_it_was_raised_first():
    """In a thread, in a context manager, in a library that kdnb called."""

    @contextmanager
    def manager():
        yield

    here, there = caught("raise ValueError('a')"), caught("raise ValueError('a')", module="torch")
    assert find_sentence(caught("raise error", error=there)) is None
    assert find_sentence(caught("raise error", module="torch", error=here)) == "ValueError: a"
    assert find_sentence(caught("with manager(): raise ValueError('a')", manager=manager)) == "ValueError: a"
    thread = threading.Thread(target=lambda: held.append(caught("raise ValueError('b')")))
    held = []
    thread.start()
    thread.join()
    assert find_sentence(caught("raise held[0]", held=held)) == "ValueError: b"


def test_frames_let_go_of_what_they_held_but_for_the_notebooks_own():
    class Large:
        pass

    def in_library():
        large = Large()
        weakref.finalize(large, freed.append, "cause")
        raise OSError("a")

    freed = []
    body = "large = Large(); finalize(large, freed.append, '{}')\n    try: library()\n    except OSError: raise ValueError('b')"
    names = {"library": in_library, "Large": Large, "finalize": weakref.finalize, "freed": freed}
    first, second = caught(body.format("kdnb"), **names), caught(body.format("own"), module="__main__", **names)
    assert freed == []
    release_frames(first)
    assert sorted(freed) == ["cause", "kdnb"]
    release_frames(second)
    assert sorted(freed) == ["cause", "cause", "kdnb"]
