"""Senders and receivers over real sockets, for jobs in this process and in others."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import millstream as ms


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


def post(port: int, body: Any, headers: Mapping[str, str] | None = None, path: str = "/ingest") -> Reply:
    """Send a request and wait for its answer; what is not bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, sent, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.headers), answer.read())
    finally:
        connection.close()


class Senders:
    """Sends requests without waiting for their answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pool = ThreadPoolExecutor(16)

    def post(self, body: Any, headers: Mapping[str, str] | None = None) -> Future[Reply]:
        return self._pool.submit(post, self._port, body, headers)

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def running(job: ms.Job, store: Path, **settings: Any) -> Iterator[tuple[ms.Control, Future[ms.JobResult]]]:
    """A job that runs beside the test and is stopped at its end, with a last checkpoint."""
    control = ms.Control()
    done: Future[ms.JobResult] = Future()

    def run() -> None:
        try:
            done.set_result(job.run(store, control=control, **{"every": "20ms", **settings}))
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield control, done
    finally:
        control.stop()
        thread.join(60)
        assert not thread.is_alive(), "the job did not stop"


def insist(port: int, body: Any, headers: Mapping[str, str] | None = None, path: str = "/ingest") -> Reply:
    """Send a request again and again, as a sender does, until it is answered, and not by "later"."""
    for _ in range(600):
        try:
            reply = post(port, body, headers, path)
        except (OSError, http.client.HTTPException):
            reply = None
        if reply is not None and reply.status != 503:
            return reply
        threading.Event().wait(0.05)
    raise AssertionError(f"nobody answers on port {port}")
