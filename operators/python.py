"""Functions of the user's: ``map_batches`` over Arrow batches, ``map`` and ``flat_map`` over rows as dicts."""

from __future__ import annotations

import functools
import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import pyarrow as pa
from millstream.engine.changelog import is_changelog, unweighted, weighted, weights_of
from millstream.engine.codes import Ints
from millstream.engine.errors import DataError, JobError, MillstreamError, SchemaError, UserCodeError
from millstream.engine.expression_types import Schema, schema_of, shown_scalar
from millstream.engine.operator import MAIN, Operator, OperatorSpec, Output
from millstream.operators.python_values import typed_array

_MOST_ROWS: Final = 65_536
_SHOWN: Final = 400

RowFunction = Callable[[dict[str, Any]], Any]


def function_name(fn: Callable[..., Any]) -> str:
    """Return the function's name with its module.

    >>> import json
    >>> function_name(json.loads)
    'json.loads'
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    named = fn if hasattr(fn, "__qualname__") else type(fn)
    return f"{named.__module__}.{named.__qualname__}"


def function_place(fn: Callable[..., Any]) -> str:
    """Return the function's name with its file and line, where it has one."""
    code = getattr(inspect.unwrap(fn.func if isinstance(fn, functools.partial) else fn), "__code__", None)
    return function_name(fn) + (f" ({code.co_filename}:{code.co_firstlineno})" if code else "")


def check_function(fn: Callable[..., Any], caller: str, count: int, takes: str) -> None:
    """Raise JobError unless ``fn`` is a plain function that can be called with ``count`` arguments.

    Args:
        caller: names what will call it, for the error: ``"map()"``.
        takes: names the arguments: ``"one argument, a row as a dict"``.
    """
    if not callable(fn):
        raise JobError(f"{caller} takes a function, got {fn!r}")
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        raise JobError(f"{caller} takes a plain function; {function_place(fn)} is async")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # some functions written in C do not tell
    try:
        signature.bind(*[None] * count)
    except TypeError:
        raise JobError(f"{caller} calls its function with {takes}; {function_place(fn)} takes {signature}") from None


class _FunctionSpec(OperatorSpec):
    """What the three have in common."""

    takes: ClassVar[str]

    def __init__(self, fn: Callable[..., Any], schema: Schema | None) -> None:
        self.fn = fn
        self.schema = None if schema is None else schema_of(schema)
        self._check_function()

    def _check_function(self) -> None:
        check_function(self.fn, f"{self.kind}()", 1, f"one argument, {self.takes}")

    def identity(self) -> str:
        """The function's name and the schema it promises."""
        promised = "" if self.schema is None else f", {shown_schema(self.schema)}"
        return f"{self.kind}({function_name(self.fn)}{promised})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.identity() == other.identity() and self.fn == other.fn

    def __hash__(self) -> int:
        return hash(self.identity())


