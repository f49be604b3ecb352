"""Files that several processes share: a writer holds a lock, and a reader checks for changes.

A lock is one byte of the folder's `.lock`. The system releases the lock of a killed process, so no
lock is ever stale.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cfm_lite.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two builders apart
    fcntl = None

__all__ = ["Watch", "alone", "forget_halves", "in_turn", "owned"]

LOCK = ".lock"
# what this process owns: the system keeps only processes apart, and a fork knows its parent's
_owned: set[tuple[int, str]] = set()


@contextlib.contextmanager
def alone(folder: Path, what: int | str) -> Iterator[None]:
    """Wait for the lock of one part of a folder, and hold it.

    `what` is the number of a shard, "plan" or "index". A missing folder is made. Raises DataError
    if nothing can be written.
    """
    place = what + 2 if isinstance(what, int) else ("plan", "index").index(what)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DataError(
            f"cannot write into {folder} ({error.strerror or error}). Choose another --out."
        ) from None
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.lockf(handle, fcntl.LOCK_EX, 1, place)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def owned(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Hold the lock of a whole folder, such as a run's.

    If it is held already, ConfigError names the process and the machine that hold it.
    """
    if (locks := fcntl) is None:
        yield
        return
    path = folder / name
    mine = (os.getpid(), os.path.realpath(path))
    if mine in _owned:
        raise _busy(path, "another run of this process")
    handle = _take(path, lambda handle: locks.lockf(handle, locks.LOCK_EX | locks.LOCK_NB))
    try:
        _owned.add(mine)
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        _owned.discard(mine)
        path.unlink(missing_ok=True)  # still held, so it is ours
        os.close(handle)


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Wait for the lock `path` and hold it. The file is removed at the end."""
    if (locks := fcntl) is None:
        yield
        return
    handle = _take(path, lambda handle: locks.lockf(handle, locks.LOCK_EX))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # still held, so it is ours
        os.close(handle)


def _take(path: Path, lock: Callable[[int], None]) -> int:
    """The open, locked file at `path`. If its last owner has removed it meanwhile, a new one is
    made.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # its last owner may have removed that too
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(handle)
        except (BlockingIOError, PermissionError):
            holder = os.read(handle, 200).decode(errors="replace") or "another process"
            os.close(handle)
            raise _busy(path, holder) from None
        except OSError:  # a file system without locks
            return handle
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)


def _busy(path: Path, holder: str) -> ConfigError:
    return ConfigError(
        f"{path.parent} is written to by {holder}. Stop that one (it saves first), wait for its "
        "end, or choose another --out."
    )


def forget_halves(folder: Path, *names: str) -> None:
    """Remove what killed processes left of the files called `names`. The caller holds their
    lock.
    """
    for name in names:
        for stale in folder.glob(f".{name}.tmp-*"):
            stale.unlink(missing_ok=True)


class Watch:
    """Notices that one of `files` has changed since this object was made.

    `verify(number)` hashes a file and raises if it differs. Check before each read: a read behind
    the new end of a memory-mapped file kills the process. A file that was only touched, or replaced
    by an equal one, passes.
    """

    def __init__(self, files: Sequence[Path], verify: Callable[[int], None]) -> None:
        self.files, self.verify = list(files), verify
        self._stamps = [_stamp(path) for path in self.files]

    def check(self, numbers: set[int]) -> None:
        """Raise DataError for the first of these files that is missing or changed."""
        for number in sorted(numbers):
            path, before = self.files[number], self._stamps[number]
            stamp = _stamp(path)
            if stamp[0] != before[0]:
                raise DataError(
                    f"{path} changed: it has {stamp[0]:,} bytes, it had {before[0]:,}. Put the old "
                    "one back, or make it again."
                )
            if stamp != before:
                self.verify(number)
                self._stamps[number] = stamp


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does. DataError if the file is missing."""
    try:
        facts = os.stat(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). Put it back, or make it again."
        ) from None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
