"""What is imported is declared; what is declared is pinned, within its bounds; everything installs by the pins."""

import ast
import re
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions, requires
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kdnb.text.docstrings import LIBRARIES

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [Requirement(line) for line in PROJECT["dependencies"]]
FOR_TESTS = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
# Which of these come with torch, and in which version, torch's own version says.
FOR_A_GPU = re.compile(r"(nvidia|cuda)-.*|triton")


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def imports(source: str) -> set[str]:
    """Top-level modules that `source` imports, anywhere."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {name.split(".")[0] for name in found}


def undeclared(sources: list[str], declared: set[str], own: set[str]) -> set[str]:
    """Modules that `sources` import from distributions that are not `declared`; `own` are the project's."""
    from_where = packages_distributions()
    foreign = set().union(*map(imports, sources)) - set(sys.stdlib_module_names) - own
    return {name for name in foreign if not declared & set(map(canonicalize_name, from_where.get(name, [])))}


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)  # nothing but name==version: no address, no path, no range
    return {canonicalize_name(name): pinned for name, pinned in found.items()}


def test_what_the_library_and_the_notebooks_import_is_declared():
    sources = [path.read_text() for path in (ROOT / "kdnb").rglob("*.py")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        sources += [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert undeclared(sources, names(DECLARED), own={"kdnb"}) == set()
    assert undeclared(["def f():\n    import no_such_module.part"], names(DECLARED), own=set()) == {"no_such_module"}


def test_what_the_tests_import_is_declared_for_them():
    paths = list((ROOT / "tests").rglob("*.py"))
    own = {"kdnb"} | {path.stem for path in paths}
    assert undeclared([path.read_text() for path in paths], names(DECLARED + FOR_TESTS), own) == set()


def test_the_libraries_of_the_built_in_texts_are_declared():
    from_where = packages_distributions()
    assert all(names(DECLARED) & set(map(canonicalize_name, from_where[library])) for library in LIBRARIES)


def test_every_direct_dependency_is_pinned_within_its_bounds():
    pinned = pins()
    assert all(requirement.specifier for requirement in DECLARED + FOR_TESTS)  # each has its lower bound
    for requirement in DECLARED + FOR_TESTS:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
    assert not [name for name in pinned if FOR_A_GPU.fullmatch(name) or name == canonicalize_name(PROJECT["name"])]


def test_everything_that_comes_with_the_pinned_dependencies_is_pinned():
    pinned, waiting, seen = pins(), DECLARED + FOR_TESTS, {}
    here = {canonicalize_name(entry.name): entry.version.split("+")[0] for entry in distributions()}
    other = [f"{name} {here.get(name, 'not installed')}" for name in sorted(names(waiting)) if here.get(name) != pinned[name]]
    if other:
        pytest.skip(f"not the environment of constraints.txt: {', '.join(other)}")
    while waiting:
        requirement = waiting.pop()
        extras = {"", *requirement.extras}
        if extras <= seen.setdefault(requirement.name, set()):
            continue
        seen[requirement.name] |= extras
        for further in map(Requirement, requires(requirement.name) or []):
            if not further.marker or any(further.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(further)
    assert len(seen) > 100
    assert {name for name in map(canonicalize_name, seen) if name not in pinned and not FOR_A_GPU.fullmatch(name)} == set()


def test_conda_installs_by_the_pins():
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines()]
    assert lines[lines.index("- pip:") + 1 :] == ["- -c constraints.txt", "- -e .[test]"]
    assert f"- python{PROJECT['requires-python']}" in lines


def test_readme_opens_with_two_commands_that_install_by_the_pins():
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1].strip().splitlines()
    install = 'python -m pip install -c constraints.txt -e ".[test]" && '
    assert block == [install + "papermill notebooks/train_fixed.ipynb out.ipynb -p fixed_shards 25", install + "pytest --nbval"]


def test_readme_names_the_versions_that_were_tested():
    header, pinned, lowest = re.findall(r"^\| (?:versions|pinned|lowest).*\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    columns = [[cell.strip() for cell in row.strip("|").split("|")][1:] for row in (header, pinned, lowest)]
    bounds = {canonicalize_name(r.name): str(r.specifier).removeprefix(">=") for r in DECLARED}
    for name, pin, bound in zip(*columns, strict=True):
        assert (pin, bound) == (pins()[name], bounds[name]), name
