"""Whether an event costs the same however many came before: queries over event files of several sizes.

What is compared is processor time per event, which other work on the machine disturbs less than the clock does. A query
whose state is bounded should cost the same per event at every size, and need the same memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
from millstream.benchmarks.nexmark_bench import input_events
from millstream.benchmarks.nexmark_measure import Measurement, Task
from millstream.engine.errors import JobError
from rich.table import Table

BOUNDED: Final = ("q0", "q1", "q2", "q5", "q7", "q8", "q10", "q11", "q13", "q14", "q21", "q22")
"""The queries whose state does not grow with the input: none, windows, and a side input of fixed size.

The others keep something of every auction, bidder or pair of them, and DuckDB's answer over all of them needs it. q12
has windows of ten seconds of the clock: a run over fewer events than go through in that time is one window, with a
count for every bidder there is.
"""


class Size(msgspec.Struct, frozen=True):
    """A query over one folder of events.

    Attributes:
        input_events: rows of the streams the query reads.
        runs: the measurements.
    """

    events: str
    input_events: int
    runs: list[Measurement]

    @property
    def best(self) -> Measurement:
        """The run that needed the least processor time: whatever else disturbed the others."""
        return min(self.runs, key=lambda run: run.cpu_s)

    @property
    def nanoseconds(self) -> float:
        """Processor time per event."""
        return self.best.cpu_s / self.input_events * 1e9


class Growth(msgspec.Struct, frozen=True):
    """A query over several sizes, the smallest first."""

    query: str
    sizes: list[Size]

    def ratio(self, at: int) -> float:
        """How many times as much an event costs at a size as at the smallest one."""
        return self.sizes[at].nanoseconds / self.sizes[0].nanoseconds

    def further(self, at: int) -> float:
        """Processor time, in nanoseconds, per event that a size has more than the one before; without fixed costs."""
        before, size = self.sizes[at - 1 : at + 1]
        return (size.best.cpu_s - before.best.cpu_s) / (size.input_events - before.input_events) * 1e9


def grow(
    queries: Iterable[str],
    folders: Sequence[Path],
    task: Task,
    runs: int,
    measure: Callable[[Task], Measurement],
    progress: Callable[[str], None] = lambda _: None,
) -> list[Growth]:
    """Measure each query over each folder of events, the sizes in turn.

    Args:
        task: how to measure; its query and events are replaced.
        runs: measurements of each size; the one of least processor time counts.
        measure: makes one measurement.
        progress: called with a line before each.

    Raises:
        JobError: two folders hold as many events.
    """
    found = []
    for query in queries:
        sizes = sorted((Size(str(f), input_events(query, f), []) for f in folders), key=lambda s: s.input_events)
        for size, larger in pairwise(sizes):
            if size.input_events == larger.input_events:
                raise JobError(f"{size.events} and {larger.events} are of one size: give folders of several sizes")
        for turn in range(runs):
            for size in sizes:
                progress(f"{query}, {size.input_events:,} events, run {turn + 1} of {runs}")
                size.runs.append(measure(dataclasses.replace(task, query=query, events=size.events)))
        found.append(Growth(query, sizes))
    return found


def table(growths: Sequence[Growth]) -> Table:
    """Return the growths for people."""
    shown = Table(title="Nexmark: what an event costs", caption=CAPTION, caption_justify="left")
    for heading in ("query", "events", "ns/event", "ratio", "ns/further", "ratio", "peak RSS"):
        shown.add_column(heading, justify="left" if heading == "query" else "right")
    for growth in growths:
        for at, size in enumerate(growth.sizes):
            ratio = f"{growth.ratio(at):.2f}" if at else ""
            further = f"{growth.further(at):,.0f}" if at else ""
            of_further = f"{growth.further(at) / growth.further(1):.2f}" if at > 1 else ""
            memory = f"{size.best.peak_rss / 2**20:,.0f} MiB"
            numbers = (f"{size.input_events:,}", f"{size.nanoseconds:,.0f}", ratio, further, of_further)
            shown.add_row("" if at else growth.query, *numbers, memory)
        shown.add_section()
    return shown


CAPTION: Final = (
    "Processor time of all threads, user and system, per event that the query reads, of the best run; each run is a "
    "process of its own. Making the job and the store is counted, and weighs most at the smallest size; the time per "
    "further event, over that of the size before, is without it. Ratios are to the first number of the column."
)


def as_json(growths: Sequence[Growth]) -> list[dict[str, Any]]:
    """Return everything measured as JSON values."""
    return [
        {
            "query": growth.query,
            "sizes": [
                {
                    "input_events": size.input_events,
                    "cpu_ns_per_event": round(size.nanoseconds, 1),
                    "ratio": round(growth.ratio(at), 3),
                    "cpu_ns_per_further_event": round(growth.further(at), 1) if at else None,
                    "runs": size.runs,
                }
                for at, size in enumerate(growth.sizes)
            ],
        }
        for growth in growths
    ]
