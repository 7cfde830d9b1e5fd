"""A job as the disk shows it from outside, at any moment: its last epoch, what it stages, what a kill has hit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from millstream.engine.store.witness import read_witness

STARTING: Final = "starting"
"""Where a kill has hit a process that had not begun to work."""


@dataclass(frozen=True, slots=True)
class JobOnDisk:
    """Where a job keeps its checkpoints and its files.

    Attributes:
        store: the checkpoint file.
        output: the folder in which each file sink has a folder of its own.
        sinks: the names of those folders.
    """

    store: Path
    output: Path
    sinks: tuple[str, ...]

    def last_epoch(self) -> int:
        """The last epoch that was acknowledged, as the witness beside the store says; it can be read at any time."""
        return read_witness(self.store, None) or 0

    def last_visible(self) -> int:
        """The last epoch that a sink has made visible, as the marker in its staging folder says."""
        markers = [path.read_bytes() for path in self._staging() if path.name == "committed"]
        return max((msgspec.json.decode(marker)["epoch"] for marker in markers), default=0)

    def generations(self) -> set[str]:
        """The folders in which generations stage their files."""
        return {path.name for path in self._staging() if path.is_dir() and path.name.startswith("g")}

    def orphans(self) -> list[str]:
        """Staged files; after a finished run there are none."""
        try:
            return [str(f) for path in self._staging() if path.is_dir() for f in path.rglob("*") if f.is_file()]
        except FileNotFoundError:  # a running job has just made them visible
            return []

    def log_written(self) -> tuple[int, int]:
        """Size and time of the last change, in nanoseconds, of the store's write-ahead log: COMMIT changes them."""
        try:
            log = self.store.with_name(self.store.name + ".wal").stat()
        except FileNotFoundError:
            return 0, 0
        return log.st_size, log.st_mtime_ns

    def moment(self) -> tuple[bool, tuple[int, int]]:
        """What changes when files are staged or become visible, and when the store writes a checkpoint."""
        return bool(self.orphans()), self.log_written()

    def where_it_died(self, before: set[str], epoch_before: int) -> str:
        """Say what a killed start had come to; ``before`` are the generations and the epoch there were at its start."""
        if not self.generations() - before:
            return STARTING
        if self.orphans():
            committed = self.last_epoch() > self.last_visible()
            return "committed, not visible yet" if committed else "prepared, not committed yet"
        return "before its first epoch" if self.last_epoch() == epoch_before else "between epochs"

    def _staging(self) -> list[Path]:
        """What is in the staging folders of all sinks: ``.millstream/<sink's folder>/<sink>/<job>/*``."""
        home = self.output / ".millstream"
        return [path for sink in self.sinks for path in (home / sink).glob("*/*/*")]
