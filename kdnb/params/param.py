"""One parameter: its type, default and range, and how a value is converted to it.

By hand, because pydantic says the same in as many lines: what papermill hands over ("1e4", "none", "0,2", "depth=2") needs a
validator a type there as well, and so do refused bools; its messages would be replaced by ours.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

COUNT_OR_SHARE = int | float  # 50: so many; 0.05: that share of all
_MOST_ENTRIES = 1000  # of a list
_LONGEST_NAME, _LONGEST_TEXT = 255, 2000  # bytes; a file system takes names of 255, and paths of 4,096


@dataclass(frozen=True)
class Param:
    """One parameter of one notebook.

    Attributes:
        kind: int, float, bool, str, list[int], list[float], COUNT_OR_SHARE, or dict (of key=value words).
        default: what stands in the notebook's parameters cell.
        help: one line without `=`, which papermill could not read.
        section: the heading under which it stands in that cell.
        low, high: the range of a number, or of each of a list, both inclusive. above: a bound that it may not have itself.
        choices: the words that are allowed.
        optional: None is allowed, and means "off" or "find out".
        stands_for: what None stands for beside the notebook's other values, where it stands for one that suits the data.
        free: a run may be resumed with another value: it says how the run is carried out, not what comes out, or it makes a
            comparison grow.
    """

    name: str
    kind: type
    default: object
    help: str
    section: str = ""
    low: float = -inf
    high: float = inf
    above: float = -inf
    choices: tuple[str, ...] = ()
    optional: bool = False
    free: bool = False
    stands_for: Callable[[Mapping], object] | None = None

    def annotation(self) -> str:
        """The type as Python and papermill read it. Papermill knows no `str | None`."""
        text = _KINDS[self.kind].annotation
        return f"Optional[{text}]" if self.optional else text

    def allowed(self) -> str:
        """What is allowed, in words."""
        text = "one of " + ", ".join(self.choices) if self.choices else _KINDS[self.kind].words
        if self.above > -inf:
            text += f" above {self.above:,}" + (f" and up to {self.high:,}" if self.high < inf else "")
        elif self.high < inf:
            text += f" from {self.low:,} to {self.high:,}"
        elif self.low > -inf:
            text += f" of at least {self.low:,}"
        text += " or a share below 1 such as 0.05" if self.kind == COUNT_OR_SHARE else ""
        return text + (", or None" if self.optional else "")

    def convert(self, value):
        """`value` as this parameter's type. Raises ValueError or TypeError where that is not clear, or outside the range."""
        word = value.lower() if isinstance(value, str) else value
        if self.optional and (word in (None, "none", "null") or (word == "" and self.kind is not dict)):  # "": no words
            return None
        if self.choices and isinstance(value, bool):  # YAML's true among the words auto, true, false
            value = str(value).lower()
        converted = _KINDS[self.kind].convert(value)
        for number in converted if isinstance(converted, list) else [converted]:
            if isinstance(number, (int, float)) and not (self.low <= number <= self.high and number > self.above):
                raise ValueError
        if self.choices and converted not in self.choices:
            raise ValueError
        return converted

    def resolve(self, value, values: Mapping):
        """`value`, or what None stands for beside the other `values` of the notebook."""
        return self.stands_for(values) if value is None and self.stands_for else value


def _bool(value) -> bool:
    word = str(value).lower()
    if word not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise ValueError
    return word in ("true", "1", "yes", "on")


def _int(value) -> int:
    number = _float(value)
    if not number.is_integer():
        raise ValueError
    return int(value) if isinstance(value, int) or str(value).isdigit() else int(number)  # a float holds 53 bits alone


def _float(value) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _count_or_share(value) -> int | float:
    number = _float(value)
    return number if 0 < number < 1 else _int(value)


def _str(value) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Path)):
        raise ValueError
    text = str(value)
    longest = max(len(name.encode()) for name in re.split("[/,]", text))
    if longest > _LONGEST_NAME or len(text.encode()) > _LONGEST_TEXT or re.search(r"[\0-\x1f]", text):
        raise ValueError
    return text


def _list_of(convert: Callable) -> Callable:
    def entries(value) -> list:
        if isinstance(value, str):
            value = json.loads(value) if value.startswith("[") else value.replace(",", " ").split()
        value = [value] if isinstance(value, (int, float)) else value
        if not isinstance(value, (list, tuple)) or len(value) > _MOST_ENTRIES:
            raise ValueError
        return [convert(entry) for entry in value]

    return entries


def _words(value) -> dict:
    if isinstance(value, str):
        value = {name: _literal(text) for name, text in (word.split("=", 1) for word in value.split())}
    words = {**value}
    json.dumps(words, allow_nan=False)  # refuses what no file of the run can hold
    if not all(isinstance(name, str) and name.isidentifier() for name in words):
        raise ValueError
    return words


def _literal(text: str):
    """`text` as JSON reads it (numbers, true, false, null, lists), else as itself."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


class _Kind(NamedTuple):
    annotation: str
    words: str
    convert: Callable


_KINDS = {
    bool: _Kind("bool", "true or false", _bool),
    int: _Kind("int", "a whole number", _int),
    float: _Kind("float", "a number", _float),
    str: _Kind("str", f"text (one line, at most {_LONGEST_TEXT:,} bytes, and {_LONGEST_NAME} a name)", _str),
    list[int]: _Kind("list[int]", f"whole numbers such as 0,2 (at most {_MOST_ENTRIES:,})", _list_of(_int)),
    list[float]: _Kind("list[float]", f"numbers such as 1,2.5 (at most {_MOST_ENTRIES:,})", _list_of(_float)),
    dict: _Kind("dict", "words such as depth=2 num_heads=4", _words),
    COUNT_OR_SHARE: _Kind("float", "a whole number", _count_or_share),
}
