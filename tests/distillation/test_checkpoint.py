"""Random numbers in a checkpoint: each rank's own, and fresh ones for a rank that was not there when it was written."""

import pytest
import torch

from kdnb import distributed
from kdnb.distillation.checkpoint import TrainState, load, state_dict
from kdnb.runs import Run


@pytest.fixture
def on(monkeypatch, tmp_path):
    """Function that restores the run as rank `rank` and returns what it draws next."""

    def draw(rank: int, *, seed: int = 5) -> list[float]:
        newest = max((path.name for path in tmp_path.glob("r/checkpoints/*.pt")), default=None)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "broadcast", lambda value: newest if value is None else value)  # as rank 0 finds it
        student = torch.nn.Linear(1, 1)
        load(Run("r", {}, outputs=tmp_path), student, torch.optim.AdamW(student.parameters()), None, seed=seed)
        return torch.rand(3).tolist()

    return draw


def save(run: Run, step: int, states: list, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "gather", lambda mine: states)
    student = torch.nn.Linear(1, 1)
    run.save_checkpoint(step, state_dict(student, torch.optim.AdamW(student.parameters()), None, TrainState(step=step)))


def state_of(seed: int) -> tuple[dict, list[float]]:
    """(a random state, what is drawn after it)."""
    student = torch.nn.Linear(1, 1)
    torch.manual_seed(seed)
    (rng,) = state_dict(student, torch.optim.AdamW(student.parameters()), None, TrainState())["rng"]
    return rng, torch.rand(3).tolist()


def test_a_new_run_draws_from_the_seed_on_rank_0_and_from_seed_and_rank_elsewhere(on, tmp_path):
    assert on(0) == state_of(5)[1]
    assert len({tuple(on(rank, seed=seed)) for rank in range(4) for seed in (5, 6)}) == 8
    assert on(3) == on(3)


def test_each_rank_goes_on_where_it_was_and_a_new_one_starts_anew_at_every_step(on, tmp_path, monkeypatch):
    run, known = Run("r", {}, outputs=tmp_path), [state_of(seed) for seed in (11, 12)]
    new = [on(2)]
    for step in (7, 8):
        save(run, step, [state for state, _ in known], monkeypatch)
        assert [on(0), on(1)] == [drawn for _, drawn in known]
        new.append(on(2))
    assert len({tuple(drawn) for drawn in new}) == 3 and new[-1] == on(2)


def test_a_checkpoint_from_before_ranks_had_numbers_of_their_own_is_that_of_rank_0(on, tmp_path, monkeypatch):
    state, drawn = state_of(11)
    save(Run("r", {}, outputs=tmp_path), 7, state, monkeypatch)  # a dict, as it was, and no list
    assert on(0) == drawn != on(1)
