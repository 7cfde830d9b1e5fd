"""Dead letters in the store: rows of one table, written with their epoch, looked through, marked and taken out."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import duckdb
import pyarrow as pa
from millstream.engine.as_json import as_json
from millstream.engine.errors import JobError, StoreCorrupt
from millstream.engine.expression_types import shown_scalar
from millstream.engine.source import LONGEST_TEXT, DeadLetter
from millstream.engine.store.catalog import Query
from millstream.engine.store.columns import literal
from millstream.engine.store.instance import insert_arrow
from millstream.engine.store.schema import DEAD_LETTERS, rows_to_arrow
from millstream.engine.store.types import DeadRows, LetterId, MarkedLetter, NodeLetters

_MOST_IDS: Final = 1_000
"""So many ids go into one statement."""


def letter_id(text: str) -> LetterId:
    """Return the id that people write as ``EPOCH.NUMBER``.

    Raises:
        JobError: it is none.

    >>> letter_id("12.3")
    LetterId(epoch=12, number=3)
    """
    epoch, _, number = text.partition(".")
    if not (epoch.isdecimal() and number.isdecimal()):
        raise JobError(f"{text!r} is not the id of a dead letter; ids look like 12.3, and deadletters ls shows them")
    return LetterId(int(epoch), int(number))


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant; what is left out does not matter.

    Attributes:
        ids: these; () stands for all.
        source: of the source of this name.
        operator: of the operator of this name or id.
        since: of this epoch and later ones.
        rows: True: of operators, which are rows, and of ``sinks``; False: the others, which are bytes.
        sinks: the ids of sinks that take messages again which they have put aside.
        marked: whether they are to be replayed.
        after: those that come after this one.
    """

    ids: tuple[LetterId, ...] = ()
    source: str | None = None
    operator: str | None = None
    since: int = 0
    rows: bool | None = None
    sinks: tuple[str, ...] = ()
    marked: bool | None = None
    after: LetterId | None = None

    def sql(self) -> str:
        """The condition, for WHERE."""
        parts = [f"epoch >= {int(self.since)}"]
        if self.ids:
            parts.append(_are(self.ids))
        if self.source is not None:
            parts.append(f"source = {literal(self.source)}")
        if self.operator is not None:
            name = literal(self.operator)
            parts.append(f"(operator = {name} OR (operator IS NOT NULL AND node = {name}))")
        if self.rows is not None:
            sinks = "".join(f" OR node = {literal(sink)}" for sink in self.sinks)
            parts.append(f"{'' if self.rows else 'NOT '}(operator IS NOT NULL{sinks})")
        if self.marked is not None:
            parts.append("replay" if self.marked else "NOT replay")
        if self.after is not None:
            parts.append(f"(epoch, number) > ({self.after.epoch:d}, {self.after.number:d})")
        return " AND ".join(parts)


ALL: Final = Selection()
"""Every dead letter."""


def _are(ids: Sequence[LetterId]) -> str:
    return f"(epoch, number) IN ({', '.join(f'({i.epoch:d}, {i.number:d})' for i in ids)})"


# -- written with their epoch ----------------------------------------------------------------------------------


def write_letters(connection: duckdb.DuckDBPyConnection, epoch: int, letters: Sequence[NodeLetters]) -> None:
    """Write an epoch's dead letters, inside its transaction."""
    rows = [[epoch, number, *row] for number, row in enumerate((row for of in letters for row in _rows(of)), start=1)]
    if rows:
        insert_arrow(connection, "dead_letters", rows_to_arrow(rows, DEAD_LETTERS))


def add_letters(connection: duckdb.DuckDBPyConnection, epoch: int, letters: Sequence[NodeLetters]) -> int:
    """Write dead letters of an epoch that is committed, inside a transaction; return how many are new.

    One that stands there already, of the same node, split and position, is not written again.
    """
    (highest,) = connection.execute(
        "SELECT coalesce(max(number), 0) FROM dead_letters WHERE epoch = ?", [epoch]
    ).fetchall()
    known = set(
        connection.execute("SELECT node, split, position FROM dead_letters WHERE epoch = ?", [epoch]).fetchall()
    )
    new = [row for of in letters for row in _rows(of) if (row[2], row[4], row[5]) not in known]
    rows = [[epoch, number, *row] for number, row in enumerate(new, start=highest[0] + 1)]
    if rows:
        insert_arrow(connection, "dead_letters", rows_to_arrow(rows, DEAD_LETTERS))
    return len(rows)


