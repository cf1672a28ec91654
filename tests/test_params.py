"""Parameters are converted where they are meant clearly, and refused in one error where they are not.

What counts as given is what the parameters cell and papermill's injected cell assigned last, whatever else a kernel holds.
"""

import json
import pickle
import subprocess
import sys

import pytest

from kdnb.params import TABLE, ParameterError, arguments_of, check_params
from kdnb.params.cell import cell_source


def given(**changes):
    """A full, valid set of parameters of train_fixed, with changes."""
    return {name: row.default for name, row in TABLE["train_fixed"].items()} | changes


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", 1, 1.0),
        ("batch_size", "64", 64),
        ("batch_size", 64.0, 64),
        ("use_cached", "false", False),
        ("use_cached", "True", True),
        ("use_cached", 0, False),
        ("run_name", 7, "7"),
        ("run_name", "none", None),
        ("max_steps_per_epoch", None, None),
        ("warmup_steps", "50", 50),
        ("warmup_steps", 50.0, 50),
        ("warmup_steps", "0.05", 0.05),
        ("feature_layers", "[1, 2]", [1, 2]),
        ("feature_layers", "0,2", [0, 2]),
        ("feature_layers", 3, [3]),
        ("feature_layers", "", []),
        ("student_args", "depth=2 name=a qkv_bias=False scale=0.5", {"depth": 2, "name": "a", "qkv_bias": False, "scale": 0.5}),
        ("student_args", "", {}),
    ],
)  # fmt: skip
def test_what_is_meant_clearly_is_converted(name, value, expected):
    got = getattr(check_params(given(**{name: value}), "train_fixed"), name)
    assert got == expected and type(got) is type(expected)


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("batch_size", 0, "a whole number from 1 to 1,000,000,000"),
        ("batch_size", 1.5, "a whole number from 1 to 1,000,000,000"),
        ("batch_size", True, "a whole number from 1 to 1,000,000,000"),
        ("warmup_steps", 1.5, "a whole number from 0 to 1,000,000,000 or a share below 1"),
        ("warmup_steps", -0.5, "a whole number from 0 to 1,000,000,000 or a share below 1"),
        ("learning_rate", "fast", "a number above 0 and up to 100"),
        ("learning_rate", float("nan"), "a number above 0 and up to 100"),
        ("alpha", 1.2, "a number from 0 to 1"),
        ("use_cached", "perhaps", "true or false"),
        ("shuffle", "yes", "one of none, within_shards, all"),
        ("run_name", True, "text (one line, at most 2,000 bytes, and 255 a name), or None"),
        ("feature_layers", "a", "whole numbers such as 0,2"),
        ("student_args", "depth", "words such as depth=2 num_heads=4"),
        ("student_args", 8, "words such as depth=2 num_heads=4"),
        ("student_args", [8], "words such as depth=2 num_heads=4"),
        ("student_args", {3: 8}, "words such as depth=2 num_heads=4"),
        ("student_args", "depth=Infinity", "words such as depth=2 num_heads=4"),
        ("student_args", {"a": {"b": [float("nan")]}}, "words such as depth=2 num_heads=4"),
        ("learning_rate", "inf", "a number above 0 and up to 100"),
        ("learning_rate", 0, "a number above 0 and up to 100"),
        ("clip_grad_norm", 0, "a number above 0"),
        ("clip_grad_norm", "1e999", "a number above 0"),
        ("epochs", "inf", "a whole number from 1 to 10,000"),
        ("seed", 2**63, "a whole number from 0 to 9,223,372,036,854,775,807"),
        ("fixed_shards", 0, "a whole number above 0 and up to 1,000,000,000 or a share below 1"),
        ("feature_layers", {0: 1}, "whole numbers such as 0,2"),
        ("feature_layers", "[1, Infinity]", "whole numbers such as 0,2"),
        ("dataset", "a\nb", "text (one line, at most 2,000 bytes, and 255 a name)"),
        ("cache_dir", "outputs/\0", "text (one line, at most 2,000 bytes, and 255 a name)"),
        ("dataset", "\ud800", "text (one line, at most 2,000 bytes, and 255 a name)"),
    ],
)
def test_what_is_not_is_refused_with_what_is_allowed(name, value, allowed):
    with pytest.raises(ValueError) as error:
        check_params(given(**{name: value}), "train_fixed")
    assert str(error.value).startswith(f"{name} is {value!r}; allowed is {allowed}")


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ({"width": 8}, 0.6, False)),
        ({"student": "resnet18"}, ({}, 0.6, False)),
        ({"dataset": "photos"}, ({}, 0.4, True)),
        ({"student_args": "", "crop_scale_min": 0.4, "horizontal_flip": True}, ({}, 0.4, True)),
        ({"dataset": "photos", "student_args": "width=8", "horizontal_flip": False}, ({"width": 8}, 0.4, False)),
        ({"student_args": "none", "dataset": "cifar10"}, ({}, 0.4, True)),
    ],
)
def test_what_is_not_given_suits_the_data(changes, expected):
    p = check_params(given(**changes), "train_fixed")
    assert (p.student_args, p.crop_scale_min, p.horizontal_flip) == expected
    shown = {name: value for name, value in changes.items() if value != "none"}
    assert p.changed().keys() == shown.keys(), "what None stands for is no change of the default"


