"""Queries side by side: this engine with checkpoints, DuckDB's batch SQL, this engine without checkpoints."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import millstream as ms
import pyarrow.parquet as pq
from millstream.benchmarks.nexmark_files import STREAMS, events_file
from millstream.benchmarks.nexmark_measure import DUCKDB, MILLSTREAM, Measurement, Task
from millstream.benchmarks.nexmark_run import build_query
from millstream.benchmarks.nexmark_sql import SQL
from rich.table import Table

NEVER: Final = "365d"
"""The time between checkpoints when there are to be none but the last."""


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to compare.

    Attributes:
        threads: the numbers of threads (parallelism) to compare at.
        runs: how often to measure each; the table shows the median.
    """

    events: Path
    threads: tuple[int, ...] = (1, 2)
    runs: int = 3
    every: str = "1s"
    delay: str = "4s"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A query at one number of threads.

    Attributes:
        input_events: rows of the streams the query reads.
        without_checkpoints: this engine again, with no checkpoint but the last.
        duckdb: empty if the query has no batch definition.
    """

    query: str
    threads: int
    input_events: int
    millstream: list[Measurement] = field(default_factory=list)
    duckdb: list[Measurement] = field(default_factory=list)
    without_checkpoints: list[Measurement] = field(default_factory=list)

    def rate(self, measurements: Sequence[Measurement]) -> float:
        """Return input events per second of the median run."""
        return self.input_events / median(measurements).seconds

    @property
    def ratio(self) -> float | None:
        """How many times as fast as DuckDB this engine is."""
        return self.rate(self.millstream) / self.rate(self.duckdb) if self.duckdb else None

    @property
    def checkpoint_cost(self) -> Cost:
        """How much longer the query takes with checkpoints."""
        return cost((m.seconds, n.seconds) for m, n in self._pairs())

    @property
    def checkpoint_cpu(self) -> Cost:
        """How much more of the processor it takes: steadier where others are at work on the machine."""
        return cost((m.cpu_s, n.cpu_s) for m, n in self._pairs())

    def _pairs(self) -> Iterator[tuple[Measurement, Measurement]]:
        return zip(self.millstream, self.without_checkpoints, strict=True)


@dataclass(frozen=True, slots=True)
class Cost:
    """What checkpoints add, as a fraction, over pairs of runs one soon after the other.

    Attributes:
        low: a quarter of the pairs had less.
        high: a quarter of the pairs had more.
    """

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:+.1%} ({self.low:+.1%} to {self.high:+.1%})"


def cost(pairs: Iterable[tuple[float, float]]) -> Cost:
    """Compare (with, without) pair by pair: what slows the machine down for a while slows both down.

    >>> print(cost([(1.1, 1.0), (2.04, 2.0), (0.99, 1.0)]))
    +2.0% (+0.5% to +6.0%)
    """
    shares = [(much / little if little else 1.0) - 1 for much, little in pairs]
    return Cost(*statistics.quantiles(shares * 2 if len(shares) == 1 else shares, method="inclusive"))


def median(measurements: Sequence[Measurement]) -> Measurement:
    """Return the measurement of median duration; of an even number, the faster one of the two.

    >>> median([Measurement(1, seconds, 0.0, 0) for seconds in (3.0, 1.0, 2.0, 9.0)]).seconds
    2.0
    """
    middle = statistics.median_low(m.seconds for m in measurements)
    return next(m for m in measurements if m.seconds == middle)


def bench(
    queries: Iterable[str],
    options: BenchOptions,
    measure: Callable[[Task], Measurement],
    progress: Callable[[str], None] = lambda _: None,
) -> list[Comparison]:
    """Measure each query at each number of threads; the variants take turns on the machine.

    Args:
        measure: makes one measurement.
        progress: called with a line before each.
    """
    found = []
    for query in queries:
        for threads in options.threads:
            found.append(_compare(query, threads, options, measure, progress))
    return found


def _compare(
    query: str,
    threads: int,
    options: BenchOptions,
    measure: Callable[[Task], Measurement],
    progress: Callable[[str], None],
) -> Comparison:
    comparison = Comparison(query, threads, input_events(query, options.events))
    ours = Task(MILLSTREAM, query, str(options.events), threads, options.every, options.delay)
    never = Task(MILLSTREAM, query, str(options.events), threads, NEVER, options.delay)
    theirs = Task(DUCKDB, query, str(options.events), threads)
    variants = [
        (ours, comparison.millstream),
        (theirs, comparison.duckdb),
        (never, comparison.without_checkpoints),
    ]
    if query not in SQL:
        variants.remove((theirs, comparison.duckdb))
    # The first round fills the file cache and the kernel cache, and does not count. Every other one goes backwards, so
    # that what gets ever slower or faster tells nothing about who is.
    for turn in range(options.runs + 1):
        for task, measurements in variants if turn % 2 else reversed(variants):
            progress(f"{query}, {task.engine}, {threads} threads, run {turn} of {options.runs}")
            measurement = measure(task)
            if turn:
                measurements.append(measurement)
    return comparison


def input_events(query: str, events: Path) -> int:
    """Return how many rows the streams have that a query reads."""
    names = {node.name for node in build_query(query, events, ms.blackhole()).graph.sources()}
    return sum(pq.read_metadata(events_file(events, stream)).num_rows for stream in STREAMS if stream in names)


def table(comparisons: Sequence[Comparison]) -> Table:
    """Return the comparisons for people; each number is the median run's."""
    shown = Table(title="Nexmark: events per second of input", caption=CAPTION, caption_justify="left")
    for heading in (
        "query",
        "threads",
        "events/s",
        "DuckDB",
        "ratio",
        "CPU-s",
        "DuckDB",
        "peak RSS",
        "DuckDB",
    ):
        shown.add_column(heading, justify="left" if heading == "query" else "right")
    for heading in ("checkpoints", "their cost", "of CPU"):
        shown.add_column(heading, justify="right")
    for c in comparisons:
        ours = median(c.millstream)
        theirs = median(c.duckdb) if c.duckdb else None
        shown.add_row(
            c.query,
            str(c.threads),
            f"{c.rate(c.millstream):,.0f}",
            f"{c.rate(c.duckdb):,.0f}" if theirs else "",
            f"{c.ratio:.2f}" if c.ratio is not None else "",
            f"{ours.cpu_s:.1f}",
            f"{theirs.cpu_s:.1f}" if theirs else "",
            f"{ours.peak_rss / 2**20:,.0f} MiB",
            f"{theirs.peak_rss / 2**20:,.0f} MiB" if theirs else "",
            str(ours.checkpoints),
            str(c.checkpoint_cost),
            str(c.checkpoint_cpu),
        )
    return shown


