"""The results of matches: aggregates over the rows of each name. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Ints
from millstream.engine.operator import MAIN
from millstream.engine.state import StateTable
from millstream.operators import match_kernels as kernels
from millstream.operators.aggregate_feed import AggregateFeed
from millstream.operators.event_time import time_array
from millstream.operators.items import ItemAccumulator
from millstream.operators.match import KNOWN_AT, MATCH_END, MATCH_START, Match
from millstream.operators.match_conditions import Terms
from millstream.operators.match_expressions import ALL_ROWS, Result
from millstream.operators.pattern_automaton import Automaton
from millstream.operators.rows import Rows
from millstream.operators.windowed import MAX_ROWS

_MOST_WALKED: Final = 1 << 20
"""Matches are worked out in portions of about so many rows."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Matches that were found, and what their rows are found again with.

    Attributes:
        found: int64, shape (3, n): first row, last row, when it was known.
        rows: of ``match_kernels``, as are those in ``terms``.
    """

    found: Ints
    rows: Ints
    automaton: Automaton
    terms: Terms

    def portions(self) -> Iterator[Matches]:
        """Part them, so that each portion has no more than so many rows, or one match."""
        lengths = np.empty(self.found.shape[1], np.int64)
        kernels.lengths(self.found, self.rows, lengths)
        ends = np.cumsum(lengths)
        first = 0
        while first < len(ends):
            walked = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, walked + _MOST_WALKED, side="right")))
            last = min(last, first + MAX_ROWS)
            yield Matches(self.found[:, first:last].copy(), self.rows, self.automaton, self.terms)
            first = last

    def labelled(self) -> Ints:
        """Return the rows that are in matches, int64, shape (3, n): row, number of the name, number of the match."""
        lengths = np.empty(self.found.shape[1], np.int64)
        kernels.lengths(self.found, self.rows, lengths)
        path = np.empty((3, int(lengths.max())), np.int64)
        out = np.empty((3, int(lengths.sum())), np.int64)
        automaton = self.automaton
        while True:
            count, state, mask = kernels.label(
                self.found,
                self.rows,
                automaton.table,
                automaton.transitions,
                automaton.trail,
                self.terms.terms,
                self.terms.codes,
                path,
                out,
            )
            if state < 0:
                return out[:, :count]
            automaton.add(state, mask)


class Results:
    """Makes a row of every match."""

    def __init__(self, spec: Match, schema: pa.Schema) -> None:
        self._keys = [key for key in spec.keys if spec.keep is None or key in spec.keep]
        self._output = spec.output_schemas([schema])[MAIN]
        self._kept = spec.kept(schema)
        self._results = spec.results(schema)

    def batches(self, matches: Matches, held: Rows) -> Iterator[pa.RecordBatch]:
        """Return the output for matches, in their order."""
        if not self._output.names:
            return
        for portion in matches.portions():
            yield self._batch(portion, held)

    def _batch(self, matches: Matches, held: Rows) -> pa.RecordBatch:
        begin, end, known = matches.found
        times = matches.rows[:, kernels.TIME]
        columns = {
            MATCH_START: time_array(times[begin]),
            MATCH_END: time_array(times[end]),
            KNOWN_AT: time_array(known),
        }
        if self._keys:
            keys = held.take(begin, self._keys)
            columns |= {key: keys.column(key) for key in self._keys}
        if self._results:
            columns |= self._aggregated(matches, held)
        return pa.record_batch([columns[name] for name in self._output.names], schema=self._output)

    def _aggregated(self, matches: Matches, held: Rows) -> dict[str, pa.Array]:
        rows, labels, numbers = matches.labelled()
        times = matches.rows[:, kernels.TIME]
        columns: dict[str, pa.Array] = {}
        for label in sorted({result.label for result in self._results}):
            chosen = slice(None) if label == ALL_ROWS else labels == label
            results = [result for result in self._results if result.label == label]
            own = rows[chosen]
            columns |= self._values(results, held.take(own), numbers[chosen], times[own], matches.found.shape[1])
        return columns

    def _values(
        self, results: list[Result], batch: pa.RecordBatch, numbers: Ints, times: Ints, count: int
    ) -> dict[str, pa.Array]:
        accumulators = [result.aggregate.accumulator(self._kept) for result in results]
        for result, accumulator in zip(results, accumulators, strict=True):
            if isinstance(accumulator, ItemAccumulator):
                items = [pa.field("match", pa.int64()), *result.aggregate.item_fields(self._kept)]
                accumulator.bind(StateTable("items", pa.schema(items), keys=(items[0].name, items[1].name)))
            accumulator.resize(count)
        if batch.num_rows:
            AggregateFeed([result.aggregate for result in results], accumulators).update(batch, numbers, times)
        every = np.arange(count)
        return {r.column: a.result(every) for r, a in zip(results, accumulators, strict=True)}
