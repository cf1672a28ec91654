"""Records: what is summed, what is averaged, and time that adds up."""

import math

import pytest
import torch

from kdnb.distillation import records
from kdnb.distillation.records import Clock, Metrics, epoch_line, epochs_since_best, merge


def record(step, loss, *, steps=1):
    counts = {"num_steps": steps, "num_images": 32 * steps}
    where = {"step": step, "epoch": 0, "images_seen": 32 * step, "learning_rate": 0.1 / step}
    return where | counts | {"loss": loss, "data_wait_s": 0.5, "step_s": 1.5}


def test_merging_sums_seconds_and_counts_and_averages_losses_by_steps():
    merged = merge([record(2, 1.0, steps=2), record(3, 4.0)])
    assert merged == {
        "step": 3, "epoch": 0, "images_seen": 96, "learning_rate": 0.1 / 3, "num_steps": 3, "num_images": 96,
        "loss": 2.0, "data_wait_s": 1.0, "step_s": 3.0,
    }  # fmt: skip


def test_merging_one_changes_nothing():
    assert merge([record(1, 2.0)]) == record(1, 2.0)


TIMES = {"data_wait_s": 0.5, "step_s": 1.5}


def fetch(losses, weights, *, stop=False):
    metrics = Metrics(None)
    metrics.add({"step": 7} | TIMES, losses, weights)
    return metrics.fetch(stop=stop)


def test_means_over_the_batches_of_a_step():
    parts = [{"loss": torch.tensor(1.0), "cosine": torch.tensor(0.5)}, {"loss": torch.tensor(3.0), "cosine": torch.tensor(0.0)}]
    (even,), stop = fetch(parts, [0.5, 0.5])
    assert even == {"step": 7, "loss": 2.0, "cosine": 0.25} | TIMES and not stop
    (uneven,), stop = fetch(parts, [0.75, 0.25], stop=True)
    assert uneven == {"step": 7, "loss": 1.5, "cosine": 0.375} | TIMES and stop  # every example counts the same
    borrowed = {"loss": torch.tensor(math.nan), "cosine": torch.tensor(math.nan)}
    assert fetch([parts[0], borrowed], [1.0, 0.0])[0] == [{"step": 7, "loss": 1.0, "cosine": 0.5} | TIMES]


def test_steps_are_fetched_once_and_in_order():
    metrics = Metrics(None)
    for step in (1, 2):
        metrics.add({"step": step} | TIMES, [{"loss": torch.tensor(step / 2)}], [1.0])
    assert [(step["step"], step["loss"]) for step in metrics.fetch(stop=False)[0]] == [(1, 0.5), (2, 1.0)]
    metrics.add({"step": 3} | TIMES, [{"loss": torch.tensor(1.5)}], [1.0])
    assert [step["step"] for step in metrics.fetch(stop=False)[0]] == [3]


def test_losses_are_fetched_now_and_then_and_on_a_wish_to_stop(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(records.time, "perf_counter", lambda: now[0])
    metrics = Metrics(None)
    metrics.add({"step": 1} | TIMES, [{"loss": torch.tensor(1.0)}], [1.0])
    assert not metrics.due(stop=False) and metrics.due(stop=True)
    now[0] += 60
    assert metrics.due(stop=False)
    metrics.fetch(stop=False)
    assert not metrics.due(stop=False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_named_with_its_step(bad):
    with pytest.raises(FloatingPointError, match="kl is not finite at step 7"):
        fetch([{"loss": torch.tensor(1.0), "kl": torch.tensor(bad)}], [1.0])


def test_the_clock_splits_waiting_from_the_rest(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(records.time, "perf_counter", lambda: now[0])

    def slow():
        for _ in range(3):
            now[0] += 2  # s
            yield {}

    clock, batches = Clock(), slow()
    clock.wait(batches)
    now[0] += 3
    clock.wait(batches)  # of a step of two batches
    assert clock.lap() == {"data_wait_s": 4, "step_s": 3}
    now[0] += 50  # saving a checkpoint, say: no part of any step
    clock.wait(batches)
    now[0] += 1
    assert clock.lap() == {"data_wait_s": 2, "step_s": 1}


def test_the_line_of_an_epoch():
    line = epoch_line(merge([record(1, 0.5), record(2, 0.25)]), epochs=3)
    assert line == (
        "epoch 1/3 | step 2 | loss 0.3750 | learning rate 5.00e-02 | 16 images/s | data wait 1.00 s (25.0%) | compute 3.00 s"
    )


def test_the_best_epoch_is_told_by_validation_where_there_is_one():
    assert epochs_since_best([]) == 0
    assert epochs_since_best([{"loss": loss} for loss in (0.5, 0.2, 0.3, 0.4)]) == 2
    assert epochs_since_best([{"loss": 0.1, "val_loss": 0.3}, {"loss": 0.2, "val_loss": 0.1}]) == 0
    scores = [{"loss": 0.1, "val_loss": 0.1, "val_accuracy": value} for value in (0.5, 0.9, 0.9)]
    assert epochs_since_best(scores) == 1  # the first of equal ones
