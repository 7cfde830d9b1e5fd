"""Which messages of an HTTP sink's last epoch are settled, in a file beside the store."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from millstream.connectors.durable import blame_disk

_LINE: Final = re.compile(rb"(\d+)\.(\d+)\.(\d+)")

Place = tuple[int, int, int]


class Journal:
    """A line for each message that was taken by its receiver, or put aside.

    It outlives a process that is killed. It is not synced to disk, which would cost more than sending again what a
    power cut makes it forget: receivers know messages by their keys.

    Args:
        name: the sink's, for errors.
        path: None: it goes with the generation.
    """

    def __init__(self, name: str, path: Path | None) -> None:
        self._name = name
        self._path = path
        self._descriptor = -1
        self._about = b""
        self._settled: set[Place] = set()

    def begin(self, about: str) -> set[Place]:
        """Return what is settled of an epoch; ``about`` is a line of text that is its alone.

        Raises:
            ExternalError: the file cannot be read or written.
        """
        head = about.encode()
        if head == self._about:
            return set(self._settled)
        self._settled = set()
        with blame_disk(self._name, "reading which messages are settled"):
            known = self._path.read_bytes() if self._path is not None and self._path.exists() else b""
            # A last line without an end was torn when the machine lost its power.
            first, *lines = known.split(b"\n")[:-1] or [b""]
            if first == head:
                found = filter(None, map(_LINE.fullmatch, lines))
                self._settled = {(int(line[1]), int(line[2]), int(line[3])) for line in found}
            self._open(known[: known.rfind(b"\n") + 1] if first == head else head + b"\n")
        self._about = head
        return set(self._settled)

    def _open(self, kept: bytes) -> None:
        self.close()
        if self._path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            self._write(kept)

    def settle(self, places: Iterable[Place]) -> None:
        """Note messages that need not be sent again. Raises ExternalError if the file cannot be written."""
        new: Sequence[Place] = list(places)
        self._settled.update(new)
        if self._descriptor >= 0 and new:
            with blame_disk(self._name, "noting which messages are settled"):
                self._write(b"".join(b"%d.%d.%d\n" % place for place in new))

    def _write(self, lines: bytes) -> None:
        if os.write(self._descriptor, lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._about = b""
