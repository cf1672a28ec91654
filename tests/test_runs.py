"""The run folder: written in order, resumed by name, protected from a mix-up."""

import json

import matplotlib.figure
import pytest
import torch

from kdnb.runs import Run, anchored, local_or_hub, project_root


def test_a_new_run_writes_what_a_reader_needs_to_repeat_it(tmp_path):
    run = Run("a", {"seed": 1}, outputs=tmp_path)
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["parameters"] == {"seed": 1} and {"versions", "git_revision", "device", "started"} <= config.keys()
    assert config["versions"]["torch"] == torch.__version__.split("+")[0] or config["versions"]["torch"]
    assert not run.finished and not run.resumed
    run.finish({"loss": 0.5})
    assert run.finished and run.read("summary.json") == {"loss": 0.5}


def test_without_a_name_the_prefix_and_the_time_make_one(tmp_path):
    assert Run(None, {}, prefix="train_fixed", outputs=tmp_path).name.startswith("train_fixed_20")


def test_the_same_name_resumes_and_other_parameters_are_refused(tmp_path):
    Run("a", {"seed": 1, "epochs": 2, "layers": [1]}, outputs=tmp_path).save_checkpoint(1, {})
    assert Run("a", {"seed": 1, "epochs": 2, "layers": [1]}, outputs=tmp_path).resumed
    with pytest.raises(ValueError, match=r"run_name a exists with other parameters \(epochs was 2, now 3; seed was 1, now 2\)"):
        Run("a", {"seed": 2, "epochs": 3, "layers": [1]}, outputs=tmp_path)


def test_how_a_run_is_carried_out_may_change(tmp_path):
    Run("a", {"seed": 1, "num_workers": 0}, outputs=tmp_path)
    assert Run("a", {"seed": 1, "num_workers": 4}, outputs=tmp_path).resumed


def test_checkpoints_are_kept_by_number_and_loaded_without_objects(tmp_path):
    run = Run("a", {}, outputs=tmp_path)
    assert run.load_checkpoint() is None
    for step in (5, 10, 100):
        run.save_checkpoint(step, {"step": step, "weights": torch.ones(2)}, keep=2)
    assert [path.name for path in run.checkpoints()] == ["step_00000010.pt", "step_00000100.pt"]
    assert run.load_checkpoint()["step"] == 100


def test_keeping_all_checkpoints(tmp_path):
    run = Run("a", {}, outputs=tmp_path)
    for step in range(5):
        run.save_checkpoint(step, {}, keep=None)
    assert len(run.checkpoints()) == 5


def test_a_broken_file_is_named(tmp_path):
    Run("a", {}, outputs=tmp_path)
    (tmp_path / "a/config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged .*delete it and run again"):
        Run("a", {}, outputs=tmp_path)


def test_records_are_read_whole_and_cut_back(tmp_path):
    run, path = Run("a", {}, outputs=tmp_path), tmp_path / "a/checkpoints/history.jsonl"
    assert run.history() == {"steps": [], "epochs": []}
    run.write("history.json", {"steps": [{"loss": 1}], "epochs": []})  # of an older version
    assert run.history()["steps"] == [{"loss": 1}]
    run.record([("steps", {"loss": 0.1 + 0.2}), ("epochs", {"loss": 2})])
    run.record([("steps", {"loss": 3})])
    assert run.history() == {"steps": [{"loss": 0.1 + 0.2}, {"loss": 3}], "epochs": [{"loss": 2}]}
    assert run.history(2)["steps"] == [{"loss": 0.1 + 0.2}]
    path.write_bytes(path.read_bytes()[:-3])  # torn by a kill
    assert len(run.history()["steps"]) == 1
    run.cut_records(1)
    run.record([("steps", {"loss": 4})])
    assert run.history() == {"steps": [{"loss": 0.1 + 0.2}, {"loss": 4}], "epochs": []}
    path.write_bytes(path.read_bytes().replace(b": 4", b": ]"))
    with pytest.raises(ValueError, match="line 2 of .*history.jsonl is broken; delete the file"):
        run.history()


def test_numbers_that_are_not_finite_are_refused_in_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        Run("a", {}, outputs=tmp_path).write("history.json", {"loss": float("nan")})


def test_figures_are_pictures(tmp_path):
    path = Run("a", {}, outputs=tmp_path).save_figure("loss", matplotlib.figure.Figure())
    assert path.read_bytes().startswith(b"\x89PNG") and path.parent.name == "figures"


@pytest.fixture
def project(tmp_path):
    for folder in ("notebooks", "outputs/run", "tests/data"):
        (tmp_path / "project" / folder).mkdir(parents=True)
    return tmp_path / "project"


@pytest.mark.parametrize("below", ["", "notebooks", "outputs/run", "tests/data"])
def test_paths_hang_on_the_project_from_every_folder_inside(project, monkeypatch, below):
    monkeypatch.chdir(project / below)
    assert project_root() == project and anchored("outputs") == project / "outputs"
    assert anchored(project.parent) == project.parent


def test_a_script_elsewhere_writes_where_it_is_and_not_beside_the_installed_package(project, monkeypatch):
    mine = project.parent / "mine"
    mine.mkdir()
    monkeypatch.chdir(mine)
    assert project_root() == mine and local_or_hub("outputs") == "outputs"
    assert Run("a", {}).folder == mine / "outputs/a" and (mine / "outputs/a/config.json").is_file()
    (mine / "notebooks").mkdir()  # which makes it a project, for a notebook in there, too
    monkeypatch.chdir(mine / "notebooks")
    assert Run("a", {}).resumed and Run("b", {}).folder == mine / "outputs/b"
