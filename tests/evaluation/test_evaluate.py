"""Runs are judged from their folders: what is found, what is kept, and what is said about folders that are not right."""

import pytest
import torch

import kdnb
from kdnb.data import prepare
from kdnb.data.precompute import precompute
from kdnb.data.sources import open_source
from kdnb.evaluation import evaluate, report, trained_run
from kdnb.models.folder import save_model
from kdnb.models.vision import FeatureModel, Student, build_model
from kdnb.runs import Run

DATA = {"dataset": "digits", "probe_samples": 300}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """Caches and scores go to a folder of the test's own."""
    monkeypatch.setattr(prepare, "STORE", str(tmp_path / "store"))


def make_run(tmp_path, *, name="run", steps=(2, 4), student_args=None, classes=10, finished=True, **changes):
    """A run's folder as the training notebooks leave it, with random weights; its teacher is a ResNet-8 of random weights."""
    teacher = tmp_path / "teacher.pt"
    torch.save(build_model("cifar_resnet8", num_classes=classes, width=4).state_dict(), teacher)
    cache = tmp_path / "cache"
    precompute(open_source("digits"), cache, image_size=32, cache_shard_size=64, max_samples=128)
    parameters = {
        "dataset": "digits", "split": "train", "image_column": None, "label_column": None, "image_size": 32, "resize": "crop",
        "cache_dir": str(cache), "teacher": "cifar_resnet8", "teacher_args": {"width": 4}, "teacher_checkpoint": str(teacher),
        "feature_layers": [], "student": "cifar_resnet8", "student_args": {"width": 4}, "seed": 0, "crop_scale_min": 0.5,
        "horizontal_flip": False,
    }  # fmt: skip
    run = Run(name, parameters | changes, outputs=tmp_path)
    for step in steps:
        torch.manual_seed(step)
        width = student_args or {"width": 4}
        student = Student(build_model("cifar_resnet8", num_classes=0, **width), teacher_dim=16)
        run.save_checkpoint(step, {"student": student.state_dict(), "position": {"step": step, "images_seen": 32 * step}})
    run.write("history.json", {"steps": [{"step": 1, "loss": 1.0}], "epochs": []})
    if finished:
        run.finish({"loss": 1.0})
    return run


def test_every_checkpoint_is_judged_between_floors_and_ceiling(tmp_path):
    make_run(tmp_path)
    run = trained_run.open_run(tmp_path / "run")
    evaluator = evaluate.build_evaluator(run, **DATA)
    lines = evaluate.evaluate_run(run, evaluator)
    names = [(line["model"], line["step"]) for line in lines]
    assert names == [("raw pixels", 0), ("random student", 0), ("teacher", 0), ("student", 2), ("student", 4)]
    assert lines[2]["cka_teacher"] == pytest.approx(1) and lines[2]["probe_agreement_teacher"] == 1
    assert lines[-1]["images_seen"] == 128 and lines.scores["student"].probe == lines[-1]["probe"]
    assert evaluator.train.num_samples(0) == 300 and evaluator.measured == 5
    assert lines.curve("probe") == ([0, 2, 4], [lines[i]["probe"] for i in (1, 3, 4)])
    out = Run("out", {}, outputs=tmp_path)
    report.write_table(out, lines)
    assert len(out.read("evaluation.json")) == 5 and (out.folder / "evaluation.csv").read_text().count("\n") == 6
    assert len(str(lines).splitlines()) == 6 + 4 and "on 297 held-out images" in str(lines)
    assert lines[-1]["test_images"] == 297 and lines[-1]["probe_low"] < lines[-1]["probe"] < lines[-1]["probe_high"]


def test_the_best_model_is_judged_where_it_is_another_epoch_than_the_last(tmp_path):
    run = make_run(tmp_path, steps=(2, 6))  # of three checkpoints, the one of the best epoch is not kept
    torch.manual_seed(4)
    save_model(build_model("cifar_resnet8", num_classes=0, width=4), run.folder / "best_model")
    losses = {2: 0.9, 4: 0.5, 6: 0.7}
    run.write("history.json", {"steps": [], "epochs": [{"step": s, "images_seen": 32 * s, "loss": v} for s, v in losses.items()]})
    opened = trained_run.open_run(run.folder)
    lines = evaluate.evaluate_run(opened, evaluate.build_evaluator(opened, **DATA))
    assert [(line["model"], line["step"], line["images_seen"]) for line in lines[3:]] == [
        ("student", 2, 64), ("student", 6, 192), ("best model", 4, 128),
    ]  # fmt: skip
    assert lines.scores["student"].probe == lines[4]["probe"] and lines.scores["best model"].probe == lines[5]["probe"]
    assert lines.curve("probe")[0] == [0, 2, 6] and lines.last["step"] == 6
    run.write("history.json", {"steps": [], "epochs": [{"step": 2, "loss": 0.9}, {"step": 6, "loss": 0.5}]})
    assert trained_run.best_model(trained_run.open_run(run.folder)) is None


