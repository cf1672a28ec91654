"""Images held out of data that has no split for it: seeded, by class, known to the cache, and in none of its shards."""

import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Features
from PIL import Image

from kdnb.data import prepare
from kdnb.data.cache import read_index, rebuild_index
from kdnb.data.decode import decode
from kdnb.data.keyed import hold_out
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source

SIZES = {"image_size": 8, "cache_shard_size": 4, "progress": False}
IMAGES = {"image_column": None, "label_column": None, "image_size": 8, "resize": "crop"}
COUNTS = {"a": 10, "b": 5, "c": 2, "d": 1}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of 18 pictures, each of its own grey."""
    monkeypatch.setattr(prepare, "STORE", str(tmp_path / "store"))
    return draw(tmp_path / "photos")


def draw(folder):
    names = [f"{name}/{number}" for name, count in COUNTS.items() for number in range(count)]
    for grey, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 10 * grey).save(path)
    return folder


def in_parquet(folder) -> Path:
    """The same pictures as one file, without a word on splits."""
    images = Features({"image": datasets.Image(), "label": ClassLabel(names=sorted(COUNTS))})
    rows = [{"image": str(path), "label": path.parent.name} for path in sorted(folder.glob("*/*.png"))]
    path = folder.with_name("parquet") / "all.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_list(rows, features=images).to_parquet(path)
    return path


def greys(source) -> dict:
    return {int(np.asarray(decode(encoded)).flat[0]): label for _, encoded, label in source.items()}


@pytest.mark.parametrize("kind", ["folder", "parquet folder", "parquet file"])
def test_it_is_a_share_of_each_class_and_the_rest_is_the_rest(photos, kind):
    if kind != "folder":
        photos = in_parquet(photos) if kind == "parquet file" else in_parquet(photos).parent
    whole = open_source(str(photos))
    rest, part = (open_source(str(photos), split=split, held_out=0.2) for split in ("train", "held_out"))
    assert np.bincount(part.labels(), minlength=4).tolist() == [2, 1, 1, 0] and rest.num_others == part.num_images == 4
    assert not greys(rest).keys() & greys(part).keys() and greys(rest) | greys(part) == greys(whole)
    assert greys(part) == greys(open_source(str(photos), split="held_out", held_out=0.2))
    assert greys(part) == greys(open_source(str(photos), split="test", held_out=0.2))
    assert len({whole.fingerprint, rest.fingerprint, part.fingerprint}) == 3
    assert [i for i, *_ in rest.items([3, 1])] == [3, 1] and rest.labels().tolist() == [label for *_, label in rest.items()]


def test_a_folder_with_splits_keeps_them(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "split/train")
    assert open_source(str(tmp_path / "split"), held_out=0.2).num_others == 4  # train/ alone
    shutil.copytree(photos, tmp_path / "split/val")
    assert open_source(str(tmp_path / "split"), held_out=0.2).num_images == 18
    for folder, split, share in (
        (photos, "held_out", 0.0),
        (tmp_path / "split", "held_out", 0.2),
        (tmp_path / "split", "test", 0.2),
    ):
        with pytest.raises(ValueError, match=f"split is '{split}', but dataset .* has train"):
            open_source(str(folder), split=split, held_out=share)


def test_of_a_stream_nothing_is_held_out_and_the_cache_says_so(photos, tmp_path, capsys):
    precompute(str(in_parquet(photos)), tmp_path / "cache", held_out=0.2, streaming=True, **SIZES)
    assert "all is streamed, so no images of it can be held out; set streaming to false" in capsys.readouterr().out
    assert read_index(tmp_path / "cache")["num_images"] == 18


def test_what_has_no_label_is_not_held_out():
    labels = np.array([-1, 0, 0, -1, 1, 1, -1])
    assert not hold_out(labels, 0.9, seed=0)[labels == -1].any()


@pytest.mark.parametrize("eval_split, kind", [("test", "folder"), ("held_out", "folder"), ("test", "parquet")])
def test_the_cache_knows_it(photos, tmp_path, eval_split, kind, capsys):
    photos = photos if kind == "folder" else in_parquet(photos)
    name = "photos" if kind == "folder" else "all"
    cache = precompute(str(photos), tmp_path / "cache", held_out=0.2, **SIZES)
    index = read_index(cache)
    (cache / "index.json").unlink()
    assert rebuild_index(cache)["source"] == index["source"] == f"{name} without held_out 0.2" and index["num_images"] == 14
    precompute(str(photos), cache, **SIZES)  # goes on as it was begun
    prepare.ensure_cache(dataset=str(photos), split="train", cache_dir=cache, cache_shard_size=4, **IMAGES)
    capsys.readouterr()
    held_out = prepare.held_out_batches(dataset=str(photos), eval_split=eval_split, cache_dir=cache, **IMAGES)
    assert ("has no split test; the 20% of each class" in capsys.readouterr().out) == (eval_split == "test")
    train = prepare.training_batches(99, classes=list("abcd"), dataset=str(photos), split="train", cache_dir=cache, **IMAGES)
    raw = build_pretraining_dataloader(use_cached=False, dataset=str(photos), cache_dir=cache, image_size=8, batch_size=14)
    seen = [{int(image.flatten()[0]) for batch in batches for image in batch["image"]} for batches in (held_out, train, raw)]
    assert [len(part) for part in seen] == [4, 14, 14] and not seen[0] & seen[1] and seen[1] == seen[2]
    assert train.dataset.reader.cache_dir == cache


def test_a_cache_of_all_images_stays_one(photos, tmp_path):
    cache = precompute(str(photos), tmp_path / "cache", **SIZES)
    before = read_index(cache)
    precompute(str(photos), cache, held_out=0.2, **SIZES)
    assert read_index(cache) == before and before["source"] == "photos"
    with pytest.raises(ValueError, match="split is 'test', but dataset .* has train"):
        prepare.held_out_batches(dataset=str(photos), eval_split="test", cache_dir=cache, **IMAGES)


def test_a_folder_that_changed_since_is_refused(photos, tmp_path):
    cache = precompute(str(photos), tmp_path / "cache", held_out=0.2, **SIZES)
    (photos / "a/0.png").unlink()
    with pytest.raises(ValueError, match="does not hold the same images as when"):
        prepare.held_out_batches(dataset=str(photos), eval_split="test", cache_dir=cache, **IMAGES)
