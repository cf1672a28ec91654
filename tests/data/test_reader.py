"""Reading rows gives the stored rows, whatever their order and wherever they lie."""

import pickle

import numpy as np
import pytest
import torch

from kdnb.data import reader as reader_module
from kdnb.data.cache import ShardError, open_shard
from kdnb.data.reader import ShardReader

PATTERNS = {
    "in a row": range(3, 9),
    "across a border": range(8, 14),
    "backwards": range(12, 5, -1),
    "scattered": [26, 0, 13, 9, 10, 4, 25],
    "gaps, last minus first as in a row": [2, 4, 3, 5],
    "twice the same": [5, 5, 20],
    "one": [17],
    "everything": range(27),
}


@pytest.mark.parametrize("positions", PATTERNS.values(), ids=PATTERNS)
def test_reads_what_was_stored(cache, positions):
    folder, images = cache
    batch = ShardReader(folder).read(np.array(positions))
    assert torch.equal(batch["image"], images[list(positions)])
    assert batch["id"].tolist() == [100 + p for p in positions]
    assert batch["label"].tolist() == [p % 3 for p in positions]


def test_no_positions_give_an_empty_batch(cache):
    batch = ShardReader(cache[0]).read(np.array([], dtype=int))
    assert batch["image"].shape == (0, 3, 4, 4) and len(batch["id"]) == len(batch["label"]) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_float_shards_are_read_as_they_are(make_cache, tmp_path, dtype):
    images = make_cache(tmp_path, dtype=dtype, labelled=False)
    batch = ShardReader(tmp_path).read(np.array([9, 10, 3]))
    assert batch["image"].dtype == dtype and torch.equal(batch["image"], images[[9, 10, 3]])
    assert "label" not in batch


def test_a_buffer_is_filled_in_place(cache):
    folder, images = cache
    buffer = torch.empty(3, 3, 4, 4, dtype=torch.uint8)
    batch = ShardReader(folder).read(np.array([1, 11, 2]), buffer)
    assert batch["image"].data_ptr() == buffer.data_ptr() and torch.equal(buffer, images[[1, 11, 2]])


@pytest.fixture
def mapped(monkeypatch) -> list[str]:
    """Names of the shards that are mapped, as they are."""
    names = []
    monkeypatch.setattr(reader_module, "open_shard", lambda path: names.append(path.name) or open_shard(path))
    return names


def test_nothing_is_mapped_before_it_is_needed_nor_pickled_along(cache, mapped):
    reader = ShardReader(cache[0])
    assert not mapped
    for _ in range(2):
        reader.read(np.array([12]))
    assert mapped.count("images_shard_00001.pt") == 1 and "images_shard_00002.pt" not in mapped
    again = pickle.loads(pickle.dumps(reader))
    assert mapped.count("images_shard_00001.pt") == 1
    assert torch.equal(again.read(np.array([12]))["image"], cache[1][[12]]) and mapped.count("images_shard_00001.pt") == 2


def test_large_rows_can_be_asked_for_ahead(make_cache, tmp_path, mapped):
    images = make_cache(tmp_path, (3, 3), size=128)
    reader = ShardReader(tmp_path)
    reader.advise(np.array([5, 0, 1, 3]))
    assert sorted(mapped) == ["images_shard_00000.pt", "images_shard_00001.pt"]
    assert torch.equal(reader.read(np.array([5, 0]))["image"], images[[5, 0]])


def test_rows_on_both_sides_of_a_border_are_asked_for_apart(make_cache, tmp_path, monkeypatch):
    make_cache(tmp_path, (3, 3), size=128)
    asked = []
    monkeypatch.setattr(reader_module, "_advise", lambda address, count: asked.append(count // (3 * 128 * 128)))
    ShardReader(tmp_path).advise(np.array([5, 2, 1, 3]))
    assert sorted(asked) == [1, 1, 2]  # shards lie anywhere in memory: 1 and 2, 3, 5


@pytest.mark.parametrize("position", [-1, 27])
def test_a_position_outside_is_refused(cache, position):
    with pytest.raises(IndexError, match=f"position {position} is outside the cache of 27 images"):
        ShardReader(cache[0]).read(np.array([3, position]))


def test_a_truncated_and_a_missing_shard_are_named(cache):
    shard = cache[0] / "images_shard_00001.pt"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(ShardError, match=r"images_shard_00001.pt has .* bytes where the index says .*run precompute again"):
        ShardReader(cache[0])
    shard.unlink()
    with pytest.raises(ShardError, match="images_shard_00001.pt is missing"):
        ShardReader(cache[0])


def test_a_missing_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="Index file not found: .*none.index.json. .*precompute.ipynb"):
        ShardReader(tmp_path / "none")
