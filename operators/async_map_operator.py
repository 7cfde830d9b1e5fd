"""The running part of ``AsyncMap``. Importing this module loads numba."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from millstream.engine.errors import MillstreamError, UserCodeError
from millstream.engine.operator import Fault, OperatorContext, Output
from millstream.engine.state import StateTable
from millstream.engine.time import show_duration
from millstream.operators.code_version import code_version
from millstream.operators.python import function_place
from millstream.operators.python_operator import blames_rows, times_of
from millstream.operators.python_rows import MOST_ROWS, BadRow, RowCollector, shown_row
from millstream.operators.rows_in_hand import HoldingOperator, Part

if TYPE_CHECKING:
    from millstream.operators.async_map import AsyncMap


class _Failed(Exception):
    """All attempts of a row failed.

    Attributes:
        what: how, as it goes on from the function's name.
        error: of the last attempt.
    """

    def __init__(self, what: str, error: Exception) -> None:
        super().__init__(what)
        self.what = what
        self.error = error


class _Call:
    """A row for which the function has been called."""

    __slots__ = ("future", "index", "part")

    def __init__(self, part: Part, index: int) -> None:
        self.part = part
        self.index = index
        self.future: Future[Any]


class AsyncMapOperator(HoldingOperator):
    """Calls are started by the subtask's thread, run elsewhere, and are looked at again by the subtask's thread.

    Ordered: no result goes out before those of older rows, nor before a watermark that came before its row.
    Unordered: results go out as they come, before a watermark that came before them too: a row that is early is
    never late. Both: a watermark goes on after all rows that came before it.
    """

    def __init__(self, spec: AsyncMap, table: StateTable, schema: pa.Schema) -> None:
        super().__init__(table, schema)
        self._spec = spec
        self._input = schema
        self._collector = RowCollector(spec.schema, "return")
        self._keeps = spec.on_error == "dead_letter"
        self._code = code_version(spec.fn) if self._keeps else ""
        self._calls: deque[_Call] = deque()  # ordered only
        self._done: deque[_Call] = deque()  # unordered only; the calls' threads append to it
        self._running = 0
        self._retries = 0

    def open(self, context: OperatorContext) -> None:
        """Note where calls run."""
        super().open(context)
        self._context = context
        self._draw = random.Random(f"{context.job}/{context.operator}/{context.subtask}")  # noqa: S311 - jitter

    # -- rows in -----------------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Take rows in hand, and call for as many as may run at once."""
        super().process(batch, out)
        self._start_calls()

    def _start_calls(self) -> None:
        for part, index, row in self._hand.take(self._spec.concurrency - self._running):
            call = _Call(part, index)
            self._running += 1
            call.future = self._context.calls.start(partial(self._attempts, row))
            if self._spec.ordered:
                self._calls.append(call)
            call.future.add_done_callback(partial(self._note_done, call))

    def _note_done(self, call: _Call, future: Future[Any]) -> None:
        del future
        if not self._spec.ordered:
            self._done.append(call)
        self._context.wake()

    def is_full(self) -> bool:
        """Whether rows wait for their turn already, or the next would."""
        return self._hand.has_untaken or self._running >= self._spec.concurrency

    # -- the calls, on the event loop ----------------------------------------------------------------------------

    async def _attempts(self, row: dict[str, Any]) -> Any:
        rule = self._spec.retry
        for attempt in range(1, rule.attempts + 1):
            try:
                return await self._attempt(dict(row))
            except Exception as error:
                if attempt == rule.attempts or not isinstance(error, rule.on):
                    tried = f" (attempt {attempt} of {rule.attempts})" if rule.attempts > 1 else ""
                    raise _Failed(f"raised {type(error).__name__}: {error}{tried}", error) from error
            self._retries += 1
            await asyncio.sleep(rule.pause(attempt, self._draw.random()))
        raise AssertionError("the last attempt either returns or raises")

    async def _attempt(self, row: dict[str, Any]) -> Any:
        limit = self._spec.timeout
        try:
            async with asyncio.timeout(None if limit is None else limit / 1_000_000) as scope:
                return await self._spec.fn(row)
        except TimeoutError:
            if limit is not None and scope.expired():
                raise TimeoutError(f"no result within {show_duration(limit)}") from None
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RuntimeError("the function was cancelled by something it calls") from error
        except (SystemExit, KeyboardInterrupt) as error:
            # On an event loop it would end the loop, and with it all other calls.
            raise RuntimeError(f"{type(error).__name__} in an asynchronous function") from error

    # -- results out -------------------------------------------------------------------------------------------

    def is_ready(self) -> bool:
        """Whether a result can go out, or a row's turn has come."""
        if self._done or (self._calls and self._calls[0].future.done()):
            return True
        return self._hand.has_untaken and self._running < self._spec.concurrency

    def on_ready(self, out: Output) -> None:
        """Emit what can go out, and call for the next rows."""
        calls = list(self._next_done())
        self._emit(calls, out)
        for call in calls:
            self._hand.remove(call.part, call.index)
        self._running -= len(calls)
        self._start_calls()

    def _emit(self, calls: list[_Call], out: Output) -> None:
        faults: dict[int, Fault] = {}
        results: dict[int, Any] = {}
        for number, call in enumerate(calls):
            try:
                results[number] = call.future.result()
            except _Failed as error:
                faults[number] = self._fault(call, error.what, error.error)
        while results:
            try:
                out.emit(self._collector.batch(list(results.values())))
                break
            except BadRow as bad:
                number = list(results)[bad.index]
                faults[number] = self._fault(calls[number], str(bad), UserCodeError(str(bad)))
                del results[number]
        failed = sorted(faults, key=lambda number: (calls[number].part.attempt, number))
        for attempt, some in groupby(failed, key=lambda number: calls[number].part.attempt):
            numbers = list(some)
            self._put_aside([calls[number] for number in numbers], [faults[n] for n in numbers], attempt, out)

    def _fault(self, call: _Call, what: str, error: Exception) -> Fault:
        """Note what is wrong with a row. Raises if rows are not put aside, or it is not the row that is wrong."""
        if self._keeps and blames_rows(error):
            return Fault(type(error).__name__, str(error))
        if isinstance(error, MillstreamError) and not isinstance(error, UserCodeError):
            raise error
        shown = shown_row(call.part.rows, call.index)
        raise UserCodeError(f"{function_place(self._spec.fn)} {what}; the row is {shown}") from error

    def _put_aside(self, calls: list[_Call], faults: list[Fault], attempt: int, out: Output) -> None:
        one_by_one = (call.part.rows.slice(call.index, 1) for call in calls)
        rows = pa.Table.from_batches(one_by_one).cast(self._input).combine_chunks().to_batches()[0]
        times = times_of(self._spec.time, rows)
        out.dead_letter(rows, faults, times=times, code=self._code, attempt=attempt)

    def _next_done(self) -> Iterator[_Call]:
        """Yield results as far as the next watermark among them, if order counts, and else as they came."""
        if not self._spec.ordered:
            for _ in range(min(len(self._done), MOST_ROWS)):
                yield self._done.popleft()
            return
        after = self._hand.held_watermark
        while self._calls and self._calls[0].future.done() and self._calls[0].part.after == after:
            yield self._calls.popleft()

    def counters(self) -> Mapping[str, int]:
        """How often a row was called for again."""
        return {"retries": self._retries} if self._retries else {}
