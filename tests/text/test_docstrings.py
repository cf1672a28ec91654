"""Built-in texts: as many of each class whatever is installed, masked, apart, and learnable."""

from collections import Counter

import numpy as np
import pytest

from kdnb.text import docstrings
from kdnb.text.texts import open_texts

WORDS = ["array", "graph", "column", "figure", "solver", "layer", "token", "matrix", "axis", "label", "node", "edge", "plot"]


@pytest.fixture(scope="module")
def built_in():
    return open_texts("docstrings"), open_texts("docstrings", split="test")


@pytest.fixture
def write_library(tmp_path, monkeypatch):
    """A function that writes a library of these texts, and lets it and `others` be the libraries that are read."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(docstrings, "_by_library", docstrings._by_library.__wrapped__)  # which keeps nothing

    def write(name: str, sentences: list[str], *others: str):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
        for number, part in enumerate(np.array_split(sentences, 10)):
            lines = [f'def f{n}():\n    """{sentence}"""\n' for n, sentence in enumerate(part)]
            (tmp_path / name / f"module{number}.py").write_text("".join(lines))
        monkeypatch.setattr(docstrings, "LIBRARIES", (name, *others))

    return write


def sentences(count: int, seed: int) -> list[str]:
    """Different texts of eight words."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        found[" ".join(rng.choice(WORDS, 8))] = None
    return list(found)


def test_every_class_has_the_same_number_of_texts_with_any_versions(built_in):
    for texts, count in zip(built_in, (320, 80), strict=True):
        assert Counter(texts.labels.tolist()) == dict.fromkeys(range(9), count)
        assert ", ".join(texts.classes) == "matplotlib, networkx, numpy, pandas, scipy, sklearn, sympy, torch, transformers"
        assert texts.missing_classes == []


def test_an_upgrade_changes_texts_but_neither_their_number_nor_their_split(write_library):
    before = sentences(900, seed=0)
    after = before[200:] + sentences(300, seed=1)  # some are gone, some are new
    write_library("kdnb_before", before)
    first = {split: docstrings.read_docstrings(split)[0] for split in ("train", "test")}
    write_library("kdnb_after", after)
    second = {split: docstrings.read_docstrings(split)[0] for split in ("train", "test")}
    assert {split: len(texts) for split, texts in first.items()} == {split: len(texts) for split, texts in second.items()}
    assert set(first["train"]) != set(second["train"]) and len(set(first["train"]) & set(second["train"])) > 100
    assert not set(first["train"] + second["train"]) & set(first["test"] + second["test"])


def test_a_library_with_too_few_texts_or_none_is_refused_in_one_sentence(write_library):
    few = sentences(200, seed=0)
    write_library("kdnb_small", few)
    held = sum(docstrings._split(text) == "train" for text in few)
    said = f"takes 320 train texts from kdnb_small, but the version that is installed here has {held}; install"
    with pytest.raises(ValueError, match=said) as error:
        open_texts("docstrings")
    assert "\n" not in str(error.value)
    write_library("kdnb_large", sentences(900, seed=0), "kdnb_absent")
    with pytest.raises(ValueError, match="but kdnb_absent is not installed; install everything that kdnb requires"):
        open_texts("docstrings")


def test_texts_are_masked_and_apart(built_in):
    train, test = built_in
    assert not set(train.texts) & set(test.texts)
    assert len(set(train.texts)) == len(train) and len(set(test.texts)) == len(test)
    for text in train.texts + test.texts:
        assert len(text.split()) >= 6 and text == " ".join(text.split())
        assert not any(name in text.lower() for name in docstrings.LIBRARIES)


def test_classes_can_be_learned_but_not_trivially(built_in):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    train, test = built_in
    words = TfidfVectorizer()
    model = LogisticRegression(C=10, max_iter=300).fit(words.fit_transform(train.texts), train.labels.numpy())
    assert 0.6 < model.score(words.transform(test.texts), test.labels.numpy()) < 0.95


def test_texts_by_hand(tmp_path):
    package = tmp_path / "kdnb_example"
    (package / "tests").mkdir(parents=True)
    (package / "__init__.py").write_text(
        'def add(x):\n    """Adds two\n    torch.Tensor objects, like np.add does.\n\n    More."""\n'
        '    def inner():\n        """Nobody can call this function from outside."""\n'
        'def _hidden():\n    """This one is private and is left out."""\n'
        'class Box:\n    """Too short."""\n    def open(self):\n        """Opens the box and PyTorchs all that is inside."""\n'
        'class Twin:\n    """opens the BOX, and PyTorchs all that is inside"""\n'
    )
    (package / "broken.py").write_text("def {{ name }}():\n")
    (package / "tests" / "more.py").write_text('def test():\n    """What stands in the tests is no text."""\n')
    texts = list(docstrings._collect(package).values())
    assert texts == ["Adds two LIB.Tensor objects, like LIB.add does.", "Opens the box and LIBs all that is inside."]
    assert docstrings.clean("An input, a snp and the npm are kept") == "An input, a snp and the npm are kept"
    assert docstrings.clean(">>> an example is no text of any library") == ""


def test_what_two_libraries_say_alike_is_in_neither(write_library):
    both, own = sentences(20, seed=5), sentences(940, seed=6)
    write_library("kdnb_one", own[:470] + both)
    write_library("kdnb_two", own[470:] + both, "kdnb_one")
    texts, labels, classes = docstrings.read_docstrings("train")
    assert labels.count(0) == labels.count(1) == 320 and classes == ["kdnb_two", "kdnb_one"]
    assert not set(texts) & set(both)


def test_there_are_two_splits():
    with pytest.raises(ValueError, match="split is 'validation', but dataset docstrings has train, test"):
        open_texts("docstrings", split="validation")
