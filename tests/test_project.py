"""The project holds together: layers that import downwards only, a quick import, a tree that names every file."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import kdnb

ROOT = Path(__file__).resolve().parent.parent
# Layer of each module or folder; a module imports only from layers above its own, that is, with a smaller number.
LAYERS = {
    0: "kdnb.files kdnb.distributed kdnb.hub kdnb.params kdnb.runs kdnb.losses kdnb.progress kdnb.notebook_errors "
    "kdnb.evaluation.statistics",
    1: "kdnb.data kdnb.models",
    2: "kdnb.text.texts kdnb.text.docstrings kdnb.text.text_data kdnb.text.tokenizer kdnb.text.tokens kdnb.text.batches "
    "kdnb.text.classifier kdnb.text.small_text "
    "kdnb.evaluation.features kdnb.evaluation.probe kdnb.evaluation.knn kdnb.evaluation.quality kdnb.evaluation.compare "
    "kdnb.evaluation.evaluator kdnb.plots",
    4: "kdnb.evaluation kdnb.text kdnb.papermill",
    5: "kdnb.distillation.checks kdnb.distillation.run kdnb.distillation.tour kdnb.fetch",
    3: "kdnb.distillation",
}
# Inside a layer, a module may lean on another of its own folder, and these do so beside.
SIDEWAYS = {("kdnb.runs", name) for name in ("kdnb.files", "kdnb.distributed", "kdnb.params")}
SIDEWAYS |= {("kdnb.params.values", "kdnb.progress"), ("kdnb.models.weights", "kdnb.data.cache")}


def layer_of(module: str) -> int:
    named = {name: number for number, modules in LAYERS.items() for name in modules.split()}
    for name in sorted(named, key=len, reverse=True):  # a folder's layer is that of its modules without one of their own
        if f"{module}.".startswith(f"{name}."):
            return named[name]
    raise AssertionError(f"{module} has no layer; give it one in tests/test_project.py")


def module_files() -> list[tuple[str, Path]]:
    files = sorted(path for path in (ROOT / "kdnb").rglob("*.py") if path.name != "__init__.py")
    return [(".".join(path.relative_to(ROOT).with_suffix("").parts), path) for path in files]


@pytest.mark.parametrize("module, path", module_files(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_from_layers_above(module, path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in (name for name in names if name and name.startswith("kdnb.")):
            package = module.rsplit(".", 1)[0]
            beside = package != "kdnb" and f"{name}.".startswith(f"{package}.") and layer_of(name) == layer_of(module)
            fine = layer_of(name) < layer_of(module) or (module, name) in SIDEWAYS or beside
            assert fine, f"{module} imports {name}, which is not above it"


def test_modules_import_each_other_in_no_circle():
    graph = {}
    for module, path in module_files():
        imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
        names = {name for node in imported for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))}
        graph[module] = names - {module}
    graph = {module: names & graph.keys() for module, names in graph.items()}
    TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_no_two_files_share_a_name():
    names = [path.name for _, path in module_files()]
    assert [name for name in names if names.count(name) > 1] == []


def test_heavy_libraries_load_only_where_they_are_used():
    # Registering models with timm needs timm; kdnb.models.vision imports that module when it builds one.
    modules = " ".join(f"import {module};" for module, _ in module_files() if module != "kdnb.models.cifar_resnet")
    heavy = ["transformers", "datasets", "matplotlib", "timm", "sklearn", "ipywidgets", "accelerate", "papermill", "pandas"]
    code = f"import sys; {modules} print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_file_of_the_library_is_named_in_the_tree():
    tree = (ROOT / "CONTRIBUTING.md").read_text()
    missing = [path.name for _, path in module_files() if not re.search(rf"\b{re.escape(path.name)}\b", tree)]
    assert not missing


def test_nothing_committed_names_this_machine():
    home = re.compile(r"/(home|root|Users|work)/\w+")
    ask = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if ask.returncode:
        pytest.skip("not a git checkout, so there is no list of committed files")
    for name in ask.stdout.splitlines():
        path = ROOT / name
        if path.exists() and path != Path(__file__):
            assert not home.search(path.read_bytes().decode("utf-8", "ignore")), name


def test_editors_and_type_checkers_see_the_public_names():
    """What __init__.py imports under TYPE_CHECKING is what it loads lazily."""
    (block,) = [node for node in ast.parse(Path(kdnb.__file__).read_text()).body if isinstance(node, ast.If) and node.orelse]
    imports = {alias.asname: node.module for node in block.body for alias in node.names}
    assert imports == kdnb._HOME
