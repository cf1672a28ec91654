"""Built-in texts that need no network: what libraries say about their functions, classified by library.

Each text is the first paragraph of the docstring of a public function, class or method of a library that kdnb requires;
its class is the library. Source files are parsed, never imported: 2 to 4 s on one thread, once in a process. Every
library's name and usual alias is replaced by one word in every text, so that a classifier must go by what the text is about.

Which texts there are depends on the versions that are installed, how many does not: every class has the same number of them,
less than half of what its library holds in any version that kdnb allows. So no number that follows from counts, such as
the steps of an epoch, changes with an upgrade; what is measured on the texts may.
"""

import ast
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("matplotlib", "networkx", "numpy", "pandas", "scipy", "sklearn", "sympy", "torch", "transformers")
MASK = "LIB"
TEXTS = {"train": 320, "test": 80}  # of each class
_WORDS = 6  # a shorter text says nothing that tells libraries apart
_SPARE = 1.25  # read so many times the texts that are needed: some turn out to be in two libraries
_SKIP = {"tests", "test", "testing", "_testing", "externals", "_externals", "_vendor", "vendored", "conftest.py"}
# Long names are masked inside other words too (PyTorchModel), short aliases only where no letter or digit touches them.
_LONG = r"scikit-?learn|scikits?|pytorch|tensorflow|pillow|jupyter|" + "|".join(sorted(LIBRARIES, key=len, reverse=True))
_SHORT = r"sk|np|jnp|sp|pd|plt|mpl|pyplot|pylab|nx|tf|pil|hf|timm|aten|hugging ?face"
_NAMES = re.compile(rf"(?:{_LONG})|(?<![a-z0-9])(?:{_SHORT})(?![a-z0-9])", re.IGNORECASE)


def read_docstrings(split: str) -> tuple[list[str], list[int], list[str]]:
    """(texts, labels, classes) of `split`, in the order of the texts' hashes.

    Each class has `TEXTS[split]` texts of at least 6 words, all different; a text that two libraries share is left out. The hash
    of a text's words decides which split it is in, and whether it is taken: no text is in both, and an upgrade moves none
    from one to the other.

    Raises:
        ValueError: another split; a library that is not installed or has too few texts.
    """
    if split not in TEXTS:
        raise ValueError(f"split is {split!r}, but dataset docstrings has {', '.join(TEXTS)}.")
    rows = [(_number(text), text, label) for label, texts in enumerate(_by_library().values()) for text in texts[split]]
    rows.sort()
    return [text for _, text, _ in rows], [label for *_, label in rows], list(LIBRARIES)


@cache
def _by_library() -> dict[str, dict[str, list[str]]]:
    """Masked texts of each library and split."""
    collected = {library: _collect(_folder(library)) for library in LIBRARIES}
    times = Counter(key for texts in collected.values() for key in texts)
    return {
        library: _choose(library, {key: text for key, text in texts.items() if times[key] == 1})
        for library, texts in collected.items()
    }


def _choose(library: str, texts: dict[str, str]) -> dict[str, list[str]]:
    """The first `TEXTS` of each split, by the hashes of their words."""
    splits: dict[str, list[str]] = {split: [] for split in TEXTS}
    for key in sorted(texts, key=_number):
        splits[_split(key)].append(texts[key])
    for split, count in TEXTS.items():
        if len(splits[split]) < count:
            raise ValueError(
                f"dataset docstrings takes {count} {split} texts from {library}, but the version that is installed here has "
                f"{len(splits[split])}; install the version of {library} that constraints.txt names, or choose another dataset."
            )
    return {split: splits[split][:count] for split, count in TEXTS.items()}


def _folder(library: str) -> Path:
    spec = find_spec(library)
    if spec is None or not spec.origin:
        raise ValueError(
            f"dataset docstrings takes texts from {', '.join(LIBRARIES)}, but {library} is not installed; install everything "
            "that kdnb requires, or choose another dataset."
        )
    return Path(spec.origin).parent


def _collect(folder: Path) -> dict[str, str]:
    """Texts by their words, from a library's files in the order of the hashes of their names, which mixes its parts."""
    files = [path.relative_to(folder) for path in folder.rglob("*.py")]
    files = [path for path in files if not _SKIP.intersection(path.parts) and not path.name.startswith("test_")]
    texts: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for path in sorted(files, key=lambda path: _number(path.as_posix())):
        try:
            with warnings.catch_warnings(action="ignore"):  # of what the library's authors wrote
                tree = ast.parse((folder / path).read_bytes())
        except (SyntaxError, ValueError):  # a template, or written for another Python
            continue
        for text in filter(None, map(clean, _public(tree))):
            key = _key(text)
            if key not in texts:
                texts[key] = text
                sizes[_split(key)] += 1
        if all(sizes[split] >= _SPARE * count for split, count in TEXTS.items()):
            break
    return texts


def _public(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Docstrings of the public functions, classes and methods in a module; what is inside a function is not public."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            doc = ast.get_docstring(child)
            if doc:
                yield doc
            if isinstance(child, ast.ClassDef):
                yield from _public(child)


def clean(docstring: str) -> str:
    """The first paragraph in one line with the libraries' names masked; empty where it is too short to be a text."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    text = _NAMES.sub(MASK, " ".join(paragraph.split()))
    return text if len(text.split()) >= _WORDS and not text.startswith(">>>") else ""


def _key(text: str) -> str:
    """What texts are compared by: one that differs in case, punctuation or digits only is the same."""
    return " ".join(re.findall(r"[a-z]+", text.lower()))


def _split(key: str) -> str:
    return "test" if _number(key) % 5 == 0 else "train"


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
