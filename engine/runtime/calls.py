"""Where coroutines of operators run: on an event loop in a thread of its own, or step by step in a simulation."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from millstream.engine.logs import log
from millstream.engine.time import Clock

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

GRACE_SECONDS: Final = 1.0
"""How long functions that are cancelled may take to tidy up before the job ends without them."""


class _Loop:
    """A running event loop and its thread, which nobody waits for when the process ends."""

    def __init__(self) -> None:
        import asyncio

        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="millstream-calls", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        import asyncio

        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    @property
    def alive(self) -> bool:
        """Whether the thread is there; after a fork it is not."""
        return self._thread.is_alive()


class _SharedLoop:
    """The one event loop of the process: clients that functions keep between calls belong to their loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: _Loop | None = None

    def get(self) -> _Loop:
        """Return the loop, started if there is none."""
        with self._lock:
            if self._current is None or not self._current.alive:
                self._current = _Loop()
            return self._current

    def abandon(self, loop: _Loop) -> None:
        """Leave a loop in which something hangs to itself; the next one to ask gets another."""
        with self._lock:
            if self._current is loop:
                self._current = None


_SHARED: Final = _SharedLoop()


class ThreadCalls:
    """The calls of one generation, on the event loop of the process; they end with the generation."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shared: _Loop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()  # touched by the loop's thread only

    def start(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        """Run the coroutine that ``make`` returns; called from any thread."""
        import asyncio

        with self._lock:
            shared = self._shared = self._shared or _SHARED.get()
        return asyncio.run_coroutine_threadsafe(self._tracked(make), shared.loop)

    async def _tracked(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        import asyncio

        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await make()
        finally:
            self._tasks.discard(task)

    def close(self) -> None:
        """Cancel what still runs, and wait a moment for it to tidy up."""
        import asyncio

        shared, self._shared = self._shared, None
        if shared is None:
            return
        ended = asyncio.run_coroutine_threadsafe(self._cancel(), shared.loop)
        try:
            left = ended.result(timeout=2 * GRACE_SECONDS)
        except TimeoutError:
            left = len(self._tasks)
        if left:
            _SHARED.abandon(shared)
            log.warning("asynchronous functions do not end; going on without them", calls=left)

    async def _cancel(self) -> int:
        import asyncio

        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        return sum(not task.done() for task in tasks)


class SimulatedCalls:
    """Coroutines on one thread and a hand-moved clock; which goes first is drawn from a seed.

    What they wait for with ``asyncio.sleep`` or a timeout comes when the clock is moved there.

    >>> from millstream.engine.time import ManualClock
    >>> async def ten() -> int:
    ...     return 10
    >>> calls = SimulatedCalls(random.Random(1), ManualClock())
    >>> result = calls.start(ten)
    >>> while not result.done():
    ...     calls.step()
    >>> result.result()
    10
    >>> calls.close()
    """

    def __init__(self, draw: random.Random, clock: Clock) -> None:
        self._draw = draw
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gates: list[asyncio.Future[None]] = []

    def start(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
        """Run the coroutine that ``make`` returns, some time."""
        import asyncio

        self._loop = self._loop or self._new_loop()
        gate = self._loop.create_future()
        self._gates.append(gate)

        async def gated() -> Any:
            await gate
            return await make()

        return asyncio.run_coroutine_threadsafe(gated(), self._loop)

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        import asyncio

        loop = asyncio.SelectorEventLoop()
        loop.time = self._clock.monotonic  # type: ignore[method-assign]
        return loop

    def step(self) -> None:
        """Let one more of them begin, and all that have begun go on as far as they can at once."""
        if self._loop is None:
            return
        if self._gates:
            gate = self._gates.pop(self._draw.randrange(len(self._gates)))
            if not gate.done():
                gate.set_result(None)
        self._turn(self._loop)

    def close(self) -> None:
        """Cancel what still runs."""
        import asyncio

        loop, self._loop = self._loop, None
        if loop is None:
            return
        self._turn(loop)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        for _ in range(100):
            if not asyncio.all_tasks(loop):
                break
            self._turn(loop)
        loop.close()

    @staticmethod
    def _turn(loop: asyncio.AbstractEventLoop) -> None:
        # One round of the loop: it looks for what is ready without waiting, since it has been told to stop.
        loop.call_soon(loop.stop)
        loop.run_forever()
