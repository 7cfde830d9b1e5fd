"""Sends messages until their receiver has confirmed each of them. Importing it loads aiohttp."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import aiohttp
from aiohttp import hdrs
from millstream.connectors.http_outbox import Message
from millstream.engine.errors import ExternalError
from millstream.engine.failpoints import hit
from millstream.engine.logs import log
from millstream.engine.retry import Retry

_LATER: Final = frozenset({408, 409, 425, 429})
"""Refusals that pass by themselves, besides those from 500 on; 409: the same key is being processed right now."""

_DESTINATION: Final = frozenset({401, 403, 404, 405, 407, 410, 421})
"""Refusals that say nothing about the message: the address or the credentials are wrong."""

_MOST_READ: Final = 65_536
_SHOWN: Final = 1_000


@dataclass(frozen=True, slots=True)
class Target:
    """Where messages go, and how hard it is tried.

    Attributes:
        sink: the sink's name, for errors.
        headers: sent with each message.
        key_header: the header that names the message.
        timeout: seconds for one request, its answer included.
        concurrency: requests under way at once, at most.
        keep_refused: messages that are refused for good are handed back; otherwise they are an error.
    """

    sink: str
    url: str = field(repr=False)
    method: str
    headers: Mapping[str, str] = field(repr=False)
    key_header: str
    timeout: float
    concurrency: int
    retry: Retry
    keep_refused: bool


@dataclass(frozen=True, slots=True)
class _Answered:
    """How an attempt ended, in words, and what follows."""

    told: str
    final: bool
    wait: float = 0.0


Settled = Callable[[Message, str | None], None]
"""Takes each message once it need not be sent again: confirmed (None), or refused for good, and how."""


class Delivery:
    """A client with connections that are kept. Not thread-safe: one call at a time."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None
        self._draw = random.Random()  # noqa: S311 - jitter
        self._told = False

    def send(self, messages: Sequence[Message], settled: Settled) -> None:
        """Send messages, and return when each of them is settled.

        Raises:
            ExternalError: one was not confirmed after so many attempts, or was refused. Others may be under way.
        """
        if messages:
            self._told = False
            try:
                self._loop.run_until_complete(self._send(messages, settled))
            except BaseExceptionGroup as failures:
                first = failures.exceptions[0]
                raise first from first.__cause__

    def close(self) -> None:
        """Close every connection."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._close())
            self._loop.close()

    async def _close(self) -> None:
        if self._session is not None:
            await self._session.close()
            await asyncio.sleep(0)  # in which the loop closes what the session let go of

    async def _send(self, messages: Sequence[Message], settled: Settled) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._target.concurrency),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=self._target.timeout),
                headers={hdrs.USER_AGENT: "millstream"},
            )
        # Connections that were closed since the last epoch are noticed before one of them is used.
        await asyncio.sleep(0)
        async with asyncio.TaskGroup() as group:
            for lane in _lanes(messages, self._target.concurrency):
                group.create_task(self._work(self._session, lane, settled))

    async def _work(self, session: aiohttp.ClientSession, lane: Iterator[Message], settled: Settled) -> None:
        for message in lane:
            refused = await self._deliver(session, message)
            hit("http.confirmed")
            settled(message, refused)

    async def _deliver(self, session: aiohttp.ClientSession, message: Message) -> str | None:
        """Return None once the message is confirmed, or how it was refused for good."""
        target = self._target
        attempt = 0
        while True:
            attempt += 1
            answered = await self._attempt(session, message)
            if answered is None:
                return None
            if answered.final and target.keep_refused:
                return answered.told
            if answered.final:
                raise ExternalError(
                    f"{target.sink}: message {message.key} {answered.told}. Mend the receiver and start the job again, "
                    "which sends it again; or put such messages aside: on_error='dead_letter'"
                )
            if attempt == target.retry.attempts:
                raise ExternalError(
                    f"{target.sink}: message {message.key} {answered.told}, also at attempt {attempt}. It and "
                    "what else is not confirmed stay in the checkpoint, and are sent when the job goes on"
                )
            pause = max(target.retry.pause(attempt, self._draw.random()), answered.wait)
            pause = min(pause, target.retry.longest / 1_000_000)
            self._tell(answered.told, pause)
            await asyncio.sleep(pause)

    def _tell(self, told: str, pause: float) -> None:
        """Once for each epoch: when a receiver is away it is away for all messages."""
        if not self._told:
            self._told = True
            log.warning(
                "not delivered, trying again", sink=self._target.sink, error=told, after_seconds=round(pause, 3)
            )

    async def _attempt(self, session: aiohttp.ClientSession, message: Message) -> _Answered | None:
        """Send a message once; None: it is confirmed. Raises ExternalError if none would ever be."""
        target = self._target
        headers = {hdrs.CONTENT_TYPE: "application/json", **target.headers, target.key_header: message.key}
        try:
            async with session.request(
                target.method, target.url, data=message.body, headers=headers, allow_redirects=False
            ) as response:
                text = await _read(response)
                status = response.status
        except TimeoutError:
            return _Answered(f"was not answered within {target.timeout:g} s", final=False)
        except (aiohttp.ClientError, OSError) as error:
            return _Answered(f"could not be sent: {type(error).__name__}: {error}", final=False)
        if status < 300:
            return None
        told = f"was answered {status}{_phrase(status)}{': ' if text else ''}{text}"
        if status in _LATER or status >= 500:
            return _Answered(told, final=False, wait=_wait(response.headers.get(hdrs.RETRY_AFTER, "")))
        if status < 400 or status in _DESTINATION:
            raise ExternalError(
                f"{target.sink}: message {message.key} {told}. Not the message is wrong but where or how it is "
                "sent: see to the address, its redirects and the credentials. It is sent when the job goes on"
            )
        return _Answered(told, final=True)


def _lanes(messages: Sequence[Message], count: int) -> list[Iterator[Message]]:
    """Deal messages out to workers: those that have an order by it, others to whoever is free."""
    if messages[0].order is None:
        return [iter(messages)] * min(count, len(messages))  # one iterator, shared
    lanes: list[list[Message]] = [[] for _ in range(count)]
    for message in messages:
        assert message.order is not None, "all of a sink have an order, or none"
        lanes[message.order % count].append(message)
    return [iter(lane) for lane in lanes if lane]


async def _read(response: aiohttp.ClientResponse) -> str:
    """The beginning of an answer; a short one is read to its end, so that its connection can be used again."""
    read = bytearray()
    async for chunk in response.content.iter_any():
        read += chunk
        if len(read) >= _MOST_READ:
            break
    return " ".join(read[:_SHOWN].decode(errors="replace").split())


def _phrase(status: int) -> str:
    try:
        return f" {HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def _wait(retry_after: str) -> float:
    """Seconds that a receiver asks to be left alone: a number, or the date that ends it.

    >>> _wait("3"), _wait("soon"), _wait("Thu, 01 Jan 1970 00:00:00 GMT")
    (3.0, 0.0, 0.0)
    """
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    aware = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.fromtimestamp(time.time(), UTC)).total_seconds())
