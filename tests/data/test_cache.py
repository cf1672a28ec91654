"""The format of a cache: whole files or none, nothing executed, every damage found."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import images_offset

from kdnb.data.cache import (
    CACHE_KEYS,
    BrokenIndex,
    ShardError,
    adopt_shard,
    open_shard,
    read_index,
    rebuild_index,
    shard_name,
    verify,
    write_index,
    write_shard,
)

META = dict.fromkeys(CACHE_KEYS) | {"format": 1, "fingerprint": "f", "shard_size": 4, "mean": [0.5, 0.25, 0.1]}


def content(rows: int = 4, start: int = 0) -> dict:
    generator = torch.Generator().manual_seed(start)
    return {
        "images": torch.randint(0, 256, (rows, 3, 6, 6), dtype=torch.uint8, generator=generator),
        "labels": torch.arange(rows) % 3,
        "ids": torch.arange(start, start + rows),
    }


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Ten images in shards of four, the last one short."""
    entries = [write_shard(tmp_path, k, meta=META, **content(n, 4 * k)) for k, n in enumerate((4, 4, 2))]
    write_index(tmp_path, META | {"num_images": 10, "shards": entries})
    return tmp_path


def damage(path: Path, kind: str):
    data = bytearray(path.read_bytes())
    if kind == "flipped":
        data[images_offset(path) + 5] ^= 1
    path.write_bytes(data[: len(data) // 2] if kind == "truncated" else data)


def test_a_shard_comes_back_as_it_was_written(tmp_path):
    written = content()
    entry = write_shard(tmp_path, 7, meta=META | {"unreadable": [9]}, **written)
    shard = open_shard(tmp_path / "images_shard_00007.pt")
    for name, values in written.items():
        assert torch.equal(shard[name], values) and shard[name].dtype == values.dtype
    assert shard["meta"] == META | {"number": 7, "unreadable": [9]}
    assert entry["rows"] == 4 and entry["unreadable"] == [9] and entry["file"] == shard_name(7)
    assert entry["bytes"] == (tmp_path / entry["file"]).stat().st_size


def test_labels_may_be_absent_and_rows_too(tmp_path):
    empty = content(0) | {"labels": None}
    write_shard(tmp_path, 0, meta=META, **empty)
    shard = open_shard(tmp_path / shard_name(0))
    assert shard["images"].shape == (0, 3, 6, 6) and "labels" not in shard


def test_same_content_gives_same_bytes_in_any_folder(tmp_path):
    other = tmp_path / "a folder of another name"
    other.mkdir()
    # Equal values that are other objects: a pickle tells them apart unless care is taken.
    twin = json.loads(json.dumps(META | {"classes": ["abc", "abc"]}))
    entries = [
        write_shard(tmp_path, 0, meta=META | {"classes": ["abc"] * 2}, **content()),
        write_shard(other, 0, meta=twin, **content()),
    ]
    assert entries[0] == entries[1]
    assert (tmp_path / shard_name(0)).read_bytes() == (other / shard_name(0)).read_bytes()


def test_rows_lie_plainly_at_the_offset(cache):
    path = cache / shard_name(1)
    images = content(4, 4)["images"]
    with open(path, "rb") as file:
        file.seek(images_offset(path) + 2 * images[0].nbytes)
        assert file.read(images[2].nbytes) == images[2].numpy().tobytes()


def test_a_slice_of_a_large_buffer_is_stored_alone(tmp_path):
    buffer = torch.zeros(4000, 3, 6, 6, dtype=torch.uint8)
    entry = write_shard(tmp_path, 0, images=buffer[:2], labels=None, ids=torch.arange(4000)[:2], meta=META)
    assert entry["bytes"] < 10_000


def test_a_write_that_fails_leaves_the_old_shard_and_no_rest(cache, monkeypatch):
    before = (cache / shard_name(0)).read_bytes()

    def half_way(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half_way)
    with pytest.raises(OSError, match="No space left"):
        write_shard(cache, 0, meta=META, **content(4, 99))
    assert (cache / shard_name(0)).read_bytes() == before
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"images": torch.zeros(4, 3, 6, 6, dtype=torch.bfloat16)}, "its images are torch.bfloat16.* as uint8, float16"),
        ({"images": torch.zeros(4, 1, 6, 6, dtype=torch.uint8)}, r"its images are torch.uint8 \[4, 1, 6, 6\]"),
        ({"ids": torch.arange(3)}, r"its ids are not int64 \[4\]"),
        ({"labels": torch.zeros(4)}, r"its labels are not int64 \[4\]"),
    ],
)
def test_what_is_no_shard_is_not_written(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_shard(tmp_path, 0, meta=META, **content() | change)
    assert not list(tmp_path.iterdir())


def test_a_whole_cache_verifies_and_its_index_can_be_rebuilt(cache):
    assert verify(cache) == []
    index = read_index(cache)
    (cache / "index.json").unlink()
    assert rebuild_index(cache) == index == read_index(cache)


@pytest.mark.parametrize(
    "kind, what", [("flipped", "was altered"), ("truncated", "bytes where the index says"), ("missing", "is missing")]
)
def test_damage_is_found(cache, kind, what):
    path = cache / shard_name(1)
    path.unlink() if kind == "missing" else damage(path, kind)
    faults = verify(cache)
    assert [fault.file for fault in faults] == [path.name] and what in faults[0].what


def test_an_index_that_lies_is_found(cache):
    index = read_index(cache)
    index["shards"][0]["rows"] = 3
    write_index(cache, index)
    assert [fault.what for fault in verify(cache)] == ["has 4 rows where the index says 3"]
    write_index(cache, index | {"fingerprint": "another"})
    assert len(verify(cache)) == 3


@pytest.mark.parametrize("kind", ["flipped", "truncated"])
def test_rebuilding_leaves_damaged_shards_out(cache, kind, caplog):
    damage(cache / shard_name(1), kind)
    index = rebuild_index(cache)
    assert [entry["number"] for entry in index["shards"]] == [0, 2]
    assert index["num_images"] == 10 and shard_name(1) in caplog.text


def test_rebuilding_refuses_shards_of_two_caches(cache):
    write_shard(cache, 3, meta=META | {"fingerprint": "g"}, **content())
    with pytest.raises(ValueError, match="images_shard_00003.pt was made with another source.*than images_shard_00000.pt"):
        rebuild_index(cache)


def test_rebuilding_needs_a_shard(tmp_path):
    with pytest.raises(FileNotFoundError, match="No usable shard"):
        rebuild_index(tmp_path)


def test_a_renamed_shard_is_not_adopted(cache):
    (cache / shard_name(0)).rename(cache / shard_name(8))
    with pytest.raises(ShardError, match="is shard 0 under another shard's name"):
        adopt_shard(cache / shard_name(8))


def test_a_missing_index_says_how_to_make_the_cache(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Index file not found: .*index.json. .*precompute.ipynb: .* dataset"):
        read_index(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", b"\xff\xfe\x00", '{"format": 1}', "null", '{"format": 1, "shards": []}'])
def test_a_broken_index_is_a_sentence(cache, text):
    (cache / "index.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BrokenIndex, match="index.json is broken; run precompute again .* rebuild"):
        read_index(cache)


def test_an_index_cannot_lead_outside_its_folder(cache):
    index = read_index(cache)
    index["shards"][0]["file"] = "../secret.pt"
    write_index(cache, index)
    with pytest.raises(BrokenIndex):
        read_index(cache)


def test_an_index_of_another_format_is_refused(cache):
    write_index(cache, read_index(cache) | {"format": 2})
    with pytest.raises(ValueError, match="has format 2, but this kdnb reads 1"):
        read_index(cache)


class Attack:
    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickled_object_is_refused_and_not_executed(cache, tmp_path):
    proof = tmp_path / "it ran"
    attack = Attack(f"touch '{proof}'")
    path = cache / shard_name(0)
    with open(path, "wb") as file:
        torch.save(content() | {"meta": META | {"number": 0, "unreadable": []}, "more": attack}, file)
    with pytest.raises(ShardError, match="holds a pickled object, which could run code when loaded and was refused"):
        open_shard(path)
    assert not proof.exists()
    pickle.loads(pickle.dumps(attack))  # unpickled, it does run: the file was a real attack
    assert proof.exists()


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"", "is damaged"),
        (b"no zip file at all" * 50, "is damaged"),
        ({"images": torch.zeros(2, 3, 4, 4)}, "not an image shard: its ids"),
        ({"pictures": 1}, "not an image shard: it has no tensor 'images'"),
        ({"images": torch.zeros(2, 4, 4)}, "not an image shard: its images are"),
        ({"images": torch.zeros(2, 3, 4, 4), "ids": torch.arange(2)}, "its meta does not say how it was made"),
    ],
)
def test_what_is_no_shard_is_not_opened(tmp_path, data, sentence):
    path = tmp_path / shard_name(0)
    path.write_bytes(data) if isinstance(data, bytes) else torch.save(data, path)
    with pytest.raises(ShardError, match=sentence):
        open_shard(path)


@pytest.mark.parametrize("keep", [1, 100, 0.5, 0.9, 0.99, -1])
def test_a_truncated_shard_is_a_sentence(cache, keep):
    path = cache / shard_name(0)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(ShardError, match="is damaged"):
        open_shard(path)


def test_a_missing_shard_is_a_sentence(tmp_path):
    with pytest.raises(ShardError, match="images_shard_00000.pt is missing; run precompute again"):
        open_shard(tmp_path / shard_name(0))


@pytest.mark.filterwarnings("ignore")
def test_random_damage_is_refused_or_harmless(cache):
    """Whatever bytes are altered: a ShardError, or a shard whose contents are what they were."""
    path = cache / shard_name(0)
    data, expected = path.read_bytes(), content()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        altered = np.frombuffer(data, dtype=np.uint8).copy()
        where = generator.integers(len(data), size=generator.choice([1, 3, 30]))
        altered[where] = generator.integers(256, size=len(where))
        path.write_bytes(altered.tobytes())
        try:
            adopt_shard(path)
        except ShardError:
            refused += 1
        else:
            shard = open_shard(path)
            assert all(torch.equal(shard[name], values) for name, values in expected.items())
    assert refused > 150
