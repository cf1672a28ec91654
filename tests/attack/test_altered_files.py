"""One file of a project is altered, and everything that reads it is run: it is found, healed, or does not matter."""

import os
import pickle
import random
import re
from pathlib import Path

import projects
import pytest
import torch
from harness import differing, run, verdict

pytestmark = pytest.mark.attack


class Payload:
    def __reduce__(self):
        return os.system, ("touch executed",)


def flip(path: Path, rng: random.Random):
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random):
    size = path.stat().st_size
    os.truncate(path, rng.choice([0, 1, size // 2, size - 1]))


def replace_by_folder(path: Path, rng: random.Random):
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "file").write_text("")


def replace_by_loop(path: Path, rng: random.Random):
    path.unlink()
    path.symlink_to(path.name)


def replace_by_payload(path: Path, rng: random.Random):
    """A pickled object that runs a command where it is loaded."""
    if rng.random() < 0.5 or path.suffix == ".npy":
        path.write_bytes(pickle.dumps(Payload()))
    else:
        torch.save({"images": Payload(), "student": Payload()}, path)


# How a file is altered, how the table calls that, and which files.
ATTACKS = {
    flip: ("a byte flipped", lambda path: path.stat().st_size > 0),
    cut: ("cut", lambda path: path.stat().st_size > 0),
    replace_by_folder: ("a folder in its place", lambda path: True),
    replace_by_loop: ("a loop of links in its place", lambda path: True),
    replace_by_payload: ("a pickled payload in", lambda path: path.suffix in (".pt", ".npy")),
}


# What the table calls files whose path has these words, the first that fits.
GROUPS = {
    r"/checkpoints/": "checkpoints and records of runs", r"_model/": "saved models", r"images_shard|index": "shards and indexes",
    r"answers": "stored teacher outputs", r"small_text": "text models made here", r"\.pt": "kept results", r"": "facts of runs",
}  # fmt: skip


def kind_of(path: Path) -> str:
    return re.sub(r"[0-9a-f]{8,}|\d+", "#", str(path))


@pytest.mark.parametrize("alter", ATTACKS)
def test_altered_files_are_found_or_healed(attack, templates, alter):
    undisturbed = run(projects.everything, attack.fresh(templates / "trained"))
    assert undisturbed.how == "done", undisturbed.said
    called, wanted = ATTACKS[alter]
    kinds: dict[str, list[Path]] = {}
    for path in sorted((templates / "trained" / "outputs").rglob("*")):
        if path.is_file() and wanted(path) and path.name != ".lock":
            path = path.relative_to(templates / "trained")
            kinds.setdefault(kind_of(path), []).append(path)
    order = sorted(kinds)
    random.Random(0).shuffle(order)
    for rng in attack.tries():
        kind = order[attack.seed % len(order)]  # in turn: some kinds are many files
        path = attack.fresh(templates / "trained") / rng.choice(kinds[kind])
        was = path.read_bytes()
        alter(path, rng)
        ended = run(projects.everything, attack.project)
        outcome = verdict(ended, undisturbed, path, was=was)
        if (attack.project / "executed").exists():
            outcome = "silent"
        group = next(name for words, name in GROUPS.items() if re.search(words, kind))
        attack.count(f"{called}: {group}", outcome, f"{path.relative_to(attack.project)}: {differing(ended, undisturbed)}")
