"""How checked parameters look as the last line of a cell: one line of text; in JupyterLab a table, folded away."""

import html
from types import SimpleNamespace

from kdnb.params.param import Param
from kdnb.progress import choose_mode

_OPEN = '<details class="kdnb-params"><summary>{}</summary><table><tr><th>{}</th></tr>'
_MARK = ' style="font-weight: bold; background: rgba(230, 159, 0, 0.2)"'


class Parameters(SimpleNamespace):
    """Checked parameters: one attribute a name, and nothing else in `vars()`."""

    __slots__ = ("_rows",)

    def __init__(self, rows: dict[str, Param], values: dict):
        super().__init__(**values)
        self._rows = rows

    def __reduce__(self):
        return SimpleNamespace, (), vars(self)  # a copy is a plain namespace

    def changed(self) -> dict:
        """Values that differ from the notebook's defaults."""
        return {name: vars(self)[name] for name, row in self._rows.items() if vars(self)[name] != row.convert(row.default)}

    def __repr__(self) -> str:
        changed = [f"{name} {value!r}" for name, value in self.changed().items()]
        return f"{len(vars(self))} parameters checked" + (f", not the default: {', '.join(changed)}" if changed else "")

    def _repr_html_(self) -> str | None:
        """The table; None where nobody looks: what nbval compares and papermill stores is then the line of text."""
        if choose_mode() != "widgets":
            return None
        changed, lines = self.changed(), []
        for name, row in self._rows.items():
            cells = (name, repr(vars(self)[name]), repr(row.convert(row.default)), row.help)
            mark = _MARK if name in changed else ""
            lines.append(f"<tr{mark}>" + "".join(f'<td style="text-align: left">{html.escape(cell)}</td>' for cell in cells))
        head = _OPEN.format(html.escape(repr(self)), "</th><th>".join(("parameter", "value", "default", "meaning")))
        return head + "</tr>".join(lines) + "</tr></table></details>"
