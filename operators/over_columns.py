"""What ``over`` adds to rows, column by column. Importing this module loads numba."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import Bools, Ints, fixed_array, fixed_codes, plain, plain_type, validity
from millstream.engine.errors import DataError
from millstream.operators import over_kernels as kernels
from millstream.operators.accumulators import Floats, int_means
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.aggregates import Count, Extreme, Mean
from millstream.operators.cells import cells_for, resized
from millstream.operators.over import Function, Over
from millstream.operators.over_functions import RowNumber, Shift
from millstream.operators.ranking import ascending_codes

_LOW: Final = np.int64(2**32 - 1)
_FAN: Final = 16


@dataclass(frozen=True, slots=True)
class Stretch:
    """Rows of some keys, key by key in the order of event time; those that go on, and the frame of each.

    Attributes:
        ids: of all rows.
        first, last: by row: where the rows of its key begin, and end (one past the last).
        at: the rows that go on.
        begin: for each of these: the first of its key that goes on. Others before it have gone on earlier.
        starts, stops: for each: its frame.
        previous: for each: the last row of its key that had gone on; -1: none is kept.
        carriers: those of ``at`` that are the last of their key to go on, as places in ``at``.
    """

    ids: Ints
    first: Ints
    last: Ints
    at: Ints
    begin: Ints
    starts: Ints
    stops: Ints
    previous: Ints
    carriers: Ints


class Column(ABC):
    """One added column. What a running one carries on is kept by id; ``resize`` comes before an id's first use."""

    def resize(self, ids: int) -> None:
        """Have room for ids 0..ids-1."""
        del ids

    def compact(self, kept: Ints) -> None:
        """Keep the ids ``kept`` (ascending), which become 0..n-1."""
        del kept

    def state(self, ids: Ints) -> list[pa.Array]:
        """Return what some ids carry, as declared."""
        del ids
        return []

    def load(self, ids: Ints, columns: Sequence[pa.Array]) -> None:
        """Take back what ``state`` once returned."""
        del ids, columns

    @abstractmethod
    def compute(self, rows: Stretch, batch: pa.RecordBatch) -> pa.Array:
        """Return the values of the rows that go on; ``batch`` has the columns read, of all rows."""


class Neighbour(Column):
    """``lag`` and ``lead``."""

    def __init__(self, shift: Shift) -> None:
        self._shift = shift

    def compute(self, rows: Stretch, batch: pa.RecordBatch) -> pa.Array:
        """As ``Column.compute``."""
        at = rows.at - self._shift.by
        absent = (at < rows.first[rows.at]) | (at >= rows.last[rows.at])
        return plain(self._shift.argument.evaluate(batch)).take(pa.array(at, mask=absent))


