"""Running top rows per slot, which can be merged. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes
from millstream.engine.expression import Expr
from millstream.operators import top_kernels as kernels
from millstream.operators.cells import resized
from millstream.operators.items import ItemAccumulator
from millstream.operators.ranking import WORST, Ranking
from millstream.operators.rows import Rows

_FIRST_CAPACITY: Final = 1_024


class TopAccumulator(ItemAccumulator):
    """Keeps the best rows of each slot; of equal ones the first to arrive. Items: arrival, and the row.

    Args:
        schema: of a row.
        by: (expression, whether the greatest comes first), the most important first.
        n: how many rows a slot keeps.
        ties: keep also every row that equals the n-th.
    """

    def __init__(self, schema: pa.Schema, by: Sequence[tuple[Expr, bool]], n: int, ties: bool) -> None:
        self._schema = schema
        self._ranking = Ranking(by, n, ties)
        self._rises = n == 1
        self._rows = Rows(schema)
        self._ranked = Rows(pa.schema([(str(i), type) for i, type in enumerate(self._ranking.types(schema))]))
        self._next = 0
        self._thresholds: Ints = np.empty(0, np.int64)  # by slot: the score that a new row must reach
        # By item: its number in arrival, and whether it is on top still.
        self._arrivals: Ints = np.empty(0, np.int64)
        self._there: Bools = np.empty(0, np.bool_)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        super().resize(slots)
        self._thresholds = resized(self._thresholds, slots, fill=WORST)

    def update(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints) -> None:
        """As ``Accumulator.update``."""
        del times
        arrivals = np.arange(self._next, self._next + len(slots))
        self._next += len(slots)
        self._merge(slots, list(arguments), arrivals)

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``, of what ``columns`` returned."""
        arrivals, *row = columns
        self._merge(slots, row, fixed_codes(arrivals))

    def _merge(self, slots: Ints, columns: list[pa.Array], arrivals: Ints) -> None:
        batch = pa.record_batch(columns, schema=self._schema)
        ranked = self._ranking.columns(batch)
        rows = np.empty(len(slots), np.int64)
        count = kernels.prune(slots, self._ranking.scores(ranked[0]), self._thresholds, self._rises, rows)
        if not count:
            return
        rows = rows[:count]
        chosen = pa.array(rows)
        slots, arrivals = slots[rows], arrivals[rows]
        self._rank(batch.take(chosen), [column.take(chosen) for column in ranked], slots, arrivals)
        self.collect_garbage()

    def _rank(self, batch: pa.RecordBatch, ranked: list[pa.Array], slots: Ints, arrivals: Ints) -> None:
        """Add rows and drop those that are on top no more."""
        held, of = self._held(np.unique(slots))
        before = self._ranked.take(held)
        columns = [pa.concat_arrays([before.column(i), column]) for i, column in enumerate(ranked)]
        every = np.concatenate([of, slots]), np.concatenate([self._arrivals[held], arrivals])
        kept, full, nth = self._ranking.top(every[0], columns, every[1])
        self._thresholds[full] = self._ranking.scores(columns[0])[nth]
        stays = np.zeros(len(held), np.bool_)
        stays[kept[kept < len(held)]] = True
        gone = held[~stays]
        self._there[gone] = False
        self.items.take_out(gone)
        new = np.sort(kept[kept >= len(held)] - len(held))
        chosen = pa.array(new)
        self._append(batch.take(chosen), [column.take(chosen) for column in ranked], arrivals[new])
        self.items.add(slots[new])

    def _append(self, batch: pa.RecordBatch, ranked: list[pa.Array], arrivals: Ints) -> None:
        first, count = len(self._rows), len(self._rows) + len(arrivals)
        if count > len(self._arrivals):
            capacity = max(_FIRST_CAPACITY, 2 * len(self._arrivals), count)
            self._arrivals = resized(self._arrivals, capacity)
            self._there = resized(self._there, capacity, fill=False)
        self._rows.append(batch)
        self._ranked.append(pa.record_batch(ranked, names=[str(i) for i in range(len(ranked))]))
        self._arrivals[first:count] = arrivals
        self._there[first:count] = True

    def _held(self, slots: Ints) -> tuple[Ints, Ints]:
        """Return the items on top of some slots, and the slot of each."""
        ids, places = self.items.of(slots)
        there = self._there[ids]
        return ids[there], slots[places[there]]

    def take_back(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``ItemAccumulator.take_back``."""
        arrivals = fixed_codes(columns[0])
        batch = pa.record_batch(list(columns[1:]), schema=self._schema)
        ranked = self._ranking.columns(batch)
        _, full, nth = self._ranking.top(slots, ranked, arrivals)
        self._thresholds[full] = self._ranking.scores(ranked[0])[nth]
        self._append(batch, ranked, arrivals)
        self.items.add_stored(slots)
        self._next = max(self._next, int(arrivals.max(initial=-1)) + 1)

    def absorb(self, other: Self, slots: Ints, into: Ints) -> None:
        """As ``Accumulator.absorb``."""
        ids, places = other.items.of(slots)
        there = other._there[ids]
        self.merge(into[places[there]], other.columns(ids[there]))

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``; lists of rows, the best first."""
        ids, places = self.items.of(slots)
        there = self._there[ids]
        ids, places = ids[there], places[there]
        order, _, _ = self._ranking.top(places, self._ranked.take(ids).columns, self._arrivals[ids])
        ends = np.searchsorted(places[order], np.arange(len(slots) + 1)).astype(np.int32)
        rows = self._rows.take(ids[order])
        return pa.ListArray.from_arrays(
            pa.array(ends), pa.StructArray.from_arrays(rows.columns, fields=list(rows.schema))
        )

    def columns(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.columns``."""
        return [pa.array(self._arrivals[ids]), *self._rows.take(ids).columns]

    def names(self, ids: Ints) -> list[pa.Array]:
        """As ``ItemAccumulator.names``."""
        return [pa.array(self._arrivals[ids])]

    def keep(self, ids: Ints) -> None:
        """As ``ItemAccumulator.keep``."""
        self._rows.compact(ids)
        self._ranked.compact(ids)
        self._arrivals, self._there = self._arrivals[ids], self._there[ids]

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``; ``drop`` has taken the items."""
        self._thresholds[slots] = WORST

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        super().compact(kept)
        self._thresholds = self._thresholds[kept]
