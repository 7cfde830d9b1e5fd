"""``millstream plan --against``: what would become of a checkpoint under this version of a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from millstream.cli.tables import print_table
from millstream.engine.as_json import as_json
from millstream.engine.fitting import Change, compare
from millstream.engine.plan import Plan
from millstream.engine.runtime.letters import misfits
from millstream.engine.store.letters import Selection
from millstream.engine.store.reader import StoreReader
from millstream.engine.store.types import MarkedLetter

REFUSED = 3
"""The exit code when the job would refuse to go on from the checkpoint."""


def show_against(plan: Plan, store: Path, as_lines: bool) -> int:
    """Print the comparison of a job with the last checkpoint of a store; return the exit code."""
    with StoreReader.open(store) as reader:
        facts = reader.facts()
        letters = reader.replayable_letters(Selection(marked=True))
    changes = compare(facts, plan.states)
    replays = _replays(letters, plan)
    rows = [*(_row(change) for change in changes), *replays]
    if as_lines:
        for row in rows:
            click.echo(as_json(row))
    else:
        print_table(["what", "name", "id", "becomes", "details"], [{**row, "details": _text(row)} for row in rows])
        epoch = facts.last.epoch if facts.last else None
        stuck = any(row["refused"] for row in replays)
        click.echo(_conclusion(plan.job, store, epoch, changes, stuck), err=True)
    return REFUSED if any(row["refused"] for row in rows) else 0


def _row(change: Change) -> dict[str, object]:
    return {
        "what": change.kind,
        "name": change.name,
        "id": change.id,
        "becomes": change.verdict.value,
        "refused": change.refused,
        "details": list(change.details),
    }


def _replays(letters: Sequence[MarkedLetter], plan: Plan) -> list[dict[str, object]]:
    """A line for the marked dead letters of each operator."""
    by_operator: dict[str, list[MarkedLetter]] = {}
    for letter in letters:
        by_operator.setdefault(letter.node_id, []).append(letter)
    rows: list[dict[str, object]] = []
    for id_, own in by_operator.items():
        reasons = [f"{count:,} x {reason}" for reason, count in misfits(own, plan).items()]
        rows.append(
            {
                "what": "dead letters",
                "name": own[-1].name,
                "id": id_,
                "becomes": "changed" if reasons else "replayed",
                "refused": bool(reasons),
                "details": reasons or [f"{len(own):,} of them"],
            }
        )
    return rows


def _text(row: dict[str, object]) -> str:
    details = row["details"]
    assert isinstance(details, list)
    return "\n".join(details)


def _conclusion(job: str, store: Path, epoch: int | None, changes: list[Change], stuck: bool) -> str:
    """In a sentence; ``stuck``: dead letters that are to be replayed do not fit."""
    if epoch is None:
        return f"{store} holds no checkpoint yet: {job} would begin anew"
    if not stuck and not any(change.refused for change in changes):
        return f"{job} would go on after epoch {epoch}"
    losing = " ".join(f"--drop-state {change.id}" for change in changes if change.loses)
    accepting = f"; with {losing} it would give that state up" if losing else ""
    undo = f"; millstream deadletters replay {store} JOB --undo --all would leave the letters alone" if stuck else ""
    return f"{job} would refuse to go on after epoch {epoch}{accepting}{undo}"
