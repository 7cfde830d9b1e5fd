"""Functions of the user's at work: their results become batches, rows they cannot take an error or dead letters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import is_changelog, unweighted, weighted, weights_of
from millstream.engine.codes import Ints
from millstream.engine.errors import DataError, MillstreamError, UserCodeError
from millstream.engine.expression import Expr
from millstream.engine.operator import Fault, Operator, Output
from millstream.operators.code_version import code_version
from millstream.operators.python import FunctionSpec, RowFunctionSpec, function_place, shown_schema
from millstream.operators.python_rows import MOST_ROWS, BadRow, Row, RowCollector, rows_as_dicts, shown, shown_row

if TYPE_CHECKING:
    from millstream.engine.expression import Expr

_T = TypeVar("_T")


class _FunctionOperator(Operator):
    """Calls a function; ``on_error`` of its spec says what becomes of rows it cannot take."""

    def __init__(self, spec: FunctionSpec, schema: pa.Schema) -> None:
        self._fn = spec.fn
        self._schema = schema
        self._keeps = spec.on_error == "dead_letter"
        self._time = spec.time
        self._code = code_version(spec.fn) if self._keeps else ""

    def _put_aside(self, batch: pa.RecordBatch, faults: Mapping[int, Fault], out: Output) -> None:
        if not faults:
            return
        indices = sorted(faults)
        rows = batch.take(pa.array(indices, pa.int64()))
        times = times_of(self._time, rows)
        out.dead_letter(rows, [faults[index] for index in indices], times=times, code=self._code)


def times_of(time: Expr | None, rows: pa.RecordBatch) -> pa.Array | None:
    """Return the event times of rows that are put aside, timestamp[us]; None if they have none."""
    if time is None:
        return None
    times = time.evaluate(rows)
    utc = times.cast(pa.timestamp("us", getattr(times.type, "tz", None)), safe=False)
    return utc.cast(pa.int64()).cast(pa.timestamp("us"))


def blames_rows(error: Exception) -> bool:
    """Whether an error says that rows are bad: one of a disk or a server would come with any row."""
    return not isinstance(error, MillstreamError) or isinstance(error, DataError | UserCodeError)


def fault_of(error: Exception) -> Fault:
    """Return what a dead letter says of an error."""
    return Fault(type(error).__name__, str(error))


def by_halves(
    batch: pa.RecordBatch, attempt: Callable[[pa.RecordBatch], _T], refuse: Callable[[int, Exception], None]
) -> Iterator[tuple[int, _T]]:
    """Attempt a batch; if that raises, its halves, down to single rows.

    Args:
        refuse: takes the index of a row for which ``attempt`` raises, and what it raised.

    Yields:
        The index of the first row, and the result, of each stretch that could be done, in order.

    >>> batch = pa.record_batch({"n": ["1", "x", "3"]})
    >>> list(by_halves(batch, lambda part: [int(n) for n in part["n"].to_pylist()], lambda i, e: print(i, e)))
    1 invalid literal for int() with base 10: 'x'
    [(0, [1]), (2, [3])]
    """
    waiting = [(0, batch.num_rows)]
    while waiting:
        start, end = waiting.pop()
        try:
            done = attempt(batch.slice(start, end - start))
        except Exception as error:
            if not blames_rows(error):
                raise
            if end - start == 1:
                refuse(start, error)
            else:
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
        else:
            yield start, done


# -- whole batches ---------------------------------------------------------------------------------------------


class MapBatchesOperator(_FunctionOperator):
    """Runs a function over batches."""

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Emit what the function makes of the batch, or of those of its rows that it can take."""
        if not self._keeps:
            for part in self._explained(batch):
                out.emit(part)
            return
        faults: dict[int, Fault] = {}

        def refuse(index: int, error: Exception) -> None:
            faults[index] = fault_of(error)

        for _, parts in by_halves(batch, lambda part: list(self._batches(self._fn(part))), refuse):
            for part in parts:
                out.emit(part)
        self._put_aside(batch, faults, out)

    def _explained(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        try:
            result = self._fn(batch)
        except MillstreamError:
            raise
        except Exception as error:
            raise UserCodeError(
                f"{function_place(self._fn)} raised {type(error).__name__}: {error}, "
                f"for a batch of {batch.num_rows} rows; its first: {shown_row(batch, 0)}"
            ) from error
        return self._batches(result)

    def _batches(self, result: Any) -> Iterator[pa.RecordBatch]:
        if not isinstance(result, (pa.RecordBatch, pa.Table)):
            raise UserCodeError(f"{function_place(self._fn)} must return a pa.RecordBatch, got {shown(result)}")
        if not _same_columns(result.schema, self._schema):
            raise UserCodeError(
                f"{function_place(self._fn)} must return the columns {shown_schema(self._schema)}, "
                f"got {shown_schema(result.schema)}"
            )
        for part in result.to_batches() if isinstance(result, pa.Table) else [result]:
            if part.num_rows:
                yield self._with_promised_schema(part)

    def _with_promised_schema(self, part: pa.RecordBatch) -> pa.RecordBatch:
        for field, column in zip(self._schema, part.columns, strict=True):
            if column.null_count and not field.nullable:
                raise UserCodeError(
                    f"{function_place(self._fn)} must not return nulls in {field.name!r}, which the schema says is "
                    "never null"
                )
        return pa.RecordBatch.from_arrays(part.columns, schema=self._schema)


# -- row by row ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Made:
    """What a function has made of some rows of a batch, and which row each result came from."""

    results: list[Any]
    origins: Sequence[int]


class _RowOperator(_FunctionOperator):
    """Runs a function row by row; remembers which row each result came from, for the error."""

    def __init__(self, spec: RowFunctionSpec, schema: pa.Schema) -> None:
        super().__init__(spec, schema)
        self._reads = spec.reads
        self._collector = RowCollector(schema, "return")

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Emit what the function makes of each row."""
        weights = weights_of(batch) if is_changelog(batch.schema) else None
        plain = batch.select(unweighted(batch.schema).names)
        faults: dict[int, Fault] = {}
        for made in self._made(plain, faults):
            out.emit(self._batch(made, plain, weights, faults))
        self._put_aside(batch, faults, out)

    def _made(self, batch: pa.RecordBatch, faults: dict[int, Fault]) -> Iterator[_Made]:
        """Call the function for each row."""
        results: list[Any] = []
        origins: list[int] = []
        for index, row in self._readable(batch, faults):
            try:
                made = list(self._results(row))
            except Exception as error:
                self._refuse(error, batch, index, faults)
                continue
            results += made
            origins += [index] * len(made)
            if len(results) >= MOST_ROWS:
                yield _Made(results, origins)
                results, origins = [], []
        if results:
            yield _Made(results, origins)

    @abstractmethod
    def _results(self, row: Row) -> Iterable[Any]:
        """Call the function."""

    def _rows(self, batch: pa.RecordBatch) -> Iterator[Row]:
        names = batch.schema.names
        return rows_as_dicts(batch, names if self._reads is None else [name for name in names if name in self._reads])

    def _readable(self, batch: pa.RecordBatch, faults: dict[int, Fault]) -> Iterator[tuple[int, Row]]:
        """The rows as dicts, each with its index; those of which Python has no such values are faults."""
        if not self._keeps:
            yield from enumerate(self._rows(batch))
            return

        def refuse(index: int, error: Exception) -> None:
            faults[index] = fault_of(error)

        for start, rows in by_halves(batch, self._rows, refuse):
            yield from enumerate(rows, start)

    def _refuse(self, error: Exception, batch: pa.RecordBatch, index: int, faults: dict[int, Fault]) -> None:
        """Note what is wrong with a row. Raises if rows are not put aside, or it is not the row that is wrong."""
        if self._keeps and blames_rows(error):
            faults[index] = _misused(str(error)) if isinstance(error, _Misuse) else fault_of(error)
        elif isinstance(error, MillstreamError):
            raise error
        elif isinstance(error, _Misuse):
            raise self._blamed(str(error), batch, index) from None
        else:
            raise self._blamed(f"raised {type(error).__name__}: {error}", batch, index) from error

    def _batch(
        self, made: _Made, batch: pa.RecordBatch, weights: Ints | None, faults: dict[int, Fault]
    ) -> pa.RecordBatch:
        """Turn dicts into columns, with the weights of the rows they came from."""
        try:
            rows = self._collector.batch(made.results)
        except BadRow as bad:
            if not self._keeps:
                raise self._blamed(str(bad), batch, made.origins[bad.index]) from None
            made = self._without_faults(made, faults)
            rows = self._collector.batch(made.results)
        if weights is None:
            return rows
        columns = [*rows.columns, pa.array(weights[np.asarray(made.origins, np.int64)])]
        return pa.RecordBatch.from_arrays(columns, schema=weighted(self._schema))

    def _without_faults(self, made: _Made, faults: dict[int, Fault]) -> _Made:
        """Leave out all that came of rows of which one result is wrong."""
        for result, origin in zip(made.results, made.origins, strict=True):
            problem = self._collector.problem(result)
            if problem:
                faults.setdefault(origin, _misused(problem))
        good = [(r, o) for r, o in zip(made.results, made.origins, strict=True) if o not in faults]
        return _Made([result for result, _ in good], [origin for _, origin in good])

    def _blamed(self, what: str, batch: pa.RecordBatch, index: int) -> UserCodeError:
        return UserCodeError(f"{function_place(self._fn)} {what}; the row is {shown_row(batch, index)}")


def _misused(problem: str) -> Fault:
    return Fault(UserCodeError.__name__, problem)


class _Misuse(Exception):
    """The function returned what cannot be gone through."""


class MapOperator(_RowOperator):
    """Makes one row of each."""

    def _made(self, batch: pa.RecordBatch, faults: dict[int, Fault]) -> Iterator[_Made]:
        if self._keeps:
            yield from super()._made(batch, faults)
            return
        results: list[Any] = []
        try:
            # What was returned before something is raised stays in the list, and so tells which row it was.
            results.extend(map(self._fn, self._rows(batch)))
        except Exception as error:
            self._refuse(error, batch, len(results), faults)
        if len(results) < batch.num_rows:  # map() takes it for the end of the rows
            raise self._blamed("raised StopIteration", batch, len(results))
        yield _Made(results, range(len(results)))

    def _results(self, row: Row) -> Iterable[Any]:
        return (self._fn(row),)


class FlatMapOperator(_RowOperator):
    """Makes any number of rows of each."""

    def _results(self, row: Row) -> Iterable[Any]:
        results = self._fn(row)
        if isinstance(results, (Mapping, str, bytes)) or not isinstance(results, Iterable):
            raise _Misuse(f"must return dicts in a list, or yield them, got {shown(results)}")
        return results


def _same_columns(got: pa.Schema, expected: pa.Schema) -> bool:
    return got.names == expected.names and all(a.equals(b) for a, b in zip(got.types, expected.types, strict=True))
