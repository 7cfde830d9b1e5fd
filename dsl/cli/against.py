"""``millstream plan --against``: what would become of a checkpoint under this version of a job."""

from __future__ import annotations

from pathlib import Path

import click
from millstream.cli.tables import as_json, print_table
from millstream.engine.fitting import Change, compare
from millstream.engine.plan import Plan
from millstream.engine.store.reader import StoreReader

REFUSED = 3
"""The exit code when the job would refuse to go on from the checkpoint."""


def show_against(plan: Plan, store: Path, as_lines: bool) -> int:
    """Print the comparison of a job with the last checkpoint of a store; return the exit code."""
    with StoreReader.open(store) as reader:
        facts = reader.facts()
    changes = compare(facts, plan.states)
    rows = [_row(change) for change in changes]
    if as_lines:
        for row in rows:
            click.echo(as_json(row))
    else:
        print_table(["what", "name", "id", "becomes", "details"], [{**row, "details": _text(row)} for row in rows])
        click.echo(_conclusion(plan.job, store, facts.last.epoch if facts.last else None, changes), err=True)
    return REFUSED if any(change.refused for change in changes) else 0


def _row(change: Change) -> dict[str, object]:
    return {
        "what": change.kind,
        "name": change.name,
        "id": change.id,
        "becomes": change.verdict.value,
        "refused": change.refused,
        "details": list(change.details),
    }


def _text(row: dict[str, object]) -> str:
    details = row["details"]
    assert isinstance(details, list)
    return "\n".join(details)


def _conclusion(job: str, store: Path, epoch: int | None, changes: list[Change]) -> str:
    if epoch is None:
        return f"{store} holds no checkpoint yet: {job} would begin anew"
    if not any(change.refused for change in changes):
        return f"{job} would go on after epoch {epoch}"
    losing = " ".join(f"--drop-state {change.id}" for change in changes if change.loses)
    accepting = f"; with {losing} it would give that state up" if losing else ""
    return f"{job} would refuse to go on after epoch {epoch}{accepting}"
