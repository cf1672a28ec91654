"""Files that appear whole or not at all, checksums taken on the way, results kept in them, and files that one process holds.

A file is written under a temporary name of its own (`.<name>.<random>.tmp`), flushed to the disk and renamed: a process killed
at any time leaves the old file or the new one, and at most one temporary file that nobody reads; of two processes that write
the same file, on one machine or on two, the later one wins with a whole file. Cost: one fsync per file.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

T = TypeVar("T")


class Held(Exception):
    """Another process holds the file; says which one, where, and since when."""


class HashingFile:
    """A file to write to that counts and hashes the bytes on their way.

    Attributes:
        size: bytes so far. sha256: of them. error: what the disk raised when it refused one.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.sha256.update(data)
        self.size += written
        return written

    def flush(self):
        self._file.flush()


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, about 1 GB/s."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[BinaryIO], T]) -> T:
    """Call `write` with a temporary file that becomes `path` once all of it is on the disk; returns its result."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            result = write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, its space is what the next attempt needs
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # only after this does the new name itself survive a power cut
    finally:
        os.close(folder)
    return result


def write_json(path: Path, content: object, **settings):
    """Write plain values as indented JSON, atomically."""
    text = json.dumps(content, indent=1, **settings) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def hash_of(facts: object, *, length: int = 32) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of plain values as sorted JSON; others count by their `str`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:length]


def memoize(path: Path, compute: Callable[[], T]) -> T:
    """What the file `path` holds; where it is missing or cannot be read, `compute()`, which is then written there.

    The suffix decides the format: `.json` plain values, `.npy` a NumPy array (memory mapped, read-only), `.pt` tensors and plain
    values. None is unpickled. Put what the result depends on into the file's name, with `hash_of`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / f"sum_{hash_of([1, 2])}.json"
        >>> memoize(path, lambda: 1 + 2), memoize(path, lambda: "not computed again")
        (3, 3)
    """
    load, save = _FORMATS[path.suffix]
    with contextlib.suppress(Exception):  # of a file that is missing or damaged, in whatever way: it is made again
        return load(path)
    result = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: save(file, result))
    return result


def _save_tensors(file: BinaryIO, value: object):
    import torch

    torch.save(value, file)


def _load_tensors(path: Path):
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


# (load from a path, save to an open file) of each suffix.
_FORMATS: dict[str, tuple[Callable, Callable]] = {
    ".json": (lambda path: json.loads(path.read_text("utf-8")), lambda file, value: file.write(json.dumps(value).encode())),
    ".npy": (partial(np.load, mmap_mode="r"), np.save),
    ".pt": (_load_tensors, _save_tensors),
}


def remove_temporary(folder: str | Path, *, of: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Remove what a killed process left half written in `folder`, where `of(name of the file)` says so; returns the names."""
    paths = sorted(path for path in Path(folder).glob(".*.tmp") if path.is_file())
    paths = [path for path in paths if of(path.name[1:].removesuffix(".tmp").rsplit(".", 1)[0])]
    for path in paths:
        path.unlink()
    return [path.name for path in paths]


_HELD: set[tuple[int, str]] = set()  # (process, path): a lock does not stop its own process, and one close lets go of it


@contextlib.contextmanager
def only_process(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the file `path`, made where it is missing: of all processes that want it, one at a time does; a killed one lets go.

    A POSIX record lock: forked children do not inherit it, and processes of other machines know it where the file system does
    (NFS does). It may be taken again inside itself. Where a file system has no locks, nobody is stopped. Not filelock: that does
    not say who holds a file, and leaves marker files, or refuses, where a file system has no locks.

    Raises:
        Held: another process has it, and `wait` is false; with `wait`, a line says for whom it waits.
    """
    own = (os.getpid(), os.path.realpath(path))
    if own in _HELD:
        yield
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # either may mean that it is held
            holder = _read_holder(file)
            if not wait:
                raise Held(holder) from None
            print(f"{path} is held by {holder}; waiting for it", flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError:
            pass
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode(), 0)
        _HELD.add(own)
        yield
    finally:
        _HELD.discard(own)
        os.close(file)


def _read_holder(file: int) -> str:
    """Who holds the open lock file: its holder writes that a moment after it has the lock."""
    for _ in range(20):
        if holder := os.pread(file, 500, 0).decode(errors="replace"):
            return holder
        time.sleep(0.01)
    return "another process"
