"""Values of parameters, right, wrong and beyond measure, as people, YAML and papermill may hand them over.

python tests/odd_values.py 2000    that many through the checks of all notebooks; prints what is not a sentence
"""

import math
import random
import re
import sys
import traceback
from collections.abc import Iterator

from kdnb.distillation.checks import check_run
from kdnb.params import TABLE, ParameterError, check_params
from kdnb.params.param import COUNT_OR_SHARE, Param

ANYTHING = [
    None, True, False, "", " ", "none", "nan", "inf", "-Infinity", math.nan, math.inf, -math.inf, 0, -1, 1, 2, 0.5, -0.5, 1.5,
    1e-320, 1e308, "1e999", "1e-3", "0x10", "1_000", 10**9, 2**31, 2**63, 2**64, 10**30, 10**5000, 3 + 4j, [], {}, (), [None],
    [[]], [math.nan], ["a", 1], {"a": math.inf}, {1: 2}, {"name": 1}, "a" * 256, "a/" * 3000, "x" * 100_000, "[" * 5000,
    "a\nb", "a\0b", "\ud800", "é", "../../x", "..", ".", "/", "~", "~nobody/x", "~not-a-user/x",
    "-p", "a b", "'; --", "%s", "{}", object(), len,
]  # fmt: skip
PATHS = [
    "/dev/null", "/proc/self/mem", "/etc/passwd", "/proc/nowhere/x", "nowhere.parquet", "outputs", "a/b/c", "hf-hub:a/b",
    "local-dir:x",
]  # fmt: skip
WORDS = [
    "width=0", "width=-1", "width=1.5", "width=a", "width=1e999", "width=1e30", "width=[1,2]", "width=null", "num_classes=3",
    "seed=1", "name=x", "teacher=x", "student_layers=[0]", "pretrained=true", "checkpoint=x", "depth=2", "img_size=0",
    "in_chans=1", "mean=0", "mean=[0,0,0] std=[0,0,0]", "width", "=", "a==b", "width=4 width=4", {"width": {"a": [1]}},
    {"width": None}, {"": 1}, {"a b": 1},
]  # fmt: skip


def odd_values(row: Param, draw: random.Random):
    """One value for the parameter `row`: of the right kind about its bounds, or anything at all."""
    bounds = [bound for bound in (row.low, row.high, row.above) if math.isfinite(bound)]
    numbers = [value for bound in bounds for value in (bound, bound - 1, bound + 1, bound * 0.5, bound * (1 + 1e-9), str(bound))]
    mine = {
        int: numbers, float: numbers, COUNT_OR_SHARE: [*numbers, 1e-12, 1 - 1e-12, "0.5"], bool: ["TRUE", "off", 2, "maybe"],
        str: [*row.choices, *(f"{choice} " for choice in row.choices), *([] if row.choices else PATHS)], dict: WORDS,
        list[int]: ["0,1", "[0]", [0, 0], [-1], [10**6], "0;1", [0.5], ["0"], [2**64], [math.inf], [True]],
        list[float]: ["0,1", [0.0], [1e-9], [1, 1], [-1], [math.inf], ["nan"], [True], [1e300]],
    }  # fmt: skip
    return draw.choice(ANYTHING if draw.random() < 0.5 or not mine[row.kind] else mine[row.kind])


def odd_parameters(notebook: str, count: int, seed: int) -> Iterator[dict]:
    """All parameters of `notebook`, `count` times, one to three of them odd."""
    draw = random.Random(f"{notebook} {seed}")
    for _ in range(count):
        changed = draw.sample(list(TABLE[notebook].values()), draw.choice([1, 1, 1, 2, 3]))
        yield {name: row.default for name, row in TABLE[notebook].items()} | {row.name: odd_values(row, draw) for row in changed}


def refused(notebook: str, values: dict) -> list[str]:
    """What the notebook's first cell says against `values`, one sentence each; none where it takes them."""
    try:
        p = check_params(values, notebook)
        if notebook != "evaluate":
            check_run(p, notebook)
    except ParameterError as error:
        return str(error).split("\n")
    return []


def is_sentence(text: str, notebook: str) -> bool:
    """Whether it names a parameter of the notebook, can be printed, and ends."""
    named = set(re.findall(r"\w+", text)) & (TABLE[notebook].keys() | {"student_args", "teacher_args"})
    return bool(named) and text.endswith(".") and text.isprintable() and len(text) < 700


def faults(notebook: str, count: int, seed: int = 0) -> list[str]:
    """What is neither taken nor refused in sentences, of `count` odd sets of parameters."""
    found = []
    for values in odd_parameters(notebook, count, seed):
        odd = {name: value for name, value in values.items() if value is not TABLE[notebook][name].default}
        shown = f"{notebook} {str({name: _short(value) for name, value in odd.items()})}"
        try:
            found += [f"{shown}\n    {text}" for text in refused(notebook, values) if not is_sentence(text, notebook)]
        except Exception:
            found.append(f"{shown}\n    {traceback.format_exc(limit=-4)}")
    return found


def _short(value) -> str:
    return "many digits" if type(value) is int and value.bit_length() > 400 else repr(value)[:60]


if __name__ == "__main__":
    found = [fault for notebook in TABLE for fault in faults(notebook, int(sys.argv[1]) // len(TABLE))]
    print(*found, f"{len(found)} faults", sep="\n")
