"""File-system steps that survive a power cut, and errors that say whose fault it was."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from millstream.engine.errors import ExternalError

_FULL: Final = ("No space left", "File too large", "quota exceeded", "disk is full", "ead-only file system", "readonly")
_ROOM: Final = "see that the disk has room and the folder can be written, the job goes on from its last checkpoint"


def is_of_the_disk(error: BaseException) -> bool:
    """Whether what a library complains of, by whatever kind of error, is a disk that is full or cannot be written.

    >>> is_of_the_disk(RuntimeError("Failed to commit: No space left on device"))
    True
    """
    return any(sign in str(error) for sign in _FULL)


def with_advice(text: str) -> str:
    """Return an error's text, with what to do if it is the disk's.

    >>> with_advice("no such table")
    'no such table'
    """
    return f"{text}; {_ROOM}" if any(sign in text for sign in _FULL) else text


@contextmanager
def blame_disk(who: str, doing: str) -> Iterator[None]:
    """Turn an OSError into an ExternalError that names the sink and what it was doing."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ExternalError(f"{who}: {doing} failed: {error.strerror or error}{where}; {_ROOM}") from error


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on disk."""
    _sync(path, os.O_RDWR)


def sync_folder(path: Path) -> None:
    """Wait until the folder's entries are on disk: without it a rename may be undone by a power cut."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def overwrite(path: Path, content: bytes) -> None:
    """Put bytes in the place of as many, and wait until they are on disk; the folder's entry is the caller's."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        written = os.pwrite(descriptor, content, 0)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    if written != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably; fine if it exists."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def make_folder_below(root: Path, relative: str) -> Path:
    """Make ``root/relative``, refusing to go through a symbolic link, which could lead out of ``root``."""
    path = root
    for part in filter(None, relative.split("/")):
        assert part not in (".", ".."), f"{relative=} would leave {root=}"
        path = path / part
        try:
            kind = path.lstat().st_mode
        except FileNotFoundError:
            make_folder(path)
            continue
        if not stat.S_ISDIR(kind):
            raise ExternalError(f"{path} is in the way: it must be a folder, not a file or a symbolic link; remove it")
    return path


def size_of(path: Path) -> int | None:
    """The size of a file in bytes; None if there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
