"""``millstream state``: what the operators of a job keep, whether it runs or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from millstream.cli.options import FORMAT, STORE
from millstream.engine.errors import JobError

if TYPE_CHECKING:
    from millstream.engine.store.reader import StoreReader


@click.group()
def state() -> None:
    """Look at the state of a job's operators.

    STORE is the job's checkpoint file. The job may be running: then it answers itself, as of its last checkpoint.
    Nothing can be changed.

    \b
    millstream state ls revenue.duckdb
    millstream state query revenue.duckdb "FROM state.window_aggregate_windows LIMIT 10"
    """


@state.command("ls")
@STORE
@FORMAT
def ls(store: Path, form: str | None) -> None:
    """List the relations of STORE that can be queried, one per kept state, with their rows and columns.

    Memory is what the whole operator held at the last checkpoint, in all its subtasks.
    """
    from millstream.cli.tables import show_rows, wants_table
    from millstream.engine.store.reader import StoreReader

    with StoreReader.open(store) as reader:
        owners = reader.view_owners()
        rows = [{**_relation(reader, view), **_owner(owners.get(view), form)} for view in reader.state_views()]
    show_rows(["relation", "rows", "columns", "operator", "memory"], rows, form)
    if wants_table(form):
        if rows:
            click.echo(f'Look into one: millstream state query {store} "FROM {rows[0]["relation"]} LIMIT 10"', err=True)
        else:
            click.echo(f"No operator of the job in {store} keeps any state", err=True)


@state.command("query")
@STORE
@click.argument("sql")
@click.option("--epoch", metavar="N", type=click.IntRange(min=1), help="As of an earlier epoch that is still kept.")
@click.option("--savepoint", metavar="NAME", help="As of a savepoint.")
@FORMAT
def query(store: Path, sql: str, epoch: int | None, savepoint: str | None, form: str | None) -> None:
    """Answer one SELECT over STORE: from the file if the job is stopped, from the engine if it runs.

    SQL is DuckDB's. State is in the relations that millstream state ls lists, checkpoints are in manifest. It is
    the state of the last checkpoint, unless --epoch or --savepoint says another; nothing can be changed.
    """
    from millstream.cli.tables import show_rows, wants_table
    from millstream.engine.store.reader import StoreReader

    if savepoint is not None:
        from millstream.engine.store.savepoints import find_savepoint

        if epoch is not None:
            raise click.UsageError("a savepoint has one epoch only: leave --epoch out")
        opened = StoreReader.open_copy(find_savepoint(store, savepoint).path)
    else:
        opened = StoreReader.open(store)
    with opened as reader:
        try:
            result = reader.query(sql, epoch)
        except JobError as error:
            if "does not exist" in str(error):
                error.add_note(f"relations with state: {', '.join(map(relation, reader.state_views())) or 'none'}")
            raise
    names = _distinct(result.schema.names)
    rows = result.rename_columns(names).to_pylist()
    show_rows(names, rows, form)
    if wants_table(form):
        click.echo(f"{len(rows):,} row" + ("" if len(rows) == 1 else "s"), err=True)


def relation(view: str) -> str:
    """The name of a view as it is written in SQL.

    >>> relation("windows"), relation("top 3")
    ('state.windows', 'state."top 3"')
    """
    from millstream.engine.store.columns import quote

    return f"state.{view if view.isidentifier() and view.isascii() else quote(view)}"


def _relation(reader: StoreReader, view: str) -> dict[str, object]:
    counted = reader.query(f"SELECT count(*) AS n FROM {relation(view)}")  # noqa: S608 - the name is quoted
    columns = reader.query(f"SELECT * FROM {relation(view)} LIMIT 0").schema.names  # noqa: S608
    return {"relation": relation(view), "rows": counted.column("n")[0].as_py(), "columns": ", ".join(columns)}


def _owner(owner: tuple[str, int] | None, form: str | None) -> dict[str, object]:
    from millstream.cli.tables import wants_table
    from millstream.cli.text import show_bytes

    if owner is None:  # the job has been started anew and has no checkpoint yet
        return {"operator": None, "memory": None}
    return {"operator": owner[0], "memory": show_bytes(owner[1]) if wants_table(form) else owner[1]}


def _distinct(names: list[str]) -> list[str]:
    """Number names that come twice: as a JSON object a row would lose one of them."""
    found: list[str] = []
    for name in names:
        new, n = name, 1
        while new in found:
            n += 1
            new = f"{name}_{n}"
        found.append(new)
    return found
