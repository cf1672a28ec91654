"""Classes that a subset covers: counted by hand, told from chance; held-out images among training images, by their pixels."""

import numpy as np
import pytest
import torch

from kdnb.data.audit import class_coverage, image_digests, overlap
from kdnb.data.datasets import CachedTensorDataset, FixedShardSubsetCachedDataset, RawImageDataset
from kdnb.data.order import EpochPlan, Order
from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source


def test_classes_and_shares_worked_out_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    visits = np.array([[1, 1, 0, 0, 0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0, 0, 0, 0]], dtype=np.uint8)
    epoch, run = class_coverage(labels, visits[0]), class_coverage(labels, visits)
    assert (epoch.seen.tolist(), run.seen.tolist(), run.total.tolist()) == ([2, 0, 1], [3, 0, 1], [4, 2, 4])
    assert epoch.num_seen == 2 and epoch.shares == (0.25, 0.5) and run.shares == (0.25, 0.75)
    assert str(run) == "2 of 3 classes, 25% to 75% of each"
    assert str(class_coverage(labels, np.ones(10))) == "3 of 3 classes, 100% of each"


def test_classes_known_by_name_count_where_the_data_have_none_of_them():
    labels, seen = np.array([1, 1, 4]), np.ones(3)
    assert str(class_coverage(labels, seen)).startswith("2 of 2 classes")
    assert str(class_coverage(labels, seen, classes=list("abcdef"))).startswith("2 of 6 classes")


def test_images_without_labels():
    for labels in (None, np.full(3, -1)):
        assert "without labels" in str(class_coverage(labels, np.ones(3))) and class_coverage(labels, np.ones(3)).fair
    some = class_coverage(np.array([-1, 0, 1, -1]), np.array([1, 1, 0, 0]))  # those without one count for nothing
    assert some.seen.tolist() == [1, 0] and some.total.tolist() == [1, 1]


def test_small_shares_are_not_rounded_to_nothing():
    assert "0.4% of each" in str(class_coverage(np.arange(2000) // 1000, np.arange(2000) % 250 == 0))


def test_the_first_shards_of_a_sorted_source_are_no_fair_sample():
    labels = np.arange(1500) // 150
    first = class_coverage(labels, np.arange(1500) < 250)
    assert first.num_seen == 2 and not first.fair and "no fair sample" in str(first)
    # All classes, but of some almost nothing.
    uneven = class_coverage(labels, (np.arange(1500) < 700) | (np.arange(1500) % 150 < 5))
    assert uneven.num_seen == 10 and not uneven.fair


@pytest.mark.parametrize("classes, images, drawn", [(2, 100, 50), (10, 1500, 1200), (10, 1500, 30), (1000, 20_000, 400)])
def test_random_samples_are_fair(classes, images, drawn):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    for _ in range(300):
        seen = np.zeros(images)
        seen[rng.permutation(images)[:drawn]] = 1
        assert class_coverage(labels, seen).fair


def test_labels_of_a_cache_and_of_raw_images_are_those_of_their_items(tmp_path):
    source = open_source("digits", split="test")
    precompute(source, tmp_path, image_size=8, cache_shard_size=100)
    cached = CachedTensorDataset(tmp_path)
    raw = RawImageDataset(source, image_size=8, resize="crop", order=Order(shard_sizes=(100, 100, 97)), permutation_seed=0)
    for data in (cached, raw):
        items = [item["label"].item() for item in data.__getitems__(range(297))]
        assert data.labels.tolist() == items and data.labels.dtype == np.int64 and data.classes == source.classes
    assert raw.fingerprint == source.fingerprint and cached.fingerprint == cached.reader.index["fingerprint"]
    assert cached.labels.tolist() != source.labels().tolist()  # stored in another order


def test_labels_of_folders_and_tables(tmp_path, png_folder, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    for source in (open_source(str(png_folder)), open_source(str(parquet(png_folder, tmp_path)), image_column="image")):
        assert source.labels().tolist() == [0, 0, 0, 0, 1, 1 if source.classes else -1]
        assert source.labels().tolist() == [label for _, _, label in source.items(range(source.num_images))]


@pytest.fixture
def png_folder(tmp_path):
    """Six pictures in two classes."""
    from PIL import Image

    for number in range(6):
        path = tmp_path / "photos" / ("cat" if number < 4 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path / "photos"


def parquet(folder, where):
    """The same as Parquet; the last row has no label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.rglob("*.png"))
    images = pa.array([path.read_bytes() for path in files])
    labels = pa.array([0, 0, 0, 0, 1, None], type=pa.int64())
    pq.write_table(pa.table({"image": images, "label": labels}), where / "photos.parquet")
    return where / "photos.parquet"


def test_an_unlabelled_cache_has_no_labels(tmp_path, make_cache):
    make_cache(tmp_path, labelled=False)
    data = FixedShardSubsetCachedDataset(tmp_path, fixed_shards=1)
    assert data.labels is None and "without labels" in str(
        class_coverage(data.labels, EpochPlan(data.order, batch_size=10).visits(1))
    )


def test_digests_follow_the_pixels(tmp_path, make_cache):
    images = make_cache(tmp_path / "a", sizes=(10, 7))
    digests = image_digests(tmp_path / "a", tmp_path / "kept")
    assert len(digests) == len(images) == len(set(digests))
    make_cache(tmp_path / "b", sizes=(5,))  # the same generator: its images are the first of the other's
    other = image_digests(tmp_path / "b", tmp_path / "kept")
    same = [np.array_equal(a, b) for a, b in zip(images[:5].numpy(), make_cache(tmp_path / "c", sizes=(5,)).numpy(), strict=True)]
    assert overlap(other, digests) == sum(same) == 5
    assert overlap(other[:0], digests) == overlap(other, digests[:0]) == 0


def test_digests_are_kept_by_the_content_of_the_cache(tmp_path, make_cache):
    make_cache(tmp_path / "a", sizes=(6,))
    first = image_digests(tmp_path / "a", tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    torch.save(torch.load(kept).view(-1, 16).flip(0).flatten(), kept)
    assert np.array_equal(image_digests(tmp_path / "a", tmp_path / "kept"), first[::-1])  # read, not computed
    make_cache(tmp_path / "a", sizes=(6, 2))
    assert len(image_digests(tmp_path / "a", tmp_path / "kept")) == 8
