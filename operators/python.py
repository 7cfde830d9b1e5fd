"""Functions of the user's: ``map_batches`` over Arrow batches, ``map`` and ``flat_map`` over rows as dicts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import pyarrow as pa
from millstream.engine.changelog import is_changelog, weighted
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.operator import MAIN, Operator, OperatorSpec
from millstream.operators.column_reads import columns_read
from millstream.operators.python_rows import Row, shown

if TYPE_CHECKING:
    from millstream.engine.expression import Expr

OnError: TypeAlias = Literal["fail", "dead_letter"]
"""What becomes of rows a function cannot take: the job stops, or they are put aside."""

RowFunction = Callable[[Row], Any]


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
    check_arguments(fn, caller, count, takes)


def check_arguments(fn: Callable[..., Any], caller: str, count: int, takes: str) -> None:
    """Raise JobError unless a function can be called with ``count`` arguments; see ``check_function``."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # some functions written in C do not tell
    try:
        signature.bind(*[None] * count)
    except TypeError:
        raise JobError(f"{caller} calls its function with {takes}; {function_place(fn)} takes {signature}") from None


class FunctionSpec(OperatorSpec):
    """What the three have in common."""

    takes: ClassVar[str]

    def __init__(
        self,
        fn: Callable[..., Any],
        schema: Schema | None,
        on_error: OnError = "fail",
        time: Expr | None = None,
    ) -> None:
        if on_error not in ("fail", "dead_letter"):
            raise JobError(f"{self.kind}(): on_error is 'fail' or 'dead_letter', got {on_error!r}")
        self.fn = fn
        self.schema = None if schema is None else schema_of(schema)
        self.on_error = on_error
        self.time = time
        self._check_function()

    def _check_function(self) -> None:
        check_function(self.fn, f"{self.kind}()", 1, f"one argument, {self.takes}")

    def describe(self) -> str:
        """One line for the plan."""
        return self.identity() + (", errors to dead letters" if self.on_error == "dead_letter" else "")

    def identity(self) -> str:
        """The function's name and the schema it promises; what becomes of errors may change from start to start."""
        promised = "" if self.schema is None else f", {shown_schema(self.schema)}"
        return f"{self.kind}({function_name(self.fn)}{promised})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return False
        return (self.identity(), self.fn, self.on_error) == (other.identity(), other.fn, other.on_error)

    def __hash__(self) -> int:
        return hash(self.identity())


class MapBatches(FunctionSpec):
    """Apply a function to whole batches.

    Args:
        fn: takes a ``pa.RecordBatch`` and returns one (or a ``pa.Table``) with any number of rows. Where batches
            begin and end is not fixed: each row must be treated alike whichever rows it comes with.
        schema: what it returns; None: it is asked with an empty batch.
        on_error: "dead_letter": a batch that fails is halved, and halved again, until the rows that fail by themselves
            are found; they are put aside, and the function's answers for the others go on.
        time: the rows' event time, to be shown with those that were put aside.
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
        from millstream.operators.python_operator import MapBatchesOperator

        return MapBatchesOperator(self, self.output_schemas(inputs)[MAIN])


class RowFunctionSpec(FunctionSpec):
    """A function over rows as dicts; its schema must be given, since rows have no types."""

    takes = "a row as a dict"
    schema: pa.Schema

    def __init__(
        self,
        fn: RowFunction,
        schema: Schema,
        on_error: OnError = "fail",
        time: Expr | None = None,
    ) -> None:
        if schema is None:
            raise JobError(
                f"{self.kind}() needs schema={{...}}: the columns that its function returns, and their types"
            )
        super().__init__(fn, schema, on_error, time)
        self.reads = columns_read([fn])

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """The columns that the function reads, if its code tells; rows that are put aside must be whole."""
        del wanted
        names = frozenset(inputs[0].names)
        return [names if self.reads is None or self.on_error == "dead_letter" else names & self.reads]

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the schema as promised, with a weight if the input has one."""
        return {MAIN: weighted(self.schema) if is_changelog(inputs[0]) else self.schema}

    @property
    def takes_changelog(self) -> bool:
        """What is made of a row that is taken back is taken back too."""
        return True


class Map(RowFunctionSpec):
    """Apply a function to each row: a dict in, a dict out.

    Args:
        fn: returns a dict with exactly the columns of the schema.
        schema: a ``pa.Schema``, or names with types: ``{"id": "int64", "name": str}``.
        on_error: "dead_letter": a row for which it raises, or returns what does not fit, is put aside whole.
        time: the rows' event time, to be shown with those that were put aside.
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
        from millstream.operators.python_operator import MapOperator

        return MapOperator(self, self.schema)


class FlatMap(RowFunctionSpec):
    """Replace each row, a dict, by any number of rows.

    Args:
        fn: returns or yields dicts with exactly the columns of the schema.
        schema, on_error, time: as for ``Map``; of a row that is put aside nothing goes on.
    """

    @property
    def kind(self) -> str:
        """``flat_map``."""
        return "flat_map"

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        del inputs
        from millstream.operators.python_operator import FlatMapOperator

        return FlatMapOperator(self, self.schema)


def _empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


def shown_schema(schema: pa.Schema) -> str:
    """Return the columns of a schema for an error."""
    return ", ".join(f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in schema)
