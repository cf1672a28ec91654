"""The parameters cell of a notebook, written from the table."""

import json
from pathlib import Path

from kdnb.params.check import params_for

_LINE = "# " + "-" * 100


def cell_source(notebook: str) -> str:
    """The parameters cell of `notebook`: what decides a run, a line, the rest under headings.

    Papermill lists what it can read: annotations without `|`, and no line with a second `=`, which none of the defaults and
    comments has.
    """
    lines = [f"# Edit the values; `python -m kdnb.params {notebook}` prints what is allowed.", "from typing import Optional", ""]
    section = ""
    for name, row in params_for(notebook).items():
        if row.section != section:
            lines += [_LINE if not section else "", f"# {row.section}"]
            section = row.section
        lines.append(f"{name}: {row.annotation()} = {literal(row.default)}  # {row.help}")
    return "\n".join(lines)


def literal(value) -> str:
    """`value` as it is written in Python, with double quotes; `10_000` from five digits on."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(entry)}" for key, entry in value.items()) + "}"
    return f"{value:_}" if type(value) is int and value >= 10_000 else repr(value)


def write_cell(path: Path) -> bool:
    """Replace the source of the cell tagged `parameters` in the notebook at `path`; whether that changed it."""
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    (cell,) = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", []))
    cell["source"] = cell_source(path.stem).splitlines(keepends=True)
    written = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(written, encoding="utf-8")
    return written != text
