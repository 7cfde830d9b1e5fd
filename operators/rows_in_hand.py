"""Rows that have come and whose results have not gone out, as a KEYED state table. Importing this loads numba."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes, plain
from millstream.engine.operator import Operator, OperatorContext, Output
from millstream.engine.state import DELETED, StateDelta, StateTable
from millstream.engine.time import START_OF_TIME
from millstream.operators.changes import latest
from millstream.operators.python_rows import rows_as_dicts

_LEADING = 5
"""The first columns of the state table: epoch, subtask, number, after, attempt."""


class Part:
    """Rows that came together.

    Attributes:
        rows: the batch.
        after: the last watermark that came before it (microseconds).
        attempt: how often its rows have been tried, this time included; more than 1 where dead letters are replayed.
        next: the first row that nobody has taken yet.
        left: how many rows have not gone out.
    """

    def __init__(self, rows: pa.RecordBatch, after: int, attempt: int = 1, naming: Ints | None = None) -> None:
        self.rows = rows
        self.after = after
        self.attempt = attempt
        self.next = 0
        self.left = rows.num_rows
        self._there: Bools = np.ones(rows.num_rows, np.bool_)
        self._stored: Bools = np.full(rows.num_rows, naming is not None)
        self._naming = naming  # shape (3, rows): epoch, subtask, number

    @property
    def stored(self) -> bool:
        """Whether the store knows any of the rows."""
        return bool(self._stored.any())

    def remove(self, index: int) -> None:
        """The result of a row has gone out."""
        self._there[index] = False
        self.left -= 1

    def remove_until(self, end: int) -> None:
        """Those that nobody has taken, before row ``end``, go out."""
        self._there[self.next : end] = False
        self.left -= end - self.next
        self.next = end

    def name(self, epoch: int, subtask: int, first: int) -> int:
        """Name the rows unless they are; return the first number not given to any."""
        if self._naming is not None:
            return first
        count = int(self.rows.num_rows)
        numbers = np.arange(first, first + count)
        self._naming = np.stack([np.full(count, epoch), np.full(count, subtask), numbers])
        return first + count

    def changes(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows that have gone since the last call, as deleted, and all that are there."""
        assert self._naming is not None
        gone = np.flatnonzero(self._stored & ~self._there)
        there = np.flatnonzero(self._there)
        self._stored = self._there.copy()
        if len(gone):
            naming = [pa.array(column[gone]) for column in self._naming]
            nulls = [pa.nulls(len(gone), field.type) for field in list(schema)[3:-1]]
            yield pa.record_batch([*naming, *nulls, pa.repeat(pa.scalar(True), len(gone))], schema=schema)
        if len(there):
            naming = [pa.array(column[there]) for column in self._naming]
            after = pa.repeat(pa.scalar(self.after, pa.int64()), len(there))
            attempt = pa.repeat(pa.scalar(self.attempt, pa.int64()), len(there))
            columns = self.rows.take(pa.array(there)).columns
            yield pa.record_batch(
                [*naming, after, attempt, *columns, pa.repeat(pa.scalar(False), len(there))], schema=schema
            )


