"""Loop state, named in one place: what a checkpoint holds is what a resumed run needs to end with the same weights.

Student, optimizer, gradient scaler, position and the random state of every rank; never the teacher. Plain values and tensors
only, so that loading unpickles no object.
"""

import random
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn

from kdnb import distributed
from kdnb.data.keyed import random_words
from kdnb.runs import Run, set_seed


@dataclass
class TrainState:
    """Where training stands."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # optimizer steps done
    images_seen: int = 0
    steps: list[dict] = field(default_factory=list)  # step records, for history.json
    epochs: list[dict] = field(default_factory=list)  # epoch records, for history.json
    pending: list[dict] = field(default_factory=list)  # steps that no step record holds yet


def state_dict(student: nn.Module, optimizer, scaler, at: TrainState) -> dict:
    """The content of a checkpoint; every rank calls it, for its random state."""
    return {
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "position": asdict(at),
        "rng": distributed.gather(_random_state()),
    }


def load(run: Run, student: nn.Module, optimizer, scaler, *, seed: int) -> TrainState:
    """Load the run's newest checkpoint, if there is one; otherwise start at the beginning.

    Random numbers go on where this rank's were. Where none are known they start anew, from the seed, the rank and the step.
    """
    state = run.load_checkpoint()
    at = TrainState() if state is None else TrainState(**state["position"])
    set_seed(seed if distributed.rank() == 0 else int(random_words(1, seed, distributed.rank(), at.step)[0]))
    if state is None:
        return at
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])
    rng = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]  # older checkpoints hold that of rank 0 alone
    if distributed.rank() < len(rng):
        _set_random_state(rng[distributed.rank()])
    print(f"resumed {run.name} at epoch {at.epoch + 1}, step {at.step}", flush=True)
    return at


def _random_state() -> dict:
    """Of everything that draws in this process, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what libraries draw from
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
