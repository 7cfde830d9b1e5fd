"""A tortured job as its checkpoint store shows it, and whether what others see is cut where an epoch ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from millstream.benchmarks.torture_inputs import Input
from millstream.benchmarks.torture_rows import distinct
from millstream.engine.store.reader import StoreReader
from millstream.torture.job_on_disk import STARTING, JobOnDisk

SETTLED: Final = 30.0
"""Seconds after which what is neither one epoch nor the other stays so: brokers mark partitions one by one."""

Rows = dict[int, int]
"""By split, how many rows."""


@dataclass
class JobAtServers:
    """A job whose output is not on disk.

    Args:
        seen: asks the watcher what can be seen now.

    Attributes:
        violations: a sentence each.
    """

    store: Path
    input: Input
    seen: Callable[[], Rows]
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._disk = JobOnDisk(self.store, self.store.parent, ())
        self._generation = 0
        self._cuts: list[Rows] = []  # of the last start that died, until they are checked

    def last_epoch(self) -> int:
        """The last epoch that was acknowledged."""
        return self._disk.last_epoch()

    def log_written(self) -> object:
        """What changes when the store writes a checkpoint."""
        return self._disk.log_written()

    def moment(self) -> object:
        """The same: what sinks do is seen at the servers."""
        return self._disk.log_written()

    def generations(self) -> set[str]:
        """The last one that was begun, as of the last check."""
        return {str(self._generation)} if self._generation else set()

    def where_it_died(self, before: set[str], epoch_before: int) -> str:
        """Say how far a start had come; it may still live if there was none before it."""
        if not before:
            return "at work"
        self._generation, *self._cuts = self._read()
        if self.generations() == before:
            return STARTING
        return "before its first epoch" if self.last_epoch() == epoch_before else "between epochs"

    def check(self) -> bool:
        """Demand that what is seen is all of the last epoch or of the one before; return whether it is the latter."""
        if not self._cuts:
            self._generation, *self._cuts = self._read()
        last, before = self._cuts
        self._cuts = []
        until = time.monotonic() + SETTLED
        while True:
            seen = self.seen()
            if seen in (last, before):
                return seen != last
            if time.monotonic() > until:
                self.violations.append(
                    f"at epoch {self.last_epoch()} there are {_by_split(seen)}: that is neither the last epoch, "
                    f"{_by_split(last)}, nor the one before, {_by_split(before)}"
                )
                return False
            time.sleep(0.05)

    def _read(self) -> tuple[int, Rows, Rows]:
        """The last generation, and what can be seen of the last epoch and of the one before."""
        if not self.store.exists():
            return 0, {}, {}
        with StoreReader.open(self.store) as reader:
            epochs = [manifest.epoch for manifest in reader.manifests()[-2:]]
            cuts: list[Rows] = [{}, {}]
            for epoch in epochs:
                rows = {self.input.split_of(p.split.id): p.position for p in reader.positions(epoch)}
                cuts.append({split: distinct(read) for split, read in rows.items() if isinstance(read, int) and read})
            return reader.facts().generation, cuts[-1], cuts[-2]


def _by_split(rows: Mapping[int, int]) -> str:
    """Numbers of rows, the last splits only."""
    return ", ".join(f"{rows[split]:,} rows of split {split}" for split in sorted(rows)[-5:]) or "no rows"
