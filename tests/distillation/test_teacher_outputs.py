"""Stored outputs: what was written is read back, what is not whole does not count, and kills take nothing away."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from kdnb.data.cache_writer import CacheError
from kdnb.data.reader import ShardReader
from kdnb.distillation.teacher_outputs import OutputCodec, TeacherCache

ROW = np.dtype([("features", "<f4", (5,)), ("logits", "<f4", (2,))])
FACTS = {"teacher": "t"}


def store_of(folder, cache, **changes) -> TeacherCache:
    return TeacherCache(folder, ShardReader(cache), **{"row": ROW, "num_views": 2, "facts": FACTS} | changes)


def rows_of(ids, view=0) -> np.ndarray:
    """What the output of an image and view is: its id in features, its view in logits."""
    rows = np.zeros(len(ids), dtype=ROW)
    rows["features"] = np.asarray(ids)[:, None] + np.arange(5)
    rows["logits"] = view
    return rows


def test_outputs_come_back_in_the_order_asked_for_and_only_those_stored(cache, tmp_path):
    """27 images with ids 100 to 126 in shards of 10, 10 and 7."""
    store = store_of(tmp_path / "a", cache[0])
    ids = np.array([126, 100, 111, 109])
    store.write(ids, 1, rows_of(ids, 1))
    for reopened in (store, store_of(tmp_path / "a", cache[0])):
        wanted = np.array([109, 105, 126])
        rows, present = reopened.read(wanted, 1)
        assert present.tolist() == [True, False, True] and (rows[present] == rows_of([109, 126], 1)).all()
        assert not reopened.read(wanted, 0)[1].any()
        assert reopened.present(np.arange(27), 1).nonzero()[0].tolist() == [0, 9, 11, 26]
    names = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*.bin"))
    assert names == [f"view_001/answers_shard_0000{shard}.bin" for shard in range(3)]


def test_a_row_that_was_altered_does_not_count_and_verify_names_its_file(cache, tmp_path):
    store, ids = store_of(tmp_path / "a", cache[0]), np.arange(100, 110)
    store.write(ids, 0, rows_of(ids))
    path = tmp_path / "a/view_000/answers_shard_00000.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the last row, image 109
    path.write_bytes(data)
    again = store_of(tmp_path / "a", cache[0])
    rows, present = again.read(ids, 0)
    assert present.tolist() == [True] * 9 + [False]
    (fault,) = again.verify()
    assert fault.file == "view_000/answers_shard_00000.bin" and "1 rows that do not fit their checksum" in fault.what
    again.write(ids[9:], 0, rows_of(ids[9:]))
    assert again.verify() == [] and (again.read(ids, 0)[0] == rows_of(ids)).all()


def test_a_record_without_its_row_and_a_file_of_something_else_do_not_count(cache, tmp_path):
    store, ids = store_of(tmp_path / "a", cache[0]), np.array([100])
    store.write(ids, 0, rows_of(ids))
    path = tmp_path / "a/view_000/answers_shard_00000.bin"
    (tmp_path / "a/view_001").mkdir()
    (tmp_path / "a/view_001/answers_shard_00000.bin").write_bytes(path.read_bytes())  # another view's file
    again = store_of(tmp_path / "a", cache[0])
    with pytest.raises(CacheError, match="does not hold the outputs that its folder says; delete it"):
        again.read(ids, 1)
    assert [fault.file for fault in again.verify()] == ["view_001/answers_shard_00000.bin"]


def test_a_folder_of_other_outputs_is_refused(cache, tmp_path):
    store_of(tmp_path / "a", cache[0])
    with pytest.raises(ValueError, match="answers.json says that its folder holds other outputs"):
        store_of(tmp_path / "a", cache[0], facts={"teacher": "another"})


def test_facts_belong_together_in_whatever_order(cache, tmp_path):
    """The settings of a transform may change places in its class; a file that was written before is read all the same."""
    ids = np.arange(100, 110)
    store_of(tmp_path / "a", cache[0], facts={"teacher": "t", "views": {"seed": 0, "size": 8}}).write(ids, 0, rows_of(ids))
    again = store_of(tmp_path / "a", cache[0], facts={"views": {"size": 8, "seed": 0}, "teacher": "t"})
    assert again.verify() == [] and again.read(ids, 0)[1].all()


def test_an_image_of_another_cache_is_refused(cache, tmp_path):
    with pytest.raises(ValueError, match="image 99 is not in the cache"):
        store_of(tmp_path / "a", cache[0]).read(np.array([100, 99]), 0)


def test_outputs_stay_when_the_cache_grows(make_cache, tmp_path):
    make_cache(tmp_path / "cache", (10, 10, 7))
    store, ids = store_of(tmp_path / "a", tmp_path / "cache"), np.arange(120, 127)
    store.write(ids, 0, rows_of(ids))
    make_cache(tmp_path / "cache", (10, 10, 10, 4))
    grown = store_of(tmp_path / "a", tmp_path / "cache")
    more = np.arange(120, 134)
    rows, present = grown.read(more, 0)
    assert present.tolist() == [True] * 7 + [False] * 7 and (rows[:7] == rows_of(ids)).all()
    grown.write(more, 0, rows_of(more))
    assert (grown.read(more, 0)[0] == rows_of(more)).all() and grown.verify() == []


def test_space_that_is_still_needed_shrinks_as_files_are_made(cache, tmp_path):
    store = store_of(tmp_path / "a", cache[0])
    before, one_shard = store.bytes_needed(np.arange(27)), store.bytes_needed(np.arange(10))
    assert one_shard == 2 * (8192 + 10 * ROW.itemsize) and before == 2 * (3 * 8192 + 27 * ROW.itemsize)
    store.write(np.array([100]), 0, rows_of([100]))
    assert store.bytes_needed(np.arange(27)) == before - one_shard // 2
    assert (tmp_path / "a/view_000/answers_shard_00000.bin").stat().st_size == one_shard // 2


def test_two_that_make_the_same_file_at_once_lose_nothing(cache, tmp_path):
    stores, both = [store_of(tmp_path / "a", cache[0]) for _ in range(2)], threading.Barrier(2)

    def fill(store, ids):
        both.wait(timeout=10)
        store.write(ids, 0, rows_of(ids))

    parts = [np.arange(100, 105), np.arange(105, 110)]
    threads = [threading.Thread(target=fill, args=pair) for pair in zip(stores, parts, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store_of(tmp_path / "a", cache[0]).read(np.arange(100, 110), 0)[1].all()


def test_what_a_kill_left_of_a_file_goes_when_the_file_is_made(cache, tmp_path):
    left = tmp_path / "a/view_000/.answers_shard_00000.bin.1a2b3c4d.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    store_of(tmp_path / "a", cache[0]).write(np.arange(100, 105), 0, rows_of(np.arange(100, 105)))
    assert [path.name for path in left.parent.iterdir()] == ["answers_shard_00000.bin"]


def codec(**changes) -> OutputCodec:
    return OutputCodec(**{"feature_dim": 4, "num_classes": 3, "storage": "float32"} | changes)


@pytest.mark.parametrize("storage, tolerance", [("float32", 0), ("float16", 1e-3)])
def test_outputs_survive_the_format(storage, tolerance):
    output = {"features": torch.randn(6, 4), "logits": torch.randn(6, 3), "layers": [torch.randn(6, 2)]}
    rows = codec(storage=storage, layer_dims=(2,)).encode(output)
    back = codec(storage=storage, layer_dims=(2,)).decode(rows, torch.device("cpu"))
    assert rows.dtype.itemsize == 9 * (4 if storage == "float32" else 2)
    for name in ("features", "logits"):
        assert torch.allclose(back[name], output[name], atol=tolerance, rtol=0) and back[name].dtype == torch.float32
    assert torch.allclose(back["layers"][0], output["layers"][0], atol=tolerance, rtol=0)


def test_the_largest_logits_are_exact_and_the_rest_shares_its_mass():
    """Logits log(0.5), log(0.3), log(0.1), log(0.1): two kept, 0.2 spread over the other two."""
    logits = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.1, 0.5, 0.1, 0.3]]).log() + 7
    pair = codec(num_classes=4, top_k=2)
    back = pair.decode(pair.encode({"features": torch.zeros(2, 4), "logits": logits}), torch.device("cpu"))
    assert torch.allclose(back["logits"].softmax(-1), logits.softmax(-1), atol=1e-6)
    certain = pair.encode({"features": torch.zeros(1, 4), "logits": torch.tensor([[200.0, 0, 0, 0]])})
    probabilities = pair.decode(certain, torch.device("cpu"))["logits"].softmax(-1)
    assert torch.allclose(probabilities, torch.tensor([[1.0, 0, 0, 0]]), atol=1e-6)


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="features of the teacher does not fit into float16; set teacher_storage to float32"):
        codec(storage="float16", num_classes=0).encode({"features": torch.full((1, 4), 1e5)})
    with pytest.raises(ValueError, match="features of the teacher is not finite"):
        codec(num_classes=0).encode({"features": torch.full((1, 4), float("nan"))})
    with pytest.raises(ValueError, match="teacher_storage is 'bfloat16'; allowed are float16, float32"):
        codec(storage="bfloat16")
    with pytest.raises(ValueError, match="teacher_top_k is 3, but the teacher has 3 classes"):
        codec(top_k=3)


FILL = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[3])
from test_teacher_outputs import rows_of, store_of
from pathlib import Path
store, dice = store_of(Path(sys.argv[1]), Path(sys.argv[2])), np.random.default_rng(int(sys.argv[4]))
print("ready", flush=True)
while True:
    ids, view = dice.permutation(np.arange(100, 127))[:4], int(dice.integers(2))
    store.write(ids, view, rows_of(ids, view))
    print(*ids, view, flush=True)  # these are stored for good
"""


