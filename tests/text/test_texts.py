"""Texts come as their files say, whatever the format."""

import shutil

import datasets
import pytest
import torch

from kdnb.text.texts import Texts, open_texts


def write(folder, name="train.csv", content="", classes=None):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
    if classes:
        (folder / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    return folder / name


def made(labels, classes="abcdef") -> Texts:
    labels = torch.tensor(labels)
    return Texts("made", [f"text {n}" for n in range(len(labels))], labels, list(classes), torch.arange(len(labels)) + 100)


def test_ag_news_as_it_is_distributed(real_data):
    train, test = (open_texts(str(real_data / "ag_news"), split=split) for split in ("train", "test"))
    assert (len(train), len(test), train.name) == (6000, 800, "ag_news/train")
    assert train.classes == test.classes == ["World", "Sports", "Business", "Sci/Tech"]
    assert train.missing_classes == test.missing_classes == []
    assert test.texts[1] == (
        "Glazer raises stake in United to close on buy-out trigger point. Malcolm Glazer edged closer to triggering a "
        "mandatory bid for Manchester United last night by increasing his stake in the club to 27."
    )
    assert test.labels[:3].tolist() == [3, 1, 3]  # "4", "2", "4" in the file
    assert '"bulletproof"' in test.texts[2]  # doubled quotes in the file
    alone = open_texts(str(real_data / "ag_news" / "test.csv"), split="test")
    assert alone.fingerprint == test.fingerprint != train.fingerprint


def test_original_layout_joins_columns_and_counts_classes_from_one(tmp_path, capsys):
    rows = '2,"Stocks up","Oil ""fell""."\n1," Who? ","We did."\n2,"  "," "\n1,"",Only content\n\n3,Title only,\n'
    write(tmp_path / "set", content=rows, classes=["x", "y", "z"])
    texts = open_texts(str(tmp_path / "set"))
    assert texts.texts == ['Stocks up. Oil "fell".', "Who? We did.", "Only content", "Title only"]
    assert texts.labels.tolist() == [1, 0, 0, 2] and texts.labels.dtype == torch.int64
    assert texts.ids.tolist() == [0, 1, 3, 4]
    assert capsys.readouterr().out == "set/train: 1 of 5 texts are empty and left out.\n"
    titles = open_texts(str(tmp_path / "set"), text_columns="title")
    assert titles.texts == ["Stocks up", "Who?", "Title only"]
    swapped = open_texts(str(tmp_path / "set"), text_columns=["content", "title"])
    assert swapped.texts[0] == 'Oil "fell". Stocks up'


def test_csv_with_header_finds_its_columns(tmp_path):
    path = write(tmp_path, "train.csv", "\ufeffid,Review,stars,Label\n7,Good film,5,pos\n8,Bad film,1,neg\n9,Fine,4, pos\n")
    texts = open_texts(str(path))
    assert texts.texts == ["Good film", "Bad film", "Fine"]
    assert texts.classes == ["neg", "pos"] and texts.labels.tolist() == [1, 0, 1]
    stars = open_texts(str(path), label_column="stars", text_columns=["Review"])
    assert stars.classes == ["0", "1", "2", "3", "4", "5"] and stars.labels.tolist() == [5, 1, 4]
    assert stars.missing_classes == ["0", "2", "3"]
    assert open_texts(str(path), classes=["pos", "neg"]).labels.tolist() == [0, 1, 0]
    plain = open_texts(str(write(tmp_path, "dev.csv", "text\nonly texts here\n")), split="dev")
    assert plain.labels is None and plain.classes is None and plain.missing_classes == []


def features(**more):
    return datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"]), "text": datasets.Value("string"), **more})


def test_parquet_and_csv_of_the_same_texts_have_one_fingerprint(tmp_path):
    rows = {"label": [1, 0, 1], "text": ["a b", "c", "d"], "stars": [1, 2, 3]}
    table = datasets.Dataset.from_dict(rows, features=features(stars=datasets.Value("int64")))
    (tmp_path / "parquet").mkdir()
    table.to_parquet(str(tmp_path / "parquet" / "train-00000.parquet"))
    table.select([0]).to_parquet(str(tmp_path / "parquet" / "test-00000.parquet"))
    write(tmp_path / "csv", content="2,a b\n1,c\n2,d\n", classes=["no", "yes"])
    folder = open_texts(str(tmp_path / "parquet"))
    assert folder.fingerprint == open_texts(str(tmp_path / "csv")).fingerprint
    assert folder.fingerprint == open_texts(str(tmp_path / "parquet" / "train-00000.parquet")).fingerprint
    assert open_texts(str(tmp_path / "parquet"), split="test").texts == ["a b"]
    assert open_texts(str(tmp_path / "parquet"), label_column="stars").labels.tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="split is 'dev', but dataset .* has (train, test|test, train)"):
        open_texts(str(tmp_path / "parquet"), split="dev")