def test_a_second_evaluation_measures_nothing_and_finds_the_same(tmp_path):
    make_run(tmp_path)
    run = trained_run.open_run(tmp_path / "run")
    first = evaluate.evaluate_run(run, evaluate.build_evaluator(run, **DATA))
    again = evaluate.build_evaluator(run, **DATA)
    second = evaluate.evaluate_run(run, again)
    assert second == first and (again.measured, again.reused) == (0, 5)
    fewer = evaluate.build_evaluator(run, **DATA | {"probe_samples": 200})
    fewer.pixels()
    assert fewer.measured == 1  # other data, measured anew


def test_the_random_student_is_the_one_that_training_began_with(tmp_path):
    make_run(tmp_path)
    run = trained_run.open_run(tmp_path / "run")
    torch.manual_seed(run.p.seed)
    expected = FeatureModel(build_model("cifar_resnet8", num_classes=0, width=4)).state_dict()
    found = trained_run.random_student(run).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_test_images_among_the_training_images_are_counted(tmp_path):
    make_run(tmp_path)
    run = trained_run.open_run(tmp_path / "run")
    apart = evaluate.find_overlap(run, evaluate.build_evaluator(run, **DATA))
    assert apart == {"probe's training images": 0, "images distilled from": 0}
    same = evaluate.build_evaluator(run, **DATA | {"eval_split": "train"})
    assert evaluate.find_overlap(run, same) == {"probe's training images": 300, "images distilled from": 128}


def test_a_run_that_is_going_is_opened_up_to_its_last_checkpoint(tmp_path, monkeypatch):
    going = make_run(tmp_path, finished=False)
    gone = going.folder / "checkpoints/step_00000001.pt"  # replaced by a newer one after they were listed
    monkeypatch.setattr(Run, "checkpoints", lambda run: [gone, *sorted(gone.parent.iterdir())])
    run = trained_run.open_run(tmp_path / "run")
    assert run.summary is None and [c.step for c in run.checkpoints] == [2, 4]


def test_a_folder_without_a_run_or_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no run .no config.json.; give the folder"):
        trained_run.open_run(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        trained_run.open_run(tmp_path / "nowhere")
    make_run(tmp_path, steps=(), finished=False)
    with pytest.raises(FileNotFoundError, match="run holds no checkpoint yet; wait"):
        trained_run.open_run(tmp_path / "run")


def test_checkpoints_of_another_architecture_are_refused_by_name(tmp_path):
    make_run(tmp_path, student_args={"width": 8})
    run = trained_run.open_run(tmp_path / "run")
    with pytest.raises(ValueError, match="step_00000002.pt is of another architecture .* of another shape"):
        trained_run.load_student(run, run.checkpoints[0])


def test_a_teacher_of_other_classes_is_judged_by_its_features(tmp_path):
    make_run(tmp_path, classes=7)
    run = trained_run.open_run(tmp_path / "run")
    evaluator = evaluate.build_evaluator(run, **DATA)
    note = evaluate.teacher_note(run, evaluator)
    assert note.startswith("the teacher's head knows 7 classes and the data set has 10: the head is not used")
    lines = evaluate.evaluate_run(run, evaluator)
    assert "agreement_teacher" not in lines[-1]
    results = evaluate.compare_to_teacher(run, evaluator, lines.scores, tmp_path / "out")
    assert results["teacher"]["accuracy"] == pytest.approx(lines.scores["teacher"].probe)
    assert results["teacher"]["predicts"] == "linear probe"
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {
        "comparison_results.json",
        "teacher_student_comparison.png",
    }


def test_what_is_evaluated_on_is_the_runs_own_data_or_what_is_named(tmp_path):
    make_run(tmp_path)
    run = trained_run.open_run(tmp_path / "run")
    own = evaluate.build_evaluator(run, split="ignored", image_column="ignored", probe_samples=9)
    assert own.train.dataset.reader.index["source"] == "digits/train" and own.train.num_samples(0) == 9
    assert evaluate.build_evaluator(run, dataset="digits", split="test").train.dataset.reader.index["source"] == "digits/test"
    with pytest.raises(ValueError, match="eval_split is None; evaluation needs a held-out split"):
        evaluate.build_evaluator(run, eval_split=None)


def test_the_public_call_is_the_same_pieces_and_names_its_own_parameter(tmp_path):
    make_run(tmp_path, steps=(2,))
    run = trained_run.open_run(tmp_path / "run")
    lines = kdnb.evaluate(tmp_path / "run", **DATA)
    assert lines == evaluate.evaluate_run(run, evaluate.build_evaluator(run, **DATA))
    assert str(lines).split()[:3] == ["run", "model", "step"] and lines.references["teacher"] == lines[2]["probe"]
    with pytest.raises(FileNotFoundError, match="^run .*nowhere does not exist; give the folder"):
        kdnb.evaluate(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="^checkpoint_dir .*nowhere does not exist; give the folder"):
        trained_run.find_runs(checkpoint_dir=f"{tmp_path / 'run'}, {tmp_path / 'nowhere'}")
