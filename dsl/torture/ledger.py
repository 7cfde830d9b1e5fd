"""What a torture run has to show: every disturbance, where it hit, what was found after it, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import msgspec
from millstream.torture.killer import Kill

if TYPE_CHECKING:
    from rich.table import Table


class Ledger(msgspec.Struct):
    """The whole run.

    Attributes:
        wanted: how many kills were asked for.
        rows: by sink, how many rows the undisturbed run gave it.
        left: rows that were still to be read after the last kill.
        zombies: how many stopped processes had a second start beside them, which was refused.
        unreached: fail points that were armed and not come to, and how often.
        violations: a sentence each.
        repeatable: False if two undisturbed runs differ as well.
    """

    job: str
    seed: int
    wanted: int
    kills: list[Kill] = msgspec.field(default_factory=list)
    rows: dict[str, int] = msgspec.field(default_factory=dict)
    left: int = 0
    seconds: float = 0.0
    zombies: int = 0
    unreached: dict[str, int] = msgspec.field(default_factory=dict)
    violations: list[str] = msgspec.field(default_factory=list)
    repeatable: bool = True

    @property
    def recoveries(self) -> int:
        """How many starts went on from a checkpoint; the last one is not a kill."""
        last = bool(self.kills and self.kills[-1].epoch)
        return sum(kill.restored > 0 for kill in self.kills) + last

    @property
    def verdict(self) -> str:
        """The run in a sentence.

        >>> Ledger("shop", 1, 2).verdict
        'same: after 0 kills the output is that of an undisturbed run'
        """
        if not self.repeatable:
            return "undecided: two undisturbed runs of this job differ as well, so what it computes depends on chance"
        if self.violations:
            return f"VIOLATED: {len(self.violations)} times"
        return f"same: after {len(self.kills)} kills the output is that of an undisturbed run"


def tables(ledger: Ledger) -> Sequence[Table]:
    """The ledger as people read it."""
    from rich.table import Table

    hits = Table("killed by", "while", "times", title=f"job {ledger.job}, seed {ledger.seed}", title_justify="left")
    for (how, where), count in sorted(Counter((kill.how, kill.where) for kill in ledger.kills).items()):
        hits.add_row(how, where, str(count))
    total = Table("", "", show_header=False)
    total.add_row("kills", f"{len(ledger.kills)} of {ledger.wanted}")
    total.add_row("recoveries from a checkpoint", str(ledger.recoveries))
    times = [kill.recovery for kill in ledger.kills if kill.recovery is not None]
    if times:
        total.add_row(
            "from a start to its first new epoch", f"median {median(times):.2f} s, longest {max(times):.2f} s"
        )
    total.add_row("epochs committed", str(max((kill.epoch for kill in ledger.kills), default=0)))
    if ledger.zombies:
        total.add_row("second starts beside a stopped process, refused", str(ledger.zombies))
    if ledger.unreached:
        total.add_row("fail points that were not come to", ", ".join(sorted(ledger.unreached)))
    for sink, rows in ledger.rows.items():
        total.add_row(f"rows for sink {sink}", f"{rows:,}")
    total.add_row("rows left to read after the last kill", f"{ledger.left:,}")
    total.add_row("seconds", f"{ledger.seconds:.0f}")
    return [hits, total]
