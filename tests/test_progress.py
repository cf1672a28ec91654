"""Progress: the right display for who is watching, throttled, with numbers that add up."""

import math
import re
import sys
import types

import nbclient
import nbformat
import pytest
from nbconvert import HTMLExporter

from kdnb.progress import Display, choose_mode, format_bytes, format_duration, format_number, thin_out


class Clock:
    """Seconds that the test moves on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mode(monkeypatch):
    """A function that forces a mode."""
    monkeypatch.delenv("RANK", raising=False)
    return lambda name: monkeypatch.setenv("KDNB_PROGRESS", name)


@pytest.fixture
def text(mode):
    mode("text")


def test_lines_come_every_five_seconds_and_at_the_end(capsys, clock, text):
    with Display(100, title="train", clock=clock) as display:
        for step in range(1, 101):
            clock.now += 0.25
            display.update(step, loss=1 / step, data_wait_s=0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: step 20/100 | 4 steps/s | 20 s left | loss 0.05 | data wait 500 ms"
    assert [line.split(" | ")[0] for line in lines] == [f"train: step {n}/100" for n in (20, 40, 60, 80, 100, 100)]
    assert lines[-1] == "train: step 100/100 | 4 steps/s | took 25 s | loss 0.01 | data wait 500 ms"


def test_nothing_is_printed_before_it_is_due_and_only_once_at_the_end(capsys, clock, text):
    display = Display(2, title="t", clock=clock)
    clock.now += 1
    display.update(1)
    assert capsys.readouterr().out == ""
    clock.now += 1
    display.update(2)
    display.close("3 unreadable")
    display.close()
    clock.now += 100
    display.update(2)
    assert capsys.readouterr().out == "t: step 2/2 | 1 steps/s | took 2.0 s | 3 unreadable\n"


def test_a_resumed_run_counts_its_speed_from_where_it_goes_on(capsys, clock, text):
    display = Display(1000, title="t", clock=clock)
    for step in range(901, 907):
        clock.now += 1
        display.update(step)
    assert capsys.readouterr().out == "t: step 905/1,000 | 1 steps/s | 1 min 35 s left\n"


def test_time_left_follows_the_speed_of_late(capsys, clock, text):
    display = Display(10_000, title="t", clock=clock)
    for step in range(1, 3001):  # the first 1,000 at 100 steps/s, the others at 2 steps/s
        clock.now += 0.01 if step <= 1000 else 0.5
        display.update(step)
    assert "2 steps/s" in capsys.readouterr().out.splitlines()[-1]


def test_slow_work_is_told_in_time_per_unit(capsys, clock, text):
    display = Display(10, title="t", unit="epoch", clock=clock)
    for epoch in (1, 2):
        clock.now += 75
        display.update(epoch)
    assert capsys.readouterr().out.splitlines()[-1] == "t: epoch 2/10 | 1 min 15 s/epoch | 10 min 0 s left"


def test_names_carry_their_units_and_what_is_none_is_left_out(capsys, clock, text):
    display = Display(None, title="precompute", unit="image", clock=clock)
    display.update(64, total=None, bytes_written=1_500_000)
    clock.now += 5
    display.update(128, total=640, views_per_second=64.0, accuracy=None, bytes_written=3_000_000)
    display.close()
    middle, last = capsys.readouterr().out.splitlines()
    assert middle == "precompute: image 128/640 | 12.8 images/s | 40 s left | 64 views/s | written 3 MB"
    assert last == "precompute: image 128/640 | 12.8 images/s | took 5.0 s | 64 views/s | written 3 MB"


def test_an_unknown_total_shows_no_time_left(capsys, clock, text):
    display = Display(None, title="t", unit="image", clock=clock)
    display.update(0)
    clock.now += 5
    display.update(10)
    assert capsys.readouterr().out == "t: image 10 | 2 images/s\n"


def test_an_error_leaves_an_honest_last_line(capsys, clock, text):
    with pytest.raises(KeyboardInterrupt), Display(10, title="t", clock=clock) as display:
        clock.now += 1
        display.update(3, loss=math.nan)
        clock.now += 1
        raise KeyboardInterrupt
    assert capsys.readouterr().out == "t: step 3/10 | stopped by KeyboardInterrupt after 2.0 s | loss nan\n"


def test_without_an_update_the_line_says_why(capsys, clock, text):
    with Display(10, title="done before", clock=clock):
        pass
    with pytest.raises(KeyError), Display(10, title="broken", clock=clock):
        raise KeyError
    done, broken = capsys.readouterr().out.splitlines()
    assert done == "done before: nothing was left to do | took 0 ms"
    assert broken == "broken: no step done | stopped by KeyError after 0 ms"


def test_none_says_nothing(capsys, clock, mode):
    mode("none")
    with Display(1, title="t", clock=clock) as display:
        clock.now += 100
        display.update(1)
    assert capsys.readouterr().out == "" and display.box is None


def test_widgets_show_bar_line_and_curve(clock, mode):
    mode("widgets")
    display = Display(2000, title="<train>", curve="loss", clock=clock)
    bar, line, image = display.box.children
    assert display.box._dom_classes == ("kdnb-progress",) and image.layout.display == "none"
    for step in range(1, 81):
        clock.now += 1 / 64
        display.update(step, loss=1 / step)
    assert (bar.value, bar.max, bar.bar_style) == (64, 2000, "")  # drawn at 0.5 s and 1 s
    assert "&lt;train&gt;: step 64/2,000 | 64 steps/s | 30 s left | loss 0.0156<" in line.value
    assert bytes(image.value).startswith(b"\x89PNG") and image.layout.display is None
    before = image.value
    display.update(2000, loss=0.25)
    display.close("all <well>")
    assert (bar.value, bar.bar_style) == (2000, "success")
    assert line.value.endswith("| loss 0.25 | all &lt;well&gt;</span>") and "took 1.2 s" in line.value
    assert image.value != before  # the last value is in the final picture


def test_widgets_redraw_every_half_second(clock, mode):
    mode("widgets")
    display = Display(100, title="t", clock=clock)
    shown = []
    display.box.children[1].observe(lambda change: shown.append(change.new.split(">")[1]), "value")
    for step in range(1, 17):
        clock.now += 0.125
        display.update(step)
    assert [line.split(" | ")[0] for line in shown] == [f"t: step {n}/100" for n in (4, 8, 12, 16)]


def test_slow_drawing_is_drawn_less_often(clock, mode):
    mode("widgets")
    display = Display(1000, title="t", clock=clock)
    shown = []

    def slow(change):
        shown.append(clock.now)
        clock.now += 1.0

    display.box.children[1].observe(slow, "value")
    for step in range(1, 61):
        clock.now += 1.0
        display.update(step)
    assert [b - a for a, b in zip(shown, shown[1:], strict=False)] == [26.0, 26.0]  # 1 s of drawing, 25 s of work: 4%


def test_widgets_show_an_error_and_keep_what_was_done(mode):
    mode("widgets")
    with pytest.raises(KeyError), Display(10, title="t") as display:
        display.update(3)
        raise KeyError
    bar, line, image = display.box.children
    assert (bar.value, bar.bar_style) == (3, "danger") and "stopped by KeyError" in line.value
    assert image.layout.display == "none"  # no curve was asked for


def test_widgets_without_a_total_fill_the_bar_at_the_end(mode):
    mode("widgets")
    display = Display(None, title="t", unit="image")
    display.update(12)
    assert display.box.children[0].value == 0
    display.update(24, total=24)
    display.close()
    assert display.box.children[0].value == display.box.children[0].max == 24


SAVED = """
from kdnb.progress import Display
with Display(3, title="<train>", curve="loss") as display:
    for step in (1, 2, 3):
        display.update(step, loss=1 / step)
