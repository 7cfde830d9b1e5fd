"""What functions of the user's do to a stream: ``map_batches``, ``map``, ``flat_map`` and ``map_async``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from millstream.engine.expression import Expr
from millstream.engine.expression_types import Schema
from millstream.engine.operator import OperatorSpec
from millstream.engine.time import Duration
from millstream.operators.python import FlatMap, Map, MapBatches, OnError

if TYPE_CHECKING:
    from millstream.engine.retry import Retry
    from millstream.stream import Stream


class TakesFunctions(ABC):
    """The part of ``Stream`` that takes functions."""

    _time: Expr | None

    @abstractmethod
    def _then(self, spec: OperatorSpec, time: Expr | None, name: str | None = None) -> Stream: ...

    def map_batches(
        self,
        fn: Callable[[pa.RecordBatch], pa.RecordBatch],
        *,
        schema: Schema | None = None,
        on_error: OnError = "fail",
        name: str | None = None,
    ) -> Stream:
        """Apply a function to whole Arrow batches.

        Args:
            fn: takes and returns a ``pa.RecordBatch`` (any number of rows). Where batches begin and end is not fixed.
            schema: what it returns; without one it is called once with an empty batch to find out.
            on_error: "fail" stops the job; "dead_letter" calls the function again with halves of the batch, and
                halves of these, puts the rows aside that fail by themselves, and goes on with the others.
            name: names the operator.
        """
        return self._then(MapBatches(fn, schema, on_error, self._time), self._time, name)

    def map(
        self,
        fn: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        schema: Schema | None = None,
        on_error: OnError = "fail",
        name: str | None = None,
    ) -> Stream:
        """Apply a function to each row, as a dict.

        Args:
            fn: takes a row and returns one, with exactly the columns of ``schema``.
            schema: what it returns, as in ``{"id": "int64", "label": str}``; cannot be left out.
            on_error: what becomes of a row for which it raises, or returns what does not fit the schema: "fail" stops
                the job; "dead_letter" puts the row aside in the store, with the error, and goes on.
            name: names the operator.

        >>> import millstream as ms
        >>> s = ms.Job("j").read(ms.memory_source([{"a": 1}]))
        >>> s.map(lambda row: {"b": row["a"] + 1}, schema={"b": "int64"}).columns
        ['b']
        """
        return self._then(Map(fn, schema, on_error, self._time), self._time, name)

    def flat_map(
        self,
        fn: Callable[[dict[str, Any]], Iterable[dict[str, Any]]],
        *,
        schema: Schema | None = None,
        on_error: OnError = "fail",
        name: str | None = None,
    ) -> Stream:
        """Replace each row (a dict) by any number of rows, returned or yielded; else as ``map``."""
        return self._then(FlatMap(fn, schema, on_error, self._time), self._time, name)

    def map_async(  # noqa: PLR0913 - each is a word of its own
        self,
        fn: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        *,
        schema: Schema | None = None,
        concurrency: int = 100,
        ordered: bool = True,
        timeout: Duration | None = "30s",
        retry: Retry | None = None,
        on_error: OnError = "fail",
        name: str | None = None,
    ) -> Stream:
        """Apply an ``async def`` function to each row, as a dict, for many rows at once: for requests and look-ups.

        Rows without a result yet are part of checkpoints. After a crash the function is called for them again: a
        result counts once, but what the function does outside may happen more than once. See docs/async.md.

        Args:
            fn: takes a row and returns one, with exactly the columns of ``schema``.
            schema: what it returns, as in ``{"id": "int64", "label": str}``; cannot be left out.
            concurrency: rows of a subtask in hand at once; more have to wait.
            ordered: whether results keep the order of their rows, or go on as they come.
            timeout: for one call; None: any time.
            retry: how often to call again, as in ``ms.retry(5)``; without it the first error counts.
            on_error: what becomes of a row whose last call fails, or returns what does not fit the schema: "fail" stops
                the job; "dead_letter" puts the row aside in the store, with the error, and goes on.
            name: names the operator.

        >>> import millstream as ms
        >>> async def look_up(row):
        ...     return {"b": row["a"] + 1}
        >>> s = ms.Job("j").read(ms.memory_source([{"a": 1}]))
        >>> s.map_async(look_up, schema={"b": "int64"}).columns
        ['b']
        """
        from millstream.operators.async_map import AsyncMap

        spec = AsyncMap(
            fn,
            schema,
            concurrency=concurrency,
            ordered=ordered,
            timeout=timeout,
            retry=retry,
            on_error=on_error,
            time=self._time,
        )
        return self._then(spec, self._time, name)
