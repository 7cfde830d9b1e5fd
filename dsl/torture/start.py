"""One start of a tortured job, as a process of its own; prints what came of it as JSON in its last line."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from millstream.cli.loading import load_job
from millstream.torture.capture import captured


class Start(msgspec.Struct, frozen=True):
    """What to run.

    Attributes:
        job: ``FILE.py`` or ``FILE.py:name``.
        rows: by source, how many rows it has; None: run at full speed.
        seconds: over how long they are spread.
    """

    job: str
    store: str
    output: str
    parallelism: int
    every: str
    rows: dict[str, int] | None = None
    seconds: float = 0.0


class Report(msgspec.Struct, frozen=True):
    """What came of it; rows are by source and by sink."""

    outcome: str
    rows_read: dict[str, int]
    rows_written: dict[str, int]
    seconds: float


def run(start: Start) -> Report:
    """Run the job until its sources end."""
    job = captured(load_job(start.job), Path(start.output), start.rows, start.seconds)
    result = job.run(start.store, every=start.every, parallelism=start.parallelism, max_dead_letters=10_000_000)
    status = result.status
    read, written = (dict(status.rows_read), dict(status.rows_written)) if status is not None else ({}, {})
    return Report(result.outcome, read, written, result.seconds)


def main() -> None:
    """Run what is given as JSON."""
    report = run(msgspec.json.decode(sys.argv[1], type=Start))
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


if __name__ == "__main__":
    main()
