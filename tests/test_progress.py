"""Progress: the right display for who is watching, throttled, with numbers that add up."""

import sys

import pytest

from kdnb.progress import Display, choose_mode, format_bytes, format_duration


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_lines_come_every_few_seconds_and_at_the_end(capsys):
    clock = Clock()
    with Display(100, title="train", clock=clock, mode="text") as display:
        for step in range(1, 101):
            clock.now += 0.2
            display.update(step, loss=1 / step, data_wait_s=0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: step 25/100 | 5 steps/s | 15 s left | loss 0.04 | data wait 0.5 s"
    assert len(lines) == 5 and lines[-1] == "train: step 100/100 | 5 steps/s | loss 0.01 | data wait 0.5 s | 20 s"


def test_a_resumed_run_counts_its_rate_from_where_it_goes_on(capsys):
    clock = Clock()
    display = Display(1000, title="t", clock=clock, mode="text")
    for step in range(901, 911):
        clock.now += 1
        display.update(step)
    assert "1 steps/s | 1 min 35 s left" in capsys.readouterr().out


def test_an_error_leaves_an_honest_last_line(capsys):
    with pytest.raises(KeyError), Display(10, title="t", mode="text") as display:
        display.update(3)
        raise KeyError
    assert capsys.readouterr().out.splitlines()[-1].endswith("stopped: KeyError")


def test_an_unknown_total_shows_no_time_left(capsys):
    display = Display(None, title="t", unit="image", mode="text")
    display.update(7, bytes_written=1_500_000)
    display.close()
    out = capsys.readouterr().out
    assert out.startswith("t: image 7 |") and "1.5 MB written" in out and "left" not in out


def test_none_says_nothing(capsys):
    with Display(1, title="t", mode="none") as display:
        display.update(1)
    assert capsys.readouterr().out == ""


def test_widgets_show_bar_text_and_a_bounded_curve():
    clock = Clock()
    display = Display(2000, title="<train>", curve="loss", clock=clock, mode="widgets")
    parts = display._widgets
    for step in range(1, 2001):
        clock.now += 0.01
        display.update(step, loss=1 / step)
    display.close()
    assert parts.bar.value == 2000 and parts.bar.bar_style == "success"
    assert "&lt;train&gt;: step 2,000/2,000" in parts.text.value
    assert bytes(parts.picture.value).startswith(b"\x89PNG") and parts.picture.layout.display == "block"
    assert set(parts.box._dom_classes) == {"kdnb-progress", "kdnb-done"}
    assert 200 <= len(display._values) <= 401 and display._values[0] == 1.0


def test_who_is_watching_decides(monkeypatch):
    for name in ("KDNB_PROGRESS", "JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    assert choose_mode() == "text"
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert choose_mode() == "text"  # papermill and nbval
    monkeypatch.setenv("JPY_SESSION_NAME", "train.ipynb")
    assert choose_mode() == "widgets"
    monkeypatch.setenv("KDNB_PROGRESS", "none")
    assert choose_mode() == "none"
    monkeypatch.setenv("KDNB_PROGRESS", "loud")
    with pytest.raises(ValueError, match="KDNB_PROGRESS is 'loud'; allowed is widgets, text or none"):
        choose_mode()


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    "count, text", [(0, "0 B"), (512, "512 B"), (1500, "1.5 kB"), (75.3e9, "75.3 GB"), (154e6, "154 MB"), (2e12, "2.0 TB")]
)
def test_bytes(count, text):
    assert format_bytes(count) == text
