"""The loop: learns, accumulates exactly, stops on NaN, and comes back bitwise after a kill anywhere."""

import math
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import training
from caches import write_cache
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training import REGIMES, mse, run_training

from kdnb.distillation.optim import parameter_groups
from kdnb.models.vision import Student, build_model
from kdnb.runs import Run


def weights(student) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in student.state_dict().values()])


@pytest.fixture
def cache(make_cache, tmp_path):
    make_cache(tmp_path / "cache")
    return tmp_path / "cache"


class Crash(Exception):
    pass


def crashing_at(call: int):
    calls = 0

    def loss(*arguments):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Crash
        return mse(*arguments)

    return loss


def test_it_learns_and_writes_what_it_says(cache, tmp_path):
    student, history, run = run_training(cache, tmp_path, "full", epochs=12, keep_checkpoints=2)
    losses = [record["loss"] for record in history["epochs"]]
    assert losses[-1] < 0.7 * losses[0]
    assert [record["step"] for record in history["epochs"]] == [6 * (e + 1) for e in range(12)]
    assert len(history["steps"]) == 72 and history["steps"][-1]["images_seen"] == 72 * 4
    assert run.read("history.json") == history
    assert [path.name for path in run.checkpoints()] == ["step_00000070.pt", "step_00000072.pt"]
    state = run.load_checkpoint()
    assert set(state) == {"student", "optimizer", "scaler", "position", "rng"}
    assert set(state["student"]) == set(student.state_dict())  # and nothing of the teacher


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(student, history) of a run of 18 steps that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_cache(folder / "cache")
    return run_training(folder / "cache", folder, "full")[:2]


@pytest.mark.parametrize("crash_at", range(1, 19))
def test_interrupted_at_any_step_it_ends_with_the_same_weights(cache, tmp_path, undisturbed, crash_at):
    student, history = undisturbed
    with pytest.raises(Crash):
        run_training(cache, tmp_path / "b", "full", crashing_at(crash_at))
    resumed, again, _ = run_training(cache, tmp_path / "b", "full")
    assert torch.equal(weights(student), weights(resumed))
    assert [(r["step"], r["loss"]) for r in history["steps"]] == [(r["step"], r["loss"]) for r in again["steps"]]


def losses(history) -> list[tuple]:
    return [(record["step"], record["loss"]) for record in history["steps"]]


def crashed(cache, outputs):
    """The run "full", which a crash has ended at step 12 of 18, two steps after a checkpoint."""
    with pytest.raises(Crash):
        run_training(cache, outputs, "full", crashing_at(12))
    return Run("full", {"regime": "full"}, outputs=outputs)


def test_a_checkpoint_holds_no_records_and_they_are_cut_back_to_it(cache, tmp_path, undisturbed):
    run = crashed(cache, tmp_path)
    assert losses(run.history()) == losses(undisturbed[1])[:10] and len(run.history()["epochs"]) == 1
    assert run.load_checkpoint()["position"]["records"] == 11 and "steps" not in run.load_checkpoint()["position"]
    run.record([("steps", {"step": 11, "loss": math.pi})])  # as a kill between records and checkpoint leaves it
    _, history, _ = run_training(cache, tmp_path, "full")
    assert losses(history) == losses(undisturbed[1]) and run.history() == history == run.read("history.json")
    (run.folder / "history.json").unlink()
    run_training(cache, tmp_path, "full")
    assert run.read("history.json") == history


def test_a_checkpoint_of_an_older_version_holds_its_records(cache, tmp_path, undisturbed):
    run = crashed(cache, tmp_path)
    state = run.load_checkpoint()
    del state["position"]["records"]
    state["position"] |= run.history()
    run.save_checkpoint(10, state)
    (run.folder / "checkpoints/history.jsonl").unlink()
    _, history, _ = run_training(cache, tmp_path, "full")
    assert losses(history) == losses(undisturbed[1]) and sorted(map(str, history["steps"])) == sorted(
        map(str, run.history()["steps"])
    )


def test_training_goes_on_without_records_that_are_lost_and_says_so(cache, tmp_path, undisturbed, capsys):
    run = crashed(cache, tmp_path)
    (run.folder / "checkpoints/history.jsonl").unlink()
    student, history, _ = run_training(cache, tmp_path, "full")
    assert torch.equal(weights(student), weights(undisturbed[0])) and "11 of 11 records are lost" in capsys.readouterr().out
    assert losses(run.history()) == losses(history) == losses(undisturbed[1])[10:]