class MapBatches(_FunctionSpec):
    """Apply a function to whole batches.

    Args:
        fn: takes a ``pa.RecordBatch`` and returns one (or a ``pa.Table``) with any number of rows. Where batches
            begin and end is not fixed: each row must be treated alike whichever rows it comes with.
        schema: what it returns; None: it is asked with an empty batch.
    """

    takes = "a pa.RecordBatch"

    @property
    def kind(self) -> str:
        """``map_batches``."""
        return "map_batches"

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the schema as promised, or as learnt from an empty batch.

        Raises:
            SchemaError: the function fails on an empty batch, or returns something else than a batch.
        """
        return {MAIN: self.schema if self.schema is not None else self._learnt(inputs[0])}

    def _learnt(self, schema: pa.Schema) -> pa.Schema:
        empty = schema.empty_table().to_batches() or [_empty_batch(schema)]
        try:
            result = self.fn(empty[0])
        except Exception as error:
            raise SchemaError(
                f"{function_place(self.fn)} was called with an empty batch to learn its schema, and raised "
                f"{type(error).__name__}: {error}. Write schema={{...}} in map_batches() instead"
            ) from error
        if not isinstance(result, (pa.RecordBatch, pa.Table)):
            raise SchemaError(f"{function_place(self.fn)} must return a pa.RecordBatch, got {shown(result)}")
        return schema_of(result.schema)

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        return _MapBatchesOperator(self.fn, self.output_schemas(inputs)[MAIN])


class _MapBatchesOperator(Operator):
    def __init__(self, fn: Callable[..., Any], schema: pa.Schema) -> None:
        self._fn = fn
        self._schema = schema

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        try:
            result = self._fn(batch)
        except MillstreamError:
            raise
        except Exception as error:
            raise UserCodeError(
                f"{function_place(self._fn)} raised {type(error).__name__}: {error}, "
                f"for a batch of {batch.num_rows} rows; its first: {shown_row(batch, 0)}"
            ) from error
        for part in self._batches(result):
            out.emit(part)

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


class _RowFunctionSpec(_FunctionSpec):
    """A function over rows as dicts; its schema must be given, since rows have no types."""

    takes = "a row as a dict"
    schema: pa.Schema

    def __init__(self, fn: RowFunction, schema: Schema) -> None:
        if schema is None:
            raise JobError(
                f"{self.kind}() needs schema={{...}}: the columns that its function returns, and their types"
            )
        super().__init__(fn, schema)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the schema as promised, with a weight if the input has one."""
        return {MAIN: weighted(self.schema) if is_changelog(inputs[0]) else self.schema}

    @property
    def takes_changelog(self) -> bool:
        """What is made of a row that is taken back is taken back too."""
        return True


class Map(_RowFunctionSpec):
    """Apply a function to each row: a dict in, a dict out.

    Args:
        fn: returns a dict with exactly the columns of the schema.
        schema: a ``pa.Schema``, or names with types: ``{"id": "int64", "name": str}``.
    """

    @property
    def kind(self) -> str:
        """``map``."""
        return "map"

    def _check_function(self) -> None:
        super()._check_function()
        if inspect.isgeneratorfunction(self.fn):
            raise JobError(f"{function_place(self.fn)} yields rows, but map() makes one of each: use flat_map()")

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        del inputs
        return _MapOperator(self.fn, self.schema)


class FlatMap(_RowFunctionSpec):
    """Replace each row, a dict, by any number of rows.

    Args:
        fn: returns or yields dicts with exactly the columns of the schema.
        schema: as for ``Map``.
    """

    @property
    def kind(self) -> str:
        """``flat_map``."""
        return "flat_map"

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        del inputs
        return _FlatMapOperator(self.fn, self.schema)


