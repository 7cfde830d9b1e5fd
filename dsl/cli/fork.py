"""``millstream fork``: a checkpoint of one job becomes the start of another."""

from __future__ import annotations

from pathlib import Path

import click
from millstream.cli.options import FILE, STORE


@click.command()
@STORE
@click.argument("new", type=FILE)
@click.option("--epoch", metavar="N", type=click.IntRange(min=1), help="Which checkpoint.  [default: the last]")
@click.option("--savepoint", metavar="NAME", help="A savepoint of STORE instead.")
def fork(store: Path, new: Path, epoch: int | None, savepoint: str | None) -> None:
    """Copy a checkpoint of STORE into the new store NEW, for a second job. The first is not touched; it may be running.

    The second job has an id of its own. It goes on from the positions and the state of the checkpoint; making the
    output of that checkpoint visible stays the first job's affair. Give it other outputs: where both jobs write,
    readers see what follows twice.

    \b
    millstream fork revenue.duckdb trial.duckdb
    millstream run trial.py --store trial.duckdb
    """
    from millstream.engine.store.savepoints import fork as make

    if epoch is not None and savepoint is not None:
        raise click.UsageError("--epoch and --savepoint both say which checkpoint: give one of them")
    manifest = make(store, new, epoch=epoch, savepoint=savepoint)
    click.echo(f"{new}: a job of its own that goes on after epoch {manifest.epoch} of {store}")
