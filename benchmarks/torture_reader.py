"""Watches an output folder while a job writes it and is killed, and says what no reader should ever see.

A file that is not whole, that changes or goes away; an epoch's folder to which something is added; a name that is
not a finished file's. ``python -m millstream.benchmarks.torture_reader FOLDER`` looks again and again until standard
input is closed, looks a last time, and prints what it found as JSON.
"""

from __future__ import annotations

import re
import select
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

PAUSE: Final = 0.005
"""Seconds between two looks."""

_FILE: Final = re.compile(r"part-[0-9a-f]{8}-[0-9a-f]{16}\.parquet")
_EPOCH: Final = re.compile(r"epoch-\d{12}-[0-9a-f]{8}")

Seen = tuple[int, int]
"""Size and time of the last change, in nanoseconds: a finished file keeps both."""


class Findings(msgspec.Struct):
    """What a reader has seen.

    Attributes:
        looks: how often it has looked through the folder.
        epochs: how many files and folders have appeared at its top.
        violations: a sentence each.
    """

    looks: int = 0
    epochs: int = 0
    files: int = 0
    rows: int = 0
    violations: list[str] = msgspec.field(default_factory=list)


@dataclass
class FolderReader:
    """Looks through one sink's folder.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> reader = FolderReader(folder)
    >>> _ = (folder / "part-0000").write_text("half a fi")
    >>> reader.look()
    >>> reader.findings.violations[0].endswith("part-0000 is not the name of a finished file")
    True
    """

    folder: Path
    findings: Findings = field(default_factory=Findings)
    _known: dict[str, dict[str, Seen]] = field(default_factory=dict)

    def look(self) -> None:
        """Look once; what appears while it looks is seen now or the next time."""
        self.findings.looks += 1
        there = {path.name: path for path in self.folder.iterdir()} if self.folder.exists() else {}
        for name in self._known.keys() - there.keys():
            self._complain(f"{self.folder / name} has gone")
            del self._known[name]
        for name, path in there.items():
            self._look_at(name, path)

    def seen(self) -> set[str]:
        """The names at the top of the folder, as of the last look."""
        return set(self._known)

    def _look_at(self, name: str, path: Path) -> None:
        files = self._files(path)
        before = self._known.get(name)
        if before is None:
            self._known[name] = files
            self.findings.epochs += 1
            self._read(path, files)
        elif before != files:
            self._complain(f"{path} was {before}, and is {files} now")
            self._known[name] = files

    def _files(self, path: Path) -> dict[str, Seen]:
        """The files of an epoch, by name: those of its folder, or the one file that it is."""
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}

    def _read(self, path: Path, files: dict[str, Seen]) -> None:
        """Read a new epoch whole."""
        is_folder = path.is_dir()
        if is_folder and not _EPOCH.fullmatch(path.name):
            self._complain(f"{path} is not the name of an epoch's folder")
        if not files:
            self._complain(f"{path} is empty")
        for name in files:
            file = path / name if is_folder else path
            if not _FILE.fullmatch(name):
                self._complain(f"{file} is not the name of a finished file")
                continue
            try:
                self.findings.rows += pq.ParquetFile(file).read().num_rows
                self.findings.files += 1
            except (OSError, pa.ArrowException) as error:
                self._complain(f"{file} cannot be read: {error}")

    def _complain(self, sentence: str) -> None:
        self.findings.violations.append(sentence)


def main() -> None:
    """Watch the folders given as arguments until standard input is closed."""
    readers = [FolderReader(Path(argument)) for argument in sys.argv[1:]]
    closed = False
    while not closed:
        closed = bool(select.select([sys.stdin], [], [], PAUSE)[0])
        for reader in readers:
            reader.look()
    sys.stdout.write(msgspec.json.encode({str(r.folder): r.findings for r in readers}).decode())


if __name__ == "__main__":
    main()
