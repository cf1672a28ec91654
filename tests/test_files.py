"""Files appear whole or not at all, also when several write the same one."""

import multiprocessing
import threading

import pytest
import torch

from kdnb.files import Held, hash_of, memoize, only_process, remove_temporary, write_atomically


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, lambda file: file.write(b"old"))

    def broken(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, broken)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_two_writers_of_one_file_leave_one_whole_file(tmp_path):
    """Both are inside the write at the same time; neither takes the other's temporary file away."""
    path, both = tmp_path / "a.bin", threading.Barrier(2)

    def write(letter):
        def fill(file):
            file.write(letter * 1000)
            both.wait(timeout=10)

        write_atomically(path, fill)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 1000, b"b" * 1000) and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def is_held(path) -> bool:
    """Whether a process of its own finds it held."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_cannot_hold, (path,))


def _cannot_hold(path) -> bool:
    try:
        with only_process(path):
            return False
    except Held:
        return True


def test_a_file_that_is_held_twice_is_held_until_the_outer_block_ends(tmp_path):
    path = tmp_path / ".lock"
    with only_process(path):
        with only_process(path):
            assert is_held(path)
        assert is_held(path)
    assert not is_held(path)


def test_what_a_kill_left_is_removed(tmp_path):
    for name in (".a.bin.1234abcd.tmp", ".b.tmp", "c.tmp", ".d"):
        (tmp_path / name).touch()
    assert remove_temporary(tmp_path) == [".a.bin.1234abcd.tmp", ".b.tmp"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".d", "c.tmp"]


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None]}, (torch.tensor([1, 2], dtype=torch.uint16), 2), {"w": torch.ones(2)}])
def test_what_was_computed_once_is_read_from_then_on(tmp_path, value):
    path, calls = tmp_path / "new" / "kept.pt", []
    for _ in range(2):
        value_read = memoize(path, lambda: calls.append(1) or value)
        assert str(value_read) == str(value)
    assert len(calls) == 1


def test_a_damaged_file_is_computed_again(tmp_path):
    path = tmp_path / "kept.pt"
    memoize(path, lambda: torch.ones(100))
    path.write_bytes(path.read_bytes()[:200])
    assert memoize(path, lambda: 2) == 2 and memoize(path, lambda: 3) == 2


def test_memoize_goes_on_where_the_disk_takes_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert memoize(tmp_path / "file" / "x.pt", lambda: 5) == 5
    assert "x.pt cannot be kept, and is computed again the next time: " in capsys.readouterr().out


def test_a_hash_does_not_depend_on_the_order_of_names():
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1}) != hash_of({"a": 1, "b": [3]})