class _RowOperator(Operator):
    """Runs a function row by row; remembers which row each result came from, for the error."""

    def __init__(self, fn: RowFunction, schema: pa.Schema) -> None:
        self._fn = fn
        self._schema = schema
        self._names = frozenset(schema.names)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        weights = weights_of(batch) if is_changelog(batch.schema) else None
        batch = batch.select(unweighted(batch.schema).names)
        results: list[Any] = []
        origins: list[int] = []
        index = -1
        rows = _rows(batch)
        try:
            for index, row in enumerate(rows):
                for result in self._results(row):
                    results.append(result)
                    origins.append(index)
                if len(results) >= _MOST_ROWS:
                    out.emit(self._weighted(self._batch(results, origins, batch), origins, weights))
                    results, origins = [], []
        except MillstreamError:
            raise
        except _Misuse as misuse:
            raise self._blamed(str(misuse), batch, index) from None
        except Exception as error:
            raise self._blamed(f"raised {type(error).__name__}: {error}", batch, index) from error
        if results:
            out.emit(self._weighted(self._batch(results, origins, batch), origins, weights))

    def _weighted(self, made: pa.RecordBatch, origins: list[int], weights: Ints | None) -> pa.RecordBatch:
        if weights is None:
            return made
        return pa.RecordBatch.from_arrays([*made.columns, pa.array(weights[origins])], schema=weighted(self._schema))

    @abstractmethod
    def _results(self, row: dict[str, Any]) -> Iterable[Any]:
        """Call the function."""

    def _batch(self, results: list[Any], origins: list[int], batch: pa.RecordBatch) -> pa.RecordBatch:
        """Turn dicts into columns; what is wrong with them is looked for only once something is."""
        if all(type(result) is dict and result.keys() == self._names for result in results):
            try:
                arrays = [typed_array([result[field.name] for result in results], field.type) for field in self._schema]
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                pass
            else:
                if all(
                    field.nullable or not array.null_count for field, array in zip(self._schema, arrays, strict=True)
                ):
                    return pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        for result, origin in zip(results, origins, strict=True):
            fault = self._fault(result)
            if fault:
                raise self._blamed(fault, batch, origin)
        arrays = [typed_array([result[field.name] for result in results], field.type) for field in self._schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _fault(self, result: Any) -> str:
        """Say what is wrong with a result; "" if nothing is."""
        if not isinstance(result, Mapping):
            hint = "; to leave rows out, use filter() or flat_map()" if result is None else ""
            return f"must return a dict, got {shown(result)}{hint}"
        missing, extra = sorted(self._names - result.keys()), sorted(map(str, result.keys() - self._names))
        if missing or extra:
            lacks = f" lacks {', '.join(map(repr, missing))}" if missing else ""
            has = f" also has {', '.join(map(repr, extra))}" if extra else ""
            return (
                f"must return a dict with exactly the keys {', '.join(map(repr, self._schema.names))}; "
                f"it{lacks}{' and' if lacks and has else ''}{has}: {shown(dict(result))}"
            )
        for field in self._schema:
            value = result[field.name]
            if value is None and not field.nullable:
                return f"must not return None for {field.name!r}, which the schema says is never null"
            try:
                typed_array([value], field.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                return f"must return {field.type} for {field.name!r}, got {shown(value)} ({_shortened(str(error))})"
        return ""

    def _blamed(self, what: str, batch: pa.RecordBatch, index: int) -> UserCodeError:
        return UserCodeError(f"{function_place(self._fn)} {what}; the row is {shown_row(batch, max(index, 0))}")


class _Misuse(Exception):
    """The function returned what cannot be gone through."""


class _MapOperator(_RowOperator):
    def _results(self, row: dict[str, Any]) -> Iterable[Any]:
        return (self._fn(row),)


class _FlatMapOperator(_RowOperator):
    def _results(self, row: dict[str, Any]) -> Iterable[Any]:
        results = self._fn(row)
        if isinstance(results, (Mapping, str, bytes)) or not isinstance(results, Iterable):
            raise _Misuse(f"must return dicts in a list, or yield them, got {shown(results)}")
        return results


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """By columns: twice as fast as ``to_pylist``.

    Raises:
        DataError: Python has no such value: a time after the year 9999, or one with nanoseconds.
    """
    names = batch.schema.names
    columns = []
    for name, column in zip(names, batch.columns, strict=True):
        try:
            columns.append(column.to_pylist())
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"column {name!r} ({column.type}) has a value that Python cannot hold ({error}): leave the column out "
                "with drop(), or .cast(...) it, before map() or flat_map()"
            ) from error
    return (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _same_columns(got: pa.Schema, expected: pa.Schema) -> bool:
    return got.names == expected.names and all(a.equals(b) for a, b in zip(got.types, expected.types, strict=True))


def _empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def shown_schema(schema: pa.Schema) -> str:
    """Return the columns of a schema for an error."""
    return ", ".join(f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema)


def shown_row(batch: pa.RecordBatch, index: int) -> str:
    """Return a row for an error, shortened."""
    values = (f"{name!r}: {shown_scalar(batch.column(name)[index])}" for name in batch.schema.names)
    return _shortened(f"{{{', '.join(values)}}}")


def shown(value: Any) -> str:
    """Return a value for an error, shortened, with its type."""
    return _shortened(f"{value!r} ({type(value).__name__})")


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
