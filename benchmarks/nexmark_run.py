"""Run one Nexmark query over events in Parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import millstream as ms
from millstream.benchmarks.nexmark_queries import QUERIES, Events
from millstream.engine.errors import JobError

if TYPE_CHECKING:
    from millstream.engine.runtime.run import Control, JobResult
    from millstream.engine.sink import Sink

ALREADY_FINISHED = "already finished"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to run a query.

    Attributes:
        store: the checkpoint file.
        every: time between two checkpoints.
        delay: how much later than a newer row an older one may come.
        rate: events a second, of all streams together; None: as fast as they are read.
        most: after about so many events nothing more is read, and the job waits; only with a rate.
    """

    store: Path
    parallelism: int = 1
    every: str = "1s"
    delay: str = "4s"
    rate: float | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Attributes:
        input_events: rows read by this run; 0 if the query had already finished.
        output_rows: rows written by this run.
        checkpoints: how many this run committed.
        restored_from: the epoch it began with; 0 if it began anew.
    """

    query: str
    outcome: str
    input_events: int
    output_rows: int
    seconds: float
    events_per_s: int
    checkpoints: int
    restored_from: int


def known_query(name: str) -> str:
    """Return the name, or raise JobError saying which queries there are."""
    if name not in QUERIES:
        raise JobError(f"there is no Nexmark query {name!r} here; there are {', '.join(QUERIES)}")
    return name


def build_query(
    query: str, events: Path, sink: Sink, delay: str = "4s", rate: float | None = None, most: int | None = None
) -> ms.Job:
    """Return the job that reads ``events``, does the query, and writes to ``sink``."""
    job = ms.Job(f"nexmark-{known_query(query)}")
    QUERIES[query](Events(job, events, delay, rate, most)).write(sink)
    return job


def run_query(query: str, events: Path, sink: Sink, options: RunOptions, control: Control | None = None) -> RunReport:
    """Run a query to the end of its events, resuming from the store if it has begun before."""
    result = _run(build_query(query, events, sink, options.delay, options.rate, options.most), options, control)
    return _report(query, result)


def _run(job: ms.Job, options: RunOptions, control: Control | None) -> JobResult:
    return job.run(
        options.store,
        every=options.every,
        parallelism=options.parallelism,
        exactly_once=True,
        control=control,
    )


def _report(query: str, result: JobResult) -> RunReport:
    status = result.status
    read = sum(status.rows_read.values()) if status is not None else 0
    return RunReport(
        query=query,
        outcome=result.outcome,
        input_events=read,
        output_rows=sum(status.rows_written.values()) if status is not None else 0,
        seconds=round(result.seconds, 3),
        events_per_s=round(read / result.seconds) if result.seconds > 0 else 0,
        checkpoints=status.checkpoints.committed if status is not None else 0,
        restored_from=result.restored_from,
    )