def test_unpublished_labels_are_no_labels(tmp_path):
    datasets.Dataset.from_dict({"label": [-1, -1], "text": ["a", "b"]}, features=features()).to_parquet(tmp_path / "test.parquet")
    assert open_texts(str(tmp_path / "test.parquet"), split="test").labels is None
    datasets.Dataset.from_dict({"label": [0, -1], "text": ["a", "b"]}, features=features()).to_parquet(tmp_path / "half.parquet")
    with pytest.raises(ValueError, match=r"row 1 \(from 0\) of .*column label has the label -1; allowed are .* from 0 to 1"):
        open_texts(str(tmp_path / "half.parquet"))


def test_fingerprint_depends_on_texts_labels_and_names():
    first = made([0, 1])
    other = Texts("other", list(first.texts), first.labels.clone(), list(first.classes), torch.arange(2))
    assert first.fingerprint == other.fingerprint
    assert first.fingerprint == first.take([1, 0]).take([1, 0]).fingerprint != first.take([1, 0]).fingerprint
    changed = [made([1, 0]), made([0, 1], "xbcdef"), Texts("made", ["text ", "0text 1"], first.labels, first.classes, first.ids)]
    changed.append(Texts("made", first.texts, None, None, first.ids))
    assert len({texts.fingerprint for texts in [first, *changed]}) == 5


@pytest.mark.parametrize(
    "content, settings, said",
    [
        ("1,a,b\n5,c,d\n", {}, r"row 1 \(from 0\) of .*column label has the label 5; allowed are whole numbers from 1 to 2"),
        ("1,a,b\nx,c,d\n", {}, r"row 1 \(from 0\) .*the label 'x'; allowed are whole numbers from 1 to 2"),
        ("1,a,b\n0,c,d\n", {}, "the label 0; allowed are whole numbers from 1 to 2"),
        ("1,a,b\n,c,d\n", {}, "the label None; allowed are whole numbers from 1 to 2"),
        ("label,text\nno,c\nmaybe,c\n", {}, "row 1 .*the label 'maybe'; allowed are no, yes"),
        ("label,text\n0,c\n999999999999,c\n", {}, "the label 999999999999; allowed are whole numbers from 0 to 1"),
        ("1,a,b\n2,c\n", {}, r"row 1 \(from 0\) of .* has 2 cells, but there are 3 columns"),
        ("1,a,b\n", {"text_columns": ["title", "body"]}, "text_columns names 'body', .* are label, title, content"),
        ("1,a,b\n", {"label_column": "class"}, "label_column names 'class', but the columns of .* are label, title, content"),
        ("label,class,text\n1,1,a\n", {}, "several columns of labels; set label_column to one of label, class"),
        ("label,label\n1,1\n", {}, "names a column twice: label, label"),
        ("label,number\n1,17\n", {}, "no column of texts; set text_columns .*: label, number"),
        ("1,, \n2,,\n", {"text_columns": ["title", "content"]}, "2 rows in split train, but no text in title, content"),
        ("label,text\n", {}, "has no rows in split train"),
        ("", {}, "is empty; a row has a class and a text"),
        ("1,a,b\n", {"split": "dev"}, "split is 'dev', but dataset .* has train"),
    ],
)
def test_a_broken_set_says_what_is_wrong(tmp_path, content, settings, said):
    write(tmp_path / "set", content=content, classes=["no", "yes"])
    with pytest.raises(ValueError, match=said):
        open_texts(str(tmp_path / "set"), **settings)


def test_numbers_that_are_no_classes_are_refused(tmp_path):
    path = write(tmp_path, content="label,text\n0,a\n99999999,b\n")
    with pytest.raises(ValueError, match="the label 99999999; allowed are whole numbers from 0 to 65535"):
        open_texts(str(path))


def test_what_is_no_text_set_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_texts(str(tmp_path / "nothing.csv"))
    with pytest.raises(FileNotFoundError, match="neither CSV nor Parquet files; put train.csv and test.csv there"):
        open_texts(str(tmp_path))
    (tmp_path / "notes.txt").write_text("1,a")
    with pytest.raises(ValueError, match=r"allowed are a folder, a CSV file \(.csv\) or a Parquet file"):
        open_texts(str(tmp_path / "notes.txt"))
    (tmp_path / "train.csv").write_bytes("1,caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="is no CSV file in UTF-8"):
        open_texts(str(tmp_path))

    class Unreachable:
        def dataset_info(self, name, timeout):
            raise ConnectionError("no route")

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    said = r"'dbpedia' \(short for fancyzhx/dbpedia_14\), which is no file or folder here, .* \(no route\); .* 'docstrings'"
    with pytest.raises(ValueError, match=said):
        open_texts("dbpedia")
    write(tmp_path / "dbpedia", content="1,a folder,wins\n")
    assert open_texts("dbpedia").texts == ["a folder. wins"]
    shutil.rmtree(tmp_path / "dbpedia")
