"""Where labelled images come from: the run's cache, one cache of the held-out split, and from the Hub only what is missing."""

import json
from types import SimpleNamespace

import pytest

from kdnb.data import prepare
from kdnb.data.cache import read_index, write_index
from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source
from kdnb.params import arguments_of

P = {"dataset": "digits", "split": "train", "eval_split": "test", "image_column": None, "label_column": None}
P |= {"streaming": False, "image_size": 16, "resize": "crop"}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "STORE", str(tmp_path / "store"))


def parameters(tmp_path, **changes) -> SimpleNamespace:
    return SimpleNamespace(**P | {"cache_dir": str(tmp_path / "cache")} | changes)


def fill(tmp_path, **changes):
    settings = {"image_size": 16, "cache_shard_size": 400, "permutation_seed": None}
    precompute(open_source("digits"), tmp_path / "cache", **settings | changes)


def held_out(p):
    return prepare.held_out_batches(**arguments_of(prepare.held_out_batches, p))


def training(p, count: int, classes: list[str]):
    return prepare.training_batches(count, classes=classes, **arguments_of(prepare.training_batches, p))


def test_the_held_out_split_is_decoded_once(tmp_path, monkeypatch):
    p = parameters(tmp_path)
    first = held_out(p)
    assert first.num_samples(0) == 297 and prepare.class_names(first.dataset.reader) == [str(digit) for digit in range(10)]
    monkeypatch.setattr("kdnb.data.decode.decode_all", lambda *args, **kwargs: pytest.fail("decoded again"))
    again = held_out(p)
    assert again.dataset.reader.cache_dir == first.dataset.reader.cache_dir
    assert held_out(parameters(tmp_path, eval_split=None)) is None


def test_training_images_are_drawn_from_the_runs_cache_where_it_holds_them(tmp_path):
    fill(tmp_path)
    batches = training(parameters(tmp_path), 300, [str(digit) for digit in range(10)])
    assert batches.dataset.reader.cache_dir == tmp_path / "cache" and batches.num_samples(0) == 300
    labels = [label for batch in batches for label in batch["label"].tolist()]
    assert set(labels) == set(range(10)) and len(labels) == 300


OTHER = [{"max_samples": 200, "permutation_seed": 0}, {"max_samples": 800}, {"image_size": 8}, {"resize": "squash"}]
OTHER += [{"storage": "float16"}]


@pytest.mark.parametrize("change", [*OTHER, "another split", "other names", "unfinished", "none"], ids=str)
def test_and_cached_anew_where_it_does_not(tmp_path, change):
    names = [str(digit) for digit in range(10)]
    p = parameters(tmp_path)
    if isinstance(change, dict):
        fill(tmp_path, **change)
    elif change == "another split":
        fill(tmp_path)
        p.split = "test"
    elif change == "other names":
        fill(tmp_path)
        names[0] = "zero"
    elif change == "unfinished":
        fill(tmp_path)
        index = read_index(tmp_path / "cache")
        write_index(tmp_path / "cache", index | {"shards": index["shards"][:-1]})
    batches = training(p, 250, names)
    assert batches.dataset.reader.cache_dir.parent == tmp_path / "store" and batches.num_samples(0) == 250


def test_all_of_a_small_split_is_enough_and_so_is_a_permuted_part(tmp_path):
    names = [str(number) for number in range(10)]
    fill(tmp_path, permutation_seed=0, max_samples=800)
    assert training(parameters(tmp_path), 300, names).dataset.reader.cache_dir == tmp_path / "cache"
    fill(tmp_path, permutation_seed=0)
    batches = training(parameters(tmp_path), 10**6, names)
    assert batches.num_samples(0) == 1500 and batches.dataset.reader.cache_dir == tmp_path / "cache"


def test_a_split_whose_labels_are_all_missing_is_not_judged_on(tmp_path, monkeypatch):
    import datasets
    from PIL import Image

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [Image.new("RGB", (4, 4))] * 3, "label": [-1] * 3}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "set/test-00000-of-00001.parquet")
    assert held_out(parameters(tmp_path, dataset=str(tmp_path / "set"))) is None
    assert not (tmp_path / "store").exists()


