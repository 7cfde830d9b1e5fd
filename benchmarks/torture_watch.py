"""Watches what a tortured job writes, all the time, from a process of its own.

``python -m millstream.benchmarks.torture_watch SETTING`` answers every line of its standard input with what it has seen
by then, as JSON in a line; when that is closed, it looks a last time and says what is left over as well.
"""

from __future__ import annotations

import select
import sys
from typing import Final

import msgspec
from millstream.benchmarks.torture_rows import Oracle
from millstream.benchmarks.torture_start import Setting

PAUSE: Final = 0.05
"""Seconds between two looks."""


class Seen(msgspec.Struct):
    """What there was to see.

    Attributes:
        looks: how often it was looked.
        rows: by split, how many of its rows have come out.
        violations: a sentence each.
    """

    looks: int
    rows: dict[int, int]
    violations: list[str]


def main() -> None:
    """Watch until standard input is closed."""
    oracle, looks, asked = Oracle(), 0, "a"
    watcher = msgspec.json.decode(sys.argv[1], type=Setting).output().watcher(oracle)
    while asked:
        asked = sys.stdin.readline() if select.select([sys.stdin], [], [], PAUSE)[0] else "later"
        watcher.look()
        looks += 1
        if not asked:
            for what in watcher.left_over():
                oracle.complain(f"{what} is left over")
        if asked != "later":
            answer = msgspec.json.encode(Seen(looks, dict(oracle.seen), oracle.violations))
            sys.stdout.write(answer.decode() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
