"""A proxy between senders and receivers that loses, repeats and delays what goes through it, as a seed says."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from http import HTTPStatus

import aiohttp
from aiohttp import web


class UnreliableProxy:
    """Forwards requests to a port; runs in a thread of its own until it is closed.

    Of every ten requests about one is dropped, one is forwarded and its answer dropped, one is forwarded twice (the
    second time later, when others have gone by), and three are held back for a while.

    Attributes:
        did: how often it did what.
    """

    def __init__(self, seed: int, target: int) -> None:
        self.did: Counter[str] = Counter()
        self._target = f"http://127.0.0.1:{target}"
        self._draw = random.Random(seed)
        self._later: set[asyncio.Task[None]] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(20)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site.port
        timeout = aiohttp.ClientTimeout(total=20)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as self._session:
            self._started.set()
            await self._stop.wait()
            for task in self._later:
                task.cancel()
            await asyncio.gather(*self._later, return_exceptions=True)
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        headers = {
            name: value for name, value in request.headers.items() if name in ("Idempotency-Key", "Content-Type")
        }
        what = self._draw.choices(["drop the request", "drop the answer", "repeat", "delay", "pass"], [1, 1, 1, 3, 4])[
            0
        ]
        self.did[what] += 1
        match what:
            case "drop the request":
                return self._cut(request)
            case "delay":
                await asyncio.sleep(self._draw.random() * 0.02)
            case "repeat":
                task = asyncio.create_task(self._again(request.path, body, headers, self._draw.random() * 0.3))
                self._later.add(task)
                task.add_done_callback(self._later.discard)
        answer = await self._forward(request.path, body, headers)
        return self._cut(request) if what == "drop the answer" else answer

    async def _again(self, path: str, body: bytes, headers: dict[str, str], after: float) -> None:
        await asyncio.sleep(after)
        await self._forward(path, body, headers)

    async def _forward(self, path: str, body: bytes, headers: dict[str, str]) -> web.Response:
        try:
            async with self._session.post(self._target + path, data=body, headers=headers) as answer:
                return web.Response(status=answer.status, body=await answer.read())
        except (aiohttp.ClientError, TimeoutError):
            self.did["nobody there"] += 1
            return web.Response(status=HTTPStatus.BAD_GATEWAY)

    def _cut(self, request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
