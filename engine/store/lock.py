"""The lock that keeps a second copy of a job away from its store.

DuckDB locks with ``fcntl``, which any ``close`` of the file in the same process undoes; this lock is a ``flock`` on a
file of its own. It is exclusive for a running job and shared for those who only read a stopped one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from millstream.engine.errors import StoreError, StoreLocked

_READERS_MAY_TAKE: Final = 10.0
"""Seconds a starting job waits for those who only read: they are done in less."""


class StoreLock:
    """Holds ``<store>.lock`` until released or until the process dies."""

    def __init__(self, store: Path, fd: int) -> None:
        self._store = store
        self._fd = fd

    @classmethod
    def exclusive(cls, store: Path) -> StoreLock:
        """Lock the store for a running job.

        Raises:
            StoreLocked: another process holds it; names that process.
            StoreError: the lock file cannot be made.
        """
        fd = _open(store)
        deadline = time.monotonic() + _READERS_MAY_TAKE
        while not _try(fd, fcntl.LOCK_EX):
            held_by_job = not _try(fd, fcntl.LOCK_SH)
            fcntl.flock(fd, fcntl.LOCK_UN)
            if held_by_job or time.monotonic() > deadline:
                holder = _holder(fd) if held_by_job else "one that is reading it"
                os.close(fd)
                raise StoreLocked(
                    f"{store} is in use by {holder}: a job runs once at a time. Stop the other one, or give this "
                    f"job a store of its own"
                )
            time.sleep(0.02)
        if not _is_there(fd, store):
            os.close(fd)
            return cls.exclusive(store)
        _sign(fd, store)
        return cls(store, fd)

    @classmethod
    def shared(cls, store: Path) -> StoreLock:
        """Lock a stopped job's store for reading; several readers may do so at once.

        Raises:
            StoreLocked: the job is running; names its process.
        """
        fd = _open(store)
        if not _try(fd, fcntl.LOCK_SH):
            holder = _holder(fd)
            os.close(fd)
            raise StoreLocked(f"{store} is in use by {holder}: the job is running")
        return cls(store, fd)

    def remove(self) -> None:
        """Remove the lock file, of a store that is gone, and let go; only who holds it exclusively may.

        Whoever has waited for it finds that it has locked a file that is gone, and locks the one that is there.
        """
        lock_path(self._store).unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let go. The lock file stays: others may have it open already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def lock_path(store: Path) -> Path:
    """The lock file beside a store."""
    return store.with_name(store.name + ".lock")


def _open(store: Path) -> int:
    path = lock_path(store)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot open the lock file {path} ({error.strerror}): the store's folder must exist and be writable"
        ) from error


def _is_there(fd: int, store: Path) -> bool:
    """Whether an open lock file is the one beside the store still."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), lock_path(store).stat())
    return False


def _try(fd: int, how: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        return True
    return False


def _holder(fd: int) -> str:
    text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
    return f"process {text}" if text.isdigit() else "another process"


def _sign(fd: int, store: Path) -> None:
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
    except OSError as error:
        os.close(fd)
        raise StoreError(f"cannot write the lock file beside {store} ({error.strerror}): make room") from error