CAPTION: Final = (
    "Both read only the columns a query needs from the same Parquet files and drop the result: this engine in "
    "a blackhole sink, with checkpoints on; DuckDB (batch SQL) as a stream of Arrow record batches. Each run is "
    "a process of its own; they take turns; the median is shown. The cost of checkpoints is against the run "
    "of the same turn with none but the last: median and quartiles."
)


def as_json(comparisons: Sequence[Comparison], options: BenchOptions) -> dict[str, Any]:
    """Return everything measured, and on what, as JSON values."""
    return {
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "python": sys.version.split()[0],
            "versions": {name: version(name) for name in ("millstream", "duckdb", "pyarrow", "numpy", "numba")},
        },
        "options": {
            "threads": options.threads,
            "runs": options.runs,
            "every": options.every,
            "delay": options.delay,
        },
        "comparisons": [
            {
                "query": c.query,
                "threads": c.threads,
                "input_events": c.input_events,
                "events_per_s": round(c.rate(c.millstream)),
                "duckdb_events_per_s": round(c.rate(c.duckdb)) if c.duckdb else None,
                "best_events_per_s": round(c.input_events / min(m.seconds for m in c.millstream)),
                "ratio": c.ratio,
                "checkpoint_cost": c.checkpoint_cost,
                "checkpoint_cpu": c.checkpoint_cpu,
                "runs": {
                    "millstream": c.millstream,
                    "duckdb": c.duckdb,
                    "without_checkpoints": c.without_checkpoints,
                },
            }
            for c in comparisons
        ],
    }