def test_killed_processes_end_with_the_same_weights_in_every_regime(cache, tmp_path):
    for regime in REGIMES:
        student, _, _ = run_training(cache, tmp_path / "a", regime)
        torch.save(student.state_dict(), tmp_path / "a" / f"{regime}.pt")
    chance = random.Random(0)
    command = [sys.executable, training.__file__, cache, tmp_path / "b"]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        before = len(list((tmp_path / "b").glob("*/checkpoints/*")))
        deadline = time.monotonic() + 60
        while kills < 3 and process.poll() is None and time.monotonic() < deadline:
            if len(list((tmp_path / "b").glob("*/checkpoints/*"))) != before:  # it trains: kill it somewhere from here
                time.sleep(chance.random() * 0.4)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        output, _ = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, output
        kills += 1
    assert kills == 3 and output.endswith("done\n")
    for regime in REGIMES:
        expected, got = (torch.load(tmp_path / part / f"{regime}.pt", weights_only=True) for part in "ab")
        assert all(torch.equal(expected[name], got[name]) for name in expected), regime


def test_accumulation_equals_one_large_batch(cache, tmp_path):
    """Without dropout and batch statistics, two batches of 4 are one of 8."""
    settings = {"plain": True, "warmup_steps": 0}
    large, _, _ = run_training(cache, tmp_path / "large", "full", batch_size=8, **settings)
    small, history, _ = run_training(cache, tmp_path / "small", "full", batch_size=4, gradient_accumulation_steps=2, **settings)
    assert history["epochs"][-1]["step"] == 9
    assert torch.allclose(weights(large), weights(small), atol=1e-6)


def test_a_last_partial_group_counts_as_it_is(cache, tmp_path):
    _, history, _ = run_training(cache, tmp_path, "full", epochs=1, gradient_accumulation_steps=4, warmup_steps=0)
    assert [record["num_images"] for record in history["steps"]] == [16, 8]


class Projected(training.Net):
    """With a projection on top, as `Student` has it."""

    def __init__(self, plain: bool = False):
        super().__init__(plain)
        self.projection = torch.nn.Linear(5, 5)

    def forward(self, images):
        return {"features": self.projection(super().forward(images)["features"])}


def test_clipping_counts_every_weight_that_is_trained(cache, tmp_path, monkeypatch):
    """Projections, too, though they are dropped later: clipping the student alone costs a student of AdamW more than it gives.

    Measured on CIFAR-10, ResNet-56 to ResNet-8, stored features, 384 steps, 6 paired seeds, at a limit that binds: without the
    projections the held-out loss is higher by 0.0072 (95% 0.0061 to 0.0083) and a linear probe lower by 1.1 points (0.5 to 1.6);
    clipping all weights and clipping none cannot be told apart. At the default limit of 1 no step of these runs was clipped.
    With the cosine loss that limit binds in 3% of the steps, and clipping them is better by 0.0009 (5 seeds, 0.0003 to 0.0015).
    """
    monkeypatch.setattr(training, "Net", Projected)
    norms = []

    def note(optimizer, arguments, settings):
        gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())

    watch = register_optimizer_step_pre_hook(note)
    try:
        run_training(cache, tmp_path / "a", "full", epochs=1, clip_grad_norm=0.05)
        run_training(cache, tmp_path / "b", "full", epochs=1, clip_grad_norm=None)
    finally:
        watch.remove()
    assert norms[:6] == pytest.approx([0.05] * 6, rel=1e-3) and min(norms[6:]) > 0.05


def test_a_step_cap_ends_the_epoch(cache, tmp_path):
    _, history, _ = run_training(cache, tmp_path, "fixed")
    assert [record["step"] for record in history["epochs"]] == [3, 6, 9]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(cache, tmp_path):
    calls = 0

    def loss(*arguments):
        nonlocal calls
        calls += 1
        parts = mse(*arguments)
        return {"loss": parts["loss"] * (math.nan if calls == 5 else 1)}

    with pytest.raises(FloatingPointError, match="loss is not finite at step 5; lower .* step_00000004.pt holds the weights"):
        run_training(cache, tmp_path, "full", loss)
    saved = torch.load(tmp_path / "full/checkpoints/step_00000004.pt", weights_only=True)
    assert all(value.isfinite().all() for value in saved["student"].values())
    assert not (tmp_path / "full/checkpoints/step_00000005.pt").exists()
    calls = 4
    with pytest.raises(FloatingPointError, match="at step 1; lower .* no checkpoint yet: the same run_name takes the new values"):
        run_training(cache, tmp_path / "other", "full", loss)


def test_every_epochs_checkpoint_is_kept_unless_told_otherwise(cache, tmp_path):
    _, _, run = run_training(cache, tmp_path, "full", save_every_steps=None, epochs=4)
    assert [path.name for path in run.checkpoints()] == [f"step_{6 * (epoch + 1):08d}.pt" for epoch in range(4)]


