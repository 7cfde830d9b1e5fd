"""What is said of a run when it has ended."""

from __future__ import annotations

from typing import Any

from millstream.cli.text import counted, noteworthy
from millstream.engine.runtime.run import JobResult


def sentence(job: str, result: JobResult) -> str:
    """Say how it ended."""
    match result.outcome:
        case "already finished":
            return f"{job} had already finished at checkpoint {result.epoch}; nothing to do"
        case "stopped":
            return f"{job} stopped at checkpoint {result.epoch} after {result.seconds:.1f} s; run it again to go on"
        case "interrupted":
            return f"{job} was interrupted; run it again to go on from checkpoint {result.epoch}"
        case _:
            began = f", resumed from checkpoint {result.restored_from}" if result.restored_from else ""
            return f"{job} finished in {result.seconds:.1f} s at checkpoint {result.epoch}{began}"


def details(result: JobResult) -> list[str]:
    """Say what went in and what came out, a line for each source and sink and whatever is worth a look."""
    status = result.status
    if status is None:
        return []
    since = f" since restart {result.restarts}" if result.restarts else ""
    names = [*status.rows_read, *status.rows_written]
    width = max(map(len, names), default=0)
    lines = [f"← {name:<{width}}  {counted(rows, 'row')} in{since}" for name, rows in status.rows_read.items()]
    lines += [f"→ {name:<{width}}  {counted(rows, 'row')} out{since}" for name, rows in status.rows_written.items()]
    for operator, counts in noteworthy(status.counters).items():
        lines += [f"{key.replace('_', ' ')}: {number:,} ({operator})" for key, number in counts.items()]
    lines += [f"dead letters: {number:,} ({source})" for source, number in status.dead_letters.items() if number]
    return lines


def fields(result: JobResult) -> dict[str, Any]:
    """The same as values for a log line."""
    found: dict[str, Any] = {
        "epoch": result.epoch,
        "seconds": round(result.seconds, 3),
        "restored_from": result.restored_from,
        "restarts": result.restarts,
    }
    status = result.status
    if status is not None:
        found |= {
            "rows_read": dict(status.rows_read),
            "rows_written": dict(status.rows_written),
            "counters": noteworthy(status.counters),
            "dead_letters": dict(status.dead_letters),
        }
    return found