def _rows(letters: NodeLetters) -> Iterator[list[Any]]:
    """The columns of ``dead_letters`` after epoch and number."""
    node, name, subtask, dead = letters.node_id, letters.name, letters.subtask, letters.dead
    if not isinstance(dead, DeadRows):
        place, error = [_text(dead.split), _text(dead.position)], [None, _text(dead.error)]
        yield [name, None, node, subtask, *place, None, *error, dead.attempts, "", None, dead.raw, False]
        return
    times = [None] * dead.rows.num_rows if dead.times is None else dead.times
    for index, (fault, time) in enumerate(zip(dead.faults, times, strict=True)):
        row = dead.rows.take(pa.array([index]))
        told = [
            _text(fault.type),
            _text(fault.message),
            dead.attempts,
            dead.code,
            row_as_json(row),
            pack_row(row),
            False,
        ]
        yield [None, name, node, subtask, None, None, time, *told]


def _text(text: str) -> str:
    """Text that can be stored: a name of a file, or a message, may hold what is no Unicode."""
    shown = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return shown.encode(errors="backslashreplace").decode()


def pack_row(row: pa.RecordBatch) -> bytes:
    """Return a row as an Arrow IPC stream, with its schema: nothing of it is lost.

    >>> unpack_row(pack_row(pa.record_batch({"n": [1]}))).to_pylist()
    [{'n': 1}]
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as stream:
        stream.write_batch(row)
    return bytes(sink.getvalue().to_pybytes())


def unpack_row(raw: bytes) -> pa.RecordBatch:
    """Return a row that was packed.

    Raises:
        StoreCorrupt: these are not the bytes of one row.
    """
    try:
        with pa.ipc.open_stream(raw) as stream:
            (batch,) = list(stream)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise StoreCorrupt(
            f"the row of a dead letter cannot be read ({error}): drop the letter, or restore the store"
        ) from error
    return batch


def row_as_json(row: pa.RecordBatch) -> str:
    """Return a batch of one row as JSON, for people.

    >>> row_as_json(pa.record_batch({"n": [1], "at": pa.array([2**62], pa.timestamp("us"))}))
    '{"n": 1, "at": "4611686018427387904 (timestamp[us])"}'
    """
    return as_json({name: _value(column) for name, column in zip(row.schema.names, row.columns, strict=True)})


def _value(column: pa.Array) -> Any:
    try:
        return column[0].as_py()
    except UnicodeDecodeError:
        return column[0].as_buffer().to_pybytes()
    except (ValueError, OverflowError):
        return shown_scalar(column[0])


def delete_letters(connection: duckdb.DuckDBPyConnection, ids: Sequence[LetterId]) -> None:
    """Delete dead letters whose rows have been processed, inside the transaction that covers what came of them."""
    for at in range(0, len(ids), _MOST_IDS):
        connection.execute(f"DELETE FROM dead_letters WHERE {_are(ids[at : at + _MOST_IDS])}")  # noqa: S608


class LetterChange(enum.Enum):
    """What is done to dead letters, as words for an error."""

    MARK = "mark"  # for the next start of the job, which processes them again
    UNMARK = "unmark"
    DROP = "drop"


def change_letters(connection: duckdb.DuckDBPyConnection, selection: Selection, change: LetterChange) -> int:
    """Mark (only ``rows``), unmark or drop dead letters, inside a transaction; return how many."""
    match change:
        case LetterChange.MARK:
            statement, selection = "UPDATE dead_letters SET replay = true", replace(selection, rows=True)
        case LetterChange.UNMARK:
            statement = "UPDATE dead_letters SET replay = false"
        case LetterChange.DROP:
            statement = "DELETE FROM dead_letters"
    (changed,) = connection.execute(f"{statement} WHERE {selection.sql()}").fetchall()
    return int(changed[0])


# -- looked through --------------------------------------------------------------------------------------------


def count_letters(query: Query, selection: Selection = ALL) -> int:
    """Return how many dead letters there are."""
    return int(query(f"SELECT count(*) AS n FROM dead_letters WHERE {selection.sql()}")["n"][0].as_py())  # noqa: S608


def letters_of(query: Query, selection: Selection, columns: Iterable[str] = (), limit: int | None = None) -> pa.Table:
    """Return dead letters, oldest first; without ``columns`` all of them."""
    upto = "" if limit is None else f" LIMIT {int(limit)}"
    names = ", ".join(columns) or "*"
    return query(
        f"SELECT {names} FROM dead_letters WHERE {selection.sql()} ORDER BY epoch, number{upto}"  # noqa: S608
    )


def replayable_letters(query: Query, selection: Selection) -> list[MarkedLetter]:
    """Return dead letters of operators and sinks, oldest first, as they are replayed.

    Raises:
        StoreCorrupt: the row of one cannot be read.
    """
    columns = ("epoch", "number", "node", "source", "operator", "split", "position", "error", "attempts", "raw")
    found = []
    for row in letters_of(query, selection, columns).to_pylist():
        name, attempts = row["operator"] or row["source"], row["attempts"]
        message = DeadLetter(name, row["split"], row["position"], row["error"], row["raw"], attempts)
        letter = unpack_row(row["raw"]) if row["operator"] else message
        found.append(MarkedLetter(LetterId(row["epoch"], row["number"]), row["node"], name, attempts, letter))
    return found
