"""What params files name is fetched where there is a network, and found where there is none."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import stand_ins

from kdnb import fetch
from kdnb.fetch import main, notebook_of
from kdnb.params import TABLE, check_params

ROOT = Path(__file__).resolve().parent.parent
PARAMS = sorted(path for path in (ROOT / "params").glob("*.yaml") if path.stem != "my_images")  # which names no images
NOBODY = "http://127.0.0.1:9"  # refuses every connection
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": NOBODY}

FETCH = """
    import json, sys
    from kdnb.fetch import main
    for arguments in json.loads(sys.argv[1]):
        print("exit", main(arguments))
"""
# What the notebooks call for what may come from the Hub, by the parameters of each file.
OPEN = """
    import json, sys
    from pathlib import Path
    from kdnb.data.prepare import held_out_batches
    from kdnb.data.sources import open_source
    from kdnb.distillation.teacher_model import build_teacher
    from kdnb.fetch import read_params
    from kdnb.text.classifier import load_classifier
    from kdnb.text.text_data import load_data
    widths = {}
    for path, changes in json.loads(sys.argv[1]):
        notebook, p = read_params(Path(path), changes=changes)
        seen = [Path(path).stem]
        if notebook == "precompute":
            seen.append(open_source(p.dataset, **p.of(open_source)).num_images)
        elif notebook == "soft_distill_text":
            data = load_data(**p.of(load_data))
            names = [name for name in (p.teacher, p.student) if name != "builtin"]
            models = [load_classifier(name, num_classes=len(data.classes)) for name in names]
            seen += [len(data.pool), len(data.test), *(model.feature_dim for model in models)]
        else:
            batches = held_out_batches(**p.of(held_out_batches))
            seen.append(batches and len(batches.dataset))
            if p.teacher not in widths:
                widths[p.teacher] = build_teacher(**p.of(build_teacher)).feature_dim
            seen.append(widths[p.teacher])
        print(json.dumps(seen))
"""


@pytest.fixture
def shipped_models(hub, tmp_path):
    """The weights that the shipped files name; the student's text models are of the Hub already."""
    folder = hub.folder / "models/timm/vit_base_patch14_dinov2.lvd142m"
    there = folder.exists()  # another test file's
    if not there:
        stand_ins.timm_model(hub.folder / "models", folder.name)
    yield stand_ins.cifar_teacher(tmp_path / "outputs/weights/resnet56-4bfd9763.th")
    if not there:
        shutil.rmtree(folder)


def test_every_shipped_file_is_fetched_and_then_opened_without_a_network(shipped_models, hub, with_hub):
    (large,) = (path for path in PARAMS if path.stem == "precompute_500k")
    files = [str(path) for path in PARAMS if path != large]
    smaller = {"max_train_samples": 112, "max_val_samples": 14}
    printed = with_hub(FETCH, json.dumps([files, [str(large)], [str(large), "-p", "streaming", "false"]]))
    whole, streamed, as_files = (part.splitlines() for part in printed.split("exit ")[:3])
    lines = {line.split()[0]: line for line in whole if line.startswith("  ")}
    (weights,) = hub.fetched("timm/vit_base_patch14_dinov2.lvd142m", ".safetensors").values()
    model = next(line for line in whole if "dinov2" in line and "bytes" in line)
    fetched_bytes = int(model.split("teacher: ")[1].split(" bytes")[0].replace(",", ""))
    assert weights < fetched_bytes < weights + 10_000 and model.endswith(", fetched")
    assert "split: " in lines["uoft-cs/cifar10/train"] and "docstrings" in lines and "local" in lines["docstrings"]
    assert lines["outputs/weights/resnet56-4bfd9763.th"].endswith("teacher_checkpoint: local")
    assert any("imagenet-1k-wds/validation" in line and "in outputs/cache_evaluation" in line for line in whole)
    assert streamed[0] == "0" and "-p streaming false" in "".join(streamed) and as_files[0] == "1"
    assert printed.rstrip().endswith("exit 0")

    hub.requests.clear()
    cases = [(path, smaller if "dbpedia" in path else {}) for path in files if "quick" not in path] + [
        (str(large), {"streaming": False})
    ]
    opened = [json.loads(line) for line in with_hub(OPEN, json.dumps(cases), **OFFLINE).splitlines() if line.startswith("[")]
    assert {name: facts for name, *facts in opened} == {
        "cifar10_fixed": [100, 64], "cifar10_optimized": [100, 64], "cifar10_random": [100, 64], "cifar10_precompute": [240],
        "compare_regimes": [20, 768], "compare_regimes_cifar10": [100, 64], "precompute_500k": [144],
        "soft_distill_dbpedia": [266, 70, 32, 32],
        "train_fixed": [None, 768], "train_optimized": [None, 768], "train_random": [None, 768],
    }  # fmt: skip
    assert not hub.requests


