"""Which objects of a bucket a pattern, a folder or a list of them names, in natural order."""

from __future__ import annotations

import fnmatch
import posixpath
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from millstream.connectors.object_store import SCHEME, ObjectPath, ObjectStore, blame_store
from millstream.connectors.paths import MAGIC, FoundFile, fixed_part, natural_key, unfinished
from millstream.connectors.reading_plan import FileChanged
from millstream.engine.errors import JobError

if TYPE_CHECKING:
    from pyarrow import fs


class ObjectListing:
    """As ``FileListing``, of objects. Those under a name that ends with a slash are folders, and passed over."""

    def __init__(self, patterns: Sequence[str], store: ObjectStore, in_folder: Callable[[str], bool]) -> None:
        self._patterns = [_checked(pattern) for pattern in patterns]
        self._store = store
        self._in_folder = in_folder
        self._lock = threading.Lock()
        self._known: dict[str, FoundFile] = {}

    @property
    def where(self) -> str:
        """What is looked through."""
        return ", ".join(sorted({SCHEME + fixed_part(pattern) for pattern in self._patterns}))

    def folders(self) -> tuple[str, ...]:
        """No folders of this machine."""
        return ()

    def files(self) -> list[FoundFile]:
        """Return the objects there are now, in natural order of their names.

        Raises:
            ExternalError: the store is away.
            JobError: there is no such bucket, or no right to list it.
        """
        found = {info.path: info for pattern in self._patterns for info in self._matching(pattern)}
        with self._lock:
            self._known = {path: self._known.get(path) or self._file(info) for path, info in found.items()}
            return sorted(self._known.values(), key=lambda file: natural_key(file.relative))

    def locate(self, info: Mapping[str, Any]) -> ObjectPath:
        """Return the object of a split, as it was when it was found; whether it still is, is seen when it is read."""
        return ObjectPath(self._store, str(info["file"]), int(info["modified"]))

    def _matching(self, pattern: str) -> Iterator[fs.FileInfo]:
        fixed = fixed_part(pattern)
        if MAGIC.search(pattern):
            parts = pattern[len(fixed) :].strip("/").split("/")
            listed = self._listed(fixed, deep=len(parts) > 1 or "**" in parts)
            yield from (info for info in listed if matches(parts, info.path[len(fixed) :].strip("/").split("/")))
            return
        alone = [info for info in self._listed(posixpath.dirname(fixed), deep=False) if info.path == fixed]
        if alone:
            yield from alone
            return
        for info in self._listed(fixed, deep=True):
            below = info.path[len(fixed) :].strip("/").split("/")
            if matches(["**", "*"], below) and self._in_folder(info.path):
                yield info

    def _listed(self, prefix: str, *, deep: bool) -> list[fs.FileInfo]:
        from pyarrow import fs

        if not prefix:
            return []
        try:
            with blame_store(f"{SCHEME}{prefix}"):
                found = self._store.filesystem().get_file_info(fs.FileSelector(prefix, recursive=deep))
        except FileChanged:  # nothing there, yet
            return []
        return [info for info in found if info.type == fs.FileType.File]

    def _file(self, info: fs.FileInfo) -> FoundFile:
        modified = (info.mtime_ns or 0) // 1_000_000_000
        return FoundFile(ObjectPath(self._store, info.path, modified), info.path, info.size)


def matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether the parts of a name match a pattern's, where ``**`` stands for any number of folders.

    >>> matches(["**", "*.csv"], ["2026", "01", "a.csv"]), matches(["*.csv"], ["2026", "a.csv"])
    (True, False)
    """
    if not pattern or not parts:
        return not pattern and not parts
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        if matches(rest or ["*"], parts):
            return True
        return len(parts) > 1 and not unfinished(parts[0], first) and matches(pattern, parts[1:])
    if not re.fullmatch(fnmatch.translate(first), parts[0]) or unfinished(parts[0], first):
        return False
    return matches(rest, parts[1:])


def _checked(pattern: str) -> str:
    key = pattern.removeprefix(SCHEME)
    bucket, _, rest = key.partition("/")
    if not bucket or MAGIC.search(bucket):
        raise JobError(f"{pattern!r} names no bucket: write 's3://bucket/orders/*.csv'")
    if any(part in ("", ".", "..") for part in rest.rstrip("/").split("/")) and rest:
        raise JobError(f"{pattern!r}: no part of an object's name may be empty, '.' or '..' here")
    return key.rstrip("/")
