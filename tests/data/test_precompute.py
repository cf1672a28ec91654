"""Precompute: the right bytes, once, whatever happens on the way."""

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import images_offset
from PIL import Image

from kdnb.data import cache_writer
from kdnb.data.cache import open_shard, read_index, shard_name, verify, write_index
from kdnb.data.cache_writer import CacheError
from kdnb.data.decode import UnreadableImage, decode, resize
from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source


def png(seed: int, size: tuple[int, int] = (12, 16)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class Pictures:
    """A source of encoded pictures in memory; `read` counts what it was asked for."""

    def __init__(self, pictures: list, *, name: str = "pictures", labelled: bool = True, streaming: bool = False):
        self.name, self.labelled, self.classes = name, labelled, ["even", "odd"] if labelled else None
        self.num_images = None if streaming else len(pictures)
        self.fingerprint = hashlib.sha256(repr([pictures[:16], labelled, self.num_images]).encode()).hexdigest()
        self._pictures, self.read = pictures, []

    def remember_files(self, path: Path):
        """As a stream that goes through no files."""

    def items(self, ids):
        for i in ids:
            if i >= len(self._pictures):
                return
            self.read.append(int(i))
            yield int(i), self._pictures[i], int(i) % 2 if self.labelled else None


def pictures(n: int, **options) -> Pictures:
    return Pictures([png(i) for i in range(n)], **options)


SIZES = {"image_size": 8, "cache_shard_size": 4}


def fill(source, folder: Path, **settings) -> dict:
    """A cache in the source's own order, so that a test can say what lies where."""
    return default_fill(source, folder, **{"permutation_seed": None} | settings)


def default_fill(source, folder: Path, **settings) -> dict:
    return read_index(precompute(source, folder, **SIZES | {"progress": False} | settings))


def stored_ids(folder: Path) -> list[int]:
    """Ids of all stored images, in stored order."""
    return torch.cat([open_shard(folder / entry["file"])["ids"] for entry in read_index(folder)["shards"]]).tolist()


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def flip(path: Path):
    """Alter one pixel."""
    where = images_offset(path) + 7
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


# What is stored


def test_shards_hold_the_source_in_its_order(tmp_path):
    source = pictures(10)
    index = fill(source, tmp_path)
    assert sorted(files(tmp_path)) == [*(shard_name(k) for k in range(3)), "index.json"]
    assert [entry["rows"] for entry in index["shards"]] == [4, 4, 2]
    shards = [open_shard(tmp_path / entry["file"]) for entry in index["shards"]]
    assert torch.cat([shard["ids"] for shard in shards]).tolist() == list(range(10))
    assert torch.cat([shard["labels"] for shard in shards]).tolist() == [0, 1] * 5
    for row in range(10):
        expected = resize(decode(png(row)), 8, "crop").transpose(2, 0, 1)
        assert np.array_equal(shards[row // 4]["images"][row % 4].numpy(), expected)
    assert index == read_index(tmp_path) and verify(tmp_path) == []


def test_the_index_says_how_the_cache_was_made(tmp_path):
    index = fill(pictures(5), tmp_path, resize="squash", permutation_seed=3)
    assert {key: index[key] for key in index if key not in ("fingerprint", "shards")} == {
        "format": 1,
        "source": "pictures",
        "image_size": 8,
        "resize": "squash",
        "storage": "uint8",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "shard_size": 4,
        "permutation_seed": 3,
        "classes": ["even", "odd"],
        "labelled": True,
        "num_images": 5,
        "source_images": 5,
    }
    meta = open_shard(tmp_path / shard_name(1))["meta"]
    assert meta == {key: index[key] for key in meta if key not in ("number", "unreadable")} | {"number": 1, "unreadable": []}


def test_a_source_without_labels(tmp_path):
    index = fill(pictures(3, labelled=False), tmp_path)
    assert not index["labelled"] and "labels" not in open_shard(tmp_path / shard_name(0))


def test_a_permutation_depends_on_its_seed_alone(tmp_path):
    words = np.random.PCG64(np.random.SeedSequence(5)).random_raw(10)
    order = sorted(range(10), key=lambda i: words[i])
    fill(pictures(10), tmp_path / "all", permutation_seed=5)
    stored = [open_shard(tmp_path / "all" / shard_name(k)) for k in range(3)]
    ids = torch.cat([shard["ids"] for shard in stored]).tolist()
    assert ids == order == [7, 8, 4, 3, 5, 6, 2, 0, 1, 9]  # pinned: a cache must be extendable after an upgrade
    assert torch.cat([shard["labels"] for shard in stored]).tolist() == [i % 2 for i in order]
    expected = resize(decode(png(order[6])), 8, "crop").transpose(2, 0, 1)
    assert np.array_equal(stored[1]["images"][2].numpy(), expected)
    fill(pictures(10), tmp_path / "some", permutation_seed=5, max_samples=4)
    assert (tmp_path / "some" / shard_name(0)).read_bytes() == (tmp_path / "all" / shard_name(0)).read_bytes()


def test_a_source_sorted_by_class_gives_shards_with_all_of_its_classes(tmp_path):
    folder = tmp_path / "photos"
    for number in range(80):
        path = folder / "abcd"[number // 20] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    index = default_fill(open_source(str(folder)), tmp_path / "cache", cache_shard_size=20)
    assert index["permutation_seed"] == 0
    for entry in index["shards"]:
        assert set(open_shard(tmp_path / "cache" / entry["file"])["labels"].tolist()) == {0, 1, 2, 3}
    fill(open_source(str(folder)), tmp_path / "sorted", cache_shard_size=20)
    assert set(open_shard(tmp_path / "sorted" / shard_name(0))["labels"].tolist()) == {0}


@pytest.mark.parametrize("seed", [None, 3])
def test_a_cache_with_an_order_of_its_own_goes_on_with_it_where_none_is_asked_for(tmp_path, seed, capsys):
    fill(pictures(10), tmp_path / "old", max_samples=6, permutation_seed=seed)
    fill(pictures(10), tmp_path / "straight", permutation_seed=seed)
    index = default_fill(pictures(10), tmp_path / "old")
    assert index["permutation_seed"] == seed and files(tmp_path / "old") == files(tmp_path / "straight")
    assert f"old was begun with permutation_seed {seed}, and goes on with it." in capsys.readouterr().out
    again = pictures(10)
    assert default_fill(again, tmp_path / "old") == index and again.read == [] and capsys.readouterr().out == ""
    (tmp_path / "old/index.json").unlink()  # the shards say it, too
    (tmp_path / "old" / shard_name(0)).unlink()
    default_fill(pictures(10), tmp_path / "old")
    assert files(tmp_path / "old") == files(tmp_path / "straight")


def test_a_permuted_cache_is_not_gone_on_with_in_another_order(tmp_path):
    default_fill(pictures(10), tmp_path, max_samples=6)
    for seed in (None, 1):
        with pytest.raises(ValueError, match=f"permutation_seed was 0 and is now {seed}"):
            fill(pictures(10), tmp_path, permutation_seed=seed)


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_float_storage_is_bitwise_torchvisions(tmp_path, storage):
    from torchvision.transforms import v2

    fill(pictures(5), tmp_path / "pixels")
    fill(pictures(5), tmp_path / "floats", storage=storage)
    normalise = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    for k in range(2):
        pixels = open_shard(tmp_path / "pixels" / shard_name(k))["images"]
        floats = open_shard(tmp_path / "floats" / shard_name(k))["images"]
        assert floats.dtype == getattr(torch, storage)
        assert torch.equal(floats, normalise(pixels).to(floats.dtype))


def test_normalising_by_hand(tmp_path):
    white = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(white, "PNG")
    fill(Pictures([white.getvalue()]), tmp_path, storage="float32")
    pixel = open_shard(tmp_path / shard_name(0))["images"][0, :, 0, 0]
    assert pixel.tolist() == pytest.approx([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225], rel=1e-6)


def test_the_bytes_do_not_depend_on_workers(tmp_path):
    many = [png(i) for i in range(150)]
    many[100] = b"broken"
    for workers in (0, 2):
        fill(Pictures(many), tmp_path / str(workers), cache_shard_size=40, num_workers=workers)
    assert files(tmp_path / "0") == files(tmp_path / "2")


# Going on


def test_a_finished_cache_is_left_alone(tmp_path):
    first = fill(pictures(10), tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = pictures(10)
    assert fill(again, tmp_path) == first
    assert again.read == [] and times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


@pytest.mark.parametrize("before", [3, 4, 6, 8])
def test_a_larger_max_samples_extends_the_cache(tmp_path, before):
    assert fill(pictures(10), tmp_path / "grown", max_samples=before)["num_images"] == before
    source = pictures(10)
    fill(source, tmp_path / "grown", max_samples=10)
    assert source.read == list(range(before // 4 * 4, 10))  # a short last shard is made again
    fill(pictures(10), tmp_path / "straight")
    assert files(tmp_path / "grown") == files(tmp_path / "straight")


def test_a_smaller_max_samples_is_refused(tmp_path):
    fill(pictures(10), tmp_path)
    with pytest.raises(ValueError, match="max_samples is 5, but .* holds 10 images already, and a cache only grows"):
        fill(pictures(10), tmp_path, max_samples=5)
    assert fill(pictures(10), tmp_path, max_samples=99)["num_images"] == 10


def test_a_whole_shard_that_the_index_misses_is_adopted(tmp_path):
    expected = fill(pictures(10), tmp_path)
    write_index(tmp_path, expected | {"shards": expected["shards"][:1]})
    source = pictures(10)
    assert fill(source, tmp_path) == expected and source.read == []
    flip(tmp_path / shard_name(2))  # altered and not listed: its own checksum tells
    write_index(tmp_path, expected | {"shards": expected["shards"][:2]})
    assert fill(source, tmp_path) == expected and source.read == [8, 9]


@pytest.mark.parametrize("index", [None, "", '{"format": 1'])
def test_a_lost_or_broken_index_is_rebuilt(tmp_path, index):
    expected = fill(pictures(10), tmp_path)
    (tmp_path / "index.json").unlink() if index is None else (tmp_path / "index.json").write_text(index)
    source = pictures(10)
    assert fill(source, tmp_path) == expected == read_index(tmp_path)
    assert source.read == []


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    (tmp_path / ".images_shard_00001.pt.tmp").write_bytes(b"half")
    (tmp_path / ".index.json.tmp").write_bytes(b"half")
    fill(pictures(3), tmp_path)
    assert sorted(files(tmp_path)) == [shard_name(0), "index.json"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "not a shard", "a folder", "a loop of links"])
def test_a_damaged_shard_is_made_again(tmp_path, damage, caplog):
    fill(pictures(10), tmp_path)
    expected = files(tmp_path)
    path = tmp_path / shard_name(1)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "missing":
        path.unlink()
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    elif damage == "a loop of links":
        path.unlink()
        path.symlink_to(path)
    else:
        torch.save({"images": torch.zeros(4, 3, 8, 8)}, path)
    source = pictures(10)
    fill(source, tmp_path)
    if damage == "a folder":
        (tmp_path / f"{shard_name(1)}.damaged").rmdir()  # nothing is deleted
    assert source.read == [4, 5, 6, 7] and files(tmp_path) == expected
    assert shard_name(1) in caplog.text and "made again" in caplog.text


def test_verify_finds_an_altered_shard(tmp_path):
    fill(pictures(10), tmp_path)
    expected = files(tmp_path)
    flip(tmp_path / shard_name(1))
    source = pictures(10)
    fill(source, tmp_path)
    assert source.read == [] and files(tmp_path) != expected  # sizes alone do not tell
    fill(source, tmp_path, verify=True)
    assert source.read == [4, 5, 6, 7] and files(tmp_path) == expected


class Watcher:
    """A progress object that looks at the cache while it is being made."""

    def __init__(self, folder: Path):
        self.folder, self.seen, self.calls = folder, [], []

    def update(self, done, **info):
        self.calls.append((done, info))
        if (self.folder / "index.json").exists():
            assert verify(self.folder) == []
            self.seen.append([entry["number"] for entry in read_index(self.folder)["shards"]])


def test_what_the_index_lists_is_whole_at_every_moment(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_writer, "_SAVE_EVERY", -1)
    watchers = [Watcher(tmp_path) for _ in range(3)]
    fill(pictures(200), tmp_path, cache_shard_size=100, max_samples=150, progress=watchers[0])
    (tmp_path / shard_name(0)).write_bytes(b"broken")
    fill(pictures(200), tmp_path, cache_shard_size=100, max_samples=150, progress=watchers[1])
    fill(pictures(200), tmp_path, cache_shard_size=100, progress=watchers[2])
    # A shard that is damaged, or short and about to grow, is not listed until it has been made again.
    assert [watcher.seen for watcher in watchers] == [[[0], [0], [0, 1]], [[1], [0, 1]], [[0], [0, 1]]]


def test_the_index_is_not_written_for_every_shard_and_whole_all_the_same(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(cache_writer, "write_index", lambda *args: written.append(args) or write_index(*args))
    monkeypatch.setattr(cache_writer, "_SAVE_EVERY", 3600)
    index = fill(pictures(20), tmp_path, cache_shard_size=1)
    assert len(index["shards"]) == 20 and len(written) == 1
    some = [png(i) for i in range(10)]
    some[6] = b"broken"
    with pytest.raises(UnreadableImage):
        fill(Pictures(some), tmp_path / "stopped", cache_shard_size=1, on_unreadable="refuse")
    assert [entry["number"] for entry in read_index(tmp_path / "stopped")["shards"]] == [0, 1, 2, 3, 4, 5]


def test_a_shard_that_no_memory_holds_is_refused_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_writer, "memory_bytes", lambda: 700)
    with pytest.raises(CacheError, match="a shard of 4 images of 8x8 takes 768 B of memory, and"):
        fill(pictures(10), tmp_path)
    assert not list(tmp_path.glob("*.pt"))


def test_progress_says_how_far(tmp_path):
    watcher = Watcher(tmp_path)
    index = fill(pictures(150), tmp_path, cache_shard_size=100, progress=watcher)
    assert [done for done, _ in watcher.calls] == [64, 100, 128, 150]
    last = watcher.calls[-1][1]
    assert last == {"total": 150, "bytes_written": sum(entry["bytes"] for entry in index["shards"])}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"image_size": 6}, "cannot be gone on with: image_size was 8 and is now 6. Use the same"),
        ({"resize": "squash"}, "resize was 'crop' and is now 'squash'"),
        ({"storage": "float16"}, "storage was 'uint8' and is now 'float16'"),
        ({"permutation_seed": 1}, "permutation_seed was None and is now 1"),
        ({"cache_shard_size": 5, "image_size": 6}, "image_size was 8 and is now 6; shard_size was 4 and is now 5"),
        ({"source": pictures(9, name="others")}, "source was 'pictures' and is now 'others'. Use"),
        ({"source": pictures(9)}, "source 'pictures' does not hold the same images as when the cache was made"),
        (
            {"source": pictures(9, name="others"), "image_size": 6},
            "source was 'pictures' and is now 'others'; image_size was 8 and is now 6",
        ),
    ],
)
@pytest.mark.parametrize("index", ["listed", "lost"])
def test_another_source_or_preprocessing_is_refused(tmp_path, change, sentence, index):
    fill(pictures(10), tmp_path)
    if index == "lost":
        (tmp_path / "index.json").unlink()
    before = files(tmp_path)
    settings = {"source": pictures(10)} | change
    with pytest.raises(ValueError, match=sentence):
        fill(settings.pop("source"), tmp_path, **settings)
    assert files(tmp_path) == before


def test_the_same_source_elsewhere_is_the_same_source(tmp_path):
    fill(pictures(10), tmp_path / "straight")
    fill(pictures(10), tmp_path / "moved", max_samples=4)
    fill(pictures(10, name="a new place"), tmp_path / "moved")
    assert files(tmp_path / "moved") == files(tmp_path / "straight")


def test_a_second_process_waits_and_finds_the_work_done(tmp_path, capsys):
    source = pictures(6)
    source.items = lambda ids, items=source.items: (time.sleep(0.3) or item for item in items(ids))
    thread = threading.Thread(target=fill, args=(source, tmp_path))
    thread.start()
    while not source.read:
        assert thread.is_alive(), "the first precompute ended before it read anything"
        time.sleep(0.01)
    second = pictures(6)
    assert fill(second, tmp_path)["num_images"] == 6
    thread.join()
    assert second.read == [] and "is being filled by another process; waiting for it" in capsys.readouterr().out


# Pictures that cannot be read


def test_unreadable_pictures_are_left_out_logged_and_listed(tmp_path, caplog):
    some = [png(i) for i in range(10)]
    some[2] = b"broken"
    some[4] = some[5] = some[6] = some[7] = None
    index = fill(Pictures(some), tmp_path)
    assert [(entry["rows"], entry["unreadable"]) for entry in index["shards"]] == [(3, [2]), (0, [4, 5, 6, 7]), (2, [])]
    assert index["num_images"] == 10 and open_shard(tmp_path / shard_name(0))["ids"].tolist() == [0, 1, 3]
    assert "image 2 of pictures cannot be read" in caplog.text and "image 7 of pictures" in caplog.text
    again = Pictures(some)
    assert fill(again, tmp_path, verify=True) == index and again.read == []
    (tmp_path / "index.json").unlink()
    assert fill(again, tmp_path) == index and again.read == []


def test_unreadable_pictures_can_be_refused(tmp_path):
    some = [png(i) for i in range(10)]
    some[6] = b"broken"
    with pytest.raises(UnreadableImage, match="image 6 of pictures cannot be read .*; with on_unreadable 'skip'"):
        fill(Pictures(some), tmp_path, on_unreadable="refuse")
    assert [entry["number"] for entry in read_index(tmp_path)["shards"]] == [0] and verify(tmp_path) == []


def test_a_source_of_which_nothing_can_be_read_is_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="pictures holds 5 images, none of which could be read; the log says why"):
            fill(Pictures([b"broken"] * 5), tmp_path)


# Streams


def test_a_stream_ends_when_it_ends(tmp_path):
    index = fill(pictures(10, streaming=True), tmp_path)
    assert (index["num_images"], index["source_images"]) == (10, 10) and verify(tmp_path) == []
    again = pictures(10, streaming=True)
    assert fill(again, tmp_path) == index and again.read == []  # its length is known by now
    assert fill(again, tmp_path, max_samples=50) == index and again.read == []
    (tmp_path / shard_name(1)).unlink()
    assert fill(again, tmp_path) == index and again.read == [4, 5, 6, 7, 8, 9]


def test_a_stream_can_be_cut_and_extended(tmp_path):
    index = fill(pictures(10, streaming=True), tmp_path / "cut", max_samples=6)
    assert (index["num_images"], index["source_images"]) == (6, None)
    longer = pictures(10, streaming=True)
    index = fill(longer, tmp_path / "cut", max_samples=12)
    assert longer.read == [4, 5, 6, 7, 8, 9] and (index["num_images"], index["source_images"]) == (10, 10)
    fill(pictures(10, streaming=True), tmp_path / "straight")
    assert files(tmp_path / "cut") == files(tmp_path / "straight")


def test_a_stream_whose_index_was_lost_is_read_from_its_first_gap(tmp_path):
    index = fill(pictures(10, streaming=True), tmp_path)
    (tmp_path / "index.json").unlink()
    (tmp_path / shard_name(0)).unlink()
    source = pictures(10, streaming=True)
    assert fill(source, tmp_path) == index and source.read == list(range(10))


def test_a_stream_is_stored_as_it_comes_and_says_so(tmp_path, capsys):
    index = default_fill(pictures(10, streaming=True), tmp_path)
    assert index["permutation_seed"] is None and stored_ids(tmp_path) == list(range(10))
    assert "pictures is streamed, so it is stored in the order in which it comes" in capsys.readouterr().out
    fill(pictures(10, streaming=True), tmp_path)  # None says the same, and needs no telling
    assert capsys.readouterr().out == ""


def test_a_stream_has_no_order_to_permute_and_may_be_empty(tmp_path):
    with pytest.raises(ValueError, match="permutation_seed is 1, but pictures is streamed"):
        fill(pictures(3, streaming=True), tmp_path, permutation_seed=1)
    with pytest.raises(ValueError, match="parts is 2, but pictures is streamed, .* by one job; .*streaming to false"):
        fill(pictures(3, streaming=True), tmp_path, parts=2)
    with pytest.raises(ValueError, match="pictures holds 0 images, so there is nothing to store"):
        fill(pictures(0, streaming=True), tmp_path)


# Bad input


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"image_size": 0}, "image_size is 0; allowed is a whole number from "),
        ({"image_size": "eight"}, "image_size is 'eight'; allowed is a whole number"),
        ({"cache_shard_size": 0}, "cache_shard_size is 0; allowed is a whole number from "),
        ({"max_samples": 0}, "max_samples is 0; allowed is a whole number from .*, or None"),
        ({"permutation_seed": -1}, "permutation_seed is -1; allowed is a whole number from .*, or None"),
        ({"num_workers": -1}, "num_workers is -1; allowed is a whole number from 0"),
        ({"num_workers": True}, "num_workers is True"),
        ({"storage": "bfloat16"}, "storage is 'bfloat16'; allowed is one of uint8, float16, float32"),
        ({"resize": "fit"}, "resize is 'fit'; allowed is one of crop, squash"),
        ({"on_unreadable": "ignore"}, "on_unreadable is 'ignore'; allowed is one of skip, refuse"),
    ],
)
def test_parameters_out_of_range_are_a_sentence(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        fill(pictures(3), tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_an_empty_source_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="pictures holds 0 images, so there is nothing to store"):
        fill(pictures(0), tmp_path)


def test_a_disk_that_is_too_small_is_noticed_before_the_first_byte(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(2.5e9)))
    source = pictures(100)
    sentence = "needs 3 GB for 100 images of 3162x3162 in uint8, but its disk has 2.5 GB free; choose another cache_dir"
    with pytest.raises(CacheError, match=sentence):  # 100 * 3 * 3162 * 3162 bytes
        precompute(source, tmp_path, image_size=3162)
    assert source.read == [] and not files(tmp_path)


