"""One reader of a table's changes: where it is, what it asks the server, and what it tells it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from millstream.connectors.postgres_catalog import Column
from millstream.connectors.postgres_changed_rows import ROWS, ChangedRows, Places
from millstream.connectors.postgres_connection import Absence, blame_server
from millstream.connectors.postgres_pgoutput import (
    DATA,
    KIND,
    TABLE,
    Begin,
    Commit,
    Keepalive,
    Relation,
    Truncate,
    read_message,
    status,
)
from millstream.connectors.postgres_slot import NUMBER, TEXT_SETTINGS, Slot
from millstream.connectors.postgres_values import SESSION, TableReader
from millstream.engine.changelog import weighted
from millstream.engine.errors import DataError, JobError
from millstream.engine.source import Chunk, Position, SplitEnd, SplitReader
from millstream.engine.store.columns import literal, quote

if TYPE_CHECKING:
    import psycopg

_TELL_EVERY: Final = 10.0
"""Seconds after which the server hears from us, and a position without rows goes into a checkpoint."""

_PAUSE: Final = 0.005
"""Seconds for which nothing is read after all there was: few large batches cost less than many small."""
_MOST_BYTES: Final = 16 << 20
"""What a batch may have, and one row more."""
_SINCE_2000: Final = 946_684_800


class ChangesReader(SplitReader):
    """Reads the copy, then the slot.

    A position in the copy is ``{"token", "row", "lsn"}``: its token, the last row read, where changes begin. One
    behind it is ``{"lsn", "skip"}``: all transactions before that place in the server's log, and so many changes of the
    next one, which may be larger than a batch.
    """

    def __init__(
        self, name: str, slot: Slot, columns: tuple[Column, ...], position: Position, batch_rows: int, patience: float
    ) -> None:
        self._name = name
        self._slot = slot
        self._reader = TableReader(name, columns)
        self._batch_rows = batch_rows
        self._absence = Absence(patience)
        self._position: dict[str, Any] | None = position
        self._durable: dict[str, Any] | None = position
        self._link: psycopg.Connection[Any] | None = None
        self._stream: psycopg.Connection[Any] | None = None
        # A start before this one may have been killed before it could drop it.
        self._copy_is_there = True
        self._said_used = False
        self._told, self._told_at = 0, 0.0
        self._moved_at = time.monotonic()
        self._read_at = 0.0
        self._places: dict[int, Places | None] = {}
        self._lsn, self._skip = 0, 0
        self._to_skip, self._changes, self._open = 0, 0, False

    def position(self) -> Position:
        """Where to read on from."""
        return self._position

    def committed(self, position: Position) -> None:
        """Take note; the server is told by the thread that reads, which owns the connections."""
        self._durable = position

    def read(self) -> pa.RecordBatch | Chunk | SplitEnd:
        """Return the next rows.

        Raises:
            ExternalError: the server has been away for too long.
            JobError: what the server keeps for this source is gone, or another's.
            DataError: something happened to the table that a changelog cannot say.
        """
        from psycopg import Error

        if self._absence.lasts:
            return SplitEnd.PENDING
        with blame_server(self._name, "reading changes"):
            try:
                got = self._next()
            except Error as error:
                self.close()
                self._absence.note(error)
                return SplitEnd.PENDING
        self._absence.wait(0)
        return got

    def close(self) -> None:
        """Let go of connections."""
        for connection in (self._link, self._stream):
            if connection is not None:
                connection.close()
        self._link = self._stream = None

    def __del__(self) -> None:
        self.close()

    def _next(self) -> pa.RecordBatch | Chunk | SplitEnd:
        if self._link is None:
            self._link = self._slot.server.connect("millstream changes", autocommit=True)
            self._link.execute(SESSION)
            self._begin(self._link)
        self._tidy(self._link)
        assert self._position is not None
        if "token" in self._position:
            batch = self._from_copy(self._link, self._position)
            if batch is not None:
                return batch
        return self._from_slot()

    # -- what the server keeps ------------------------------------------------------------------------------------

    def _begin(self, link: psycopg.Connection[Any]) -> None:
        """Make slot and copy, or check that they are those of the position."""
        if self._position is None:
            with self._replication() as replication:
                lsn, token = self._slot.make(link, replication)
            self._position = {"token": token, "row": 0, "lsn": lsn}
            return
        kept = self._slot.lsn(link)
        if kept is None or kept > self._position["lsn"]:
            found = "is gone" if kept is None else "has been read by somebody else"
            raise JobError(
                f"{self._name}: replication slot {self._slot.name!r} {found}, so changes since the last checkpoint are "
                "lost. Start anew with another store, and an empty destination"
            )
        if "token" in self._position and self._position["token"] not in str(self._slot.state(link)):
            raise JobError(
                f"{self._name}: the copy {self._slot.copy} that was being read is gone, or is another one. Start anew "
                "with another store, and an empty destination"
            )

    def _tidy(self, link: psycopg.Connection[Any]) -> None:
        """Do for the copy what the last checkpoint allows."""
        durable = self._durable
        if durable is None or not self._copy_is_there:
            return
        if "token" not in durable:
            self._slot.drop_copy(link)
            self._copy_is_there = False
        elif not self._said_used:
            self._slot.say(link, f"used {durable['token']}")
            self._said_used = True

    def _replication(self) -> psycopg.Connection[Any]:
        server, settings = self._slot.server, TEXT_SETTINGS
        return server.connect("millstream changes", autocommit=True, replication="database", options=settings)

    # -- the copy -------------------------------------------------------------------------------------------------

    def _from_copy(self, link: psycopg.Connection[Any], position: dict[str, Any]) -> pa.RecordBatch | None:
        rows = None
        if self._slot.copied:
            query = self._slot.page(self._reader.selected("t."), position["row"], self._batch_rows)
            with link.cursor() as cursor, cursor.copy(query) as copy:
                rows = self._reader.rows(b"".join(bytes(part) for part in copy), [NUMBER])
        if rows is None or not rows.num_rows:
            self._position = {"lsn": position["lsn"], "skip": 0}
            return None
        self._position = {**position, "row": int(rows[NUMBER][-1].as_py())}
        return self._weighted(rows.select(self._reader.schema.names), pa.repeat(1, rows.num_rows))

    # -- the slot -------------------------------------------------------------------------------------------------

    def _from_slot(self) -> pa.RecordBatch | Chunk | SplitEnd:
        if self._stream is None:
            self._stream = self._replication()
            self._start(self._stream)
        if time.monotonic() < self._read_at:
            return SplitEnd.PENDING
        rows = ChangedRows()
        for _ in range(self._batch_rows):
            message = _message(self._stream.pgconn)
            if not message:
                self._read_at = time.monotonic() + _PAUSE
                break
            if message[0] == DATA and message[KIND] in ROWS:
                self._change(message, rows)
            else:
                self._take(message)
            if rows.count >= self._batch_rows or rows.size >= _MOST_BYTES:
                break
        # Only now: what was taken in before the connection was lost is read again.
        self._position = {"lsn": self._lsn, "skip": self._skip}
        self._tell(self._stream)
        if rows.count:
            self._moved_at = time.monotonic()
            return self._batch(rows)
        behind = self._durable is None or self._durable != self._position
        if behind and time.monotonic() - self._moved_at >= _TELL_EVERY:
            self._moved_at = time.monotonic()
            return Chunk(weighted(self._reader.schema).empty_table().to_batches()[0], 0)
        return SplitEnd.PENDING

    def _start(self, stream: psycopg.Connection[Any]) -> None:
        assert self._position is not None
        lsn = self._lsn = self._position["lsn"]
        self._skip = self._to_skip = self._position["skip"]
        self._changes, self._open = 0, False
        publication = literal(quote(self._slot.published))
        stream.execute(
            f"START_REPLICATION SLOT {quote(self._slot.name)} LOGICAL {lsn >> 32:X}/{lsn & 0xFFFFFFFF:X} "
            f"(proto_version '1', publication_names {publication})".encode()
        )

    def _change(self, message: bytes, rows: ChangedRows) -> None:
        """Take in a change. The position moves with it, so that it is right wherever a batch ends."""
        places = self._places[TABLE.unpack_from(message)[0]]
        if places is None:
            return
        self._changes += 1
        if self._changes > self._to_skip:
            if not rows.add(message, places):
                raise self._incomplete()
            self._skip = self._changes

    def _take(self, message: bytes) -> None:
        """Take in any other message."""
        match read_message(message):
            case Begin():
                self._changes, self._open = 0, True
            case Commit(end):
                self._to_skip, self._open = 0, False
                self._lsn, self._skip = end, 0
            case Relation(oid, place, names):
                # A publication may have other tables, too.
                ours = oid == self._slot.facts.oid or place == self._slot.facts.place
                self._places[oid] = self._columns_in(names) if ours else None
            case Truncate(oids) if any(self._places[oid] is not None for oid in oids):
                raise DataError(
                    f"{self._name}: {self._slot.facts.place} was truncated, and the server does not say which rows "
                    "went: start anew with another store and another slot; use DELETE where changes are read"
                )
            case Keepalive(end, answer):
                if not self._open and end > self._lsn:
                    self._lsn, self._skip = end, 0
                if answer:
                    self._told_at = 0.0

    def _incomplete(self) -> DataError:
        place = self._slot.facts.place
        return DataError(
            f"{self._name}: the server does not say any more what goes from {place}: ALTER TABLE {place} "
            "REPLICA IDENTITY FULL was undone. Say it again, and start anew with another store and another slot"
        )

    def _columns_in(self, names: tuple[str, ...]) -> Places:
        missing = [column.name for column in self._reader.columns if column.name not in names]
        if missing:
            raise DataError(
                f"{self._name}: {self._slot.facts.place} has lost its columns {', '.join(missing)}: put them back, or "
                "start the job without them, anew"
            )
        return tuple(names.index(column.name) for column in self._reader.columns)

    def _tell(self, stream: psycopg.Connection[Any]) -> None:
        """Tell the server, now and then, how far we are for good: it may forget what lies before."""
        durable = self._durable
        lsn = durable["lsn"] if durable is not None and "token" not in durable else 0
        now = time.monotonic()
        if lsn == self._told and now - self._told_at < _TELL_EVERY:
            return
        stream.pgconn.put_copy_data(status(lsn, int((time.time() - _SINCE_2000) * 1_000_000)))
        stream.pgconn.flush()
        self._told, self._told_at = lsn, now

    def _batch(self, rows: ChangedRows) -> pa.RecordBatch:
        made = rows.as_csv()
        if made is None:
            raise self._incomplete()
        text, weights = made
        # Read as COPY's text is, so that a row that goes equals the row that came.
        return self._weighted(self._reader.rows(text), pa.array(weights))

    def _weighted(self, rows: pa.Table, weights: pa.Array) -> pa.RecordBatch:
        schema = weighted(self._reader.schema)
        (batch,) = rows.combine_chunks().to_batches()
        return pa.record_batch([*batch.columns, weights], schema=schema)


def _message(pgconn: Any) -> bytes:
    """Return the next message; nothing if none has come."""
    from psycopg import OperationalError

    length, data = pgconn.get_copy_data(1)
    if length == 0:
        pgconn.consume_input()
        length, data = pgconn.get_copy_data(1)
    if length < 0:
        raise OperationalError("the server has ended the replication")
    return bytes(data) if length else b""
