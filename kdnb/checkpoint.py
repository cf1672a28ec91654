"""Loop state, named in one place: what a checkpoint holds is what a resumed run needs to end with the same weights.

Student, optimizer, gradient scaler, position and every random state; never the teacher. Plain values and tensors only, so
that loading unpickles no object.
"""

import random
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import nn

from kdnb.runs import Run


@dataclass
class Position:
    """Where training stands."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # optimizer steps done
    images_seen: int = 0
    steps: list[dict] = field(default_factory=list)  # step records, for history.json
    epochs: list[dict] = field(default_factory=list)  # epoch records, for history.json
    pending: list[dict] = field(default_factory=list)  # steps that no step record holds yet


def pack(student: nn.Module, optimizer, scaler, at: Position) -> dict:
    """The content of a checkpoint."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what libraries draw from
    rng = {"python": random.getstate(), "numpy": (kind, torch.from_numpy(keys), *rest), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return {
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "position": asdict(at),
        "rng": rng,
    }


def restore(run: Run, student: nn.Module, optimizer, scaler) -> Position:
    """Load the run's newest checkpoint, if there is one; otherwise start at the beginning."""
    state = run.load_checkpoint()
    if state is None:
        return Position()
    student.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(state["scaler"])
    kind, keys, *rest = state["rng"]["numpy"]
    random.setstate(state["rng"]["python"])
    np.random.set_state((kind, keys.numpy(), *rest))  # noqa: NPY002
    torch.set_rng_state(state["rng"]["torch"])
    if torch.cuda.is_available() and "cuda" in state["rng"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"])
    at = Position(**state["position"])
    print(f"resumed {run.name} at epoch {at.epoch + 1}, step {at.step}", flush=True)
    return at
