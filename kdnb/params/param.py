"""One parameter: its type, what is allowed, and how a value is converted to it."""

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Param:
    """One parameter: its type (int, float, bool, str, `list` of ints, `list[float]`, `dict` of key=value words) and range."""

    name: str
    kind: type
    help: str
    notebooks: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    optional: bool = False  # None is allowed, and means "off" or "find out"

    def allowed(self) -> str:
        """What is allowed, in words."""
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        words |= {list: "whole numbers such as 0,2", list[float]: "numbers such as 1,2.5"}
        words |= {dict: "words such as depth=2 num_heads=4"}
        text = words[self.kind]
        if self.choices:
            text = "one of " + ", ".join(self.choices)
        elif self.low is not None and self.high is not None:
            text += f" from {self.low:g} to {self.high:g}"
        elif self.low is not None:
            text += f" of at least {self.low:g}"
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
        if self.kind in (int, float) and not low <= converted <= high:  # NaN is refused here as well
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


_CONVERTERS = {bool: _bool, int: _int, float: _float, str: _str, list: _ints, list[float]: _floats, dict: _words}
