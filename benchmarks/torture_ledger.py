"""What a torture run has to show: every kill, what was found after it, and whether anything was ever wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import msgspec
from millstream.benchmarks.torture_reader import Findings
from millstream.torture.killer import Kill
from rich.table import Table


class Ledger(msgspec.Struct):
    """The whole run.

    Attributes:
        rows: how many were read.
        others: what else was done to it, and how often.
    """

    seed: int
    kills: list[Kill]
    rows: int = 0
    seconds: float = 0.0
    others: dict[str, int] = msgspec.field(default_factory=dict)
    readers: dict[str, Findings] = msgspec.field(default_factory=dict)
    violations: list[str] = msgspec.field(default_factory=list)


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
    total.add_row("rows read", f"{ledger.rows:,}")
    total.add_row("seconds", f"{ledger.seconds:.0f}")
    for what, count in ledger.others.items():
        total.add_row(what, f"{count:,}")
    for name, seen in ledger.readers.items():
        files = f"{seen.epochs:,} epochs, {seen.files:,} files, " if seen.files else ""
        text = f"{seen.looks:,} looks: {files}{seen.rows:,} rows"
        total.add_row(f"reader of {Path(name).name}", text)
    total.add_row("violations", str(len(ledger.violations)))
    return [where, total]
