"""From the Hub comes what is needed and nothing else: the split's own files, once; a stream that goes on skips whole files."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from kdnb.data.sources import open_source

OPEN = """
    import json, sys
    from kdnb.data.sources import open_source
    source = open_source(**json.loads(sys.argv[1]))
    labels = [label for _, _, label in source.items()]
    print(json.dumps([source.name, source.num_images, source.labelled, source.classes, labels, source.fingerprint]))
"""


def opened(with_hub, **arguments) -> list:
    """[name, num_images, labelled, classes, all labels, fingerprint] of a source, in a process of its own."""
    variables = arguments.pop("variables", {})
    return json.loads(with_hub(OPEN, json.dumps(arguments), **variables).splitlines()[-1])


def test_of_parquet_the_splits_own_file_is_fetched_once(hub, with_hub):
    name, count, labelled, classes, labels, _ = opened(with_hub, dataset="cifar10", split="test")
    assert (name, count, labelled, classes[6], set(labels)) == ("uoft-cs/cifar10/test", 100, True, "frog", set(range(10)))
    file = hub.folder / "datasets/uoft-cs/cifar10/plain_text/test-00000-of-00001.parquet"
    assert hub.fetched(suffix=".parquet") == {"plain_text/test-00000-of-00001.parquet": file.stat().st_size}
    again = opened(with_hub, dataset="cifar10", split="test", variables={"HF_HUB_OFFLINE": "1"})
    assert again[0] == name and again[4] == labels
    assert len(hub.fetched(suffix=".parquet")) == 1, "what was fetched once is there without a network"
    assert sum(request.bytes > 0 for request in hub.requests if request.path.endswith(".parquet")) == 1


def test_a_data_set_with_two_columns_of_labels(with_hub):
    assert len(opened(with_hub, dataset="cifar100", split="test")[3]) == 100
    assert len(opened(with_hub, dataset="cifar100", split="test", label_column="coarse_label")[3]) == 20


def test_a_copy_of_all_splits_that_was_made_by_others_is_used(hub, with_hub):
    with_hub("import datasets; datasets.load_dataset('uoft-cs/cifar10')")
    hub.requests.clear()
    assert opened(with_hub, dataset="cifar10", split="test")[1] == 100
    assert opened(with_hub, dataset="cifar10", split="train", variables={"HF_HUB_OFFLINE": "1"})[1] == 240
    assert not hub.fetched(suffix=".parquet")


def test_of_a_streamed_parquet_file_the_other_columns_are_not_read(hub, with_hub):
    """The labels alone; how far ahead a file system reads differs."""
    code = "from kdnb.data.splits import open_split\n"
    code += "table, *_ = open_split('x', 'uoft-cs/cifar10', 'train', streaming=True, columns=lambda features: ['label'])\n"
    code += "print(sum(1 for _ in table))"
    assert with_hub(code).split()[-1] == "240"
    (sent,) = hub.fetched(suffix=".parquet").values()
    assert sent < (hub.folder / "datasets/uoft-cs/cifar10/plain_text/train-00000-of-00001.parquet").stat().st_size


def test_of_tar_files_the_splits_own_are_streamed(hub, with_hub):
    name = "timm/imagenet-1k-wds"
    *facts, labels, _ = opened(with_hub, dataset=name, split="validation", streaming=True)
    assert facts == [f"{name}/validation", None, True, None]
    assert len(labels) == 20 and set(labels) == set(range(7, 1000, 100))
    read = [request.path for request in hub.requests if request.bytes and request.path.endswith(".tar")]
    # The first file twice: what columns there are is known from its first rows.
    assert read == [f"imagenet1k-validation-{number}.tar" for number in ("00", "00", "01")]


def test_of_texts_the_splits_own_file_is_fetched_once(hub, with_hub):
    code = "from kdnb.text.texts import open_texts; t = open_texts('dbpedia', split='test'); print(len(t), t.classes[3])"
    assert with_hub(code).splitlines()[-1] == "70 Athlete"
    assert list(hub.fetched(suffix=".parquet")) == ["dbpedia_14/test-00000-of-00001.parquet"]


def test_a_name_or_split_that_the_hub_does_not_have_is_a_sentence(with_hub):
    code = """
        from kdnb.data.sources import open_source
        for dataset, split in (("owner/nothing", "train"), ("cifar10", "val")):
            try:
                open_source(dataset, split=split)
            except ValueError as error:
                print(error)
    """
    nothing, split = with_hub(code).splitlines()[-2:]
    assert "dataset is 'owner/nothing', which is no file or folder here, and it could not be found on the Hugging" in nothing
    assert split == "split is 'val', but dataset uoft-cs/cifar10 has train, test."


# Streams that go on

FILL = """
    import os, sys
    from kdnb.data.sources import open_source
    from kdnb.data.precompute import precompute

    class Killer:
        written = {0}
        def update(self, done, bytes_written, **facts):
            self.written.add(bytes_written)
            if len(self.written) - 1 == int(sys.argv[2]):
                os._exit(9)

    source = open_source("timm/imagenet-1k-wds", image_column="jpg", label_column="cls", streaming=True)
    killer = Killer() if int(sys.argv[2]) else None
    precompute(source, sys.argv[1], image_size=16, cache_shard_size=32, permutation_seed=None, progress=killer)