---
with Display(10, title="broken") as display:
    display.update(4)
    1 / 0
"""


def test_a_saved_page_shows_how_it_ended(monkeypatch):
    """What stands in the notebook, and what `jupyter nbconvert --to html` makes of it, without the kernel and its widgets."""
    monkeypatch.setenv("KDNB_PROGRESS", "widgets")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in SAVED.split("---")])
    settings = {"allow_errors": True, "store_widget_state": False}  # as JupyterLab saves
    nbclient.NotebookClient(notebook, kernel_name="python3", **settings).execute()
    done, broken = (cell.outputs[0].data for cell in notebook.cells)
    assert done.keys() == broken.keys() == {"text/html", "text/plain"} and "widgets" not in notebook.metadata
    assert re.fullmatch(r"<train>: step 3/3 \| [^|]+ \| took [^|]+ \| loss 0.333", done["text/plain"])
    assert broken["text/plain"].startswith("broken: step 4/10 | stopped by ZeroDivisionError after ")
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert "&lt;train&gt;: step 3/3 | " in page and "broken: step 4/10 | stopped by ZeroDivisionError" in page
    assert page.count('class="kdnb-progress kdnb-done"') == 2 and page.count('<img alt="curve"') == 1
    assert [sorted(re.findall(r'(?:max|value)="[^"]+"', bar)) for bar in re.findall("<progress [^>]+>", page)] == [
        ['max="3.0"', 'value="3.0"'],
        ['max="10.0"', 'value="4.0"'],
    ]


def test_the_curve_is_bounded_and_keeps_the_means():
    x, y = thin_out(list(range(1, 4002)), [float(value) for value in range(1, 4002)])
    assert len(x) == len(y) == 363 and x[:2] == [11, 22] and y[:2] == [6, 17]  # means of 1..11 and 12..22
    assert thin_out([1, 2], [0.5, 0.25]) == ([1, 2], [0.5, 0.25])


def test_the_curve_leaves_out_what_is_not_finite(mode):
    mode("widgets")
    display = Display(3, title="t", curve="loss")
    for step, loss in enumerate((math.nan, 0.5, math.inf), 1):
        display.update(step, loss=loss)
    display.close()
    assert display.box.children[2].layout.display == "none"  # one point is no curve


def test_who_is_watching_decides(monkeypatch):
    for name in ("KDNB_PROGRESS", "JPY_SESSION_NAME", "VSCODE_PID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    monkeypatch.setenv("JPY_SESSION_NAME", "train.ipynb")
    assert choose_mode() == "text"  # a script that a notebook started
    shell = types.SimpleNamespace(kernel=object(), user_ns={})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    assert choose_mode() == "widgets"
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert choose_mode() == "text"  # papermill, nbval
    shell.user_ns["__vsc_ipynb_file__"] = "train.ipynb"
    assert choose_mode() == "widgets"
    monkeypatch.setenv("KDNB_PROGRESS", "text")
    assert choose_mode() == "text"
    monkeypatch.setenv("RANK", "1")
    assert choose_mode() == "none"  # the first process displays


def test_a_wrong_mode_or_total_is_refused(mode):
    mode("loud")
    with pytest.raises(ValueError, match="KDNB_PROGRESS is 'loud'; allowed are widgets, text, none"):
        Display(1, title="t")
    mode("none")
    for total in (-1, 2.5, True):
        with pytest.raises(ValueError, match=f"total is {total}; allowed are whole numbers"):
            Display(total, title="t")


@pytest.mark.parametrize(
    "seconds, text",
    [
        (-1, "0 ms"), (0.0004, "0.4 ms"), (0.0123, "12.3 ms"), (0.2, "200 ms"),
        (0.9996, "1.0 s"), (3.21, "3.2 s"), (9.96, "10 s"), (59.7, "1 min 0 s"),
        (75, "1 min 15 s"), (3599.7, "1 h 0 min"), (3700, "1 h 2 min"), (86_399, "1 d 0 h"),
        (183_600, "2 d 3 h"), (math.inf, "?"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_600, "1 MB"), (75.3e9, "75.3 GB"), (301e9, "301 GB"), (5e15, "5,000 TB")],
)
def test_bytes(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    "value, text", [(12345, "12,345"), (0.41234, "0.412"), (2.306, "2.31"), (1e-5, "1e-05"), (1234.6, "1,235")]
)
def test_numbers(value, text):
    assert format_number(value) == text
