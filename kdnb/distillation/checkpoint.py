"""Training state, named in one place: what a checkpoint holds is what a resumed run needs to end with the same weights.

Student, optimizer, gradient scaler, `TrainState` and the random state of every rank; never the teacher. Records stand beside it,
a line each (`Run.record`), of which a checkpoint holds only how many are its own: what it costs does not grow with the run. Not
Accelerate's `save_state`: a checkpoint is one file that appears whole or not at all, of plain values and tensors, so that no
object is unpickled.
"""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from kdnb import distributed
from kdnb.data.keyed import random_words
from kdnb.runs import Run, set_seed


@dataclass
class TrainState:
    """Where training stands, and what it has recorded. On the disk all but the records is the checkpoint's "position"."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # optimizer steps done
    images_seen: int = 0
    pending: list[dict] = field(default_factory=list)  # steps that no step record holds yet
    records: int = 0  # on the disk that belong to the checkpoint
    steps: list[dict] = field(default_factory=list)  # step records
    epochs: list[dict] = field(default_factory=list)  # epoch records
    unsaved: list[tuple[str, dict]] = field(default_factory=list)  # records that are not on the disk yet

    def record(self, kind: str, record: dict):
        """Add a record to `steps` or `epochs`."""
        getattr(self, kind).append(record)
        self.unsaved.append((kind, record))


def save(run: Run, student: nn.Module, optimizer, scaler, state: TrainState, *, keep: int | None = None):
    """Write a checkpoint of `run`, and before it the records since the last one; every rank calls it, for its random state."""
    run.record(state.unsaved)
    state.records, state.unsaved = state.records + len(state.unsaved), []
    run.save_checkpoint(state.step, state_dict(student, optimizer, scaler, state), keep=keep)


def state_dict(student: nn.Module, optimizer, scaler, state: TrainState) -> dict:
    """The content of a checkpoint; every rank calls it."""
    return {
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "position": {name: value for name, value in vars(state).items() if name not in ("steps", "epochs", "unsaved")},
        "rng": distributed.gather(_random_state()),
    }


def load(run: Run, student: nn.Module, optimizer, scaler, *, seed: int) -> TrainState:
    """Load the run's newest checkpoint, if there is one; otherwise start at the beginning.

    Random numbers go on where this rank's were. Where none are known they start anew, from the seed, the rank and the step.
    """
    checkpoint, rank = run.load_checkpoint(), distributed.rank()
    state = TrainState() if checkpoint is None else TrainState(**checkpoint["position"])
    _load_records(run, state)
    set_seed(seed if rank == 0 else int(random_words(1, seed, rank, state.step)[0]))
    if checkpoint is None:
        return state
    student.load_state_dict(checkpoint["student"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(checkpoint["scaler"])
    rng = checkpoint["rng"] if isinstance(checkpoint["rng"], list) else [checkpoint["rng"]]  # older ones: rank 0's alone
    if rank < len(rng):
        _set_random_state(rng[rank])
    print(f"resumed {run.name} at epoch {state.epoch + 1}, step {state.step}", flush=True)
    return state


def _load_records(run: Run, state: TrainState):
    """The records that belong to the checkpoint; those of later steps, which are made again, leave the disk."""
    state.unsaved = [(kind, record) for kind in ("steps", "epochs") for record in getattr(state, kind)]
    if not state.unsaved:  # else an older version's checkpoint, which holds them itself
        history = run.history(state.records)
        state.steps, state.epochs = history["steps"], history["epochs"]
        if (known := len(state.steps) + len(state.epochs)) < state.records:
            lost = f"{state.records - known} of {state.records} records are lost"
            print(f"{run.name}: {lost}, checkpoints/history.jsonl does not hold them", flush=True)
            state.records = known
    run.cut_records(state.records)


def _random_state() -> dict:
    """Of everything that draws in this process, as plain values and tensors."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - the global state is what libraries draw from
    kind, keys, *rest = numpy_state
    keys = torch.from_numpy(keys.astype(np.int64))  # as uint32 they could not be sent to another rank
    state = {"python": random.getstate(), "numpy": (kind, keys, *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict):
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
