"""``millstream explain-stuck``: what a job is waiting for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from millstream.cli.options import FORMAT, STORE


@click.command("explain-stuck")
@STORE
@FORMAT
def explain_stuck(store: Path, form: str | None) -> None:
    """Name what holds back the watermark or a checkpoint of the job in STORE, and since when.

    A running job answers about this moment: the split whose rows are the oldest, or the operator that has yet to come
    to what waits before it; the table that is read before the rows that are joined with it; and while a checkpoint is
    under way, the operator or sink behind which its barrier waits.
    Of a stopped job the last checkpoint tells which split was furthest behind.
    """
    from millstream.cli.tables import show_rows, wants_table
    from millstream.cli.text import show_time
    from millstream.engine.store.reader import StoreReader

    with StoreReader.open(store) as reader:
        running, found = reader.running, reader.holds().to_pylist()
    rows: list[dict[str, Any]] = [
        {**row, "watermark": None if row["watermark"] is None else show_time(row["watermark"])} for row in found
    ]
    for row in rows:
        row["seconds"] = None if row["seconds"] is None else round(row["seconds"], 1)
    show_rows(["waits", "holder", "seconds", "watermark", "reason"], rows, form)
    if not rows and wants_table(form):
        state = "nothing waits for anything at this moment" if running else "the job is stopped; no split was behind"
        click.echo(state, err=True)
