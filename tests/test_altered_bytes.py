"""Whatever happens to the bytes of a file, it is found, or healed, or what is read is what was written: never silent, never raw.

KDNB_FLIPS says how many bits of each file are altered, one at a time.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from caches import write_cache
from safetensors.torch import load_file

from kdnb.data.cache import BrokenIndex, ShardError, adopt_shard, open_shard, read_index, rebuild_index, shard_name
from kdnb.data.cache_writer import CacheError
from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.reader import ShardReader
from kdnb.distillation.teacher_model import builtin_teacher
from kdnb.distillation.teacher_outputs import TeacherCache
from kdnb.files import SUMS, Damaged, memoize, read_json, read_tensors, write_json, write_tensors
from kdnb.models.folder import is_whole, load_model, save_model
from kdnb.models.vision import build_model
from kdnb.models.weights import read_weights, weights_fingerprint
from kdnb.runs import Run

FLIPS = int(os.environ.get("KDNB_FLIPS", 15))
VALUES = {"loss": [0.5, 1e-3], "name": "ä", "none": None}
ROW = np.dtype([("features", "<f4", (5,))])


def damaged(path: Path) -> Iterator[str]:
    """Flip bits of the file, shorten it, put something else in its place; afterwards it is as before."""
    generator, good = np.random.default_rng(0), path.read_bytes()
    for _ in range(FLIPS):
        altered, at, bit = bytearray(good), int(generator.integers(len(good))), int(generator.integers(8))
        altered[at] ^= 1 << bit
        path.write_bytes(altered)
        yield f"bit {bit} of byte {at}"
        remove(path)
    for length in {0, 1, *generator.integers(len(good), size=FLIPS // 3).tolist(), len(good) - 1}:
        path.write_bytes(good[:length])
        yield f"cut to {length}"
        remove(path)
    path.mkdir()
    yield "a folder"
    remove(path)
    for target in (path, path.with_name("nowhere")):
        path.symlink_to(target)
        yield f"a link to {target.name}"
        remove(path)
    path.write_bytes(good)


def remove(path: Path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def plain_values(folder: Path):
    write_json(path := folder / "a.json", VALUES)

    def read():  # a bit of the name of the checksum leaves one value more
        values = read_json(path)
        assert {name: values[name] for name in VALUES} == VALUES

    return [path], read, Damaged


def tensors(folder: Path):
    write_tensors(path := folder / "a.pt", {"weights": torch.arange(300.0), "values": VALUES})

    def read():
        for mmap in (True, False):
            content = read_tensors(path, mmap=mmap)
            assert torch.equal(content["weights"], torch.arange(300.0)) and content["values"] == VALUES

    return [path], read, Damaged


def result(folder: Path):
    """Tokens, logits of texts, what is known of a teacher, scores: made again."""
    path = folder / "kept.pt"
    memoize(path, lambda: VALUES)

    def read():
        assert memoize(path, lambda: VALUES) == VALUES == memoize(path, lambda: None)

    return [path], read, ()


def checkpoint(folder: Path):
    """The one before is used."""
    run = Run("a", {}, outputs=folder)
    for step in (5, 10):
        run.save_checkpoint(step, {"weights": torch.full((99,), float(step))})

    def read():
        weights = run.load_checkpoint()["weights"]
        assert torch.equal(weights, torch.full((99,), weights[0])) and weights[0] in (5, 10)

    return [run.checkpoints()[-1]], read, ()


def file_of_a_run(folder: Path):
    run = Run("a", {}, outputs=folder)
    run.finish(VALUES)

    def read():
        values = run.read("summary.json")
        assert {name: values[name] for name in VALUES} == VALUES

    return [run.folder / "summary.json"], read, ValueError


def records_of_a_run(folder: Path):
    run = Run("a", {}, outputs=folder)
    records = [{"step": step, "loss": 1 / (3 + step)} for step in range(5)]
    run.record(("steps", record) for record in records)

    def read():  # a checkpoint says how many there were
        steps = run.history()["steps"]
        assert steps == records[: len(steps)]

    return [run.folder / "checkpoints/history.jsonl"], read, ValueError


def model_folder(folder: Path):
    save_model(model := build_model("cifar_resnet8", width=2), folder / "m")
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "m/model.safetensors").items()}  # not mapped

    def read():
        loaded = load_model(folder / "m")
        assert weights_fingerprint(loaded) == weights_fingerprint(model) and loaded.kdnb_args == {"width": 2}
        again = read_weights(folder / "m/model.safetensors")[0]
        assert is_whole(folder / "m") and all(torch.equal(again[name], weights[name]) for name in weights)

    paths = [folder / "m" / name for name in ("model.safetensors", "config.json", SUMS)]
    return paths, read, (Damaged, FileNotFoundError)


def shard(folder: Path):
    images = write_cache(folder / "c")[10:20]

    def read():
        for content in (open_shard(path), adopt_shard(path) and open_shard(path)):
            assert torch.equal(content["images"], images) and content["ids"].tolist() == list(range(110, 120))

    return [path := folder / "c" / shard_name(1)], read, ShardError


def index(folder: Path):
    """Rebuilt from the shards."""
    write_cache(folder)
    whole = read_index(folder)

    def read():
        try:
            now = read_index(folder)
            assert {name: now[name] for name in whole} == whole
        except BrokenIndex:
            assert rebuild_index(folder) == whole == read_index(folder)

    return [folder / "index.json"], read, ()


def teacher_outputs(folder: Path):
    """Rows are computed again; answers.json is written again, but where a bit of its checksum's name is another."""
    write_cache(folder / "c")
    ids = np.arange(100, 110)
    rows = np.zeros(10, ROW)
    rows["features"] = ids[:, None]

    def opened() -> TeacherCache:
        return TeacherCache(folder / "o", ShardReader(folder / "c"), row=ROW, num_views=1, facts={"teacher": "t"})

    opened().write(ids, 0, rows)

    def read():
        found, present = opened().read(ids, 0)
        assert (found[present] == rows[present]).all()

    return [folder / "o/answers.json", folder / "o/view_000/answers_shard_00000.bin"], read, (CacheError, ValueError)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [plain_values, tensors, result, checkpoint, file_of_a_run, records_of_a_run, model_folder, shard, index, teacher_outputs],
)
def test_it_is_found_or_healed_or_harmless(tmp_path, kind: Callable):
    paths, read, errors = kind(tmp_path)
    read()
    for path in paths:
        for what in damaged(path):
            try:
                read()
            except errors as error:
                assert path.name in str(error) or SUMS in str(error), what
    read()


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path, capsys):
    run = Run("a", {}, outputs=tmp_path)
    for step in (5, 10, 20):
        run.save_checkpoint(step, {"step": step})
    for step in (10, 20):
        (run.folder / f"checkpoints/step_{step:08d}.pt").write_bytes(b"PK")
    assert run.load_checkpoint() == {"step": 5}
    said = capsys.readouterr().out
    assert "step_00000020.pt is damaged" in said and "set aside as step_00000010.pt.damaged" in said
    assert said.count("going on from step_00000005.pt") == 2
    (run.folder / "checkpoints/step_00000006.pt").mkdir()  # nobody's, and in the way
    run.save_checkpoint(7, {"step": 7}, keep=1)  # what was set aside does not count
    assert run.load_checkpoint() == {"step": 7} and len(run.checkpoints()) == 1
    run.checkpoints()[0].write_bytes(b"")
    with pytest.raises(ValueError, match=r"step_00000007.pt is damaged .* delete .*checkpoints to begin anew"):
        run.load_checkpoint()
    assert len(run.checkpoints()) == 1  # nothing is set aside for nothing


def test_what_has_no_checksum_is_read_as_it_is(tmp_path):
    """Files of earlier versions, and of others."""
    (tmp_path / "a.json").write_text('{"loss": 0.5}')
    assert read_json(tmp_path / "a.json") == {"loss": 0.5}
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "old.pth")["w"], torch.ones(2))
    save_model(build_model("cifar_resnet8", width=2), tmp_path / "m")
    (tmp_path / "m" / SUMS).unlink()
    assert load_model(tmp_path / "m").kdnb_args == {"width": 2}


def test_a_shard_that_was_shortened_is_said_before_the_epoch(cache):
    """A page behind its end would end the process."""
    data = CachedTensorDataset(cache[0])
    data.set_epoch(0)
    path = cache[0] / shard_name(1)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ShardError, match="images_shard_00001.pt has .* bytes where the index says"):
        data.set_epoch(1)


def test_the_built_in_teacher_is_written_again_from_its_checkpoint(tmp_path, digits_teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(digits_teacher, tmp_path / "outputs/teacher_digits")
    path = tmp_path / "outputs/teacher_digits/final_model/model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert builtin_teacher() == path.parent and is_whole(path.parent) and path.read_bytes() == good