def test_classes_without_names_are_numbers(make_cache, tmp_path):
    for folder in ("a", "b"):
        make_cache(tmp_path / folder, (20,))
        write_index(tmp_path / folder, read_index(tmp_path / folder) | {"classes": None})
    readers = [prepare.drawn_batches(tmp_path / folder, 5).dataset.reader for folder in ("a", "b")]
    assert prepare.class_names(*readers) == ["0", "1", "2"]


JUDGE = """
    import json, sys
    from types import SimpleNamespace
    import torch
    from kdnb.data.sources import open_source
    from kdnb.models.vision import FeatureModel, build_model, freeze
    from kdnb.data.precompute import precompute
    from kdnb.evaluation import evaluate
    from kdnb.distillation.teacher_check import check_head
    from kdnb.data import prepare
    from kdnb.evaluation.student_probe import Probe
    from kdnb.distillation.teacher import open_teacher
    from kdnb.params import arguments_of

    p = SimpleNamespace(**json.loads(sys.argv[1]))
    prepare.STORE = p.cache_dir + "_evaluation"
    if p.fill:
        source = open_source(p.dataset, **arguments_of(open_source, p))
        precompute(source, p.cache_dir, image_size=p.image_size, cache_shard_size=50, permutation_seed=None)
    else:
        probe = Probe(**arguments_of(Probe, p))
        teacher = freeze(FeatureModel(build_model("cifar_resnet8", num_classes=10, width=4)))
        print("probe", probe.why_not or (probe.train.num_samples(0), probe.test.num_samples(0)))
        try:  # the gate
            known = open_teacher(teacher="x", image_size=p.image_size, model=teacher)
            check_head(known, prepare.held_out_batches(**arguments_of(prepare.held_out_batches, p)))
        except (ValueError, RuntimeError, IndexError) as error:
            print(type(error).__name__)
        evaluator = evaluate.build_evaluator(SimpleNamespace(p=p), **arguments_of(evaluate.build_evaluator, p))
        print("evaluator", evaluator.train.num_samples(0), evaluator.test.num_samples(0), len(evaluator.classes))
"""
MORE = {"probe_samples": 100, "resize": "crop", "cache_teacher_features": False, "teacher": "x", "crop_scale_min": 0.5}
MORE |= {"horizontal_flip": False}


def judge(with_hub, tmp_path, *, fill: bool, **given) -> str:
    p = P | MORE | {"cache_dir": str(tmp_path / "cache"), "fill": fill} | given
    return with_hub(JUDGE, json.dumps(p))


def test_probe_gate_and_evaluator_fetch_the_held_out_split_once_and_no_training_image(hub, with_hub, tmp_path):
    given = {"dataset": "cifar10"}
    judge(with_hub, tmp_path, fill=True, **given)
    assert list(hub.fetched(suffix=".parquet")) == ["plain_text/train-00000-of-00001.parquet"]
    hub.requests.clear()
    said = judge(with_hub, tmp_path, fill=False, **given)
    assert "probe (100, 100)" in said and "evaluator 100 100 10" in said
    assert [request.path for request in hub.requests if request.bytes and request.path.endswith(".parquet")] == [
        "plain_text/test-00000-of-00001.parquet"
    ]


def test_so_they_do_where_the_data_set_is_streamed(hub, with_hub, tmp_path):
    """Tar files, whose labels are numbers without names: 20 held-out images of ten classes, the largest of which is 907."""
    given = {"dataset": "timm/imagenet-1k-wds", "streaming": True, "eval_split": "validation", "label_column": "cls"}
    judge(with_hub, tmp_path, fill=True, **given)
    hub.requests.clear()
    said = judge(with_hub, tmp_path, fill=False, **given)
    assert "probe (100, 20)" in said and "evaluator 100 20 908" in said
    assert list(hub.fetched(suffix=".tar")) == ["imagenet1k-validation-00.tar", "imagenet1k-validation-01.tar"]
    hub.requests.clear()
    judge(with_hub, tmp_path, fill=False, **given)
    assert list(hub.fetched(suffix=".tar")) == ["imagenet1k-validation-00.tar"], "the first rows tell that it is the same"
