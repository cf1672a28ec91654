"""Live display of long work: widgets where a person looks, a line every few seconds where nobody does.

    with Display(500, title="train", curve="loss") as display:
        display.update(step, loss=0.412)

prints, headless, `train: step 120/500 | 38.2 steps/s | 10 s left | loss 0.412`. In JupyterLab the same line stands under a
progress bar, with a curve of the named value; at the end plain HTML takes their place, which stays when the page is saved,
exported or opened again. An update costs less than a microsecond while nothing is due, and drawing takes at most 4% of the
time. The environment variable KDNB_PROGRESS forces `widgets`, `text` or `none`.

Not tqdm.auto: that shows widgets to every kernel, papermill's and nbval's too, where nobody sees them move, rewrites one line
instead of writing lines to a log, and knows no curve.
"""

import html
import io
import math
import numbers
import os
import sys
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from typing import Any

_EVERY_S = {"widgets": 0.5, "text": 5.0, "none": math.inf}  # seconds between two drawings
_COLOURS = {"success": "#009E73", "danger": "#D55E00", "": "#0072B2"}  # of a bar that is full, broken off, or neither
_SIZE = {"width": "600px", "max_width": "100%"}
_MAX_SHARE = 0.04  # of the time may go into drawing: a slow machine draws less often
_MAX_POINTS = 400  # of the curve, however long the work


class Display:
    """How far the work is, how fast, and how long it still takes.

    Args:
        total: units of work, None while nobody knows.
        title: begins every line.
        unit: what is counted; its plural takes an s.
        curve: name of the number in `update` that the widgets draw as a curve.
        clock: seconds that never go back.

    Attributes:
        mode: `widgets`, `text` or `none`. box: the widget, else None.

    Raises:
        ValueError: a total that is no count, or a KDNB_PROGRESS that names nothing.
    """

    def __init__(
        self, total: int | None, *, title: str, unit: str = "step", curve: str | None = None, clock: Callable = time.monotonic
    ):
        if total is not None and (isinstance(total, bool) or not isinstance(total, numbers.Integral) or total < 0):
            raise ValueError(f"total is {total!r}; allowed are whole numbers from 0, or None where it is not known.")
        self.total: int | None = total
        self.title, self.unit, self.mode = title, unit, choose_mode()
        self._done: int | None = None
        self._info: dict[str, Any] = {}
        self._closed, self._error = False, None
        self._first: tuple[float, int] | None = None  # (time, done) of the first update: a resumed run begins late
        self._marks: deque[tuple[float, int]] = deque(maxlen=20)  # ... of the last drawings: the speed of late
        self._widgets = _Widgets(unit, curve) if self.mode == "widgets" else None
        self.box = self._widgets.box if self._widgets else None
        self._clock, self._begun = clock, clock()
        self._due = self._begun + _EVERY_S[self.mode]

    def update(self, done: int, *, total: int | None = None, **info: float):
        """Note that `done` units are finished in all, with plain numbers to show beside it.

        A `total` replaces the one so far. Names carry their units: `data_wait_s`, `bytes_written`, `images_per_second`. What is
        None is left out. After `close` nothing is shown.
        """
        now = self._clock()
        self._done, self._info = done, info
        if total is not None:
            self.total = total
        if self._first is None:
            self._first = (now, done)
            self._marks.append(self._first)
        if self._widgets:
            self._widgets.add(done, info)
        if now >= self._due and not self._closed:
            self._show(self._line(self._marks[0], now))
            self._marks.append((now, done))
            after = self._clock()
            self._due = after + max(_EVERY_S[self.mode], (after - now) / _MAX_SHARE)

    def close(self, message: str | None = None):
        """Show the final line, with `message` at its end. A second call does nothing."""
        if self._closed:
            return
        self._closed, now = True, self._clock()
        took = format_duration(now - self._begun)
        line = self._line(self._first, now, ended=f"stopped by {self._error} after {took}" if self._error else f"took {took}")
        self._show(line if message is None else f"{line} | {message}")
        if self._widgets:
            self._widgets.end("danger" if self._error else "success" if self._done in (None, self.total) else "")

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, kind, error, traceback):
        self._error = None if kind is None else kind.__name__
        self.close()

    def _show(self, line: str):
        if self.mode == "text":
            print(f"{self.title}: {line}", flush=True)
        elif self._widgets:
            self._widgets.show(f"{self.title}: {line}", self._done or 0, self.total)

    def _line(self, since: tuple[float, int] | None, now: float, *, ended: str | None = None) -> str:
        """`step 120/500 | 38.2 steps/s | 10 s left | loss 0.412`, with the speed since (time, done); or how it `ended`."""
        unit, info = self.unit, {name: value for name, value in self._info.items() if value is not None}
        if since is None:  # closed without a single update
            return f"no {unit} done | {ended}" if ended.startswith("stopped") else f"nothing was left to do | {ended}"
        known = now > since[0] and self._done > since[1]
        speed = (self._done - since[1]) / (now - since[0]) if known else 0
        left = (self.total - self._done) / speed if speed and self.total is not None else None
        parts = [f"{unit} {self._done:,}" + ("" if self.total is None else f"/{self.total:,}")]
        if speed:  # less than one in ten seconds reads better the other way round
            parts += [f"{format_number(speed)} {unit}s/s" if speed >= 0.1 else f"{format_duration(1 / speed)}/{unit}"]
        if ended or left is not None:
            parts += [ended or f"{format_duration(left)} left"]
        return " | ".join(parts + [_named(name, value) for name, value in info.items()])


