"""What the processes of tests/test_distributed.py do: `python -m torch.distributed.run --nproc-per-node N <this file> …`."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from training import Net, frozen_teacher, mse

from kdnb import distributed
from kdnb.data.loader import build_pretraining_dataloader
from kdnb.data.views import SimpleTransform
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.runs import Run, set_seed
from kdnb.text.batches import TextLoader
from kdnb.text.tokens import TokenTable

_DRAWING = {"plain": False, "batch_size": 8, "epochs": 6}  # dropout, and batch norm, which wants two images a rank


def images(cache: Path, out: Path, **changes):
    """A net on a cache: losses per step, and of each step on this rank the ids and what dropout let through."""
    settings = {"batch_size": 4, "epochs": 3, "name": "images", "gradient_accumulation_steps": 1, "plain": True} | changes
    name, batch_size = settings.pop("name"), settings.pop("batch_size")
    stop_at, kill_at = settings.pop("stop_at", None), settings.pop("kill_at", None)
    set_seed(0)
    student, teacher, seen, masks = Net(settings.pop("plain")), frozen_teacher(find_device()), [], []
    for part in student.body:
        if isinstance(part, torch.nn.Dropout):
            part.p = settings.pop("dropout", part.p)
            part.register_forward_hook(lambda part, given, taken: masks.append((taken != 0).int().flatten().tolist()))

    def watch(views, batch):
        seen.append(batch["id"].tolist())
        if stop_at is not None and distributed.rank() == distributed.world() - 1 and len(seen) == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        if len(seen) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return teacher(views, batch)

    order = {"shuffle": "all", "gradient_accumulation_steps": settings["gradient_accumulation_steps"]}
    order |= {"reuse_buffers": True, "device": find_device()}
    loader = build_pretraining_dataloader(cache_dir=cache, batch_size=batch_size, **order)
    views = SimpleTransform(size=4)
    settings |= {"learning_rate": 1e-2, "warmup_steps": 2, "mixed_precision": "no"}
    history = train(student, watch, loader, views=views, loss=mse, run=Run(name, {}, outputs=out), **settings)
    result = {"losses": [record["loss"] for record in history["steps"]], "seen": seen, "masks": masks}
    return result | {"weights": torch.cat([weight.flatten() for weight in student.parameters()]).tolist()}


def texts(out: Path):
    """14 texts in batches of 4 on up to 4 processes: the last batch of 2 leaves some with nothing, and one group is short."""
    set_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Linear(4, 1))
    rows = TokenTable(torch.arange(14).numpy(), torch.ones(14, dtype=torch.int64).numpy())
    loader = TextLoader({"text": (rows, 0)}, None, batch_size=4, device=find_device())
    views = lambda tokens, ids, epoch: [tokens["input_ids"].float() / 14]  # noqa: E731
    views.num_global = 1
    history = train(
        student, lambda views, batch: [], loader, views=views, run=Run("texts", {}, outputs=out), epochs=2, learning_rate=0.1,
        loss=lambda outputs, answers, labels: {"loss": (outputs[0] - 3).square().mean()}, mixed_precision="no",
        gradient_accumulation_steps=3,
    )  # fmt: skip
    return {"losses": [r["loss"] for r in history["steps"]]}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    cache, out, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if what == "all":
        result = {"images": images(cache, out), "accumulated": images(cache, out, name="a", gradient_accumulation_steps=2)}
        result |= {"texts": texts(out), "dropout": images(cache, out, name="dropout", **_DRAWING)}
        result["name"] = Run(None, {}, outputs=out).name
        try:
            images(cache, out, name="odd", batch_size=distributed.world() + 1 if distributed.world() > 1 else 4)
        except ValueError as error:
            result["odd"] = str(error)
        try:
            distributed.require_same("the cache", "a" if distributed.rank() == 0 else "b")
        except ValueError as error:
            result["different"] = str(error)
    elif what == "stop":
        try:
            images(cache, out, name="stopped", stop_at=7)
        except Exception as error:
            result = {"stopped": f"{type(error).__name__}: {error}"}
    elif what == "go on":
        result = images(cache, out, name="stopped")
    elif what == "sync":
        result = images(
            cache, out, name="sync", **_DRAWING, dropout=0.0, batch_norm="sync" if distributed.world() > 1 else "local"
        )
    elif what == "killed":
        images(cache, out, name="killed", **_DRAWING, save_every_steps=2, kill_at=9)
    elif what == "go on after a kill":
        result = images(cache, out, name="killed", **_DRAWING)
    (out / f"{what}_{distributed.world()}_{distributed.rank()}.json").write_text(json.dumps(result))
