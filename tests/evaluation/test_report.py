"""Tables of an evaluation: intervals by hand, text where nobody looks, HTML in JupyterLab."""

import math
from html.parser import HTMLParser

import pytest

from kdnb.evaluation import report
from kdnb.evaluation.statistics import accuracy_interval


def line(model, *, run="r", right=289, images=297, **changes):
    low, high = accuracy_interval(right / images, images)
    accuracy = {"": right / images, "_low": low, "_high": high}
    measured = {name + end: value for name in ("probe", "knn") for end, value in accuracy.items()}
    quality = {"probe_gap_closed": 1.0, "effective_rank": 15.12, "cka_teacher": 0.5}
    return {"run": run, "model": model, "step": 1234, "test_images": images} | measured | quality | changes


def test_the_interval_of_289_in_297_by_hand():
    # Centre (p + z^2 / 2n) / (1 + z^2 / n), half width z sqrt(p (1 - p) / n + z^2 / 4 n^2) / (1 + z^2 / n), with z = 1.959964:
    # p = 0.973064, z^2 = 3.841459, z^2 / n = 0.012934; centre 0.979531 / 1.012934, half width 0.019515 / 1.012934.
    assert accuracy_interval(289 / 297, 297) == pytest.approx((0.967023 - 0.019266, 0.967023 + 0.019266), abs=2e-6)


def test_an_interval_holds_its_accuracy_and_narrows_with_more_images():
    assert accuracy_interval(1.0, 297)[1] == 1 and accuracy_interval(0.0, 297)[0] == 0
    assert accuracy_interval(1.0, 297)[0] == pytest.approx(297 / (297 + 1.959964**2))
    narrow, wide = (high - low for low, high in (accuracy_interval(0.9, n) for n in (10_000, 100)))
    assert narrow < wide / 9
    for accuracy, images in ((1.1, 10), (math.nan, 10), (0.5, 0)):
        with pytest.raises(ValueError, match="allowed is 0 to 1, of at least one example"):
            accuracy_interval(accuracy, images)


def test_numbers_stand_below_each_other_and_what_they_measure_below_them():
    missing = {"probe_gap_closed": None, "effective_rank": None, "cka_teacher": None}
    head, teacher, student, *below = str(report.Table([line("teacher"), line("student", step=7, **missing)])).splitlines()
    assert " ".join(teacher.split()) == "r teacher 1,234 0.973 0.948 to 0.986 0.973 0.948 to 0.986 100% 15.1 0.50"
    assert student.endswith("0.986") and len(student) < len(teacher) == len(head)
    assert head.index("step") + 4 == teacher.index("1,234") + 5 == student.index(" 7 ") + 2
    assert "linear probe" in below[0] and "297 held-out images" in below[0] and "Wilson" in below[1]
    assert "share of the way from the higher floor" in below[2]


def test_headless_it_is_text_and_in_jupyterlab_html_with_a_row_a_line(monkeypatch):
    table = report.Evaluation([line("teacher"), line("student", run="<b>&")], {})
    monkeypatch.setenv("KDNB_PROGRESS", "text")
    assert table._repr_html_() is None and repr(table) == report.format_table(table)
    monkeypatch.setenv("KDNB_PROGRESS", "widgets")
    cells, markup = [], table._repr_html_()

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            cells.append((tag, dict(attrs).get("style"), ""))

        def handle_data(self, data):
            cells[-1] = (*cells[-1][:2], cells[-1][2] + data)

    Reader().feed(markup)
    assert [tag for tag, *_ in cells].count("tr") == 3 and "<b>" not in markup
    texts = [(style, text) for tag, style, text in cells if tag == "td"]
    assert len(texts) == 20 and texts[10] == ("text-align: left", "<b>&") and texts[3] == ("text-align: right", "0.973")


def test_accuracies_of_probes_say_what_they_measure():
    lines = report.format_accuracies({"raw pixels": 0.5, "teacher": 289 / 297}, images=297).splitlines()
    assert lines[0].startswith("accuracy of a linear probe on 297 held-out images") and len(lines) == 3
    assert lines[2].split(maxsplit=1) == ["teacher", "0.973 (0.948 to 0.986)"]