def test_validation_decides_which_model_is_best(cache, tmp_path):
    scores, saved = iter([{"val_loss": loss} for loss in (0.3, 0.1, 0.2)]), []
    run_training(
        cache, tmp_path, "full", validate=lambda student: next(scores), save_model=lambda s, folder: saved.append(folder.name)
    )
    assert saved == ["best_model", "best_model", "final_model"]


def test_training_twice_with_different_precision_in_one_process(cache, tmp_path):
    run_training(cache, tmp_path / "a", "full", mixed_precision="no", epochs=1)
    _, history, _ = run_training(cache, tmp_path / "b", "full", mixed_precision="bf16", epochs=1)
    assert math.isfinite(history["epochs"][0]["loss"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_a_precision_that_the_hardware_lacks_is_refused(cache, tmp_path):
    with pytest.raises(ValueError, match="mixed_precision is fp16, which cpu does not have; choose auto or no"):
        run_training(cache, tmp_path, "full", mixed_precision="fp16")


def test_a_warm_up_longer_than_training_is_refused_before_anything_is_written(cache, tmp_path):
    with pytest.raises(ValueError, match="warmup_steps is 18, but training has 18 steps"):
        run_training(cache, tmp_path, "full", warmup_steps=18)
    assert not list((tmp_path / "full/checkpoints").iterdir())


def test_a_short_last_batch_counts_by_its_examples(tmp_path):
    """Groups of batches that do not hold the same number give the gradient of one large batch."""
    from kdnb.distillation.train import train
    from kdnb.runs import Run, set_seed
    from kdnb.text.batches import TextLoader
    from kdnb.text.tokens import TokenTable

    rows = TokenTable(torch.arange(14).numpy(), torch.ones(14, dtype=torch.int64).numpy())
    gradients = []
    for batch_size, accumulation in ((14, 1), (4, 4)):  # 14 = 4 + 4 + 4 + 2
        set_seed(0)
        student = torch.nn.Linear(1, 1)
        loader = TextLoader({"text": (rows, 0)}, None, batch_size=batch_size, shuffle=False)
        views = lambda tokens, ids, epoch: [tokens["input_ids"].float()]  # noqa: E731
        views.num_global = 1
        run = Run(f"batch{batch_size}", {}, outputs=tmp_path)
        train(
            student, lambda views, batch: [], loader, views=views, run=run, epochs=1, learning_rate=0.1, mixed_precision="no",
            loss=lambda outputs, answers, labels: {"loss": (outputs[0] - 3).square().mean()},
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        gradient = run.load_checkpoint()["optimizer"]["state"][0]["exp_avg"]
        gradients.append(gradient)
        assert run.load_checkpoint()["position"]["images_seen"] == 14
    assert torch.allclose(*gradients, rtol=1e-6)


SMALL = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 1)
    },
    "resnet10t": {},
    "cifar_resnet8": {"width": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_what_a_timm_model_spares_from_weight_decay_is_spared_inside_a_student(name):
    """The same weights as with timm's own call on the model; the projections decay, their biases do not."""
    from timm.optim import param_groups_weight_decay

    model = build_model(name, num_classes=3, **SMALL[name])
    spared = getattr(model, "no_weight_decay", set)()
    assert bool(spared) == (name in ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"))
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=spared)
    theirs = {group["weight_decay"]: group["params"] for group in groups}
    student = Student(model, teacher_dim=8)
    projection = {0.05: [student.projection.weight], 0.0: [student.projection.bias]}
    groups = parameter_groups(student, 0.05)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    for group in groups:
        expected = theirs[group["weight_decay"]] + projection[group["weight_decay"]]
        assert [id(weight) for weight in group["params"]] == [id(weight) for weight in expected]
    if not spared:  # then the groups are, weight by weight, those of a model that says nothing
        plain = [weight for weight in student.parameters() if weight.ndim > 1]
        assert all(a is b for a, b in zip(groups[0]["params"], plain, strict=True))


def test_a_class_token_that_gets_no_gradient_does_not_shrink():
    """AdamW multiplies what decays by 1 - rate x decay a step, whatever its gradient."""
    model = build_model("vit_tiny_patch16_224", num_classes=0, **SMALL["vit_tiny_patch16_224"] | {"patch_size": 16})
    with torch.no_grad():
        model.cls_token.fill_(1.0)
    groups = parameter_groups(Student(model, teacher_dim=5), 0.5)
    for weight in (weight for group in groups for weight in group["params"]):
        weight.grad = torch.zeros_like(weight)
    before = model.blocks[0].mlp.fc1.weight.detach().clone()
    torch.optim.AdamW(groups, lr=0.1).step()
    assert (model.cls_token == 1).all() and torch.allclose(model.blocks[0].mlp.fc1.weight, before * 0.95)
