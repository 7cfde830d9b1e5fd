"""The running part of ``Top``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import WEIGHT, is_changelog, weights_of
from millstream.engine.codes import Ints, fixed_codes, plain
from millstream.engine.errors import DataError
from millstream.engine.key_index import KeyIndex
from millstream.engine.operator import MAIN, Operator, Output
from millstream.engine.state import StateDelta
from millstream.operators.cells import resized
from millstream.operators.changes import Changes, latest_rows
from millstream.operators.rank_keys import RankKeys
from millstream.operators.ranked_lists import Moves, NeverCame, RankedLists
from millstream.operators.rows import Rows
from millstream.operators.windowed import MAX_ROWS

if TYPE_CHECKING:
    from millstream.operators.top import Top

_MIN_GARBAGE: Final = 4_096
_NONE: Final[Ints] = np.empty(0, np.int64)


class TopOperator(Operator):
    """Gives every key a slot with a list of the rows on top; rows that wait, of a changelog, are kept beside it."""

    def __init__(self, spec: Top, schema: pa.Schema) -> None:
        self._keys = spec.keys
        self._output = spec.output_schemas([schema])[MAIN]
        self._rank = spec.rank if spec.rank in self._output.names else None
        self._kept = spec.kept(schema)
        (self._table,) = spec.state_tables([schema])
        self._index = KeyIndex([self._kept.field(key).type for key in spec.keys])
        # Of a changelog: numbers the different rows there are.
        self._contents = KeyIndex(self._kept.types) if is_changelog(schema) else None
        self._lists = _lists(spec, self._kept, returns=self._contents is not None, ranked=self._rank is not None)
        self._rows = Rows(self._kept)
        self._changes = Changes(self._table)
        self._content: Ints = np.empty(0, np.int64)  # by entry, of a changelog: its number in _contents
        self._live = 0

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Put rows where they belong, and out what that has changed."""
        weights = _NONE if self._contents is None else weights_of(batch)
        arrays = [plain(batch.column(name)) for name in self._kept.names]
        rows = pa.record_batch(arrays, schema=self._kept)
        if self._contents is not None:
            times = np.abs(weights)
            if bool((times != 1).any()):
                rows = rows.take(pa.array(np.repeat(np.arange(len(times)), times)))
            weights = np.repeat(np.sign(weights), times)
        first = len(self._lists)
        moves, fresh = self._change(rows, weights)
        self._changes.begin(first, len(moves.taken))
        self._bury(moves.gone)
        self._emit(self._rows.take(moves.left[0]), moves.left[1], -1, out)
        came = moves.came[0]
        if np.array_equal(came, np.arange(first, len(self._lists))):
            self._emit(fresh, moves.came[1], 1, out)
        else:
            self._emit(self._rows.take(came), moves.came[1], 1, out)
        self._compact_if_sparse()

    def _change(self, rows: pa.RecordBatch, weights: Ints) -> tuple[Moves, pa.RecordBatch]:
        """Take rows in and back; return what that changed, and the rows that now are entries, in their order."""
        slots = self._index.slots([rows.column(key) for key in self._keys], rows.num_rows)
        contents = _NONE if self._contents is None else self._contents.slots(rows.columns)
        self._lists.resize(max(1, len(self._index)), 0 if self._contents is None else len(self._contents))
        try:
            moves = self._lists.change(rows, slots, weights, contents)
        except NeverCame as error:
            (row,) = rows.slice(error.row, 1).to_pylist()
            raise DataError(
                f"top: a row of a changelog is to be taken back that never came, or is gone already: {row}. A function "
                "before it must make the same of a row each time: what it takes back it must have made"
            ) from None
        fresh = rows if len(moves.taken) == rows.num_rows else rows.take(pa.array(moves.taken))
        self._rows.append(fresh)
        self._content_of(contents, moves.taken)
        self._changes.resize(self._lists.capacity)
        self._live += len(moves.taken) - len(moves.gone)
        return moves, fresh

    def _content_of(self, contents: Ints, taken: Ints) -> None:
        if self._contents is not None:
            count = len(self._lists)
            if count > len(self._content):
                self._content = resized(self._content, self._lists.capacity)
            self._content[count - len(taken) : count] = contents[taken]

    def _bury(self, gone: Ints) -> None:
        leaving = self._changes.leaving(gone)
        if len(leaving):
            keys = self._index.keys(self._lists.slots_of(leaving)) if self._keys else []
            self._changes.bury([*keys, pa.array(self._changes.sequence[leaving])])

    def _emit(self, rows: pa.RecordBatch, ranks: Ints, weight: int, out: Output) -> None:
        for first in range(0, rows.num_rows, MAX_ROWS):
            part = rows.slice(first, MAX_ROWS)
            columns = {name: part.column(name) for name in self._kept.names}
            columns[WEIGHT] = pa.array(np.full(part.num_rows, weight))
            if self._rank is not None:
                columns[self._rank] = pa.array(ranks[first : first + MAX_ROWS])
            out.emit(pa.record_batch([columns[name] for name in self._output.names], schema=self._output))

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        chosen = self._changes.choose(epoch, self._lists.live())
        if chosen is None:
            return {}
        ids, full_from = chosen
        columns = [*self._rows.take(ids).columns, pa.array(self._changes.sequence[ids])]
        named = dict(zip(self._table.schema.names, columns, strict=True))
        return {self._table.name: self._changes.delta(named, full_from)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``."""
        del table
        rows, there = latest_rows(batches, self._table)
        parts = [fixed_codes(part.column(-1)) for part in rows.batches()]
        arrivals = np.concatenate([_NONE, *parts])[there]
        order = np.argsort(arrivals, kind="stable")
        there, arrivals = there[order], arrivals[order]
        for start in range(0, len(there), MAX_ROWS):
            chosen = slice(start, start + MAX_ROWS)
            columns = rows.take(there[chosen]).columns[:-1]
            first = len(self._lists)
            batch = pa.record_batch(columns, schema=self._kept)
            moves, _ = self._change(batch, np.ones(batch.num_rows, np.int64))
            self._changes.begin_restored(first, arrivals[chosen][moves.taken])
        self._changes.restored(full_from)

    def _compact_if_sparse(self) -> None:
        """Forget rows that are gone, and keys without any, once they are more than the others."""
        if len(self._lists) <= max(_MIN_GARBAGE, 2 * self._live):
            return
        kept = self._lists.live()
        alive = np.zeros(len(self._index), np.bool_)
        alive[self._lists.slots_of(kept)] = True
        contents = self._compact_contents(kept)
        self._lists.compact(kept, np.flatnonzero(alive), contents)
        self._index.compact(alive)
        self._rows.compact(kept)
        self._changes.compact(kept)

    def _compact_contents(self, kept: Ints) -> Ints:
        if self._contents is None:
            return _NONE
        alive = np.zeros(len(self._contents), np.bool_)
        alive[self._content[kept]] = True
        self._content = self._contents.compact(alive)[self._content[kept]]
        return self._content


class CombinerOperator(Operator):
    """Leaves out the rows of each batch that are not on top in it."""

    def __init__(self, spec: Top, schema: pa.Schema) -> None:
        self._spec = spec
        self._schema = schema
        self._all = is_changelog(schema)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Pass on what may be on top."""
        if self._all:
            out.emit(batch)
            return
        lists = _lists(self._spec, self._schema, returns=False, ranked=False)
        lists.resize(1, 0)
        out.emit(batch.take(pa.array(lists.change(batch, np.zeros(batch.num_rows, np.int64)).taken)))


def _lists(spec: Top, schema: pa.Schema, *, returns: bool, ranked: bool) -> RankedLists:
    keys = RankKeys(spec.by, schema)
    return RankedLists(keys, spec.n, ties=spec.ties, newest=spec.newest, returns=returns, ranked=ranked)
