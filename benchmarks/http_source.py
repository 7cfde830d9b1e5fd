"""Messages by HTTP, one in each request: taken in by a job, beside a bare server of the same library.

``python -m millstream.benchmarks.http_source`` has another process send requests over many connections, each as soon
as its last one is answered. ``bare`` reads the body and answers at once. ``job`` reads JSON, keeps the ids of messages,
and answers when a checkpoint holds them, ten times a second. What tells them apart is processor time: with few
connections the job waits for checkpoints.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import millstream as ms
from aiohttp import web
from aiohttp.web_request import BaseRequest
from millstream.benchmarks.beside import in_turns, show

_HOST: Final = "127.0.0.1"
_PATIENCE_SECONDS: Final = 60.0


def request_of(number: int) -> bytes:
    """Return the bytes of a request.

    >>> request_of(7).splitlines()[-1]
    b'{"id": "message-0000007", "customer": "customer-7", "amount": 0.7}'
    """
    body = f'{{"id": "message-{number:07}", "customer": "customer-{number % 977}", "amount": {number / 10}}}'
    head = f"POST /ingest HTTP/1.1\r\nHost: {_HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


async def _sent(port: int, first: int, requests: int, step: int) -> int:
    """Send every so manieth request over one connection; return how many were answered well."""
    reader, writer = await asyncio.open_connection(_HOST, port)
    good = 0
    for number in range(first, requests, step):
        writer.write(request_of(number))
        head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
        await reader.readexactly(int(length))
        good += head.startswith(b"HTTP/1.1 200")
    writer.close()
    return good


def send(port: int, requests: int, connections: int) -> None:
    """Send all requests. Raises SystemExit if not all are answered well."""

    async def all_() -> int:
        return sum(await asyncio.gather(*(_sent(port, first, requests, connections) for first in range(connections))))

    good = asyncio.run(all_())
    if good != requests:
        raise SystemExit(f"of {requests:,} requests {good:,} were answered well")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) == 0


def _beside(serve: Callable[[], None], port: int, requests: int, connections: int, stop: Callable[[], None]) -> None:
    """Serve in a thread while another process sends."""
    serving = threading.Thread(target=serve)
    serving.start()
    try:
        until = time.monotonic() + _PATIENCE_SECONDS
        while not _listens(port):
            if not serving.is_alive() or time.monotonic() > until:
                raise click.ClickException("the server does not start")
            time.sleep(0.01)
        sender = multiprocessing.get_context("spawn").Process(target=send, args=(port, requests, connections))
        sender.start()
        sender.join()
        if sender.exitcode != 0:
            raise click.ClickException("not every request was answered well")
    finally:
        stop()
        serving.join()


def bare(requests: int, connections: int) -> None:
    """Take requests with aiohttp alone."""
    port, ended, loop = free_port(), asyncio.Event(), asyncio.new_event_loop()

    async def handle(request: BaseRequest) -> web.Response:
        await request.read()
        return web.Response(body=b'{"messages":1}', content_type="application/json")

    async def serve() -> None:
        runner = web.ServerRunner(web.Server(handle, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, _HOST, port, backlog=1024).start()
        await ended.wait()
        await runner.cleanup()

    def stop() -> None:
        loop.call_soon_threadsafe(ended.set)

    _beside(lambda: loop.run_until_complete(serve()), port, requests, connections, stop)
    loop.close()


def job(requests: int, connections: int) -> None:
    """Take requests with a job."""
    port, control, taking = free_port(), ms.Control(), ms.Job("taking")
    schema = {"id": str, "customer": str, "amount": float}
    taking.read(ms.http_source(port, schema=schema, id="id")).write(ms.blackhole())
    with tempfile.TemporaryDirectory(prefix="http-") as folder:
        store = Path(folder) / "job.duckdb"
        _beside(lambda: _run(taking, store, control), port, requests, connections, control.stop)


def _run(taking: ms.Job, store: Path, control: ms.Control) -> None:
    taking.run(store, every="100ms", control=control)


@click.command()
@click.option("--requests", type=click.IntRange(min=1), default=20_000, show_default=True)
@click.option("--connections", type=click.IntRange(min=1), default=500, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=3, show_default=True)
def main(requests: int, connections: int, runs: int) -> None:
    """Measure taking messages by HTTP, beside a bare server."""
    best = in_turns({"bare": lambda _: bare(requests, connections), "job": lambda _: job(requests, connections)}, runs)
    click.echo(f"{requests:,} requests of one message over {connections:,} connections, best of {runs}")
    show("requests", requests, best)


if __name__ == "__main__":
    main()