WITHOUT = """
    import time
    from kdnb.data.sources import open_source
    from kdnb.models.vision import build_model
    from kdnb.text.classifier import load_classifier
    from kdnb.text.texts import open_texts
    for ask in (
        lambda: load_classifier("prajjwal1/bert-tiny", num_classes=2), lambda: load_classifier("Qwen/Qwen2.5-0.5B"),
        lambda: build_model("resnet10t", pretrained=True), lambda: open_source("cifar10"), lambda: open_texts("dbpedia"),
    ):
        begun = time.monotonic()
        try:
            said = type(ask()).__name__
        except (ConnectionError, ValueError) as error:
            said = str(error)
        print(f"{time.monotonic() - begun:.1f} {said}")
"""


def test_where_the_hub_does_not_answer_weights_are_found_or_missed_within_seconds(hub, with_hub, tmp_path):
    """Also where HF_HUB_OFFLINE was forgotten; and what is there is not fetched twice."""
    path = tmp_path / "mine.yaml"
    path.write_text("dataset: dbpedia\nteacher: prajjwal1/bert-tiny\nstudent: prajjwal1/bert-tiny\n")
    command = [str(path), "--notebook", "soft_distill_text", "-p", "teacher_head", "linear"]
    first, second = with_hub(FETCH, json.dumps([command, command])).split("exit 0")[:2]
    assert first.count(", fetched") == 3 and first.count("student: see above") == 1 and second.count(", already there") == 3
    assert len(hub.fetched(suffix=".parquet")) == 2 and len(hub.fetched(suffix=".bin")) == 1
    printed = with_hub(WITHOUT, HF_ENDPOINT=NOBODY).splitlines()[-5:]
    assert "TextClassifier" in printed[0] and all("python -m kdnb.fetch" in line for line in printed[1:]), printed
    assert all(float(line.split()[0]) < 15 for line in printed), printed


@pytest.mark.parametrize(
    "notebook, values, named",
    [
        ("train_random", {"use_cached": False}, ["uoft-cs/cifar10/train split", "uoft-cs/cifar10/test eval_split"]),
        ("train_fixed", {"eval_split": None, "student": "hf-hub:me/mine"}, ["me/mine student"]),
        ("train_fixed", {"eval_split": None, "teacher": "resnet18"}, ["timm/resnet18.a1_in1k teacher"]),
        ("precompute", {"cache_teacher_features": True, "teacher": "hf-hub:me/mine@v1"},
         ["uoft-cs/cifar10/train split", "me/mine teacher"]),
        ("compare_regimes", {"cache_dir": "cache"},
         ["uoft-cs/cifar10/test eval_split", "uoft-cs/cifar10/train split, for the probe"]),
        ("evaluate", {"checkpoint_dir": "outputs/a", "dataset": None},
         ["timm/set/test eval_split", "timm/set/train split, for the probe", "timm/resnet18.a1_in1k teacher"]),
    ],
)  # fmt: skip
def test_what_a_notebook_reads(notebook, values, named, tmp_path, monkeypatch, make_cache):
    monkeypatch.chdir(tmp_path)
    make_cache(tmp_path / "cache")  # of another data set
    run = {name: row.default for name, row in TABLE["train_fixed"].items()} | {"dataset": "timm/set", "teacher": "resnet18"}
    monkeypatch.setattr(fetch, "open_run", lambda folder, parameter: SimpleNamespace(p=SimpleNamespace(**run)))
    p = check_params({name: row.default for name, row in TABLE[notebook].items()} | {"dataset": "cifar10"} | values, notebook)
    items = list(fetch.items_of(p, notebook))
    assert [f"{item.name} {item.purpose}" for item in items if item.fetch] == named


