"""The rows that one input of a join holds back for the other, to be found by key. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.key_words import frozen
from millstream.operators import join_kernels as kernels
from millstream.operators.cells import resized
from millstream.operators.row_log import RowLog
from millstream.operators.windowed import MAX_ROWS

_FIRST_CAPACITY: Final = 1_024
_MIN_GARBAGE: Final = 4_096

_POINTERS: Final = frozenset({"previous", "jump", "depth", "jump_depth", "jump_low", "jump_high"})
_INSIDE: Final = _POINTERS | {"alive"}

Pairs = tuple[Ints, Ints]
"""Numbers of rows that ask, and the ids of buffered rows they match; both int64, shape (pairs,)."""


class RowBuffer:
    """Rows by slot (of a key): appended, found by slot and span of time, and dropped in any order.

    A row is named by its id. Ids only grow: once half of the rows are dropped, those left of the oldest are appended
    anew and so have other ids (``tidy``). So every call costs in proportion to the rows that it is about, however many
    are held; the memory held is at most about twice that of the rows not dropped.

    Args:
        schema: the columns kept.
        spans: rows have a span of time, and are found by it.
        lanes: further values by row, name to NumPy type, 0 at first: see ``lane``.

    Attributes:
        count: how many rows there are, without those dropped.

    >>> buffer = RowBuffer(pa.schema({"a": pa.string()}), spans=False)
    >>> buffer.resize_slots(2)
    >>> buffer.append(pa.record_batch({"a": ["x", "y", "z"]}), np.array([0, 1, 0])).tolist()
    [0, 1, 2]
    >>> [(rows.tolist(), ids.tolist()) for rows, ids in buffer.matches(np.array([0]))]
    [([0, 0], [2, 0])]
    """

    def __init__(self, schema: pa.Schema, *, spans: bool, lanes: Mapping[str, type[Any]] | None = None) -> None:
        self._log = RowLog(schema)
        self._spans = spans
        types = {"slot": np.int64, "previous": np.int64, "alive": np.bool_}
        types |= dict.fromkeys(kernels.Leaps._fields, np.int64) if spans else {}
        self._lanes: dict[str, npt.NDArray[Any]] = {n: np.empty(0, t) for n, t in {**types, **(lanes or {})}.items()}
        self._head: Ints = np.empty(0, np.int64)
        self._origin = 0
        self.count = 0

    @property
    def end(self) -> int:
        """The id of the next row."""
        return self._log.end

    @property
    def schema(self) -> pa.Schema:
        """The columns kept."""
        return self._log.schema

    def resize_slots(self, slots: int) -> None:
        """Have room for slots 0..slots-1."""
        if slots > len(self._head):
            self._head = resized(self._head, max(slots, 2 * len(self._head), _FIRST_CAPACITY), fill=-1)

    def append(self, batch: pa.RecordBatch, slots: Ints, **lanes: npt.NDArray[Any]) -> Ints:
        """Add rows; return their ids.

        Args:
            slots: int64, shape (rows,).
            lanes: values by row, shape (rows,); those left out are 0. If rows have spans of time: ``low`` and
                ``high``, its first and last instant.
        """
        first, count = self._log.end, batch.num_rows
        self._grow(count)
        self._log.append(batch)
        rows = slice(first - self._origin, first - self._origin + count)
        given = {"slot": slots, "alive": True, **lanes}
        for name, lane in self._lanes.items():
            if name not in _POINTERS:
                lane[rows] = given.get(name, 0)
        self.count += count
        self._link(slots, first)
        return np.arange(first, first + count)

    def _link(self, slots: Ints, first: int) -> None:
        if self._spans:
            kernels.chain_spans(slots, first, self._chains(), self._leaps())
        else:
            kernels.chain(slots, first, self._chains())

    def _chains(self) -> kernels.Chains:
        lanes = self._lanes
        return kernels.Chains(self._origin, self._log.first, self._head, lanes["previous"], lanes["alive"])

    def _leaps(self) -> kernels.Leaps:
        return kernels.Leaps(*(self._lanes[name] for name in kernels.Leaps._fields))

    def _grow(self, count: int) -> None:
        """Have room for more rows; rows that are given up make room."""
        held = len(self._log)
        if self._log.end - self._origin + count <= len(self._lanes["slot"]):
            return
        skipped = self._log.first - self._origin
        capacity = max(_FIRST_CAPACITY, 2 * (held + count))
        for name, lane in self._lanes.items():
            self._lanes[name] = resized(lane[skipped : skipped + held], capacity)
        self._origin = self._log.first

    def matches(
        self, slots: Ints, spans: tuple[Ints, Ints] | None = None, *, once: bool = False, most: int = MAX_ROWS
    ) -> Iterator[Pairs]:
        """Yield the rows of the same slots whose spans overlap, at most ``most`` pairs at a time.

        Rows may be dropped while the next pairs are waited for, and none appended.

        Args:
            slots: int64, shape (n,); -1: the row matches nothing.
            spans: the first and the last instant of each row; needed if rows have spans.
            once: one match of each row is enough.
        """
        if not self.count:
            return
        row, at = 0, kernels.START
        while row < len(slots):
            pairs = kernels.Pairs(np.empty(most, np.int64), np.empty(most, np.int64))
            if spans is None:
                row, at, count = kernels.probe(slots, once, row, at, self._chains(), pairs)
            else:
                low, high = map(frozen, spans)
                place = (once, row, at, self._chains(), self._leaps(), pairs)
                row, at, count = kernels.probe_spans(slots, low, high, *place)
            if count:
                yield pairs.rows[:count], pairs.ids[:count]

    def holds(self, slots: Ints) -> Bools:
        """Return which slots have rows; for buffers from which none is ever dropped."""
        return self._head[slots] >= 0

    def take(self, ids: Ints, names: list[str] | None = None) -> pa.RecordBatch:
        """Return some rows, in the order asked for, with these columns (None: all)."""
        return self._log.take(ids, names)

    def lane(self, name: str) -> npt.NDArray[Any]:
        """Return the values of all rows, to be read and set at ``at(ids)`` until the next append."""
        return self._lanes[name]

    def at(self, ids: Ints) -> Ints:
        """Return where rows stand in every lane."""
        return ids - self._origin

    def ids(self) -> Ints:
        """Return the ids of all rows, ascending."""
        held = slice(self._log.first - self._origin, self._log.end - self._origin)
        return np.flatnonzero(self._lanes["alive"][held]) + self._log.first

    def alive(self, ids: Ints) -> Bools:
        """Return which rows are there still; ids may be any that ever were."""
        there = ids >= self._log.first
        there[there] = self._lanes["alive"][self.at(ids[there])]
        return there

    def drop(self, ids: Ints) -> None:
        """Drop rows, each named once and there still."""
        self._lanes["alive"][self.at(ids)] = False
        self.count -= len(ids)

    def tidy(self) -> Ints:
        """Give up the memory of dropped rows; return the ids of rows that had others before."""
        log, renewed = self._log, []
        while len(log):
            held = self._lanes["alive"][log.first - self._origin : log.oldest - self._origin]
            sparse = len(log) > max(2 * self.count, self.count + _MIN_GARBAGE)
            if not sparse and bool(held.any()):
                break
            kept = np.flatnonzero(held) + log.first
            rows = self.take(kept)
            lanes = {name: lane[self.at(kept)] for name, lane in self._lanes.items() if name not in _INSIDE}
            self.drop(kept)
            log.give_up()
            if len(kept):
                renewed.append(self.append(rows, lanes.pop("slot"), **lanes))
        ids = np.concatenate(renewed) if renewed else np.empty(0, np.int64)
        # A row may have been renewed twice.
        return ids[ids >= log.first]

    def move_slots(self, moved: Ints) -> None:
        """Slots have new numbers: ``moved[old]``; -1 for those that have no rows."""
        held = slice(self._log.first - self._origin, self._log.end - self._origin)
        slots = self._lanes["slot"]
        slots[held] = moved[slots[held]]
        kept = np.flatnonzero(moved >= 0)
        head = np.full(max(_FIRST_CAPACITY, len(kept)), -1)
        head[moved[kept]] = self._head[kept]
        self._head = head
