"""The job that is tortured: Nexmark q7 and q0 over bids made on the fly, into files.

``python -m millstream.benchmarks.torture_job FOLDER --seed 1`` runs it at a steady rate without end; with ``--rows``
it comes to an end after so many bids, as fast as it can.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import millstream as ms
from millstream.benchmarks.nexmark_events import Timing, event_of_row
from millstream.benchmarks.nexmark_queries import QUERIES, Events
from millstream.benchmarks.nexmark_source import nexmark_source

TIMING: Final = Timing(rate=400, disorder=3_000_000)
"""Few events a second of event time, so that windows of 10 s come fast."""

QUERIES_RUN: Final = ("q7", "q0")
"""q7 keeps state, and its results come from one subtask; every epoch of q0 is a folder of several files."""

EVERY: Final = "200ms"
PARALLELISM: Final = 2
BATCH_ROWS: Final = 50
RATE: Final = 4_000


class GeneratedBids(Events):
    """Bids made by a function instead of read from files.

    Args:
        rows: how many; None: no end, at ``RATE`` a second.
    """

    def __init__(self, job: ms.Job, seed: int, rows: int | None) -> None:
        events = None if rows is None else event_of_row("bid", rows)
        rate = RATE if rows is None else None
        source = nexmark_source(
            "bid", events=events, rate=rate, seed=seed, timing=TIMING, splits=PARALLELISM, batch_rows=BATCH_ROWS
        )
        self._stream = job.read(source, event_time="date_time", max_delay="4s")

    @property
    def bid(self) -> ms.Stream:
        """The only stream."""
        return self._stream


def store_of(folder: Path) -> Path:
    """Where the job's checkpoints are."""
    return folder / "job.duckdb"


def output_of(folder: Path) -> Path:
    """Where the folders of the queries' results are."""
    return folder / "output"


def make_job(folder: Path, seed: int, rows: int | None) -> ms.Job:
    """Return the job, writing below ``folder``."""
    job = ms.Job("torture")
    bids = GeneratedBids(job, seed, rows)
    for query in QUERIES_RUN:
        QUERIES[query](bids).write(ms.parquet(output_of(folder) / query, hold_bytes=0, name=query))
    return job


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", default=1, show_default=True)
@click.option("--rows", type=int, default=None, help="End after so many bids.")
def main(folder: Path, seed: int, rows: int | None) -> None:
    """Run the job until it ends or is killed."""
    job = make_job(folder, seed, rows)
    result = job.run(store_of(folder), every=EVERY, parallelism=PARALLELISM, restarts=0, exactly_once=True)
    click.echo(result.outcome)


if __name__ == "__main__":
    main()
