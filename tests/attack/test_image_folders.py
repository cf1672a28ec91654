"""What lies in folders of images beside images: links in circles, pipes, devices, huge pictures, names of any bytes."""

import os
from functools import partial
from pathlib import Path

import projects
import pytest
from harness import differing, run
from PIL import Image

pytestmark = pytest.mark.attack
MOST_MEMORY = 600_000_000  # bytes


def write_huge(path: Path):
    Image.new("1", (13_300, 13_300)).save(path)


NASTY = {
    "a link to the folder above": lambda folder: (folder / "up").symlink_to(".."),
    "a link to another class": lambda folder: (folder / "other").symlink_to(next(folder.parent.glob("[!.]*")).name),
    "a circle of links": lambda folder: [(folder / a).symlink_to(b) for a, b in ("xy", "yx")],
    "a link to itself": lambda folder: (folder / "self.png").symlink_to("self.png"),
    "a dangling link": lambda folder: (folder / "gone.png").symlink_to("nowhere"),
    "a pipe": lambda folder: os.mkfifo(folder / "pipe.jpg"),
    "a device": lambda folder: (folder / "zero.png").symlink_to("/dev/zero"),
    "a folder with a picture's name": lambda folder: (folder / "folder.png").mkdir(),
    "an empty file": lambda folder: (folder / "empty.png").write_bytes(b""),
    "a text": lambda folder: (folder / "text.png").write_text("no picture"),
    "a picture that was cut": lambda folder: (folder / "cut.png").write_bytes(sorted(folder.glob("0*.png"))[0].read_bytes()[:60]),
    "a huge picture": lambda folder: write_huge(folder / "huge.png"),
    "a name that is no UTF-8": lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_text(""),
    "a name with a line break": lambda folder: (folder / "a\nb.png").write_text(""),
}


@pytest.mark.parametrize("nasty", NASTY)
def test_images_are_stored_once_whatever_lies_beside_them(attack, templates, nasty):
    undisturbed = run(projects.stored_images, attack.fresh(templates / "raw"))
    for rng in attack.tries():
        folder = rng.choice(sorted((attack.fresh(templates / "raw") / "pictures").iterdir()))
        NASTY[nasty](folder)
        workers = rng.choice([0, 0, 2])
        ended = run(partial(projects.stored_images, num_workers=workers), attack.project)
        outcome = {"done": "harmless", "sentence": "found"}.get(ended.how, ended.how)
        if ended.how == "done" and (ended.result != undisturbed.result or ended.memory > MOST_MEMORY):
            outcome = "silent"
        if outcome == "harmless" and ended.said != undisturbed.said:
            outcome = "found"
        attack.count(f"in an image folder: {nasty}", outcome, f"{ended.memory / 1e6:.0f} MB, {differing(ended, undisturbed)}")
