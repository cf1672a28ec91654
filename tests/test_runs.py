"""The run folder: written in order, resumed by name, protected from a mix-up."""

import errno
import json
import os
import shutil

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


def test_a_run_is_bound_by_its_first_checkpoint_and_not_by_a_refusal(tmp_path):
    Run("a", {"seed": 1}, outputs=tmp_path)
    run = Run("a", {"seed": 2}, outputs=tmp_path)
    with pytest.raises(ValueError, match="seed was 2, now 1"), Run("a", {"seed": 2}, outputs=tmp_path).held():
        run.save_checkpoint(1, {})
        Run("a", {"seed": 1}, outputs=tmp_path)
    assert run.read("config.json")["parameters"] == {"seed": 2}


def test_two_jobs_that_open_a_new_run_differently_train_it_one_way(tmp_path):
    first, second = (Run("a", {"seed": seed}, outputs=tmp_path) for seed in (1, 2))
    with first.held():
        first.save_checkpoint(1, {})
    assert first.read("config.json")["parameters"] == {"seed": 1}
    with pytest.raises(ValueError, match="seed was 1, now 2"), second.held():
        pass


def test_parameters_that_came_or_went_since_do_not_end_a_run(tmp_path, capsys):
    now = {"epochs": 3, "teacher_tokens": False, "horizontal_flip": False, "dataset": "digits"}
    run = Run("a", {"epochs": 3, "dataset": "digits", "magic": 7}, prefix="train_fixed", outputs=tmp_path)
    run.save_checkpoint(1, {})
    for name, value in {"teacher_tokens": True, "horizontal_flip": True, "fixed_shards": 3}.items():  # none is a default
        with pytest.raises(ValueError, match=f"{name} was None, now {value}"):
            Run("a", now | {name: value}, prefix="train_fixed", outputs=tmp_path)
    with pytest.raises(ValueError, match="draw was None, now 'independent'"):  # of another notebook
        Run("a", now | {"draw": "independent"}, prefix="train_random", outputs=tmp_path)
    assert Run("a", now, prefix="train_fixed", outputs=tmp_path).resumed
    assert "magic in its config.json: no parameter any more" in capsys.readouterr().out
    assert run.read("config.json")["parameters"] == now


NAMES = ["", ".", "..", "../x", "a/../b", "/abs", "a/", "a//b", ".a", "a\0", "a\nb", "x" * 256, "é" * 128]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_below_outputs(tmp_path, name):
    with pytest.raises(ValueError, match=r"^run_name is '.*; allowed is the name of a folder below"):
        Run(name, {}, outputs=tmp_path / "outputs")
    assert not list(tmp_path.iterdir())


def test_the_folder_of_something_else_is_no_run(tmp_path):
    for name in ("cache/images_shard_00000.pt", "models/best_model/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "file").touch()
    for name in ("cache", "models", "file"):
        with pytest.raises(ValueError, match=f"run_name is '{name}', but .* holds no run"):
            Run(name, {}, outputs=tmp_path)
    with pytest.raises(ValueError, match="holds no run's parameters; choose another run_name"):
        Run("models/best_model", {}, outputs=tmp_path)
    (tmp_path / "empty/figures").mkdir(parents=True)
    assert Run("a" * 255, {}, outputs=tmp_path).folder.is_dir() and not Run("empty", {}, outputs=tmp_path).resumed


def test_an_opened_run_has_no_leftovers_unless_somebody_writes_there(tmp_path):
    run = Run("a", {}, outputs=tmp_path)
    left = [run.folder / name for name in (".config.json.0a1b2c3d.tmp", "checkpoints/.step_00000001.pt.0a1b2c3d.tmp")]
    for path in left:
        path.write_text("half")
    Run("a", {}, outputs=tmp_path)
    assert not any(path.exists() for path in left)


def test_a_run_that_lost_files_while_it_was_trained_ends_whole(tmp_path):
    run = Run("a", {"seed": 1}, outputs=tmp_path)
    shutil.rmtree(run.folder / "checkpoints")
    shutil.rmtree(run.folder / "figures")
    with run.held():
        run.save_checkpoint(1, {})
        (run.folder / "config.json").unlink()
        with pytest.raises(ValueError, match="holds no run"):  # and waits for nobody
            Run("a", {"seed": 1}, outputs=tmp_path)
        run.save_figure("loss", matplotlib.figure.Figure())
        run.finish({"loss": 1})
    assert run.read("config.json")["parameters"] == {"seed": 1} and Run("a", {"seed": 1}, outputs=tmp_path).finished


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"parameters": []}', "\x00"])
def test_a_config_that_is_none_is_a_sentence(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/config.json").write_text(content)
    with pytest.raises(ValueError, match="a/config.json (is damaged|holds no run's parameters)"):
        Run("a", {}, outputs=tmp_path)


@pytest.mark.parametrize("number, words", [(errno.ENOSPC, "its disk is full"), (errno.EROFS, "is read-only for this user")])
def test_what_the_disk_refuses_is_a_sentence(tmp_path, monkeypatch, number, words):
    run, error = Run("a", {}, outputs=tmp_path), OSError(number, os.strerror(number))
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(error))
    writes = [lambda: run.write("x.json", {}), lambda: run.save_checkpoint(1, {}), lambda: run.record([])]
    for write in writes:
        with pytest.raises(OSError, match=f"/a .*{words}"):
            write()
    with pytest.raises(OSError, match=f"/a .*{words}"), run.writing():  # as safetensors says it
        raise RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")


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
