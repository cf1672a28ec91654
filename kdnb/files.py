"""Files that appear whole or not at all, that know whether their bytes were altered, and that one process holds.

A file is written under a temporary name of its own (`.<name>.<random>.tmp`), flushed to the disk and renamed: a process killed
at any time leaves the old file or the new one, and at most one temporary file that nobody reads; of two processes that write
the same file, on one machine or on two, the later one wins with a whole file. Cost: one fsync per file.

What is read back is compared with what was written, and `Damaged` where it differs; whoever opens a file decides what then.
Three checks, each readable by others, and without one in what earlier versions or others wrote: tensors (`write_tensors`) have
the CRC-32 that torch writes into its zip files and does not look at; plain values (`write_json`) a field `sha256`; folders of
files that other libraries read (`write_sums`) a SHA256SUMS, which `sha256sum --check` compares, too. About 1 GB/s.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import pickle
import re
import secrets
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

SUMS = "SHA256SUMS"
T = TypeVar("T")


class Held(Exception):
    """Another process holds the file; says which one, where, and since when."""


class Damaged(ValueError):
    """What lies there is not what was written: altered, truncated, or no file at all."""


def find_os_error(error: BaseException | None) -> OSError | None:
    """What the disk refused where `error` comes from that, be it in the words of torch or of safetensors; else None."""
    while error is not None:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, OSError) and error.errno is not None:
            return error
        if number:
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return None


def disk_fault(error: OSError, *, choose: str, when_full: str) -> str:
    """What the disk refused and what to do, as the end of a sentence: choose another `choose`, or, as it is full, `when_full`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"cannot be written any further: its disk is full, or a quota is used up. {when_full}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"is read-only for this user; choose another {choose}"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"is a file, or lies below one; choose another {choose}"
    return f"cannot be written: {error.strerror or error}"


def memory_bytes() -> int:
    """Memory of this machine, used or not."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
        if path.is_dir() and not path.is_symlink():
            set_aside(path)
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


def set_aside(path: Path) -> Path:
    """Rename what is damaged, be it a folder, to `<name>.damaged` (or damaged2 ...): nothing is deleted. Returns the new path."""
    names = (path.with_name(f"{path.name}.damaged{'' if number == 1 else number}") for number in itertools.count(1))
    return path.rename(next(name for name in names if not os.path.lexists(name)))


def write_json(path: Path, content: object, **settings):
    """Write plain values as indented JSON, atomically; a dict gets a field `sha256`, of all others."""
    if isinstance(content, dict):
        content = content | {"sha256": hash_of(json.loads(json.dumps(content)), length=64)}
    text = json.dumps(content, indent=1, **settings) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """What `write_json` wrote to `path`, without its checksum.

    Raises:
        FileNotFoundError. Damaged: no JSON, or altered.
    """
    require_file(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise Damaged(f"{path} is damaged (no JSON: {error})") from None
    if isinstance(content, dict) and "sha256" in content and content.pop("sha256") != hash_of(content, length=64):
        raise Damaged(f"{path} is damaged (its sha256 is not that of its content)")
    return content


def write_tensors(path: Path, content: object, *, digest=None) -> int:
    """`torch.save` tensors and plain values atomically, the same bytes for the same content; returns their number.

    Args:
        digest: of hashlib; updated with the bytes on their way.

    Raises:
        OSError: what the disk says, such as that it is full, where torch reports trouble with its zip file.
    """
    import torch

    def save(file: BinaryIO) -> int:
        watched = _WatchedFile(file, digest)
        try:
            torch.save(content, cast(BinaryIO, watched))  # not a path: its name would become part of the bytes
        except Exception:
            if watched.error is not None:
                raise watched.error from None
            raise
        return file.tell()

    return write_atomically(path, save)


class _WatchedFile:
    """A file to write to that digests the bytes on their way, and keeps the error that the disk raised."""

    def __init__(self, file: BinaryIO, digest):
        self._file, self._digest = file, digest
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        if self._digest is not None:
            self._digest.update(data)
        return written

    def flush(self):
        self._file.flush()


def read_tensors(path: str | Path, *, mmap: bool = False, whole: bool = True) -> Any:
    """Tensors and plain values of a file of torch, on the CPU; no object is unpickled. One of before torch 1.6 has no checksums.

    Args:
        mmap: do not copy the tensors, but map the file; one that is shortened meanwhile ends the process (SIGBUS).
        whole: compare all checksums; otherwise those of up to 1 MB each, and leave the rest on the disk.

    Raises:
        FileNotFoundError. Damaged: truncated, altered, or holding anything but tensors and plain values.
    """
    import torch

    path = Path(path)
    require_file(path)
    try:
        if zipfile.is_zipfile(path):
            _compare_checksums(path, None if whole else 1 << 20)
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except pickle.UnpicklingError:
        what = "is damaged, or holds a pickled object, which could run code when loaded and was refused"
        raise Damaged(f"{path} {what}") from None
    except Exception as error:  # BadZipFile, RuntimeError, EOFError, OSError 22 ... depending on the altered byte
        if isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise  # the disk's own trouble, or the machine's
        raise Damaged(f"{path} is damaged ({' '.join(str(error).split())[:80] or type(error).__name__})") from None


def _compare_checksums(path: Path, up_to: int | None):
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if up_to is None or record.file_size <= up_to:
                with archive.open(record) as file:
                    while file.read(1 << 20):  # raises BadZipFile at the end where the CRC-32 is another
                        pass


def require_file(path: Path):
    """FileNotFoundError where there is nothing at `path`, Damaged where there is a folder, a loop of links, a pipe."""
    if not path.is_file():
        if os.path.lexists(path):
            raise Damaged(f"{path} is damaged (it is no file)")
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def write_sums(folder: Path):
    """Write the SHA-256 of every file in `folder` but README.md, a text for people, into SHA256SUMS there."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "README.md")
    (folder / SUMS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in paths), encoding="utf-8")


