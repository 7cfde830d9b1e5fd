"""``millstream store``: whether a checkpoint file is whole, what can be saved of it, and its content as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from millstream.cli.options import FILE, FORMAT, STORE

if TYPE_CHECKING:
    from millstream.engine.store.salvaging import Salvaged
    from millstream.engine.store.verifying import Finding


@click.group()
def store() -> None:
    """Look after the checkpoint file of a job.

    \b
    millstream store verify revenue.duckdb
    millstream store salvage revenue.duckdb saved.duckdb
    millstream store export revenue.duckdb --out revenue-state
    """


@store.command("verify")
@STORE
@FORMAT
def verify(store: Path, form: str | None) -> None:
    """Read all that STORE holds, and compare it with the checksums kept when it was written.

    The job must be stopped. Nothing is changed. Exit code: 0 if every kept epoch can be restored, 1 if not.
    """
    from millstream.cli.tables import show_rows, wants_table
    from millstream.engine.store.verifying import verify_store

    verdict = verify_store(store)
    show_rows(["epoch", "kind", "committed", "rows", "verdict"], [_shown(f) for f in verdict.findings], form)
    if verdict.problem:
        click.echo(f"DAMAGED: {verdict.problem}", err=True)
    if not verdict.whole:
        click.echo(f"What is whole can be saved: millstream store salvage {store} NEW.duckdb", err=True)
        sys.exit(1)
    if wants_table(form):
        click.echo(
            f"{len(verdict.findings)} epochs are whole; acknowledged was {verdict.acknowledged or 'none'}", err=True
        )


def _shown(finding: Finding) -> dict[str, Any]:
    from millstream.cli.text import show_time

    return {
        "epoch": finding.epoch,
        "kind": finding.kind,
        "committed": show_time(finding.committed_at),
        "rows": finding.rows,
        "verdict": finding.problem or "whole",
    }


@store.command("salvage")
@STORE
@click.argument("target", type=FILE)
def salvage(store: Path, target: Path) -> None:
    """Make a new store, TARGET, of the newest epoch in STORE that is whole.

    STORE itself stays as it is. Where it is not damaged at all, TARGET is a copy of its last checkpoint. The job then
    goes on with --store TARGET. What came after that epoch is done again: sinks that have published it notice that
    and refuse, or, if they cannot know, have those effects twice.
    """
    from millstream.engine.store.salvaging import salvage as salvaged

    click.echo(_told(salvaged(store, target), target))


def _told(saved: Salvaged, target: Path) -> str:
    lines = [f"{target} holds epoch {saved.epoch}."]
    if saved.log:
        lines.append(f"The write-ahead log was {saved.log}.")
    lines += [f"Epoch {finding.epoch} was given up: {finding.problem}" for finding in saved.given_up]
    if saved.acknowledged is None:
        lines.append("There is no witness to say which epoch was the last.")
    elif saved.acknowledged > saved.epoch:
        lost = f"{saved.epoch + 1} to {saved.acknowledged}"
        lines.append(
            f"Epochs {lost} had been acknowledged and are LOST: what they did inside the job is done again, and what "
            "sinks have published of them may come twice. Look at your sinks before you go on."
        )
    else:
        lines.append("Nothing that had been acknowledged is lost.")
    return "\n".join(lines)


@store.command("export")
@STORE
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="A new folder for the files."
)
@click.option("--epoch", metavar="N", type=click.IntRange(min=1), help="An earlier epoch that is still kept.")
def export(store: Path, out: Path, epoch: int | None) -> None:
    """Write what STORE holds as files: each operator's state as Parquet, positions and watermarks as JSON.

    The job may be running: then it is as of its last checkpoint.
    """
    from millstream.cli.store_export import export_store
    from millstream.engine.store.reader import StoreReader

    with StoreReader.open(store) as reader:
        for name, rows in export_store(reader, out, epoch).items():
            click.echo(f"{out / name}: {rows:,} rows")
