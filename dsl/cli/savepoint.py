"""``millstream savepoint``: checkpoints that are kept under a name."""

from __future__ import annotations

from pathlib import Path

import click
from millstream.cli.options import FORMAT, STORE


@click.group()
def savepoint() -> None:
    """Keep a checkpoint under a name, for as long as you like.

    STORE is the job's checkpoint file. A savepoint is a file of its own in the folder STORE.savepoints, whole and
    independent of the store. A second job starts from it: millstream run --from STORE@NAME, or millstream fork.

    \b
    millstream savepoint create revenue.duckdb before-upgrade
    millstream run revenue.py --store trial.duckdb --from revenue.duckdb@before-upgrade
    """


@savepoint.command("create")
@STORE
@click.argument("name")
def create(store: Path, name: str) -> None:
    """Keep a checkpoint of STORE as NAME: the next one of a running job, which is taken at once, or the last one."""
    from millstream.cli.text import show_bytes
    from millstream.engine.store.savepoints import create_savepoint

    made = create_savepoint(store, name)
    click.echo(f"{made.name}: epoch {made.manifest.epoch}, {show_bytes(made.bytes)} in {made.path}")


@savepoint.command("ls")
@STORE
@FORMAT
def ls(store: Path, form: str | None) -> None:
    """List the savepoints of STORE, oldest first."""
    from millstream.cli.tables import show_rows, wants_table
    from millstream.cli.text import show_bytes, show_time
    from millstream.engine.store.savepoints import list_savepoints

    rows = [
        {
            "name": s.name,
            "epoch": s.manifest.epoch,
            "committed": show_time(s.manifest.committed_at),
            "bytes": show_bytes(s.bytes) if wants_table(form) else s.bytes,
            "file": str(s.path),
        }
        for s in list_savepoints(store)
    ]
    show_rows(["name", "epoch", "committed", "bytes", "file"], rows, form)


@savepoint.command("drop")
@STORE
@click.argument("name")
def drop(store: Path, name: str) -> None:
    """Remove the savepoint NAME of STORE. Jobs that were started from it do not need it."""
    from millstream.engine.store.savepoints import drop_savepoint

    drop_savepoint(store, name)