def test_a_list_is_refused_by_each_of_its_numbers():
    values = {name: row.default for name, row in TABLE["soft_distill_text"].items()}
    assert check_params(values | {"sweep_alphas": "0,1"}, "soft_distill_text").sweep_alphas == [0.0, 1.0]
    with pytest.raises(ParameterError, match=r"^sweep_alphas is \[0.5, 2\]; allowed is numbers such as .* from 0 to 1"):
        check_params(values | {"sweep_alphas": [0.5, 2]}, "soft_distill_text")


@pytest.mark.parametrize(
    "value", ["x" * 100_000, [0] * 100_000, "[" * 100_000, 10**5000, [[]] * 2000], ids=lambda v: type(v).__name__
)
def test_a_value_beyond_measure_is_refused_in_a_sentence_that_can_be_read(value):
    for name in ("run_name", "student_layers", "student_args", "batch_size", "use_cached", "learning_rate", "shuffle"):
        with pytest.raises(ParameterError) as error:
            check_params(given(**{name: value}), "train_fixed")
        assert str(error.value).startswith(f"{name} is ") and len(str(error.value)) < 450


def test_a_near_miss_of_a_name_is_caught():
    with pytest.raises(ValueError, match=r"has no parameter fixed_shard \(given: 25\); did you mean fixed_shards\?"):
        check_params(given(fixed_shard=25), "train_fixed")


def test_a_parameter_of_another_notebook_is_named_as_such():
    with pytest.raises(ValueError, match="samples_per_epoch .* belongs to train_random"):
        check_params(given(samples_per_epoch=25), "train_fixed")


def test_a_params_file_may_serve_precompute_and_the_training_on_its_cache(capsys):
    precompute = {name: row.default for name, row in TABLE["precompute"].items()}
    p = check_params(precompute | {"epochs": 3, "fixed_shards": 0.5}, "precompute")
    assert vars(p).keys() == precompute.keys() and capsys.readouterr().out == "left to the training: epochs, fixed_shards\n"
    with pytest.raises(ValueError, match="^fixed_shards is -1; allowed is "):
        check_params(precompute | {"fixed_shards": -1}, "precompute")
    with pytest.raises(ValueError, match="has no parameter max_length .* belongs to soft_distill_text"):
        check_params(precompute | {"max_length": 3}, "precompute")


def test_one_error_lists_every_fault():
    values = given(fixed_shard=25, batch_size=0, alpha=2)
    del values["seed"]
    with pytest.raises(ParameterError) as error:
        check_params(values, "train_fixed")
    lines = str(error.value).split("\n")
    assert len(lines) == 4 and {line.split()[0] for line in lines} == {"train_fixed", "batch_size", "alpha", "seed"}


def test_without_sources_everything_is_given_but_imports_and_what_every_kernel_holds():
    """As in a script, and under nbval, which keeps no history of the cells."""
    extra = {"In": [""], "Out": {}, "exit": exit, "_i1": "", "json": json, "check_params": check_params}
    assert check_params(given(**extra), "train_fixed").batch_size == 32
    with pytest.raises(ValueError, match="has no parameter fixed_shard "):
        check_params(given(**extra, fixed_shard=3), "train_fixed")


# What a kernel holds after some cells.

CELL, CHECK = cell_source("train_fixed"), 'p = check_params(globals(), "train_fixed")'


def kernel(*sources: str, **later) -> dict:
    """Variables of a kernel that has run these cells (the check is only noted), and `later` ones that no cell here assigns."""
    values = {}
    for source in sources:
        exec("" if source == CHECK else source, values)
    return values | later | {"In": ["", *sources], "Out": {}, "get_ipython": object()}


def edited(old: str, new: str) -> str:
    assert old in CELL
    return CELL.replace(old, new)


def checked(*sources: str, **later):
    return check_params(kernel(*sources, CHECK, **later), "train_fixed")


def test_what_other_cells_leave_behind_is_not_looked_at():
    later = ["few = {}\nfor name in range(3):\n    batch = name", "x = 3"]
    assert vars(checked(CELL, CHECK, *later, CELL, loader=object(), figure=3)) == vars(checked(CELL))
    assert vars(checked(CELL, CHECK, *later)) == vars(checked(CELL))


def test_a_name_that_was_corrected_is_forgotten():
    wrong = edited("fixed_shards: float = 0.8", "fixed_shard: int = 20")
    with pytest.raises(ValueError, match="has no parameter fixed_shard .given: 20.; did you mean fixed_shards"):
        checked(wrong)
    assert checked(wrong, CHECK, edited("fixed_shards: float = 0.8", "fixed_shards: float = 20")).fixed_shards == 20


def test_a_line_that_was_deleted_is_missing_although_the_kernel_still_holds_its_value():
    with pytest.raises(ValueError, match="^fixed_shards is missing; "):
        checked(CELL, CHECK, edited("fixed_shards: float = 0.8", ""))