def kill_while_filling(cache, folder, kills: int) -> dict:
    """Fill from a process that is killed again and again; after each kill, every stored row must be there and right."""
    dice, told, counts = random.Random(0), set(), {"kills": 0, "rows": 0, "files made while killed": 0}
    here = os.path.dirname(os.path.abspath(__file__))
    for number in range(kills):
        command = [sys.executable, "-c", FILL, folder, cache, here, str(number)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(dice.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().split("\n")[:-1]  # the last one may be cut short
        process.wait()
        counts["kills"] += 1
        for line in lines:
            *ids, view = map(int, line.split())
            told |= {(image, view) for image in ids}
        store = store_of(folder, cache)
        assert store.verify() == []
        for view in range(2):
            ids = np.arange(100, 127)
            rows, present = store.read(ids, view)
            assert (rows[present] == rows_of(ids[present], view)).all()
            assert {image for image, seen in told if seen == view} <= set(ids[present].tolist())
            counts["rows"] += int(present.sum())
        counts["files made while killed"] += len(list(folder.rglob(".*.tmp")))
        if number % 10 == 9:  # begin anew, so that files are made again, too
            for path in folder.rglob("*.bin"):
                path.unlink()
            told.clear()
    return counts


def test_kills_leave_no_wrong_row_and_take_none_away(cache, tmp_path):
    counts = kill_while_filling(cache[0], tmp_path / "a", 3)
    assert counts["kills"] == 3 and counts["rows"] > 0


@pytest.mark.benchmark
def test_a_hundred_kills(cache, tmp_path):
    print("\n" + json.dumps(kill_while_filling(cache[0], tmp_path / "a", 100)))