def check_sums(folder: Path):
    """Compare the files in `folder` with its SHA256SUMS, where it has one.

    Raises:
        Damaged: names the first file that is missing, or is not as it was written.
    """
    if not os.path.lexists(sums := folder / SUMS):
        return
    require_file(sums)
    for line in sums.read_bytes().splitlines():
        match = re.fullmatch(rb"([0-9a-f]{64})  ([^/\0]+)", line)
        name = match[2].decode(errors="replace") if match else ""
        if not match or not (folder / name).is_file() or sha256_of(folder / name) != match[1].decode():
            raise Damaged(f"{folder / (name or SUMS)} is damaged (it is not the file of which {SUMS} there holds the checksum)")


def hash_of(facts: object, *, length: int = 32) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of plain values as sorted JSON; others count by their `str`."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:length]


def memoize(path: Path, compute: Callable[[], T]) -> T:
    """What the file `path` (.pt) holds; where it is missing or damaged, `compute()`, which is then written there.

    The result is tensors (read memory mapped) and plain values. Put what it depends on into the file's name, with `hash_of`.
    Work goes on where the disk does not take it, with a line that says so.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / f"sum_{hash_of([1, 2])}.pt"
        >>> memoize(path, lambda: 1 + 2), memoize(path, lambda: "not computed again")
        (3, 3)
    """
    with contextlib.suppress(FileNotFoundError, Damaged):
        return read_tensors(path, mmap=True)
    result = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, result)
    except OSError as error:
        print(f"{path} cannot be kept, and is computed again the next time: {error.strerror or error}", flush=True)
    return result


def remove_temporary(folder: str | Path, *, of: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Remove what a killed process left half written in `folder`, where `of(name of the file)` says so; returns the names."""
    paths = sorted(path for path in Path(folder).glob(".*.tmp") if path.is_file())
    paths = [path for path in paths if of(path.name[1:].removesuffix(".tmp").rsplit(".", 1)[0])]
    for path in paths:
        path.unlink()
    return [path.name for path in paths]


_PATIENCE = 20  # times 0.05 s
_HELD: set[tuple[int, str]] = set()  # (process, path): a lock does not stop its own process, and one close lets go of it


@contextlib.contextmanager
def only_process(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the file `path`, made where it is missing: of all processes that want it, one at a time does; a killed one lets go.

    A POSIX record lock: forked children do not inherit it, and processes of other machines know it where the file system does
    (NFS does). It may be taken again inside itself. Where a file system has no locks, nobody is stopped. Not filelock: that does
    not say who holds a file, and leaves marker files, or refuses, where a file system has no locks.

    Raises:
        Held: another process has it for more than a second, and `wait` is false; with `wait`, a line says for whom it waits.
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
            if not _lock_soon(file):
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


def _lock_soon(file: int) -> bool:
    """Whether the lock comes free within a second: then its holder wrote one file."""
    for _ in range(_PATIENCE):
        time.sleep(0.05)
        with contextlib.suppress(BlockingIOError, PermissionError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _read_holder(file: int) -> str:
    """Who holds the open lock file: its holder writes that a moment after it has the lock."""
    for _ in range(20):
        if holder := os.pread(file, 500, 0).decode(errors="replace"):
            return holder
        time.sleep(0.01)
    return "another process"