def test_a_disk_that_fills_up_leaves_a_usable_cache(tmp_path):
    """The third shard does not fit; what the operating system says is made a sentence."""
    fill(pictures(12), tmp_path, max_samples=8, image_size=64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(CacheError, match="cannot be written any further: its disk is full.* stay usable; free some"):
            fill(pictures(12), tmp_path, image_size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert verify(tmp_path) == [] and len(read_index(tmp_path)["shards"]) == 2
    assert sorted(files(tmp_path)) == [shard_name(0), shard_name(1), "index.json"]  # the half-written one is gone
    fill(pictures(12), tmp_path, image_size=64)
    fill(pictures(12), tmp_path / "straight", image_size=64)
    assert (tmp_path / shard_name(2)).read_bytes() == (tmp_path / "straight" / shard_name(2)).read_bytes()


def test_a_file_in_the_place_of_the_folder_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match="is a file, or lies below one; choose another cache_dir"):
            fill(pictures(3), folder)


class Bomb:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_killed_worker_is_a_sentence(tmp_path):
    with pytest.raises(RuntimeError, match="a decoding process was killed, perhaps for want of memory"):
        fill(Pictures([png(0), Bomb()]), tmp_path, num_workers=1)


# Other processes


def run(code: str, *arguments) -> str:
    """Standard output of a Python process that ran `code`."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=570)
    assert result.returncode == 0, result.stderr
    return result.stdout


READ_ONLY = """
import os, sys, tempfile
from pathlib import Path
from kdnb.data.sources import open_source
from kdnb.data.cache import read_index
from kdnb.data.cache_writer import CacheError
from kdnb.data.precompute import precompute
folder, source = Path(sys.argv[1]), open_source("digits", split="test")
with tempfile.TemporaryDirectory() as scratch:  # imports all that is needed while all of it can be read
    precompute(source, scratch, image_size=8, progress=False)
if os.geteuid() == 0:  # root may write anywhere: be nobody
    os.setgid(65534), os.setuid(65534)
assert not os.access(folder, os.W_OK)
for name in ("empty", "below", "below/new", "partial"):
    try:
        precompute(source, folder / name, image_size=8, progress=False)
    except CacheError as error:
        print(error)
print(read_index(precompute(source, folder / "complete", image_size=8, progress=False))["num_images"])
"""


def test_a_read_only_folder_is_a_sentence_and_a_complete_cache_in_one_is_fine():
    source = open_source("digits", split="test")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty").mkdir()
        precompute(source, folder / "partial", image_size=8, max_samples=100)
        precompute(source, folder / "complete", image_size=8)
        for path in (*folder.iterdir(), folder):
            path.chmod(0o555)
        try:
            lines = run(READ_ONLY, folder).splitlines()
        finally:
            for path in (folder, *folder.iterdir()):  # or it could not be removed
                path.chmod(0o755)
    assert lines[:4] == [
        f"{folder / where} is read-only for this user; choose another cache_dir."
        for where in ("empty", "below", "below/new", "partial")
    ]
    assert lines[4] == "297"


ORPHANS = """
import multiprocessing, sys, time
from kdnb.data.sources import open_source
from kdnb.data.precompute import precompute
class Progress:
    def update(self, done, **info):
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        time.sleep(600)
if __name__ == "__main__":
    precompute(open_source("digits"), sys.argv[1], image_size=8, num_workers=2, progress=Progress())
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether a process is gone")
def test_a_killed_parent_leaves_no_workers(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in parent.stdout if line.replace(" ", "").strip().isdigit())
        workers = [int(pid) for pid in line.split()]
        assert len(workers) == 2 and all(map(is_running, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


# Runs precompute in forks of one process, kills each after a random time, and starts it again until it ends by itself; then
# compares with the undisturbed cache and begins anew, until there were enough kills.
KILLS = """
import hashlib, json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from kdnb.data.sources import open_source
from kdnb.data.cache import read_index, verify
from kdnb.data.precompute import precompute

root, wanted = Path(sys.argv[1]), int(sys.argv[2])
source, dice = open_source("digits"), random.Random(0)
source.fingerprint

def start(folder):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        precompute(source, folder, image_size=32, cache_shard_size=50, permutation_seed=0, progress=False)
        code = 0
    finally:
        os._exit(code)

def files(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}

begin = time.monotonic()
assert os.waitpid(start(root / "straight"), 0)[1] == 0
whole, expected = time.monotonic() - begin, files(root / "straight")
counts = {"kills": 0, "while writing": 0, "finished": 0, "whole shards kept": 0}
while counts["kills"] < wanted or (root / "killed").exists():
    pid = start(root / "killed")
    if counts["kills"] < wanted:
        time.sleep(dice.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        counts["kills"] += 1
        counts["while writing"] += any((root / "killed").glob(".*.tmp"))
        if (root / "killed/index.json").exists():
            assert verify(root / "killed") == []
            counts["whole shards kept"] += len(read_index(root / "killed")["shards"])
    else:
        assert status == 0
        assert files(root / "killed") == expected
        counts["finished"] += 1
        shutil.rmtree(root / "killed")
print(json.dumps(counts))
"""


def test_a_cache_that_was_killed_at_random_moments_ends_with_the_same_bytes(tmp_path):
    counts = json.loads(run(KILLS, tmp_path, 5))
    assert counts["kills"] == 5 and counts["finished"] >= 1


@pytest.mark.benchmark
def test_a_hundred_kills(tmp_path):
    counts = json.loads(run(KILLS, tmp_path, 100))
    print(counts)
    assert counts["kills"] == 100 and counts["while writing"] > 0 and counts["whole shards kept"] > 0


# Real data


@pytest.fixture
def arrow_copies(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def test_cifar10(real_data, tmp_path, arrow_copies):
    source = open_source(str(real_data / "cifar10"), split="test")
    index = read_index(
        precompute(source, tmp_path, image_size=32, cache_shard_size=512, max_samples=1200, permutation_seed=0, num_workers=1)
    )
    assert [entry["rows"] for entry in index["shards"]] == [512, 512, 176]
    shard = open_shard(tmp_path / shard_name(2))
    rows = list(source.items(shard["ids"][:20].tolist()))
    for stored, label, (_, picture, expected) in zip(shard["images"], shard["labels"], rows, strict=False):
        with Image.open(io.BytesIO(picture)) as image:  # 32x32 already: stored as it is
            assert np.array_equal(stored.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))
        assert label == expected


def test_imagenet_photographs(real_data, tmp_path, arrow_copies):
    from torchvision.transforms import InterpolationMode, v2

    source = open_source(str(real_data / "imagenet_sample"))
    index = read_index(precompute(source, tmp_path, image_size=224, cache_shard_size=16, max_samples=20, permutation_seed=None))
    assert [entry["rows"] for entry in index["shards"]] == [16, 4] and not index["labelled"]
    theirs = v2.Compose([v2.Resize(224, interpolation=InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    images = open_shard(tmp_path / shard_name(1))["images"]
    for stored, (_, picture, _) in zip(images, source.items(range(16, 20)), strict=True):
        assert np.array_equal(stored.permute(1, 2, 0).numpy(), np.asarray(theirs(decode(picture))))


@pytest.mark.benchmark
def test_speed(real_data, tmp_path, arrow_copies):
    print("\nworkers  images/s  (CIFAR-10, 50,000 images at 32x32 in 25 shards)")
    source = open_source(str(real_data / "cifar10"))
    for workers in (0, 2):
        begin = time.perf_counter()
        index = read_index(precompute(source, tmp_path / str(workers), image_size=32, num_workers=workers))
        print(f"{workers:7d}  {50_000 / (time.perf_counter() - begin):8,.0f}")
        assert len(index["shards"]) == 25
    assert files(tmp_path / "0") == files(tmp_path / "2")
