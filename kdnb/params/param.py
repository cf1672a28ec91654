"""One parameter: its type, default and range, and how a value is converted to it."""

import json
from dataclasses import dataclass
from pathlib import Path

COUNT_OR_SHARE = int | float  # 50: so many; 0.05: that share of all
_ANNOTATIONS = {list[int]: "list[int]", list[float]: "list[float]", COUNT_OR_SHARE: "float"}


@dataclass(frozen=True)
class Param:
    """One parameter of one notebook.

    Attributes:
        kind: int, float, bool, str, list[int], list[float], COUNT_OR_SHARE, or dict (of key=value words).
        default: what stands in the notebook's parameters cell.
        help: one line without `=`, which papermill could not read.
        section: the heading under which it stands in that cell.
        optional: None is allowed, and means "off" or "find out".
    """

    name: str
    kind: type
    default: object
    help: str
    section: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    optional: bool = False

    def annotation(self) -> str:
        """The type as Python and papermill read it. Papermill knows no `str | None`."""
        text = _ANNOTATIONS.get(self.kind) or self.kind.__name__
        return f"Optional[{text}]" if self.optional else text

    def allowed(self) -> str:
        """What is allowed, in words."""
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        words |= {list[int]: "whole numbers such as 0,2", list[float]: "numbers such as 1,2.5"}
        words |= {dict: "words such as depth=2 num_heads=4", COUNT_OR_SHARE: "a whole number"}
        text = words[self.kind]
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        elif self.low is not None and self.high is not None:
            text += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            text += f" of at least {self.low:g}"
        text += " or a share below 1 such as 0.05" if self.kind == COUNT_OR_SHARE else ""
        return text + (", or None" if self.optional else "")

    def convert(self, value):
        """`value` as this parameter's type. Raises ValueError where that is not clear, or outside the range."""
        if self.optional and (value is None or (isinstance(value, str) and value.lower() in ("none", "null", ""))):
            return None
        if self.choices and isinstance(value, bool):  # YAML's true among the words auto, true, false
            value = str(value).lower()
        converted = _CONVERTERS[self.kind](value)
        low = float("-inf") if self.low is None else self.low
        high = float("inf") if self.high is None else self.high
        if self.kind in (int, float, COUNT_OR_SHARE) and not low <= converted <= high:  # NaN is refused here as well
            raise ValueError
        if self.choices and converted not in self.choices:
            raise ValueError
        return converted


def _bool(value) -> bool:
    word = str(value).lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ValueError


def _int(value) -> int:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if number != int(number):  # int() itself refuses infinity and NaN
        raise ValueError
    return int(value) if isinstance(value, (int, str)) and str(value).lstrip("+-").isdigit() else int(number)


def _float(value) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _count_or_share(value) -> int | float:
    number = _float(value)
    return number if 0 < number < 1 else _int(value)


def _str(value) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Path)):
        raise ValueError
    return str(value)


def _ints(value) -> list[int]:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else value.replace(",", " ").split()
    elif isinstance(value, int):
        value = [value]
    return [_int(entry) for entry in value]


def _floats(value) -> list[float]:
    if isinstance(value, str):
        value = json.loads(value) if value.startswith("[") else value.replace(",", " ").split()
    elif isinstance(value, (int, float)):
        value = [value]
    return [_float(entry) for entry in value]


def _words(value) -> dict:
    if isinstance(value, dict):
        return dict(value)
    if not isinstance(value, str):
        raise ValueError
    pairs = [word.split("=", 1) for word in value.split()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError
    return {name: _literal(text) for name, text in pairs}


def _literal(text: str):
    """`text` as JSON reads it (numbers, true, false, null, lists), else as itself."""
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)


_CONVERTERS = {bool: _bool, int: _int, float: _float, str: _str, list[int]: _ints, list[float]: _floats, dict: _words}
_CONVERTERS |= {COUNT_OR_SHARE: _count_or_share}
