"""Which files a pattern, a folder or a list of them names, in natural order."""

from __future__ import annotations

import fnmatch
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from millstream.engine.errors import DataError, ExternalError, JobError

if TYPE_CHECKING:
    from millstream.connectors.object_store import ObjectPath

InputPath: TypeAlias = "Path | ObjectPath"
"""Where a file of a source is."""

MAGIC: Final = re.compile(r"[*?\[]")
"""What makes a pattern of a path."""
_DIGITS: Final = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file of a source.

    Attributes:
        path: where it is.
        relative: its path below the source's base, with ``/``; the same wherever the base is moved. Of an object, with
            its bucket.
        size: in bytes, when it was found.
    """

    path: InputPath
    relative: str
    size: int

    def info(self) -> dict[str, str | int]:
        """What a split of it remembers."""
        if isinstance(self.path, Path):
            return {"file": self.relative, "size": self.size}
        return {"file": self.relative, "size": self.size, "modified": self.path.modified or 0}


class FileListing:
    """Lists the files that patterns name, and remembers those it has seen. Safe to use from several threads.

    A pattern may hold ``*``, ``?``, ``[…]`` and, for any number of folders, ``**``. A folder stands for all files
    below it for which ``in_folder`` says yes. Files and folders whose names start with ``.`` or ``_``, and files
    named ``*.tmp``, are somebody's unfinished work and passed over, unless a pattern spells that first letter.

    A file is complete when it appears: its size is looked up once. Relative patterns stay relative to the folder the
    process is in now, wherever it goes later.
    """

    def __init__(self, patterns: Sequence[str], in_folder: Callable[[str], bool]) -> None:
        self._patterns = [_checked(pattern) for pattern in patterns]
        self._in_folder = in_folder
        self._home = Path.cwd()
        self._base = Path(os.path.commonpath([self._home / fixed_part(pattern) for pattern in self._patterns]))
        self._lock = threading.Lock()
        self._known: dict[str, FoundFile] = {}
        self._listed: list[FoundFile] = []

    @property
    def where(self) -> str:
        """The longest path without a wildcard that all patterns share."""
        return str(self._base.absolute())

    def folders(self) -> tuple[str, ...]:
        """The folder, or file, that relative paths start from."""
        return (str(self._base.resolve()),)

    def files(self) -> list[FoundFile]:
        """Return the files there are now, in natural order of their names.

        Raises:
            ExternalError: a folder cannot be read.
        """
        with self._lock:
            try:
                found = {path for pattern in self._patterns for path in self._paths(pattern)}
            except OSError as error:
                raise _cannot_list(error) from error
            if found != self._known.keys():
                self._known = {path: file for path in found if (file := self._file(path)) is not None}
                self._listed = sorted(self._known.values(), key=lambda file: natural_key(file.relative))
            return list(self._listed)

    def locate(self, info: Mapping[str, Any]) -> InputPath:
        """Return where the file of a split is.

        Raises:
            DataError: it is gone.
            ExternalError: it cannot be looked up.
        """
        path = self._located(str(info["file"]))
        self._check_there(path)
        return path

    def _located(self, relative: str) -> Path:
        direct = self._base / relative
        return self._base if self._base.name == relative and not direct.exists() else direct

    def _check_there(self, path: Path) -> None:
        try:
            path.stat()
        except FileNotFoundError:
            raise DataError(
                f"{path} is gone, and it was not read to its end: put it back; files of a source must stay until the "
                "checkpoint after they were read"
            ) from None
        except OSError as error:
            raise _cannot_list(error) from error

    def _paths(self, pattern: str) -> Iterator[str]:
        if MAGIC.search(pattern):
            fixed = fixed_part(pattern)
            # Without any folder in the pattern nothing of it is fixed.
            rest = [part for part in pattern[0 if fixed == "." else len(fixed) :].split("/") if part]
            yield from _matching(str(self._home / fixed), rest)
            return
        whole = self._home / pattern
        if whole.is_dir():
            yield from (path for path in _matching(str(whole), ["**", "*"]) if self._in_folder(path))
        elif whole.exists():
            yield str(whole)

    def _file(self, path: str) -> FoundFile | None:
        if path in self._known:
            return self._known[path]
        try:
            size = Path(path).stat().st_size
        except FileNotFoundError:  # deleted since it was listed
            return None
        relative = Path(path).name if Path(path) == self._base else os.path.relpath(path, self._base)
        return FoundFile(Path(path), relative.replace(os.sep, "/"), size)


def natural_key(name: str) -> tuple[Any, ...]:
    """Return a sort key that puts ``part-2`` before ``part-10``.

    >>> sorted(["part-10", "part-2", "part-1/b", "part-1"], key=natural_key)
    ['part-1', 'part-1/b', 'part-2', 'part-10']
    """
    parts = _DIGITS.split(name)
    return tuple((int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)), name


def _checked(pattern: str) -> str:
    if "://" in pattern:
        raise JobError(
            f"{pattern!r}: files() reads local files, or objects by 's3://bucket/…', and a source has one of both"
        )
    if not pattern:
        raise JobError("files() takes a file, a folder or a pattern such as 'orders/*.jsonl', got an empty text")
    return str(Path(pattern).expanduser())


def fixed_part(pattern: str) -> str:
    """Return the folders before the first one with a wildcard, or the whole path if there is none."""
    magic = MAGIC.search(pattern)
    if magic is None:
        return pattern
    cut = pattern.rfind("/", 0, magic.start())
    return pattern[: max(cut, 1)] if cut >= 0 else "."


def _matching(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield the files below ``folder`` whose path matches ``parts``, one pattern per path component."""
    if not parts:
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _matching(folder, rest or ["*"])
        for entry in _entries(folder):
            # Not through symbolic links: one that leads upwards would never end.
            if entry.is_dir(follow_symlinks=False) and not unfinished(entry.name, part):
                yield from _matching(entry.path, parts)
        return
    matches = re.compile(fnmatch.translate(part)).match
    for entry in _entries(folder):
        if not matches(entry.name) or unfinished(entry.name, part):
            continue
        if rest:
            if entry.is_dir():
                yield from _matching(entry.path, rest)
        elif entry.is_file():
            yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # not there yet, or deleted while we walked
        return []


def unfinished(name: str, pattern: str) -> bool:
    """Whether a name says that somebody is still writing, and the pattern does not ask for such names."""
    return (name[0] in "._" and not pattern.startswith(name[0])) or name.endswith(".tmp")


def _cannot_list(error: OSError) -> ExternalError:
    return ExternalError(
        f"{error.filename or 'a file'} cannot be looked up: {error.strerror or error}; see that it can be read, the "
        "job goes on from its last checkpoint"
    )
