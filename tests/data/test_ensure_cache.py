"""The cache of a training notebook is the one that its parameters describe, or a sentence says what to do."""

import shlex
from types import SimpleNamespace

import pytest
from PIL import Image

from kdnb.data.cache import read_index, write_index
from kdnb.data.precompute import precompute
from kdnb.data.prepare import ensure_cache, precompute_command
from kdnb.data.sources import open_source, source_names
from kdnb.distillation.build import finish_run
from kdnb.models.folder import save_model
from kdnb.models.vision import build_model
from kdnb.params import TABLE
from kdnb.runs import Run

CIFAR = {"dataset": "uoft-cs/cifar10", "image_column": "img", "label_column": "label", "cache_shard_size": 2048}


def parameters(tmp_path, **changes) -> SimpleNamespace:
    given = {"dataset": "digits", "split": "train", "image_column": None, "label_column": None}
    given |= {"cache_dir": str(tmp_path / "cache"), "cache_shard_size": 400, "image_size": 8, "resize": "crop"}
    return SimpleNamespace(**given | changes)


def photos(folder, split="") -> str:
    for number in range(6):
        path = folder / split / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * number).save(path)
    return str(folder)


def test_the_digits_are_cached_where_they_are_not(tmp_path):
    p = parameters(tmp_path)
    index = ensure_cache(**vars(p))
    assert index["num_images"] == 1500 and index["source"] == "digits/train" and ensure_cache(**vars(p)) == index


@pytest.mark.parametrize("most", [None, 1000])
def test_digits_stored_in_their_own_order_are_used_and_gone_on_with(tmp_path, most):
    p = parameters(tmp_path)
    precompute(open_source("digits"), p.cache_dir, image_size=8, cache_shard_size=400, permutation_seed=None, max_samples=most)
    index = ensure_cache(**vars(p))
    assert index["permutation_seed"] is None and sum(entry["rows"] for entry in index["shards"]) == 1500


@pytest.mark.parametrize("broken", ["{", None])
def test_a_lost_index_of_the_digits_is_made_again(tmp_path, broken):
    p = parameters(tmp_path)
    index = ensure_cache(**vars(p))
    (tmp_path / "cache/index.json").write_text(broken) if broken else (tmp_path / "cache/index.json").unlink()
    assert ensure_cache(**vars(p)) == index


def test_all_that_differs_is_named_with_two_ways_out(tmp_path):
    ensure_cache(**vars(parameters(tmp_path)))
    p = parameters(tmp_path, **CIFAR, image_size=32, resize="squash")
    with pytest.raises(ValueError) as error:
        ensure_cache(**vars(p))
    said = str(error.value)
    for words in (
        "dataset is 'uoft-cs/cifar10' (split train), the cache holds digits/train", "image_size is 32, the cache has 8",
        "resize is 'squash', the cache has 'crop'",
        "Give what the cache holds, or", "-p dataset uoft-cs/cifar10", "-p cache_shard_size 2048",
    ):  # fmt: skip
        assert words in said
    assert "cache_shard_size is" not in said  # how images were cut into shards does not matter to training
    assert said.count(f"cache_dir {p.cache_dir} ") == 1  # the command makes another one


@pytest.mark.parametrize("changes", [{"split": "test"}, {"image_size": 16}, {"resize": "squash"}, {"dataset": "cifar10"}])
def test_any_one_difference_is_refused_and_nothing_is_changed(tmp_path, changes):
    index = ensure_cache(**vars(parameters(tmp_path)))
    with pytest.raises(ValueError, match=f"is not the cache that the parameters describe: {next(iter(changes))}|split test"):
        ensure_cache(**vars(parameters(tmp_path, **changes)))
    assert read_index(tmp_path / "cache") == index


def test_the_digits_are_not_stored_in_a_cache_of_something_else(tmp_path, make_cache):
    make_cache(tmp_path / "cache")
    with pytest.raises(ValueError, match="dataset is 'digits' .split train., the cache holds test; image_size is 8, .* has 4"):
        ensure_cache(**vars(parameters(tmp_path)))


