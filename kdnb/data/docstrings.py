"""Built-in texts that need no network: what libraries say about their functions, classified by library.

Each text is the first paragraph of the docstring of a public function, class or method of a library that comes with
kdnb's requirements; its class is the library. Source files are parsed, never imported: 2 to 4 s on one thread, once in a
process. Every library's name and usual alias is replaced by one word in every text, so that a classifier must go by what
the text is about. The texts, and how many there are of each class, depend on the versions that are installed; on one
machine they stay the same from call to call.
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
MOST = 400  # texts of a class
SPLITS = ("train", "test")
_WORDS = 6  # a shorter text says nothing that tells libraries apart
_ENOUGH = 500  # texts after which no further file of a library is read: some turn out to be in two libraries
_MOST_BYTES = 4_000_000  # of source read from a library; 8 MB a second on a fast core
_SKIP = {"tests", "test", "testing", "_testing", "externals", "_externals", "_vendor", "vendored", "conftest.py"}
# Long names are masked inside other words too (PyTorchModel), short aliases only where no letter or digit touches them.
_LONG = r"scikit-?learn|scikits?|pytorch|tensorflow|pillow|jupyter|" + "|".join(sorted(LIBRARIES, key=len, reverse=True))
_SHORT = r"sk|np|jnp|sp|pd|plt|mpl|pyplot|pylab|nx|tf|pil|hf|timm|aten|hugging ?face"
_NAMES = re.compile(rf"(?:{_LONG})|(?<![a-z0-9])(?:{_SHORT})(?![a-z0-9])", re.IGNORECASE)


def read_docstrings(split: str) -> tuple[list[str], list[int], list[str]]:
    """(texts, labels, classes) of `split`, train or test (about 80 and 20 of 100), in the order of the texts' hashes.

    A class has at most `MOST` texts of at least 6 words each, all different; what two libraries say alike is left out. The
    hash of its words decides which split a text is in, so no text is in both, and an upgrade moves none to the other.

    Raises:
        ValueError: another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, but dataset docstrings has {', '.join(SPLITS)}.")
    found = _by_library()
    rows = [(_number(_key(text)), text, label) for label, texts in enumerate(found.values()) for text in texts]
    rows = sorted(row for row in rows if (row[0] % 5 == 0) == (split == "test"))
    return [text for _, text, _ in rows], [label for *_, label in rows], list(found)


@cache
def _by_library() -> dict[str, list[str]]:
    """Masked texts of each library that is there."""
    found = {}
    for library in LIBRARIES:
        spec = find_spec(library)
        if spec is not None and spec.origin:
            found[library] = _collect(Path(spec.origin).parent)
    times = Counter(key for texts in found.values() for key in texts)
    once = {library: [text for key, text in texts.items() if times[key] == 1] for library, texts in found.items()}
    return {library: sorted(texts, key=lambda text: _number(_key(text)))[:MOST] for library, texts in once.items()}


def _collect(folder: Path) -> dict[str, str]:
    """Texts by their words, from a library's files in the order of the hashes of their names, which mixes its parts."""
    files = [path.relative_to(folder) for path in folder.rglob("*.py")]
    files = [path for path in files if not _SKIP.intersection(path.parts) and not path.name.startswith("test_")]
    texts, size = {}, 0
    for path in sorted(files, key=lambda path: _number(path.as_posix())):
        source = (folder / path).read_bytes()
        size += len(source)
        try:
            with warnings.catch_warnings(action="ignore"):  # of what the library's authors wrote
                tree = ast.parse(source)
        except (SyntaxError, ValueError):  # a template, or written for another Python
            continue
        for text in filter(None, map(clean, _public(tree))):
            texts.setdefault(_key(text), text)
        if len(texts) >= _ENOUGH or size >= _MOST_BYTES:
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


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
