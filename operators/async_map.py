"""``map_async``: a function of the user's that waits for something outside, called for many rows at once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from millstream.engine.errors import JobError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.operator import MAIN, Operator, OperatorSpec
from millstream.engine.retry import NO_RETRY, Retry
from millstream.engine.state import StateTable
from millstream.engine.time import Duration, micros
from millstream.operators.in_hand_table import check_can_be_in_hand, in_hand_table
from millstream.operators.python import OnError, check_arguments, function_name, function_place, shown_schema

if TYPE_CHECKING:
    from millstream.engine.expression import Expr

AsyncRowFunction = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class AsyncMap(OperatorSpec):
    """Apply an asynchronous function to each row, to many rows at once.

    Rows whose results have not gone out are state: after a crash the function is called for them again.

    Args:
        fn: ``async def``; takes a row as a dict and returns a dict with exactly the columns of the schema.
        schema: of what it returns.
        concurrency: rows of one subtask that are called at once, at most.
        ordered: whether results go out in the order of their rows, or as they come.
        timeout: for one call; None: any time.
        retry: None: one call per row.
        on_error: "dead_letter": rows whose last attempt fails are put aside.
        time: the rows' event time, to be shown with those that were put aside.
    """

    def __init__(  # noqa: PLR0913 - each is a word of its own
        self,
        fn: AsyncRowFunction,
        schema: Schema,
        *,
        concurrency: int = 100,
        ordered: bool = True,
        timeout: Duration | None = "30s",
        retry: Retry | None = None,
        on_error: OnError = "fail",
        time: Expr | None = None,
    ) -> None:
        if on_error not in ("fail", "dead_letter"):
            raise JobError(f"map_async(): on_error is 'fail' or 'dead_letter', got {on_error!r}")
        if schema is None:
            raise JobError("map_async() needs schema={...}: the columns that its function returns, and their types")
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise JobError(f"map_async(): concurrency must be a whole number from 1 on, got {concurrency!r}")
        if retry is not None and not isinstance(retry, Retry):
            raise JobError(f"map_async(): retry= takes ms.retry(...), as in retry=ms.retry(5), got {retry!r}")
        self.timeout = None if timeout is None else micros(timeout)
        if self.timeout == 0:
            raise JobError("map_async(): timeout must be longer than 0; None is any time")
        _check_function(fn)
        self.fn = fn
        self.schema = schema_of(schema)
        self.concurrency = concurrency
        self.ordered = ordered
        self.retry = retry or NO_RETRY
        self.on_error = on_error
        self.time = time

    @property
    def kind(self) -> str:
        """``map_async``."""
        return "map_async"

    def identity(self) -> str:
        """The function's name, the schema it promises, and the order; how hard it tries is no matter of meaning."""
        order = "" if self.ordered else ", unordered"
        return f"map_async({function_name(self.fn)}, {shown_schema(self.schema)}{order})"

    def describe(self) -> str:
        """One line for the plan."""
        return self.identity() + (", errors to dead letters" if self.on_error == "dead_letter" else "")

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """Return the schema as promised. Raises SchemaError when state cannot hold a column of the input."""
        check_can_be_in_hand(inputs[0], "map_async()")
        return {MAIN: self.schema}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """One row per row in hand: what names it, the watermark that came before it, its columns."""
        return (in_hand_table(inputs[0]),)

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.async_map_operator import AsyncMapOperator

        (table,) = self.state_tables(inputs)
        return AsyncMapOperator(self, table, inputs[0])


def _check_function(fn: Callable[..., Any]) -> None:
    if not callable(fn):
        raise JobError(f"map_async() takes an async function, got {fn!r}")
    bare = fn
    while isinstance(bare, functools.partial):
        bare = bare.func
    if not (inspect.iscoroutinefunction(bare) or inspect.iscoroutinefunction(getattr(bare, "__call__", None))):  # noqa: B004 - not whether it can be called, but how
        raise JobError(f"map_async() takes a function written with async def; {function_place(fn)} is not: use map()")
    check_arguments(fn, "map_async()", 1, "one argument, a row as a dict")