def test_what_papermill_injects_counts_until_it_is_injected_anew():
    assert checked(CELL, "# Parameters\nfixed_shards = 20\n").fixed_shards == 20
    wrong = "# Parameters\nfixed_shard = 20\n"
    with pytest.raises(ValueError, match="has no parameter fixed_shard .given: 20."):
        checked(CELL, wrong)
    assert checked(CELL, wrong, CHECK, "# Parameters\nfixed_shards = 20\n").fixed_shards == 20
    assert checked(CELL, wrong, CHECK, "# Parameters\n").fixed_shards == 0.8
    assert checked(CELL, wrong, CHECK, CELL).fixed_shards == 0.8  # the injected cell was not run since


def test_a_params_file_with_most_of_the_names_is_not_taken_for_the_parameters_cell():
    most = "\n".join(f"{name} = {value!r}" for name, value in list(given(epochs=3).items())[:40])
    p = checked(CELL, f"# Parameters\n{most}\n")
    assert p.epochs == 3 and vars(p).keys() == TABLE["train_fixed"].keys()


def test_a_model_under_the_name_of_a_parameter_does_not_hide_it():
    """`teacher = open_teacher(p)` leaves a model there, and then the check alone is run again."""
    cells = [edited('teacher: str = "builtin"', 'teacher: str = "a"'), CHECK, "teacher, loss = open, open"]
    p = checked(*cells, teacher=object())
    assert (p.teacher, p.loss) == ("a", "mse")
    assert checked(cells[0], "# Parameters\nteacher = 'b'\n", *cells[1:]).teacher == "b"
    assert checked(cells[0], "teacher = 'c'", *cells[1:]).teacher == "c"


def test_any_python_may_set_a_value():
    assert checked(edited("num_workers: int = 0", "num_workers: int = max(1, 2)")).num_workers == 2
    assert checked(CELL, "for epochs in (3, 4):\n    pass").epochs == 4
    with pytest.raises(ValueError, match="teacher is now an object of type object .run the parameters cell again.; allowed"):
        checked(edited('teacher: str = "builtin"', 'teacher: str = "a".lower()'), teacher=object())


def test_a_console_without_a_parameters_cell_gives_the_names_that_are_known():
    assert checked("loader = 1", **given(epochs=3)).epochs == 3


# How the result is shown.


def test_a_line_of_text_says_what_is_not_the_default(monkeypatch):
    monkeypatch.setenv("KDNB_PROGRESS", "text")
    p = check_params(given(), "train_fixed")
    count = len(TABLE["train_fixed"])
    assert repr(p) == f"{count} parameters checked" and p._repr_html_() is None
    p = check_params(given(epochs="3", run_name="a"), "train_fixed")
    assert repr(p) == f"{count} parameters checked, not the default: epochs 3, run_name 'a'"
    assert vars(p).keys() == TABLE["train_fixed"].keys() and vars(pickle.loads(pickle.dumps(p))) == vars(p)


def test_where_somebody_looks_a_folded_table_marks_what_is_not_the_default(monkeypatch):
    monkeypatch.setenv("KDNB_PROGRESS", "widgets")
    lines = check_params(given(run_name="<b>"), "train_fixed")._repr_html_().split("</tr>")
    assert lines[0].startswith("<details") and "<details open" not in lines[0]
    marked = [line for line in lines if "font-weight: bold" in line]
    assert len(lines) == len(TABLE["train_fixed"]) + 2 and len(marked) == 1 and "&lt;b&gt;" in marked[0]


# The table.


@pytest.mark.parametrize("notebook", TABLE)
def test_every_row_says_what_it_is_in_one_line_that_papermill_reads(notebook):
    for name, row in TABLE[notebook].items():
        assert row.help and "=" not in row.help and row.allowed(), name
        assert row.convert(row.default) == row.default, name
    assert max(len(line) for line in cell_source(notebook).splitlines()) <= 130


def test_what_decides_a_run_stands_first():
    first = "dataset cache_dir image_size teacher student loss fixed_shards epochs batch_size run_name"
    assert " ".join([*TABLE["train_fixed"]][:10]) == first
    above, below = cell_source("train_fixed").split("# ---", 1)
    assert "\nrun_name: " in above and "\nsplit: " in below


def test_one_command_prints_a_notebooks_parameters():
    result = subprocess.run([sys.executable, "-m", "kdnb.params", "train_fixed"], capture_output=True, text=True, check=True)
    assert all(f"\n{name}: " in f"\n{result.stdout}" for name in TABLE["train_fixed"])
    assert "one of none, within_shards, all" in result.stdout
    wrong = subprocess.run([sys.executable, "-m", "kdnb.params", "train"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "train_fixed" in wrong.stderr


def test_a_function_gets_the_parameters_that_it_takes_by_keyword_and_no_other():
    def build(teacher, *, seed, loss="cosine", missing=None): ...

    p = check_params(given(seed=3), "train_fixed")
    assert p.of(build) == arguments_of(build, vars(p)) == {"seed": 3, "loss": "mse"}
