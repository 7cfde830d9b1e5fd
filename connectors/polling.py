"""Rows that a Python function fetches: ``poll`` calls it again and again, ``generate`` goes through what it yields."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import msgpack
import pyarrow as pa
from millstream.connectors.polling_reader import PollingReader, Step
from millstream.engine.errors import JobError, UserCodeError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.retry import Retry
from millstream.engine.retry import retry as retry_rule
from millstream.engine.source import Position, ReadContext, Source, Split, SplitOrder, SplitReader
from millstream.engine.time import Duration, micros

Rows: TypeAlias = Sequence[Mapping[str, Any]] | pa.RecordBatch | pa.Table
"""Rows as a function returns them: dicts, or Arrow."""

Polled: TypeAlias = tuple[Rows, Any] | tuple[Rows, Any, bool] | None
"""Rows, the cursor after them, and whether there are more right now; None: the end."""

Fetch: TypeAlias = Callable[[Any], Polled | Awaitable[Polled]]
Yield: TypeAlias = Callable[[Any], AsyncIterable[tuple[Rows, Any]] | Iterable[tuple[Rows, Any]]]

TRIES: Final = retry_rule(5, wait="1s", longest="1m")
SPLIT: Final = "all"


def poll(
    fn: Fetch,
    *,
    schema: Schema,
    every: Duration = "5s",
    start: Any = None,
    bounded: bool = False,
    retry: Retry | None = None,
    name: str | None = None,
) -> PollSource:
    """Read rows by calling a function again and again, each time with the cursor that it returned before.

    Args:
        fn: takes a cursor and returns ``(rows, cursor)``: what there is after that cursor, and the next one. With
            ``(rows, cursor, True)`` it is called again at once, as for the next page. May be ``async``. It is called in
            a thread of its own, one call at a time.
        schema: the columns; a row without one of them has null there.
        every: how long to wait between two calls.
        start: the first cursor.
        bounded: whether it ends: the function then returns None when there is nothing more, and never will be.
        retry: what to do when it raises, as for ``map_async``; five calls, from one second apart, if left out. Then the
            job fails, restarts, and calls it with the cursor of its last checkpoint.
        name: positions are kept under it; the function's name if left out.

    Raises:
        JobError: an argument makes no sense.

    >>> import millstream as ms
    >>> def page(cursor):
    ...     return None if cursor == 4 else ([{"n": cursor}, {"n": cursor + 1}], cursor + 2, True)
    >>> job, out = ms.Job("j"), ms.memory_sink()
    >>> job.read(poll(page, schema={"n": int}, start=0, bounded=True)).write(out)
    >>> _ = job.run()
    >>> out.rows()
    [{'n': 0}, {'n': 1}, {'n': 2}, {'n': 3}]
    """
    pause = micros(every) / 1_000_000
    if not pause:
        raise JobError("poll(): every= must be longer than 0; for pages without a pause return (rows, cursor, True)")
    given = _Given(fn, schema_of(schema), start, bounded, _rule("poll", retry), _name("poll", fn, name))
    return PollSource(given, pause)


def generate(
    fn: Yield,
    *,
    schema: Schema,
    start: Any = None,
    bounded: bool = False,
    retry: Retry | None = None,
    name: str | None = None,
) -> GenerateSource:
    """Read the rows that a generator yields, such as one that listens on a connection.

    Args:
        fn: takes a cursor and yields ``(rows, cursor)``: what comes after that cursor, and the one after it. An
            ``async def`` or a plain generator; it runs in a thread of its own, and only a step ahead of what is read.
        schema: the columns; a row without one of them has null there.
        start: the first cursor.
        bounded: whether its end is the end. Otherwise a generator that ends is started again, with its last cursor.
        retry: what to do when it raises: it is started again with its last cursor so often, from one second apart,
            without yielding anything in between. Then the job fails, restarts, and starts it with the cursor of its
            last checkpoint.
        name: positions are kept under it; the function's name if left out.

    Raises:
        JobError: an argument makes no sense.

    >>> import millstream as ms
    >>> async def ticks(cursor):
    ...     for n in range(cursor, 3):
    ...         yield [{"n": n}], n + 1
    >>> job, out = ms.Job("j"), ms.memory_sink()
    >>> job.read(generate(ticks, schema={"n": int}, start=0, bounded=True)).write(out)
    >>> _ = job.run()
    >>> out.rows()
    [{'n': 0}, {'n': 1}, {'n': 2}]
    """
    given = _Given(fn, schema_of(schema), start, bounded, _rule("generate", retry), _name("generate", fn, name))
    return GenerateSource(given)


def _rule(call: str, retry: Retry | None) -> Retry:
    if retry is not None and not isinstance(retry, Retry):
        raise JobError(f"{call}(): retry= takes ms.retry(...), as in retry=ms.retry(5), got {retry!r}")
    return retry or TRIES


def _name(call: str, fn: Callable[..., Any], name: str | None) -> str:
    if not callable(fn):
        raise JobError(f"{call}() takes a function of a cursor, got {fn!r}")
    found = name or getattr(fn, "__name__", "")
    if not found or found == "<lambda>":
        raise JobError(f"{call}(): positions are kept under a name; give one, as in name='orders'")
    return str(found)


@dataclass(frozen=True, slots=True)
class _Given:
    """What both kinds are given."""

    fn: Callable[[Any], Any]
    schema: pa.Schema
    start: Any
    bounded: bool
    retry: Retry
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class CursorSource(Source):
    """Rows of a function, each read with the cursor after it."""

    given: _Given

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given.name

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields."""
        return self.given.schema

    @property
    def bounded(self) -> bool:
        """Whether it ends by itself."""
        return self.given.bounded

    @property
    def order(self) -> SplitOrder:
        """There is one split."""
        return SplitOrder.SEQUENTIAL if self.bounded else SplitOrder.CONCURRENT

    def discover(self) -> Sequence[Split]:
        """Return the one split: a cursor is one after the other."""
        return [Split(SPLIT)]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Begin after a cursor; the position is a list of just that, since None is a cursor too."""
        del split, context
        (cursor,) = [self.given.start] if position is None else position
        return PollingReader(self.name, self.steps, self.plain(cursor), self.given.retry, ends=self.bounded)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "as replayable as its function: for the cursor in the checkpoint it must give the same rows again"

    @abstractmethod
    def steps(self, cursor: Any) -> AsyncGenerator[Step, None]:
        """Go through what there is after a cursor."""

    def step(self, rows: Any, cursor: Any) -> Step:
        """Return what the function gave as a batch and a plain cursor.

        Raises:
            UserCodeError: the rows do not fit the schema, or a checkpoint could not hold the cursor.
        """
        return Step(_batch(self.name, rows, self.schema), self.plain(cursor))

    def plain(self, cursor: Any) -> Any:
        """Return a cursor as it comes back out of a checkpoint, so that the function always gets the same."""
        try:
            return msgpack.unpackb(msgpack.packb(cursor), strict_map_key=False)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserCodeError(
                f"source {self.name!r}: the cursor {cursor!r} cannot be kept in a checkpoint: {error}; it is made of "
                "None, booleans, numbers, texts, bytes, lists and dicts"
            ) from error

    def wrong(self, said: str, got: Any) -> UserCodeError:
        """Return the error for a function that gave something else than it must."""
        shown = repr(got)
        shown = shown if len(shown) <= 200 else shown[:197] + "..."
        return UserCodeError(f"source {self.name!r}: the function must {said}, got {shown}")


@dataclass(frozen=True, slots=True, eq=False)
class PollSource(CursorSource):
    """A function that is called again and again; made by ``poll``.

    Attributes:
        every: seconds between two calls.
    """

    every: float

    def identity(self) -> str:
        """The name: a function may be mended."""
        return f"poll {self.name!r}"

    async def steps(self, cursor: Any) -> AsyncGenerator[Step, None]:
        """Call the function, with its last cursor each time."""
        from asyncio import sleep

        more = "or None at its end" if self.bounded else "and never None, since it is not bounded"
        while True:
            got = self.given.fn(cursor)
            if inspect.isawaitable(got):
                got = await got
            if got is None and self.bounded:
                return
            if not (isinstance(got, tuple) and len(got) in (2, 3)):
                raise self.wrong(f"return (rows, cursor) or (rows, cursor, whether there are more), {more}", got)
            step = self.step(got[0], got[1])
            cursor = step.cursor
            yield step
            if not (len(got) == 3 and got[2]):
                await sleep(self.every)


@dataclass(frozen=True, slots=True, eq=False)
class GenerateSource(CursorSource):
    """A generator that is gone through; made by ``generate``."""

    def identity(self) -> str:
        """The name: a function may be mended."""
        return f"generate {self.name!r}"

    async def steps(self, cursor: Any) -> AsyncGenerator[Step, None]:
        """Go through the generator."""
        made = self.given.fn(cursor)
        if isinstance(made, AsyncIterable):
            async with aclosing(_closable(made)) as yielded:
                async for got in yielded:
                    yield self._step(got)
        elif isinstance(made, Iterable):
            for got in made:
                yield self._step(got)
        else:
            raise self.wrong("be a generator, async or not", made)

    def _step(self, got: Any) -> Step:
        if not (isinstance(got, tuple) and len(got) == 2):
            raise self.wrong("yield (rows, cursor)", got)
        return self.step(got[0], got[1])


def _closable(made: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    if isinstance(made, AsyncGenerator):
        return made

    async def through() -> AsyncGenerator[Any, None]:
        async for got in made:
            yield got

    return through()


def _batch(name: str, rows: Any, schema: pa.Schema) -> pa.RecordBatch:
    if isinstance(rows, pa.Table):
        batches = rows.combine_chunks().to_batches()
        rows = batches[0] if batches else pa.RecordBatch.from_pylist([], rows.schema)
    if isinstance(rows, pa.RecordBatch):
        if rows.schema.names != schema.names or rows.schema.types != schema.types:
            raise UserCodeError(
                f"source {name!r}: the function's rows have the columns {_shown(rows.schema)}; schema= says "
                f"{_shown(schema)}"
            )
        return pa.RecordBatch.from_arrays(rows.columns, schema=schema)
    dicts = cast("Sequence[Mapping[str, Any]]", rows)
    if not (isinstance(dicts, list | tuple) and all(isinstance(row, Mapping) for row in dicts)):
        raise UserCodeError(f"source {name!r}: rows are a list of dicts, or Arrow, got {type(rows).__name__}")
    unknown = {key for row in dicts for key in row} - set(schema.names)
    if unknown:
        raise UserCodeError(
            f"source {name!r}: rows have {', '.join(map(repr, sorted(map(str, unknown))))}, which schema= has not "
            f"({', '.join(schema.names)}); leave it out, or add it there"
        )
    try:
        return pa.RecordBatch.from_pylist([dict(row) for row in dicts], schema)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserCodeError(f"source {name!r}: rows do not fit schema=: {error}") from error


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
