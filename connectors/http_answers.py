"""Answers on their way from other threads to the event loop of a server, where requests wait for them."""

from __future__ import annotations

import asyncio
from collections import deque

from millstream.connectors.http_messages import Answer


class Answers:
    """What requests wait for.

    A checkpoint answers many requests at once, and to wake a loop takes a system call: one does for all of them. One
    timer does, too, for all that wait, since all wait equally long.

    Args:
        timeout: seconds after which a request gets the answer ``late``.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float, late: Answer) -> None:
        self._loop = loop
        self._timeout = timeout
        self._late = late
        self._given: deque[tuple[asyncio.Future[Answer], Answer]] = deque()
        self._woken = False
        self._waiting: deque[tuple[float, asyncio.Future[Answer]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def expected(self) -> asyncio.Future[Answer]:
        """Return what an answer is to be given to; called in the loop."""
        waiting = self._waiting
        while waiting and waiting[0][1].done():
            waiting.popleft()
        future: asyncio.Future[Answer] = self._loop.create_future()
        waiting.append((self._loop.time() + self._timeout, future))
        if self._timer is None:
            self._timer = self._loop.call_at(waiting[0][0], self._expire)
        return future

    def give(self, future: asyncio.Future[Answer], answer: Answer) -> None:
        """Answer, unless that has been done; called from any thread."""
        self._given.append((future, answer))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        # First this: whoever gives an answer that is not taken here any more wakes the loop again.
        self._woken = False
        while self._given:
            future, answer = self._given.popleft()
            if not future.done():
                future.set_result(answer)

    def _expire(self) -> None:
        waiting, now = self._waiting, self._loop.time()
        while waiting and (waiting[0][1].done() or waiting[0][0] <= now):
            _, future = waiting.popleft()
            if not future.done():
                future.set_result(self._late)
        self._timer = self._loop.call_at(waiting[0][0], self._expire) if waiting else None