@pytest.mark.parametrize(
    "source, dataset, split, same",
    [
        ("uoft-cs/cifar10/train", "uoft-cs/cifar10", "train", True),
        ("uoft-cs/cifar10/train", "cifar10", "train", True),
        ("uoft-cs/cifar10/train", "uoft-cs/cifar10", "test", False),
        ("uoft-cs/cifar10/train", "uoft-cs/cifar100", "train", False),
        ("uoft-cs/cifar10/train", "somebody/cifar10", "train", False),
        ("cifar10/train", "uoft-cs/cifar10", "train", True),  # a local copy, which a cluster node may not see
        ("photos", "/not/there/photos", "train", True),
        ("photos/test", "data/photos", "test", True),
        ("photos", "data/photos", "test", False),
        ("photos", "data/pictures", "train", False),
        ("rows", "/not/there/rows.parquet", "train", True),
    ],
)
def test_names_are_compared_without_a_network_and_without_the_originals(tmp_path, make_cache, source, dataset, split, same):
    make_cache(tmp_path / "cache", (10,), size=8)
    write_index(tmp_path / "cache", read_index(tmp_path / "cache") | {"source": source})
    p = parameters(tmp_path, dataset=dataset, split=split, cache_shard_size=10)
    if same:
        assert ensure_cache(**vars(p))["source"] == source
    else:
        with pytest.raises(ValueError, match=f"dataset is {dataset!r} .split {split}., the cache holds {source}"):
            ensure_cache(**vars(p))


def test_names_of_sources_are_those_that_opening_gives(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    plain, splits = photos(tmp_path / "plain"), photos(tmp_path / "splits", "test")
    (tmp_path / "link").symlink_to(plain)
    table = tmp_path / "tables" / "train-0.parquet"
    table.parent.mkdir()
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in (tmp_path / "plain").rglob("*.png")]})
    rows.cast_column("image", datasets.Image()).to_parquet(table)
    opened = [("digits", "test"), (plain, "train"), (splits, "test"), (str(tmp_path / "link"), "train"), (str(table), "train")]
    for dataset, split in [*opened, (str(table.parent), "train")]:
        assert open_source(dataset, split=split).name in source_names(dataset, split)


def test_the_hint_is_the_whole_command(tmp_path):
    p = parameters(tmp_path, dataset=photos(tmp_path / "my photos"), cache_shard_size=2, resize="squash")
    with pytest.raises(FileNotFoundError, match="Index file not found: .*index.json. Make the cache with: papermill ") as error:
        ensure_cache(**vars(p))
    words = shlex.split(str(error.value).partition("Make the cache with: ")[2])
    assert words[:3] == ["papermill", "notebooks/precompute.ipynb", "out.ipynb"] and set(words[3::3]) == {"-p"}
    given = {name: TABLE["precompute"][name].convert(value) for name, value in zip(words[4::3], words[5::3], strict=True)}
    assert given.keys() <= TABLE["precompute"].keys()
    q = SimpleNamespace(**{"image_column": None, "label_column": None} | given)  # what is left out is None
    sizes = {"image_size": q.image_size, "cache_shard_size": q.cache_shard_size, "resize": q.resize}
    precompute(open_source(q.dataset, split=q.split), q.cache_dir, **sizes)
    assert ensure_cache(**vars(p))["source"] == "my photos"


def test_the_command_has_the_columns_and_the_stream():
    command = precompute_command(**CIFAR, split="train", image_size=32, resize="crop", streaming=True, cache_dir="c")
    for words in ("-p image_column img", "-p label_column label", "-p streaming True", "-p cache_dir c"):
        assert words in command


def test_the_model_card_names_the_images_of_the_cache(tmp_path, make_cache):
    make_cache(tmp_path / "cache", (10,), size=8)
    write_index(tmp_path / "cache", read_index(tmp_path / "cache") | {"source": "uoft-cs/cifar10/train"})
    p = vars(parameters(tmp_path, dataset="cifar10", use_cached=True)) | {"teacher": "t", "student": "s", "loss": "mse"}
    p |= {"augmentation": "clean", "batch_size": 2, "gradient_accumulation_steps": 1, "epochs": 1, "seed": 0}
    run = Run("r", p, outputs=tmp_path)
    save_model(build_model("cifar_resnet8", width=4), run.folder / "final_model")
    finish_run(run, steps=1, images_seen=2, unique_seen=2)
    assert "uoft-cs/cifar10/train, 8x8 pixels" in (run.folder / "final_model/README.md").read_text()


def test_a_cache_that_jobs_still_fill_is_waited_for(tmp_path):
    p = parameters(tmp_path, dataset=photos(tmp_path / "photos"), cache_shard_size=2)
    precompute(open_source(p.dataset), p.cache_dir, image_size=8, cache_shard_size=2, part=0, parts=2)
    with pytest.raises(FileNotFoundError, match="Several jobs fill this cache, and 1 of its shards are missing; wait for them"):
        ensure_cache(**vars(p))
