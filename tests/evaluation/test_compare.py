"""Two models side by side: every number on a case whose answer is known, and the order of measuring without a clock."""

import json
import math
import warnings

import pytest
import torch
from torch import nn

from kdnb.evaluation import compare
from kdnb.evaluation.compare import ModelReport, compare_models, interleaved_seconds
from kdnb.evaluation.features import stratified_split
from kdnb.evaluation.quality import calibrated_temperature, expected_calibration_error
from kdnb.files import read_json
from kdnb.plots import comparison_figure


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what the calls made by `clock.call(name, *seconds)` take, the last one for ever."""

    class Clock:
        def __init__(self):
            self.now, self.calls = 0.0, []

        def call(self, name, *seconds):
            left = list(seconds)

            def run():
                self.calls.append(name)
                self.now += left.pop(0) if len(left) > 1 else left[0]

            return run

    clock = Clock()
    monkeypatch.setattr(compare, "perf_counter", lambda: clock.now)
    return clock


def side(name="teacher", logits=None, *, width=4, one=lambda: None, many=lambda: None, batch_size=8):
    logits = torch.eye(3)[[0, 1, 2, 0]] if logits is None else logits
    return ModelReport(name, nn.Linear(width, 3), logits, one, many, batch_size)


def compared(teacher, student, tmp_path, labels=None, classes=None, **settings):
    settings = {"rounds": 3, "seconds": 1.0} | settings
    return compare_models(teacher, student, labels=labels, classes=classes, device="cpu", folder=tmp_path / "new", **settings)


def hard(classes, count=3):
    """Logits that predict `classes`."""
    return torch.eye(count)[classes]


# --- speed


def test_the_two_are_measured_by_turns_and_the_order_is_swapped(clock):
    calls = {"a": clock.call("a", 100.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0), "b": clock.call("b", 0.5)}
    taken = interleaved_seconds(calls, device="cpu", rounds=4, seconds=1e6)
    assert "".join(clock.calls) == "ababab" + "abbaabba"  # three rounds of warming up, four that count
    assert taken == {"a": [1.0, 2.0, 3.0, 4.0], "b": [0.5] * 4}


def test_the_budget_ends_the_rounds_but_not_before_three(clock):
    # Two seconds a round; warming up ends at a fifth of the budget, after one.
    calls = {"a": clock.call("a", 1.0), "b": clock.call("b", 1.0)}
    assert len(interleaved_seconds(calls, device="cpu", rounds=15, seconds=0)["a"]) == 3
    assert "".join(clock.calls) == "ab" + "abbaab"
    clock.calls.clear()
    # 9 seconds: one round before, then rounds that end at 4, 6, 8 and 10 seconds.
    assert len(interleaved_seconds(calls, device="cpu", rounds=15, seconds=9)["b"]) == 4
    assert len(interleaved_seconds(calls, device="cpu", rounds=1, seconds=100)["b"]) == 3


def test_calls_run_in_inference_mode_and_the_device_is_waited_for(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append(str(device)))
    call = {"a": lambda: events.append(torch.is_inference_mode_enabled())}
    interleaved_seconds(call, device="cuda:1", rounds=3, seconds=1e6)
    assert events == [True, "cuda:1"] * 6
    assert not torch.is_inference_mode_enabled()


def test_models_run_in_eval_mode_and_every_mode_is_put_back(tmp_path):
    model, modes = nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.BatchNorm1d(3)), []
    model.train()
    model[1].eval()
    teacher = ModelReport("teacher", model, hard([0, 1]), lambda: modes.append(model[2].training), lambda: None, 8)
    compared(teacher, side("student", hard([0, 1])), tmp_path)
    assert modes and not any(modes)
    assert [module.training for module in model.modules()] == [True, True, False, True]

    def fails():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        compared(ModelReport("teacher", model, hard([0]), fails, fails, 8), side("student", hard([0])), tmp_path)
    assert model.training and not model[1].training


def test_latency_and_throughput_are_medians_and_speed_ups_their_ratios(clock, tmp_path):
    warm = [0.0] * 3
    # Singles: 30 rounds of 1 ms, but for one of 1 s, and 30 of 1 to 30 ms. Batches: 2 s and 0.5 s.
    teacher = clock.call("t", *warm, *[k / 1000 for k in range(1, 31)]), clock.call("T", *warm, 2.0)
    student = clock.call("s", *warm, 1.0, 0.001), clock.call("S", *warm, 0.5)
    sides = [side(*start, one=one, many=many, batch_size=size) for start, (one, many), size in
             (((), teacher, 8), (("student",), student, 4))]  # fmt: skip
    found = compared(*sides, tmp_path, seconds=1e6)
    assert found["rounds"] == {"one": 30, "many": 3}
    # Of 1 to 30: the 10% quantile lies at position 2.9, the 90% one at 26.1 (counted from 0).
    expected = {"median": 15.5, "p10": 3.9, "p90": 27.1}
    assert found["teacher"]["latency_ms"] == pytest.approx(expected)
    assert found["student"]["latency_ms"] == pytest.approx({"median": 1, "p10": 1, "p90": 1})
    assert (found["teacher"]["throughput"], found["student"]["throughput"]) == pytest.approx((4, 8))
    assert found["ratios"]["latency_speedup"] == pytest.approx(15.5)
    assert found["ratios"]["throughput_speedup"] == pytest.approx(2)


def test_calls_that_take_no_time_leave_speeds_unknown_not_infinite(clock, tmp_path):
    found = compared(side(), side("student"), tmp_path)
    assert found["teacher"]["throughput"] is None and found["ratios"]["latency_speedup"] is None
    assert "? times as fast" in comparison_figure(found).get_suptitle()


# --- quality


def test_scores_agreement_and_ratios_by_hand(tmp_path):
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    teacher = side(logits=hard([0, 0, 0, 0, 1, 1, 1, 2]), width=9)
    student = side("student", hard([0, 0, 0, 1, 1, 1, 1, 2]))
    found = compared(teacher, student, tmp_path, labels, ["cat", "dog", "eel"])
    assert (found["teacher"]["accuracy"], found["student"]["accuracy"]) == (7 / 8, 6 / 8)
    assert found["student"]["per_class_accuracy"] == [0.75, 0.75, None]  # no test row of the third
    assert found["teacher"]["per_class_accuracy"] == [1.0, 0.75, None]
    # F1 of the student: 6/7, 6/8 and 0.
    assert found["student"]["macro_f1"] == pytest.approx((6 / 7 + 6 / 8) / 3)
    assert found["agreement"] == 7 / 8
    assert (found["teacher"]["parameters"], found["student"]["parameters"]) == (30, 15)
    assert (found["teacher"]["bytes"], found["student"]["bytes"]) == (120, 60)
    assert found["ratios"]["accuracy"] == pytest.approx(6 / 7)
    assert (found["ratios"]["parameters"], found["ratios"]["bytes"]) == (0.5, 0.5)
    assert (found["rows"], found["classes"]) == (8, ["cat", "dog", "eel"])


def test_calibration_is_measured_on_the_half_that_the_temperature_has_not_seen(tmp_path):
    z = 2 * torch.randn(600, 3)
    labels = torch.distributions.Categorical(logits=z).sample()
    found = compared(side(logits=5 * z), side("student", z), tmp_path, labels, seed=3)
    held_out = stratified_split(labels, fraction=0.5, seed=3)
    temperature = calibrated_temperature(5 * z[~held_out], labels[~held_out])
    teacher = found["teacher"]
    assert teacher["temperature"] == temperature
    assert teacher["calibration_error"] == expected_calibration_error(5 * z[held_out], labels[held_out])
    scaled = expected_calibration_error(5 * z[held_out].double() / temperature, labels[held_out])
    assert teacher["calibration_error_scaled"] == pytest.approx(scaled)
    assert scaled < teacher["calibration_error"]
    assert compared(side(logits=5 * z), side("student", z), tmp_path, labels, seed=4)["teacher"]["temperature"] != temperature


def test_one_row_a_class_cannot_be_split_and_says_none(tmp_path):
    found = compared(side(logits=hard([0, 1, 2])), side("student", hard([0, 2, 1])), tmp_path, torch.tensor([0, 1, 2]))
    assert found["teacher"]["accuracy"] == 1 and found["student"]["accuracy"] == pytest.approx(1 / 3)
    assert found["teacher"]["temperature"] is None and found["student"]["calibration_error_scaled"] is None


def test_a_teacher_that_is_never_right_has_no_ratio(tmp_path):
    found = compared(side(logits=hard([1, 1])), side("student", hard([0, 0])), tmp_path, torch.tensor([0, 0]))
    assert found["ratios"]["accuracy"] is None
    assert read_json(tmp_path / "new" / "comparison_results.json") == found


def test_without_labels_there_are_agreement_sizes_and_speeds(tmp_path):
    found = compared(side(logits=hard([0, 1, 2])), side("student", hard([0, 1, 1])), tmp_path)
    assert found["agreement"] == pytest.approx(2 / 3)
    assert found["ratios"].keys() == {"parameters", "bytes", "latency_speedup", "throughput_speedup"}
    assert found["student"].keys() == {"name", "parameters", "bytes", "batch_size", "latency_ms", "throughput"}
    assert found["classes"] == ["0", "1", "2"]


def test_size_is_that_of_the_weights_each_once(tmp_path):
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight  # 16 weights and twice 4 biases
    student = ModelReport("student", tied, side().logits, lambda: None, lambda: None, 8)
    measured = compared(side(), student, tmp_path)["student"]
    assert (measured["parameters"], measured["bytes"]) == (24, 96)


# --- what is written


def test_the_json_is_what_is_returned_and_the_picture_is_a_png(tmp_path):
    found = compared(side(), side("student"), tmp_path, torch.tensor([0, 1, 2, 1]))
    folder = tmp_path / "new"
    assert {path.name for path in folder.glob("[!.]*")} == {"comparison_results.json", "teacher_student_comparison.png"}

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((folder / "comparison_results.json").read_text(), parse_constant=refuse)
    assert read_json(folder / "comparison_results.json") == found
    picture = (folder / "teacher_student_comparison.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(picture[16:20], "big") == 1500  # pixels wide


def some_results(classes=3, labelled=True):
    """What `compare_models` returns, with round numbers."""
    results = {
        "agreement": 0.9, "rows": 1000, "classes": [f"class {k}" for k in range(classes)], "device": "cpu", "threads": 2,
        "rounds": {"one": 150, "many": 15},
        "ratios": {"parameters": 0.08, "bytes": 0.081, "latency_speedup": 5.1, "throughput_speedup": 12.0},
    }  # fmt: skip
    for number, role in enumerate(("teacher", "student")):
        results[role] = {
            "name": role, "parameters": (1_000_000, 80_000)[number], "bytes": (4_000_000, 324_000)[number],
            "batch_size": 64, "latency_ms": {"median": (5.1, 1.0)[number], "p10": 0.9, "p90": (6.0, 1.5)[number]},
            "throughput": (1000.0, 12_000.0)[number],
        }  # fmt: skip
        if labelled:
            results[role] |= {
                "accuracy": (0.8, 0.776)[number], "macro_f1": (0.79, 0.77)[number], "temperature": 1.5,
                "calibration_error": (0.1, 0.05)[number], "calibration_error_scaled": (0.02, None)[number],
                "per_class_accuracy": [*((0.9, 0.8), (0.7, 0.75))[number], *[None] * (classes - 2)],
            }  # fmt: skip
    if labelled:
        results["ratios"] |= {"accuracy": 0.97, "macro_f1": 0.77 / 0.79, "calibration_error": 0.5}
    return results


def drawn(results, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = comparison_figure(results)
        figure.savefig(tmp_path / "figure.png", dpi=50)
    return figure


def test_bars_are_as_wide_as_the_numbers(tmp_path):
    figure = drawn(some_results(), tmp_path)
    widths = {axes.get_title(loc="left"): [bar.get_width() for bar in axes.patches] for axes in figure.axes[:-1]}
    assert widths == {
        "Accuracy\n97.0% of the teacher's": [0.8, 0.776],
        "Macro F1\n97.5% of the teacher's": [0.79, 0.77],
        "Calibration error\n0.5 times the teacher's": [0.1, 0.05],
        "Calibration error, scaled\nno ratio to the teacher's": [0.02, 0],
        "Parameters\n8.0% of the teacher's": [1_000_000, 80_000],
        "Size on disk\n8.1% of the teacher's": [4_000_000, 324_000],
        "Latency of one example\n5.1 times as fast": [5.1, 1.0],
        "Throughput, batches of 64\n12 times as fast": [1000, 12_000],
    }
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes[:-1]]
    assert texts[3:7] == [["0.020", "not measured"], ["1M", "80k"], ["4 MB", "324 kB"], ["5.1 ms", "1 ms"]]
    whiskers = figure.axes[6].collections[0].get_segments()
    assert [segment[:, 0].tolist() for segment in whiskers] == [pytest.approx([0.9, 6.0]), pytest.approx([0.9, 1.5])]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["teacher", "student"]


def test_the_title_says_what_was_found(tmp_path):
    title = drawn(some_results(), tmp_path).get_suptitle().replace("\n", " ")
    expected = "The student keeps 97.0% of the teacher's accuracy with 8.0% of its parameters, "
    assert title == expected + "5.1 times as fast on one example, 12 times as fast in batches"
    results = some_results()
    results["ratios"] |= {"accuracy": 1.04, "parameters": 0.004, "latency_speedup": 0.5}
    assert comparison_figure(results).get_suptitle().startswith("The student reaches 104.0% of the teacher's accuracy")
    assert "with 0.40% of its parameters,\n0.5 times as fast on one example" in comparison_figure(results).get_suptitle()
    unlabelled = drawn(some_results(labelled=False), tmp_path)
    assert unlabelled.get_suptitle().startswith("The student agrees with the teacher on 90.0% of the rows, with 8.0%")
    assert len(unlabelled.axes) == 4


def test_dots_are_the_accuracies_by_class_of_at_most_20(tmp_path):
    below = drawn(some_results(), tmp_path).axes[-1]
    teacher, student = below.lines
    assert list(teacher.get_ydata()[:2]) == [0.9, 0.8] and list(student.get_ydata()[:2]) == [0.7, 0.75]
    assert math.isnan(student.get_ydata()[2])
    assert below.get_title(loc="left") == "Student minus teacher by class: -20.0 points on class 0 to -5.0 points on class 1"
    assert [label.get_text() for label in below.get_xticklabels()] == ["class 0", "class 1", "class 2"]
    assert len(drawn(some_results(classes=20), tmp_path).axes) == 9
    assert len(drawn(some_results(classes=21), tmp_path).axes) == 8


def test_other_names_carry_their_roles(tmp_path):
    results = some_results()
    results["teacher"]["name"] = "resnet56"
    labels = [label.get_text() for label in drawn(results, tmp_path).axes[0].get_yticklabels()]
    assert labels == ["resnet56\n(teacher)", "student"]


# --- what is refused


def test_bad_logits_labels_and_names_are_refused(tmp_path):
    def refused(match, teacher=None, student=None, labels=None, classes=None):
        with pytest.raises(ValueError, match=match):
            compared(teacher or side("big"), student or side("small"), tmp_path, labels, classes)

    both = "the big's logits have 4 rows and 3 classes, the small's "
    refused(both + "5 rows and 3 classes", student=side("small", torch.zeros(5, 3)))
    refused(both + "4 rows and 2 classes", student=side("small", torch.zeros(4, 2)))
    refused(r"the big's logits \[0, 3\] are not \[N, C\] with at least one row", teacher=side("big", torch.zeros(0, 3)))
    refused(r"the small's logits \[4\] are not \[N, C\]", student=side("small", torch.zeros(4)))
    refused(r"the small's logits \[1, 1\] are not .* all finite", student=side("small", torch.tensor([[math.nan]])))
    refused(r"labels have shape \[3\], but there are 4 rows", labels=torch.tensor([0, 1, 2]))
    refused("labels go from -1 to 2; allowed is 0 to 2", labels=torch.tensor([0, -1, 2, 1]))
    refused("labels go from 0 to 3; allowed is 0 to 2", labels=torch.tensor([0, 3, 2, 1]))
    refused("classes holds 2 names, but the logits have 3 columns", classes=["a", "b"])
    with pytest.raises(ValueError, match=r"labels have shape \[2\], but there are 4 rows"):
        calibrated_temperature(torch.zeros(4, 2), torch.tensor([0, 1]))
    assert not (tmp_path / "new").exists()
