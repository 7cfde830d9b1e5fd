"""What a torture run has to show: every kill, what was found after it, and whether anything was ever wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
from millstream.benchmarks.torture_job import QUERIES_RUN, output_of, store_of
from millstream.benchmarks.torture_reader import Findings
from millstream.engine.store.witness import read_witness
from rich.table import Table


class Kill(msgspec.Struct, frozen=True):
    """One start that was killed.

    Attributes:
        after: seconds from its start to the SIGKILL.
        where: what it had come to, as the disk shows it.
        epoch: the last epoch acknowledged.
        recovery: seconds from its start to its first new epoch; None if it did not live to see one.
    """

    after: float
    where: str
    epoch: int
    recovery: float | None


class Ledger(msgspec.Struct):
    """The whole run."""

    seed: int
    kills: list[Kill]
    rows: int = 0
    seconds: float = 0.0
    readers: dict[str, Findings] = msgspec.field(default_factory=dict)
    violations: list[str] = msgspec.field(default_factory=list)


def last_epoch(folder: Path) -> int:
    """The last epoch that was acknowledged, as the witness beside the store says; it can be read at any time."""
    return read_witness(store_of(folder), None) or 0


def last_visible(folder: Path) -> int:
    """The last epoch that a sink has made visible, as the marker in its staging folder says."""
    markers = [path.read_bytes() for path in _staging(folder) if path.name == "committed"]
    return max((msgspec.json.decode(marker)["epoch"] for marker in markers), default=0)


def generations(folder: Path) -> set[str]:
    """The folders in which generations stage their files."""
    return {path.name for path in _staging(folder) if path.is_dir() and path.name.startswith("g")}


def where_it_died(folder: Path, before: set[str], epoch_before: int) -> str:
    """Say what a killed start had come to; ``before`` are the generations and the epoch there were at its start."""
    fresh = generations(folder) - before
    if not fresh:
        return "starting"
    if orphans(folder):
        committed = last_epoch(folder) > last_visible(folder)
        return "committed, not visible yet" if committed else "prepared, not committed yet"
    return "before its first epoch" if last_epoch(folder) == epoch_before else "between epochs"


def orphans(folder: Path) -> list[str]:
    """Staged files; after a finished run there are none."""
    try:
        return [str(f) for path in _staging(folder) if path.is_dir() for f in path.rglob("*") if f.is_file()]
    except FileNotFoundError:  # a running job has just made them visible
        return []


def _staging(folder: Path) -> list[Path]:
    """What is in the staging folders of all sinks: ``.millstream/<sink's folder>/<sink>/<job>/*``."""
    home = output_of(folder) / ".millstream"
    return [path for query in QUERIES_RUN for path in (home / query).glob("*/*/*")]


def tables(ledger: Ledger) -> Sequence[Table]:
    """The ledger as people read it."""
    where = Table("killed while", "kills", title=f"{len(ledger.kills)} kills, seed {ledger.seed}", title_justify="left")
    for what, count in Counter(kill.where for kill in ledger.kills).most_common():
        where.add_row(what, str(count))
    total = Table("", "", title="the run", title_justify="left", show_header=False)
    recoveries = [kill.recovery for kill in ledger.kills if kill.recovery is not None]
    if recoveries:
        longest = f"median {median(recoveries):.2f} s, longest {max(recoveries):.2f} s ({len(recoveries)} starts)"
        total.add_row("from a start to its first new epoch", longest)
    total.add_row("epochs committed", str(max((kill.epoch for kill in ledger.kills), default=0)))
    total.add_row("bids", f"{ledger.rows:,}")
    total.add_row("seconds", f"{ledger.seconds:.0f}")
    for name, seen in ledger.readers.items():
        text = f"{seen.looks:,} looks: {seen.epochs:,} epochs, {seen.files:,} files, {seen.rows:,} rows"
        total.add_row(f"reader of {Path(name).name}", text)
    total.add_row("violations", str(len(ledger.violations)))
    return [where, total]