class RowsInHand:
    """All rows in hand of one subtask, oldest first. The watermarks before them never go back along the way."""

    def __init__(self, table: StateTable, schema: pa.Schema) -> None:
        self._table = table
        self._stored_schema = table.schema.append(pa.field(DELETED, pa.bool_()))
        types = table.schema.types[_LEADING:]
        self._schema = pa.schema([pa.field(field.name, type) for field, type in zip(schema, types, strict=True)])
        self._parts: OrderedDict[int, Part] = OrderedDict()  # by id(part), for removal from the middle
        self._untaken: deque[Part] = deque()
        self._leaving: list[Part] = []
        self._must_speak = False
        self.subtask = 0

    def add(self, batch: pa.RecordBatch, after: int, attempt: int = 1) -> None:
        """Take a batch that came after a watermark, and is tried for so many-th time."""
        columns = [plain(column) for column in batch.columns]
        self._append(Part(pa.record_batch(columns, schema=self._schema), after, attempt))

    def _append(self, part: Part) -> None:
        self._parts[id(part)] = part
        self._untaken.append(part)

    @property
    def has_untaken(self) -> bool:
        """Whether any row waits for its turn."""
        return bool(self._untaken)

    @property
    def untaken(self) -> int:
        """How many rows wait for their turn."""
        return sum(part.rows.num_rows - part.next for part in self._untaken)

    @property
    def held_watermark(self) -> int | None:
        """The last watermark that came before the oldest row; None without rows."""
        return next(iter(self._parts.values())).after if self._parts else None

    @property
    def nbytes(self) -> int:
        """Bytes of the batches that the rows are in."""
        return sum(part.rows.nbytes for part in self._parts.values())

    def take(self, count: int) -> Iterator[tuple[Part, int, dict[str, Any]]]:
        """Yield the next rows, ``count`` at most, with where they stand."""
        while count > 0 and self._untaken:
            part = self._untaken[0]
            first, part.next = part.next, min(part.next + count, part.rows.num_rows)
            if part.next == part.rows.num_rows:
                self._untaken.popleft()
            count -= part.next - first
            rows = rows_as_dicts(part.rows.slice(first, part.next - first), self._schema.names)
            for index, row in enumerate(rows, first):
                yield part, index, row

    def remove(self, part: Part, index: int) -> None:
        """The result of a row has gone out."""
        part.remove(index)
        self._forget_if_empty(part)

    def let_go(self, count: int) -> Iterator[pa.RecordBatch]:
        """Yield the next rows, ``count`` at most, as far as the next watermark among them; they have gone out then."""
        after = self.held_watermark
        while count > 0 and self._untaken and self._untaken[0].after == after:
            part = self._untaken[0]
            first, end = part.next, min(part.next + count, part.rows.num_rows)
            part.remove_until(end)
            count -= end - first
            if end == part.rows.num_rows:
                self._untaken.popleft()
            self._forget_if_empty(part)
            yield part.rows.slice(first, end - first)

    def _forget_if_empty(self, part: Part) -> None:
        if not part.left:
            del self._parts[id(part)]
            if part.stored:
                self._leaving.append(part)

    def delta(self, epoch: int) -> StateDelta | None:
        """Return all rows, and which have gone since the last delta; None if there is nothing to say."""
        number = 0
        batches: list[pa.RecordBatch] = []
        for part in (*self._leaving, *self._parts.values()):
            number = part.name(epoch, self.subtask, number)
            batches += part.changes(self._stored_schema)
        if not batches and not self._must_speak:
            return None
        self._leaving, self._must_speak = [], False
        return StateDelta(pa.Table.from_batches(batches, self._stored_schema), full_from=epoch)

    def restore(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Take rows back, those that were in order in order."""
        # Also without a row: until every subtask has spoken, older epochs have to be kept.
        self._must_speak = True
        rows = latest(batches, self._table)
        if not rows.num_rows:
            return
        rows = rows.sort_by([(name, "ascending") for name in ("after", *self._table.keys)])
        *naming, after, attempt = (fixed_codes(column) for column in rows.columns[:_LEADING])
        values = pa.record_batch(rows.columns[_LEADING:], schema=self._schema)
        cuts = [0, *(np.flatnonzero((np.diff(after) != 0) | (np.diff(attempt) != 0)) + 1).tolist(), rows.num_rows]
        for first, end in pairwise(cuts):
            names = np.stack([part[first:end] for part in naming])
            self._append(Part(values.slice(first, end - first), int(after[first]), int(attempt[first]), names))

    def lower(self, time: int) -> None:
        """Let no row have come after a later watermark than ``time``, of the subtasks it may have come from."""
        for part in self._parts.values():
            part.after = min(part.after, time)


class HoldingOperator(Operator):
    """What operators with rows in hand have in common; the rows are state, and wait for whatever lets them go."""

    works_aside = True

    def __init__(self, table: StateTable, schema: pa.Schema) -> None:
        self._hand = RowsInHand(table, schema)
        self._time = START_OF_TIME
        self._restored = False
        self._tried = 1

    def open(self, context: OperatorContext) -> None:
        """Rows are written down under the subtask's number."""
        self._hand.subtask = context.subtask

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take rows in hand."""
        del out
        self._settle(START_OF_TIME)
        self._hand.add(batch, self._time, self._tried)

    def on_attempt(self, attempt: int) -> None:
        """Rows that come from now on have been tried before."""
        self._tried = attempt

    def on_watermark(self, time: int, out: Output) -> None:
        """Rows that come from now on came after it."""
        del out
        self._settle(time)
        self._time = time

    def _settle(self, time: int) -> None:
        """Rows that are restored may come from subtasks that were further on in event time."""
        if self._restored:
            self._restored = False
            self._hand.lower(time)

    def held_watermark(self) -> int | None:
        """The last watermark that came before the oldest row in hand."""
        return self._hand.held_watermark

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """The rows in hand."""
        delta = self._hand.delta(epoch)
        return {} if delta is None else {"in_hand": delta}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """Take the rows in hand back."""
        del table, full_from
        self._hand.restore(batches)
        self._restored = True

    def memory(self) -> Mapping[str, int]:
        """The rows in hand; what else there is grows with their number only, and may belong to other threads."""
        return {"rows in hand": self._hand.nbytes}
