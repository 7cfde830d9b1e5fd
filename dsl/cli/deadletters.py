"""``millstream deadletters``: what was put aside, whether the job runs or not; dropping and replaying it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from millstream.cli.options import FILE, FORMAT, JOB, STORE
from millstream.engine.errors import JobError

if TYPE_CHECKING:
    from millstream.engine.plan import Plan
    from millstream.engine.store.letters import LetterChange, Selection
    from millstream.engine.store.reader import StoreReader

_F = TypeVar("_F", bound=Callable[..., Any])

_LISTED: Final = ("epoch", "number", "source", "operator", "subtask", "split", "position", "event_time", "error_type",
                  "error", "attempts", "code", "row_json", "replay")  # fmt: skip
_SHOWN: Final = 100


@click.group()
def deadletters() -> None:
    """Look at lines and rows that were put aside; export, drop or replay them.

    STORE is the job's checkpoint file. ls, show and export also answer while the job runs, as of its last checkpoint;
    drop and replay need it stopped.

    \b
    millstream deadletters ls revenue.duckdb --operator parse
    millstream deadletters show revenue.duckdb 12.1
    millstream deadletters replay revenue.duckdb revenue.py --operator parse
    """


def _chosen(command: _F) -> _F:
    """Let a command take ids and filters, and hand it a Selection."""
    for option in (
        click.option("--since", metavar="EPOCH", type=click.IntRange(min=0), help="Only those of this epoch or later."),
        click.option("--operator", metavar="NAME", help="Only those of this operator, by name or id."),
        click.option("--source", metavar="NAME", help="Only those of this source."),
        click.argument("ids", metavar="[ID]...", nargs=-1),
    ):
        command = option(command)
    return command


def _selection(ids: tuple[str, ...], source: str | None, operator: str | None, since: int | None) -> Selection:
    from millstream.engine.store.letters import Selection, letter_id

    return Selection(tuple(map(letter_id, ids)), source, operator, since or 0)


@deadletters.command("ls")
@STORE
@_chosen
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="At most so many.")
@FORMAT
def ls(
    store: Path,
    ids: tuple[str, ...],
    source: str | None,
    operator: str | None,
    since: int | None,
    limit: int | None,
    form: str | None,
) -> None:
    """List the dead letters in STORE, oldest first: all of them, or those chosen."""
    from millstream.cli.tables import show_rows, wants_table
    from millstream.engine.store.reader import StoreReader

    selection = _selection(ids, source, operator, since)
    with StoreReader.open(store) as reader:
        letters = reader.dead_letters(selection, _LISTED, limit).to_pylist()
        count = reader.count_dead_letters(selection)
    if wants_table(form):
        show_rows(["id", "of", "error", "attempts", "row"], [_line(letter) for letter in letters], "table")
    else:
        show_rows([], [_values(letter) for letter in letters], "json")
    if wants_table(form) or len(letters) < count:
        click.echo(f"{len(letters):,} of {count:,} dead letters", err=True)


@deadletters.command("show")
@STORE
@click.argument("id", metavar="ID")
@FORMAT
def show(store: Path, id: str, form: str | None) -> None:
    """Show all that is known of one dead letter; ls shows the IDs."""
    from millstream.cli.tables import console, wants_table
    from millstream.engine.as_json import as_json
    from millstream.engine.store.letters import Selection, letter_id
    from millstream.engine.store.reader import StoreReader

    with StoreReader.open(store) as reader:
        found = reader.dead_letters(Selection((letter_id(id),))).to_pylist()
    if not found:
        raise JobError(
            f"{store} holds no dead letter {id}: it was dropped or replayed, or never was; see deadletters ls"
        )
    values = _values(found[0])
    if not wants_table(form):
        click.echo(as_json({**values, "raw": found[0]["raw"]}, indent=2))
        return
    for name, value in values.items():
        shown = value if isinstance(value, str) else as_json(value)
        console().print(f"{name}: {shown}", highlight=False, markup=False, soft_wrap=True)


@deadletters.command("export")
@STORE
@_chosen
@click.option("--out", metavar="FILE", type=FILE, required=True, help="A new file: .parquet or .jsonl for rows.")
def export(
    store: Path, ids: tuple[str, ...], source: str | None, operator: str | None, since: int | None, out: Path
) -> None:
    """Write dead letters of STORE, all or those chosen, to a file; they stay in the store.

    Rows of operators go to a .parquet file with their types, or to a .jsonl file. Of sources the bytes are written as
    they were read, one after the other, whatever the file is called.
    """
    from millstream.cli.letters_export import export_letters
    from millstream.engine.store.reader import StoreReader

    with StoreReader.open(store) as reader:
        count = export_letters(reader, _selection(ids, source, operator, since), out)
    click.echo(f"{count:,} dead letters written to {out}", err=True)


@deadletters.command("drop")
@STORE
@_chosen
@click.option("--all", "everything", is_flag=True, help="All of them.")
def drop(
    store: Path, ids: tuple[str, ...], source: str | None, operator: str | None, since: int | None, everything: bool
) -> None:
    """Remove dead letters from STORE for good: those chosen, or --all. The job must be stopped."""
    from millstream.engine.store.letters import LetterChange

    selection = _demanded(_selection(ids, source, operator, since), everything)
    click.echo(f"{_change(store, selection, LetterChange.DROP):,} dead letters dropped", err=True)


@deadletters.command("replay")
@STORE
@JOB
@_chosen
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--undo", is_flag=True, help="Leave them where they are after all.")
def replay(  # noqa: PLR0913, PLR0917 - one parameter per option
    store: Path,
    job: str,
    ids: tuple[str, ...],
    source: str | None,
    operator: str | None,
    since: int | None,
    everything: bool,
    undo: bool,
) -> None:
    """Have the job in FILE process dead letters of STORE again: those chosen, or --all. It must be stopped.

    They are marked; the next start of the job hands their rows to the operator that could not take them, or messages
    to the HTTP sink that could not deliver them, before it reads anything else, and removes them in the checkpoint that
    holds what came of them. What fails again becomes a dead letter again.
    """
    from millstream.cli.loading import load_job
    from millstream.engine.runtime.letters import replaying_sinks
    from millstream.engine.store.letters import LetterChange
    from millstream.engine.store.reader import StoreReader

    selection = _demanded(_selection(ids, source, operator, since), everything)
    if undo:
        count = _change(store, replace(selection, marked=True), LetterChange.UNMARK)
        click.echo(f"{count:,} dead letters will not be replayed", err=True)
        return
    plan = load_job(job).plan()
    selection = replace(selection, rows=True, sinks=replaying_sinks(plan))
    with StoreReader.open(store) as reader:
        _check_replay(reader, selection, plan)
    count = _change(store, selection, LetterChange.MARK)
    click.echo(f"{count:,} dead letters will be replayed by: millstream run {job} --store {store}", err=True)


def _check_replay(reader: StoreReader, selection: Selection, plan: Plan) -> None:
    from millstream.engine.runtime.letters import check_replayable

    others = reader.count_dead_letters(replace(selection, rows=False))
    letters = reader.replayable_letters(selection)
    if others and not letters:
        raise JobError(
            "dead letters of sources cannot be replayed: write them to a file with millstream deadletters export, mend "
            "it, put it where the source reads, and drop them. Those of a sink can, if it is in the job as it was: it, "
            "and what comes before it, must not have changed"
        )
    if others:
        click.echo(
            f"{others:,} dead letters of sources, or of sinks that are not in the job, are left: they can only be "
            "exported",
            err=True,
        )
    check_replayable(letters, plan)


def _demanded(selection: Selection, everything: bool) -> Selection:
    """Refuse to do something to all letters only because nothing was chosen."""
    from millstream.engine.store.letters import ALL

    if everything and selection != ALL:
        raise click.UsageError("--all and a choice among the letters contradict each other: leave one of them out")
    if not everything and selection == ALL:
        raise click.UsageError("say which: IDs as deadletters ls shows them, --source, --operator, --since, or --all")
    return selection


def _change(store: Path, selection: Selection, change: LetterChange) -> int:
    from millstream.engine.store.reader import StoreReader
    from millstream.engine.store.store import CheckpointStore

    with StoreReader.open(store) as reader:  # a store that is not there must not be made
        running = reader.running
    if running:
        raise JobError(f"the job of {store} is running: stop it, {change.value} the dead letters, and start it again")
    writable = CheckpointStore.open(store)
    try:
        return writable.change_letters(selection, change)
    finally:
        writable.close()


def _values(letter: dict[str, Any]) -> dict[str, Any]:
    """A letter for programs: its id first, then what it has."""
    import json

    row, raw = letter.get("row_json"), letter.get("raw")
    told = {
        name: value
        for name, value in letter.items()
        if value not in (None, "") and name not in ("epoch", "number", "row_json", "raw", "node")
    }
    shown = {"id": f"{letter['epoch']}.{letter['number']}", **told}
    if row is not None:
        shown["row"] = json.loads(row)
    elif raw is not None:
        shown["text"] = raw.decode(errors="backslashreplace")
    return shown


def _line(letter: dict[str, Any]) -> dict[str, Any]:
    """A letter for people."""
    kind = f"{letter['error_type']}: " if letter["error_type"] else ""
    place = f"{letter['split']}, {letter['position']}" if letter["source"] else letter["row_json"]
    return {
        "id": f"{letter['epoch']}.{letter['number']}" + (" (replay)" if letter["replay"] else ""),
        "of": letter["source"] or letter["operator"],
        "error": _short(kind + letter["error"]),
        "attempts": letter["attempts"],
        "row": _short(place),
    }


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
