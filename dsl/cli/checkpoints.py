"""``millstream checkpoints``: what a store can be restored at, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from millstream.cli.options import FORMAT, STORE
from millstream.engine.errors import JobError, StoreError

if TYPE_CHECKING:
    from millstream.engine.store.reader import StoreReader
    from millstream.engine.store.types import Manifest


_TRIES = 20


@click.group()
def checkpoints() -> None:
    """Look at the checkpoints in a store.

    STORE is the job's checkpoint file; the job may be running.

    \b
    millstream checkpoints ls revenue.duckdb
    millstream checkpoints show revenue.duckdb 12
    """


@checkpoints.command("ls")
@STORE
@FORMAT
def ls(store: Path, form: str | None) -> None:
    """List the epochs that STORE can be restored at, oldest first, its savepoints among them."""
    from millstream.cli.tables import show_rows, wants_table
    from millstream.cli.text import show_time
    from millstream.engine.store.reader import StoreReader
    from millstream.engine.store.savepoints import list_savepoints

    with StoreReader.open(store) as reader:
        rows: list[dict[str, Any]] = [
            {
                "epoch": m.epoch,
                "generation": m.generation,
                "kind": m.kind.value,
                "committed": show_time(m.committed_at),
                "state_rows_written": sum(t.rows for t in m.tables.values()),
            }
            for m in reader.manifests()
        ]
    rows += [
        {
            "epoch": s.manifest.epoch,
            "generation": s.manifest.generation,
            "kind": s.manifest.kind.value,
            "committed": show_time(s.manifest.committed_at),
            "state_rows_written": sum(t.rows for t in s.manifest.tables.values()),
            "savepoint": s.name,
        }
        for s in list_savepoints(store)
    ]
    rows.sort(key=lambda row: row["epoch"])
    rows = [{"savepoint": None, **row} for row in rows]
    show_rows(["epoch", "generation", "kind", "committed", "state_rows_written", "savepoint"], rows, form)
    if not rows and wants_table(form):
        click.echo(f"{store} holds no checkpoint yet", err=True)


@checkpoints.command("show")
@STORE
@click.argument("epoch", type=click.IntRange(min=1), required=False)
@FORMAT
def show(store: Path, epoch: int | None, form: str | None) -> None:
    """Show one EPOCH of STORE, the last if left out.

    For every operator what it keeps (rows, bytes of their values, rows this epoch wrote), for sources the position
    of each split, for sinks what this epoch handed over to be made visible.
    """
    from millstream.cli.tables import wants_table
    from millstream.engine.as_json import as_json
    from millstream.engine.store.reader import StoreReader

    with StoreReader.open(store) as reader:
        shown = _shown(reader, epoch, store)
    if wants_table(form):
        _print(shown)
    else:
        click.echo(as_json(shown, indent=2))


def _shown(reader: StoreReader, epoch: int | None, store: Path) -> dict[str, Any]:
    for _ in range(_TRIES if reader.running else 0):
        manifest = _find(reader.manifests(), epoch, store)
        try:
            return _contents(reader, manifest)
        except StoreError:
            continue  # the job has removed that epoch between two questions
    return _contents(reader, _find(reader.manifests(), epoch, store))


def _find(manifests: list[Manifest], epoch: int | None, store: Path) -> Manifest:
    if not manifests:
        raise JobError(f"{store} holds no checkpoint yet")
    if epoch is None:
        return manifests[-1]
    for manifest in manifests:
        if manifest.epoch == epoch:
            return manifest
    held = ", ".join(str(m.epoch) for m in manifests)
    raise JobError(f"{store} does not hold epoch {epoch}; it holds {held}")


def _contents(reader: StoreReader, manifest: Manifest) -> dict[str, Any]:
    from millstream.cli.text import show_time

    names = {id_: operator.name for id_, operator in manifest.operators.items()}
    sizes = reader.state_sizes(manifest)
    given = reader.committables(manifest.epoch)
    counts = reader.count_committables(manifest.epoch)
    pending = {id_: [dict(c.payload) for c in committables] for id_, committables in given.items()}
    return {
        "epoch": manifest.epoch,
        "generation": manifest.generation,
        "kind": manifest.kind.value,
        "committed": show_time(manifest.committed_at),
        "state": [
            {
                "operator": names.get(key[0], key[0]),
                "table": key[1],
                "rows": sizes[key].rows,
                "bytes": sizes[key].bytes,
                "rows_written": written.rows,
                "full_from": written.full_from,
            }
            for key, written in manifest.tables.items()
        ],
        "sources": [
            {
                "source": names.get(p.source_id, p.source_id),
                "split": p.split.id,
                "position": p.position,
                "finished": p.finished,
                "max_event_time": None if p.max_time is None else show_time(p.max_time),
            }
            for p in reader.positions(manifest.epoch)
        ],
        "sinks": [
            {"sink": o.name, "pending": counts.get(id_, 0), "committables": pending.get(id_, [])}
            for id_, o in manifest.operators.items()
            if o.kind == "sink"
        ],
        "watermarks": [
            {"operator": names[id_], "watermark": show_time(time)}
            for id_, time in manifest.watermarks.items()
            if id_ in names  # the others keep nothing and have no name here
        ],
    }  # fmt: skip


def _print(shown: dict[str, Any]) -> None:
    from millstream.cli.tables import console, print_table
    from millstream.cli.text import show_bytes

    head = (
        f"epoch {shown['epoch']} ({shown['kind']}) of generation {shown['generation']}, committed {shown['committed']}"
    )
    console().print(head, highlight=False, markup=False)
    columns = {
        "state": ["operator", "table", "rows", "bytes", "rows_written"],
        "sources": ["source", "split", "position", "finished", "max_event_time"],
        "sinks": ["sink", "pending", "committables"],
        "watermarks": ["operator", "watermark"],
    }
    for part, names in columns.items():
        rows = shown[part]
        if part == "state":
            rows = [{**row, "bytes": show_bytes(row["bytes"])} for row in rows]
        if rows:
            print_table(names, rows, title=part)
        else:
            console().print(f"{part}: nothing", highlight=False, markup=False)