def thin_out(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """At most `_MAX_POINTS` points of a series of any length: each is the mean of equally many values in a row."""
    stride = max(1, -(-len(x) // _MAX_POINTS))
    ends = range(stride, len(x) + 1, stride)
    return [x[end - 1] for end in ends], [sum(y[end - stride : end]) / stride for end in ends]


class _Widgets:
    """A progress bar, a line under it, and under that the curve, once it has two points."""

    def __init__(self, unit: str, curve: str | None):
        import ipywidgets
        from IPython.display import DisplayHandle

        self.bar, self.line = ipywidgets.FloatProgress(min=0.0, max=1.0, layout=_SIZE), ipywidgets.HTML("starting")
        self.image = ipywidgets.Image(format="png", layout=_SIZE | {"display": "none"})
        self.box = ipywidgets.VBox([self.bar, self.line, self.image])
        self.box.add_class("kdnb-progress")
        self._output = DisplayHandle()
        self._output.display(self.box)
        self.curve, self.x, self.y = curve, [], []
        if curve is not None:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            # Fixed margins: fitting them to the labels would cost half as much again at every drawing.
            self._canvas = FigureCanvasAgg(Figure(figsize=(6.0, 2.2), dpi=150))
            self._canvas.figure.subplots_adjust(left=0.12, bottom=0.22, right=0.98, top=0.96)
            axes = self._canvas.figure.add_subplot(xlabel=unit, ylabel=curve.replace("_", " "))
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
            axes.locator_params(nbins=6)
            axes.plot([], [], color="#0072B2", linewidth=1.5)

    def add(self, done: int, info: dict):
        """Append the named value to the curve; one that is not finite is left out."""
        value = info.get(self.curve)
        if value is not None and math.isfinite(value):
            self.x.append(done)
            self.y.append(value)

    def show(self, line: str, done: int, total: int | None):
        self.bar.max, self.bar.value = float(total or 1), float(min(done, total)) if total else 0.0
        self._text = line
        self.line.value = f'<span style="font-variant-numeric: tabular-nums">{html.escape(line)}</span>'
        if len(self.x) > 1:
            self.image.value = self._picture()
            self.image.layout.display = None

    def end(self, style: str):
        """Colour the bar, and put HTML in the place of all that, whose CSS class says that it is final: without their kernel, or
        for `jupyter nbconvert`, there are no widgets to see."""
        self.bar.bar_style = style
        if style == "success":
            self.bar.value = self.bar.max
        size = "width: {width}; max-width: {max_width}".format(**_SIZE)
        look = f'style="{size}; accent-color: {_COLOURS[style]}"'
        parts = [f'<progress {look} max="{self.bar.max}" value="{self.bar.value}"></progress>', self.line.value]
        if self.image.value:
            parts.append(f'<img alt="curve" style="{size}" src="data:image/png;base64,{b64encode(self.image.value).decode()}">')
        page = f'<div class="kdnb-progress kdnb-done">{"<br>".join(parts)}</div>'
        self._output.update({"text/html": page, "text/plain": self._text}, raw=True)
        for widget in (self.bar, self.line, self.image, self.box):
            widget.close()

    def _picture(self) -> bytes:
        axes, file = self._canvas.figure.axes[0], io.BytesIO()
        axes.lines[0].set_data(*thin_out(self.x, self.y))
        axes.relim()
        axes.autoscale_view()
        self._canvas.print_png(file, pil_kwargs={"compress_level": 1})
        return file.getvalue()


def choose_mode() -> str:
    """`widgets`, `text` or `none`: what KDNB_PROGRESS says, else widgets only in a kernel that a person looks at.

    Of several processes on one job only the first (RANK 0) displays anything.
    """
    forced = os.environ.get("KDNB_PROGRESS")
    if forced is not None and forced not in _EVERY_S:
        raise ValueError(f"The environment variable KDNB_PROGRESS is {forced!r}; allowed are {', '.join(_EVERY_S)}, or unset it.")
    if os.environ.get("RANK", "0") != "0":
        return "none"
    if forced is not None:
        return forced
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return "text"
    # papermill and nbval start kernels too, but nobody looks at those. jupyter-server sets the first of these for the kernels
    # that it starts; VS Code the second, and the third for kernels on the same machine.
    seen = "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns or "VSCODE_PID" in os.environ
    return "widgets" if seen else "text"


def format_duration(seconds: float) -> str:
    """0.4 ms, 12 ms, 3.2 s, 42 s, 1 min 15 s, 1 h 2 min, 2 d 3 h; ? for what is not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.{3 if seconds >= 0.01 else 2}g} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole, minutes, hours = round(seconds), round(seconds / 60), round(seconds / 3600)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes < 24 * 60 else f"{hours // 24} d {hours % 24} h"


def format_bytes(n: float) -> str:
    """830 B, 1.23 kB, 75 GB: three digits, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 999.5:
            return f"{format_number(n)} {unit}"
        n /= 1000
    return f"{format_number(n)} TB"


def format_number(value: Any) -> str:
    """Short: whole numbers with thousands (12,345), others with three digits (0.412, 2.31, 1e-05)."""
    whole = isinstance(value, numbers.Integral) or (math.isfinite(value) and abs(value) >= 999.5)
    return f"{value:,.0f}" if whole else f"{value:.3g}"


def _named(name: str, value: Any) -> str:
    """A name that carries its unit, and its value: (`data_wait_s`, 0.012) is `data wait 12 ms`."""
    words = name.split("_")
    if words[-1] == "s":
        return f"{' '.join(words[:-1])} {format_duration(value)}"
    if words[-2:] == ["per", "second"]:
        return f"{format_number(value)} {' '.join(words[:-2])}/s"
    if "bytes" in words and len(words) > 1:
        return f"{' '.join(word for word in words if word != 'bytes')} {format_bytes(value)}"
    return f"{' '.join(words)} {format_number(value) if isinstance(value, numbers.Real) else value}"