SPLIT = """
    from kdnb.data.prepare import held_out_batches
    from kdnb.data.precompute import precompute
    precompute("me/photos", "cache", image_size=8, held_out=0.2, progress=False)
    data = {"dataset": "me/photos", "image_column": None, "label_column": None, "image_size": 8, "resize": "crop"}
    print(len(held_out_batches(eval_split="test", cache_dir="cache", **data).dataset), "held out")
"""


def test_of_data_without_a_test_split_the_training_images_are_fetched_and_a_part_of_them_is_held_out(hub, with_hub, tmp_path):
    whole = hub.folder / "datasets/me/photos/data/train-00000-of-00001.parquet"
    whole.parent.mkdir(parents=True)
    shutil.copy(hub.folder / "datasets/uoft-cs/cifar10/plain_text/train-00000-of-00001.parquet", whole)
    (tmp_path / "p.yaml").write_text("# papermill notebooks/train_fixed.ipynb out.ipynb\ndataset: me/photos\n")
    try:
        line = next(line for line in with_hub(FETCH, json.dumps([["p.yaml"]])).splitlines() if "eval_split" in line)
        assert line.endswith("bytes, fetched") and list(hub.fetched(suffix=".parquet")) == ["data/train-00000-of-00001.parquet"]
        assert with_hub(SPLIT, **OFFLINE).splitlines()[-1] == "50 held out"  # a fifth of 24 in each class, rounded
    finally:
        shutil.rmtree(whole.parents[1])


def test_nothing_is_asked_of_the_hub_for_what_is_local(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch, "hub_answers", lambda: pytest.fail("the Hub was asked"))
    (tmp_path / "p.yaml").write_text("# papermill notebooks/train_fixed.ipynb out.ipynb\nepochs: 1\n")
    assert main(["p.yaml"]) == 0
    assert "digits" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, more, sentence",
    [
        ("teacher: resnet1888\n", [], "p.yaml: resnet1888 is no model that timm knows"),
        ("techer: resnet18\n", [], "did you mean teacher"),
        ("epochs: 1\n", ["--notebook", "evaluate"], "evaluate has no parameter epochs"),
        ("epochs: [\n", [], "p.yaml: this is no YAML file"),
        ("resnet18\n", [], "holds no parameters"),
        (None, [], "p.yaml: there is no such file"),
        ("cache_dir: x\ndataset: cifar10\n", [], "does not answer; check the network"),
    ],
)
def test_errors_are_sentences(text, more, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch, "hub_answers", lambda: False)
    if text is not None:
        (tmp_path / "p.yaml").write_text("# papermill notebooks/train_fixed.ipynb out.ipynb\n" + text)
    assert main(["p.yaml", *more]) == 1
    assert sentence in capsys.readouterr().err


def test_a_file_that_does_not_say_which_notebook_it_is_for(tmp_path, capsys):
    (tmp_path / "p.yaml").write_text("teacher: resnet18\n")
    assert notebook_of(tmp_path / "p.yaml") is None
    assert main([str(tmp_path / "p.yaml")]) == 1 and "give --notebook" in capsys.readouterr().err


def test_a_name_that_the_hub_does_not_have_is_a_sentence(with_hub, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("# papermill notebooks/soft_distill_text.ipynb out.ipynb\nteacher: owner/nothing\nstudent: builtin\n")
    printed = with_hub(FETCH, json.dumps([[str(path)]]))
    assert "owner/nothing" in printed and "teacher: not fetched; model owner/nothing is no folder here" in printed
    assert "exit 1" in printed
