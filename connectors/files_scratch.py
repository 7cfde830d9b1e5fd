"""Staging folders of runs without a store: nobody comes back for them, so they go when their run has ended or died.

A run holds a lock in its staging folder until it ends. The lock is with the files, and not named by a process number,
so that it means the same to other containers that share the disk. Folders of jobs with a store have no lock and are
never touched: a job that is stopped comes back for its files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from millstream.connectors.durable import make_folder

_ALIVE: Final = "alive"


@contextlib.contextmanager
def scratch(staging: Path) -> Iterator[None]:
    """Hold a staging folder while a run without a store goes on; remove it afterwards."""
    lock = -1
    # Without a lock, as on file systems that have none, nobody will remove the folder after a kill.
    with contextlib.suppress(OSError):
        lock = _lock(staging)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _remove(staging)
        if lock >= 0:
            os.close(lock)


def remove_dead(shared: Path) -> None:
    """Remove the staging folders, ``<sink>/<job>`` below ``shared``, whose runs have died."""
    for alive in shared.glob(f"*/*/{_ALIVE}"):
        # Another start may be at it, or another user's run may have left it.
        with contextlib.suppress(OSError):
            lock = os.open(alive, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(alive.parent)
            finally:
                os.close(lock)


def _lock(staging: Path) -> int:
    make_folder(staging)
    fresh = staging / f"{_ALIVE}.new"
    lock = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Only now: nobody is to find it before it is locked.
        fresh.rename(staging / _ALIVE)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove(staging: Path) -> None:
    for entry in list(staging.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _ALIVE:
            entry.unlink()
    # The lock goes last: a removal that is cut short is then taken up again.
    (staging / _ALIVE).unlink(missing_ok=True)
    staging.rmdir()
