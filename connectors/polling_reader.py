"""Reads what a user's function fetches, in a thread of its own, one step ahead."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import pyarrow as pa
from millstream.engine.errors import MillstreamError, UserCodeError
from millstream.engine.logs import log
from millstream.engine.retry import Retry
from millstream.engine.source import Position, SplitEnd, SplitReader

_PATIENCE: Final = 1.0
"""Seconds that a call in progress has to come back when the reader is closed."""


@dataclass(frozen=True, slots=True)
class Step:
    """Rows, possibly none, and the cursor to go on from after them."""

    batch: pa.RecordBatch
    cursor: Any


Steps: TypeAlias = Callable[[Any], AsyncGenerator[Step, None]]


class PollingReader(SplitReader):
    """The position is the cursor after the last rows that were read; the thread may be one step further.

    Args:
        source: its name, for errors.
        steps: goes through what there is after a cursor.
        cursor: where to begin.
        rule: how often to begin again, with the last cursor, after an error.
        ends: whether the end of ``steps`` is the end; otherwise it begins again there.
    """

    def __init__(self, source: str, steps: Steps, cursor: Any, rule: Retry, *, ends: bool) -> None:
        self._source = source
        self._steps = steps
        self._cursor = self._reached = cursor
        self._rule = rule
        self._ends = ends
        self._draw = random.Random(source)  # noqa: S311 - jitter
        self._lock = threading.Lock()
        self._next: Step | None = None
        self._failure: BaseException | None = None
        self._finished = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Event
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"millstream-{source}", daemon=True)
        self._thread.start()

    def read(self) -> pa.RecordBatch | SplitEnd:
        """Return the next rows. Raises UserCodeError when the function failed too often, or gave what it must not."""
        with self._lock:
            step, self._next = self._next, None
            if step is None and self._failure is not None:
                raise self._failure
            if step is None:
                return SplitEnd.FINISHED if self._finished else SplitEnd.PENDING
            assert self._loop is not None
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._room.set)
        self._cursor = step.cursor
        return step.batch

    def position(self) -> Position:
        """The cursor, in a list: None is a cursor too."""
        return [self._cursor]

    def close(self) -> None:
        """Cancel what is awaited, and wait a little for what is not."""
        with self._lock:
            self._closed = True
            if self._loop is not None and self._task is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)
        # A function that does not come back is left behind; what it returns is looked at by nobody.
        self._thread.join(_PATIENCE)

    # -- in the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._go())
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self._closed:
                return
            with self._lock:
                self._failure = error if isinstance(error, MillstreamError) else self._blamed(error)
        else:
            with self._lock:
                self._finished = not self._closed

    async def _go(self) -> None:
        with self._lock:
            self._loop, self._task, self._room = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
            if self._closed:
                return
        failures = 0
        while True:
            before = self._reached
            try:
                await self._through(self._steps(before))
            except MillstreamError:
                raise
            except Exception as error:
                failures = failures + 1 if self._reached == before else 1
                if failures >= self._rule.attempts or not isinstance(error, self._rule.on):
                    raise self._blamed(error) from error
                pause = self._rule.pause(failures, self._draw.random())
                log.warning("fetching again", source=self._source, error=str(error), after_seconds=round(pause, 3))
                await asyncio.sleep(pause)
            else:
                if self._ends:
                    return
                await asyncio.sleep(self._rule.pause(1, self._draw.random()))

    async def _through(self, steps: AsyncGenerator[Step, None]) -> None:
        async with aclosing(steps):
            async for step in steps:
                if step.batch.num_rows or step.cursor != self._reached:
                    await self._offer(step)
                self._reached = step.cursor

    async def _offer(self, step: Step) -> None:
        """Hand a step on, once there is room for it."""
        while True:
            self._room.clear()
            with self._lock:
                if self._next is None:
                    self._next = step
                    return
            await self._room.wait()

    def _blamed(self, error: BaseException) -> UserCodeError:
        made = UserCodeError(
            f"source {self._source!r}: the function, asked with cursor {self._reached!r}, raised "
            f"{type(error).__name__}: {error}"
        )
        made.__cause__ = error
        return made
