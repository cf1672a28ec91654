"""Parameters are converted where they are meant clearly, and refused in one error where they are not."""

import json

import pytest

from kdnb.params import PARAMS, check_params, names_for


def given(**changes):
    """A full, valid set of parameters of train_fixed, with changes."""
    examples = {int: 10, float: 0.5, bool: True, str: "x", list: [], dict: {}}
    values = {name: (PARAMS[name].choices or [examples[PARAMS[name].kind]])[0] for name in names_for("train_fixed")}
    return values | changes


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
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", 1.5, "a whole number of at least 1"),
        ("batch_size", True, "a whole number of at least 1"),
        ("learning_rate", "fast", "a number of at least 0"),
        ("learning_rate", float("nan"), "a number of at least 0"),
        ("alpha", 1.2, "a number from 0 to 1"),
        ("use_cached", "perhaps", "true or false"),
        ("shuffle", "yes", "one of none, within_shards, all"),
        ("run_name", True, "text, or None"),
        ("feature_layers", "a", "whole numbers such as 0,2"),
        ("student_args", "depth", "words such as depth=2 num_heads=4"),
    ],
)
def test_what_is_not_is_refused_with_what_is_allowed(name, value, allowed):
    with pytest.raises(ValueError) as error:
        check_params(given(**{name: value}), "train_fixed")
    assert str(error.value).startswith(f"{name} is {value!r}; allowed is {allowed}")


def test_a_near_miss_of_a_name_is_caught():
    with pytest.raises(ValueError, match=r"has no parameter fixed_shard \(given: 25\); did you mean fixed_shards\?"):
        check_params(given(fixed_shard=25), "train_fixed")


def test_a_parameter_of_another_notebook_is_named_as_such():
    with pytest.raises(ValueError, match="samples_per_epoch .* belongs to train_random"):
        check_params(given(samples_per_epoch=25), "train_fixed")


def test_one_error_lists_every_fault():
    values = given(fixed_shard=25, batch_size=0, alpha=2)
    del values["seed"]
    with pytest.raises(ValueError) as error:
        check_params(values, "train_fixed")
    lines = str(error.value).split("\n")
    assert len(lines) == 4 and {line.split()[0] for line in lines} == {"train_fixed", "batch_size", "alpha", "seed"}


def test_what_a_notebook_always_holds_is_passed_over():
    extra = {"In": [], "Out": {}, "_i1": "", "json": json, "check_params": check_params, "Path": type("Path", (), {})}
    assert check_params(given(**extra), "train_fixed").batch_size == 10


def test_every_row_says_what_it_is():
    for name, row in PARAMS.items():
        assert row.help and row.notebooks and row.allowed(), name
