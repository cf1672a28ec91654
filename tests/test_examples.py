"""The examples in docstrings run as they stand; every public name has one."""

import doctest
import pkgutil
import shutil
from importlib import import_module
from pathlib import Path

import pytest

import kdnb


class Checker(doctest.OutputChecker):
    """Where an example expects nothing, it may print: of training, how long it took."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


PUBLIC = {name: getattr(kdnb, name) for name in kdnb.__all__}


def examples() -> list[doctest.DocTest]:
    """Of every docstring in kdnb that has `>>>`."""
    found = []
    for info in pkgutil.walk_packages(kdnb.__path__, "kdnb."):
        path = Path(info.module_finder.find_spec(info.name).origin)
        if ">>> " in path.read_text(encoding="utf-8") and path.stem != "__main__":
            found += [test for test in doctest.DocTestFinder().find(import_module(info.name)) if test.examples]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits_teacher) -> Path:
    """One for all, in which the built-in teacher is trained already."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(digits_teacher, folder / "outputs/teacher_digits")
    return folder


@pytest.mark.parametrize("example", examples(), ids=lambda test: test.name.removeprefix("kdnb."))
def test_an_example_runs_as_it_stands(example, folder, monkeypatch):
    """A public name's without the imports of the file that it stands in: as a reader pastes it after `from kdnb import *`."""
    monkeypatch.chdir(folder)  # relative paths are the script's
    monkeypatch.setenv("KDNB_PROGRESS", "none")
    if any(value.__module__ + "." + name == example.name for name, value in PUBLIC.items()):
        example.globs = {"kdnb": kdnb, **PUBLIC}
    assert not any(line.options.get(doctest.SKIP) for line in example.examples), "+SKIP: an example that nobody runs"
    lines: list[str] = []
    failed, _ = doctest.DocTestRunner(Checker(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(
        example, out=lines.append
    )
    if failed:
        pytest.fail("".join(lines), pytrace=False)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    has = "Example:\n" in PUBLIC[name].__doc__ and ">>> " in PUBLIC[name].__doc__
    assert has, f"kdnb.{name} has no `Example:` in its docstring"