"""


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_killed_stream_goes_on_without_the_files_before(hub, with_hub, tmp_path):
    """Files of 24, 20, 28, 24, ... rows, shards of 32: the third shard begins within the third file."""
    with_hub(FILL, tmp_path / "straight", 0)
    with_hub(FILL, tmp_path / "killed", 2, code_of_exit=9)
    assert not (tmp_path / "killed/images_shard_00002.pt").exists()
    hub.requests.clear()
    said = with_hub(FILL, tmp_path / "killed", 0)
    assert "going on at image 64, 2 of 6 files are skipped; 20 images before it are read again" in said
    assert list(hub.fetched(suffix=".tar")) == [f"imagenet1k-train-{number:04d}.tar" for number in (0, 2, 3, 4, 5)], (
        "the first tells the data set from others, the second is skipped"
    )
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")
    hub.requests.clear()
    with_hub(FILL, tmp_path / "killed", 0)
    assert list(hub.fetched(suffix=".tar")) == ["imagenet1k-train-0000.tar"]


def parquet_files(folder: Path, sizes: list[int], labels=None) -> Path:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    folder.mkdir()
    begin = 0
    for number, size in enumerate(sizes):
        pictures = [Image.new("RGB", (4, 4), (row, 0, 0)) for row in range(begin, begin + size)]
        rows = {"image": pictures, "label": [row % 2 for row in range(begin, begin + size)] if labels is None else labels}
        path = folder / f"train-{number:05d}-of-{len(sizes):05d}.parquet"
        datasets.Dataset.from_dict(rows, features).to_parquet(path)
        begin += size
    return folder


@pytest.fixture
def arrow_copies(tmp_path, monkeypatch):
    """Tests leave nothing in the user's cache of `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def test_rows_of_a_stream_from_any_start_whatever_is_noted(tmp_path, arrow_copies, capsys):
    folder = parquet_files(tmp_path / "set", [3, 4, 2])
    whole = list(open_source(str(folder), streaming=True).items())
    assert [row for row, _, _ in whole] == list(range(9))
    for noted in (False, True):
        for start in range(1, 10):
            source = open_source(str(folder), streaming=True)
            source.remember_files(tmp_path / ("notes" if noted else f"none{start}"))
            assert list(source.items(range(start, start + 4))) == whole[start : start + 4]
        source = open_source(str(folder), streaming=True)
        source.remember_files(tmp_path / "notes")
        assert list(source.items()) == whole
    said = capsys.readouterr().out.splitlines()
    assert said[4] == "set/train: going on at image 5, 0 of 3 files are skipped; 5 images before it are read again"
    assert said[9 + 4] == "set/train: going on at image 5, 1 of 3 files are skipped; 2 images before it are read again"
    assert said[9 + 6] == "set/train: going on at image 7, 2 of 3 files are skipped"


def test_notes_about_other_files_count_for_nothing(tmp_path, arrow_copies, capsys):
    for name, sizes in (("one", [3, 3]), ("two", [4, 4])):
        source = open_source(str(parquet_files(tmp_path / name, sizes)), streaming=True)
        source.remember_files(tmp_path / "notes")
        list(source.items())
    source = open_source(str(tmp_path / "one"), streaming=True)
    source.remember_files(tmp_path / "notes")
    assert [row for row, _, _ in source.items(range(3, 5))] == [3, 4]
    assert "0 of 2 files are skipped" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("labels, labelled", [([-1, -1, -1], False), ([-1, 1, -1], True)])
def test_a_split_of_which_every_label_is_minus_one_has_none(tmp_path, arrow_copies, streaming, labels, labelled):
    source = open_source(str(parquet_files(tmp_path / "set", [3], labels)), streaming=streaming)
    assert source.labelled == labelled
    assert [label for _, _, label in source.items()] == labels