class Carrying(Column):
    """Carries numbers, 0 at first.

    Args:
        types: of the numbers.
    """

    def __init__(self, *types: type[np.int64 | np.float64]) -> None:
        self._carried: list[Any] = [np.empty(0, type) for type in types]

    def resize(self, ids: int) -> None:
        """As ``Column.resize``."""
        self._carried = [resized(numbers, ids) for numbers in self._carried]

    def compact(self, kept: Ints) -> None:
        """As ``Column.compact``."""
        self._carried = [numbers[kept] for numbers in self._carried]

    def state(self, ids: Ints) -> list[pa.Array]:
        """As ``Column.state``."""
        return [pa.array(numbers[ids]) for numbers in self._carried]

    def load(self, ids: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Column.load``."""
        for numbers, column in zip(self._carried, columns, strict=True):
            numbers[ids] = fixed_codes(column).view(numbers.dtype)

    def before(self, rows: Stretch) -> list[Any]:
        """Return what came before the rows that go on, number by number; 0 if nothing is carried."""
        known = rows.previous >= 0
        before = []
        for numbers in self._carried:
            values = np.zeros(len(rows.at), numbers.dtype)
            values[known] = numbers[rows.ids[rows.previous[known]]]
            before.append(values)
        return before

    def carry(self, rows: Stretch, *results: Any) -> None:
        """Have the last rows of each key carry on the results."""
        ids = rows.ids[rows.at[rows.carriers]]
        for numbers, values in zip(self._carried, results, strict=False):
            numbers[ids] = values[rows.carriers]


class Numbers(Carrying):
    """``row_number``."""

    def __init__(self) -> None:
        super().__init__(np.int64)

    def compute(self, rows: Stretch, batch: pa.RecordBatch) -> pa.Array:
        """As ``Column.compute``."""
        del batch
        (before,) = self.before(rows)
        numbers = before + (rows.at - rows.begin + 1)
        self.carry(rows, numbers)
        return pa.array(numbers)


def _argument(aggregate: AggregateSpec, batch: pa.RecordBatch) -> tuple[pa.Array, Bools]:
    """Return the values that an aggregate sees and which rows it counts."""
    if aggregate.arguments:
        values = plain(aggregate.arguments[0].evaluate(batch))
    else:
        values = pa.array(np.ones(batch.num_rows, np.int64))
    valid = validity(values)
    seen = valid if len(valid) else np.ones(batch.num_rows, np.bool_)
    if aggregate.where is not None:
        chosen = pc.fill_null(aggregate.where.evaluate(batch), False)
        seen = seen & np.asarray(chosen.to_numpy(zero_copy_only=False), np.bool_)
    return values, seen


def _in_frames(values: Ints, rows: Stretch) -> Ints:
    """Add up what stands in each frame."""
    sums = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=sums[1:])
    return sums[rows.stops] - sums[rows.starts]


class Counts(Carrying):
    """``count``; carried if it is running: count."""

    def __init__(self, aggregate: AggregateSpec, running: bool) -> None:
        super().__init__(*([np.int64] if running else []))
        self._aggregate = aggregate

    def compute(self, rows: Stretch, batch: pa.RecordBatch) -> pa.Array:
        """As ``Column.compute``."""
        _, seen = _argument(self._aggregate, batch)
        counts = sum(self.before(rows), _in_frames(seen.astype(np.int64), rows))
        self.carry(rows, counts)
        return pa.array(counts)


class IntTotals(Carrying):
    """``sum`` and ``mean`` of integers, exact; carried if they are running: sum, overflow, count as of ``IntSum``."""

    def __init__(self, aggregate: AggregateSpec, running: bool) -> None:
        super().__init__(*([np.int64] * 3 if running else []))
        self._aggregate = aggregate

    def compute(self, rows: Stretch, batch: pa.RecordBatch) -> pa.Array:
        """As ``Column.compute``; halves of 32 bits are added up, for which 64 are enough."""
        values, seen = _argument(self._aggregate, batch)
        codes = np.where(seen, fixed_codes(values), 0)
        unsigned = pa.types.is_uint64(values.type)
        highs = (codes.view(np.uint64) >> np.uint64(32)).view(np.int64) if unsigned else codes >> 32
        low, high = _in_frames(codes & _LOW, rows), _in_frames(highs, rows)
        counts = _in_frames(seen.astype(np.int64), rows)
        if self._carried:
            total, overflow, count = self.before(rows)
            low, high, counts = low + (total & _LOW), high + (total >> 32) + (overflow << 32), counts + count
        high += low >> 32
        sums, overflows = (high << 32) | (low & _LOW), (high + 2**31) >> 32
        self.carry(rows, sums, overflows, counts)
        if isinstance(self._aggregate, Mean):
            return pa.array(int_means(sums, overflows, counts), mask=counts == 0)
        if bool(overflows.any()):
            at = int(np.flatnonzero(overflows)[0])
            raise DataError(
                f"over(): {self._aggregate.identity()} is {int(overflows[at]) * 2**64 + int(sums[at])} for a row, "
                "which int64 cannot hold. Sum a wider type instead: cast the column to float64 first"
            )
        return fixed_array(sums, counts > 0, pa.int64())


class FloatTotals(Carrying):
    """``sum`` and ``mean`` of floats, in double-double arithmetic; carried if they are running: as of ``FloatSum``.

    Nothing is ever subtracted, so that an infinity or a huge value leaves a frame without a trace.
    """

    def __init__(self, aggregate: AggregateSpec, running: bool) -> None:
        types: list[type[np.int64 | np.float64]] = [np.float64, np.float64, np.int64]
        super().__init__(*(types if running else []))
        self._aggregate = aggregate

    def compute(self, rows: Stretch, batch: pa.RecordBatch) -> pa.Array:
        """As ``Column.compute``."""
        values, seen = _argument(self._aggregate, batch)
        floats = fixed_codes(values).view(np.float64)
        counts = _in_frames(seen.astype(np.int64), rows)
        if self._carried:
            sums, errors, count = self.before(rows)
            kernels.running_sums(rows.at, rows.begin, floats, seen, sums, errors)
            counts = counts + count
            self.carry(rows, sums, errors, counts)
            sums = sums + errors
        else:
            sums = _frame_sums(floats, seen, rows)
        if isinstance(self._aggregate, Mean):
            with np.errstate(invalid="ignore"):
                sums = sums / np.maximum(counts, 1)
        return pa.array(sums, pa.float64(), mask=counts == 0)


def _frame_sums(floats: Floats, seen: Bools, rows: Stretch) -> Floats:
    sizes = [len(floats)]
    while sizes[-1] > _FAN:
        sizes.append(-(-sizes[-1] // _FAN))
    ends = np.cumsum(sizes)
    highs, lows = np.empty(ends[-1]), np.empty(ends[-1])
    kernels.build_sums(floats, seen, ends, highs, lows)
    sums = np.empty(len(rows.at))
    kernels.frame_sums(rows.starts, rows.stops, ends, highs, lows, sums)
    return sums


class Extremes(Column):
    """``min`` and ``max`` of anything that can be ordered; carried if they are running: the value."""

    def __init__(self, aggregate: Extreme, type: pa.DataType, running: bool) -> None:
        self._aggregate = aggregate
        self._cells = cells_for(type) if running else None

    def resize(self, ids: int) -> None:
        """As ``Column.resize``."""
        if self._cells is not None:
            self._cells.resize(ids)

    def compact(self, kept: Ints) -> None:
        """As ``Column.compact``."""
        if self._cells is not None:
            self._cells.compact(kept)

    def state(self, ids: Ints) -> list[pa.Array]:
        """As ``Column.state``."""
        return [] if self._cells is None else [self._cells.get(ids)]

    def load(self, ids: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Column.load``."""
        if self._cells is not None:
            self._cells.put(ids, columns[0])

    def compute(self, rows: Stretch, batch: pa.RecordBatch) -> pa.Array:
        """As ``Column.compute``."""
        values, seen = _argument(self._aggregate, batch)
        starts = rows.starts
        if self._cells is not None:
            # The row before stands for all that came before.
            known = rows.previous >= 0
            places = np.unique(rows.previous[known])
            carried = self._cells.get(rows.ids[places])
            order = np.arange(len(values))
            order[places] = len(values) + np.arange(len(places))
            values = pa.concat_arrays([values, carried]).take(pa.array(order))
            seen[places] = np.asarray(carried.is_valid().to_numpy(zero_copy_only=False), np.bool_)
            starts = np.where(known, rows.previous, starts)
        codes = ascending_codes(values, down=False)[-1]
        found = np.empty(len(rows.at), np.int64)
        queue = np.empty(len(values), np.int64)
        kernels.frame_extremes(starts, rows.stops, codes, seen, self._aggregate.greatest, queue, found)
        result = values.take(pa.array(found, mask=found < 0))
        if self._cells is not None:
            self._cells.put(rows.ids[rows.at[rows.carriers]], result.take(pa.array(rows.carriers)))
        return result


def column_for(function: Function, spec: Over, schema: pa.Schema) -> Column:
    """Return what computes a function's column over rows of a schema."""
    match function:
        case RowNumber():
            return Numbers()
        case Shift():
            return Neighbour(function)
        case Count():
            return Counts(function, spec.running)
        case Extreme():
            return Extremes(function, plain_type(function.type_in(schema)), spec.running)
    assert isinstance(function, AggregateSpec), function
    kind = FloatTotals if pa.types.is_floating(function.number_type(schema)) else IntTotals
    return kind(function, spec.running)
