"""Senders and receivers over real sockets, for jobs in this process and in others."""

from __future__ import annotations

import http.client
import http.server
import json
import random
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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


def post(
    port: int,
    body: Any,
    headers: Mapping[str, str] | None = None,
    path: str = "/ingest",
    tls: ssl.SSLContext | None = None,
) -> Reply:
    """Send a request and wait for its answer; what is not bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    if tls is not None:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=tls)
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


def insist(port: int, body: Any, headers: Mapping[str, str] | None = None, **options: Any) -> Reply:
    """Send a request again and again, as a sender does, until it is answered, and not by "later"."""
    for _ in range(600):
        try:
            reply = post(port, body, headers, **options)
        except (OSError, http.client.HTTPException):
            reply = None
        if reply is not None and reply.status != 503:
            return reply
        threading.Event().wait(0.05)
    raise AssertionError(f"nobody answers on port {port}")


@dataclass(frozen=True)
class Sent:
    """A request that has come to a receiver."""

    key: str
    body: Any
    headers: Mapping[str, str]
    method: str


class Receiver:
    """A server that keeps what it is sent, and answers what it is told to.

    Args:
        answer: takes a request and how often its key has come, this time included; returns status, headers and text.
    """

    def __init__(self, answer: Callable[[Sent, int], tuple[int, dict[str, str], str]] | None = None) -> None:
        self.requests: list[Sent] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._answer = answer or (lambda sent, times: (200, {}, ""))
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_it(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sent = Sent(self.headers["Idempotency-Key"], json.loads(body), dict(self.headers), self.command)
                status, headers, text = receiver.received(sent)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_PUT = handle_it  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def received(self, sent: Sent) -> tuple[int, dict[str, str], str]:
        with self._lock:
            self.requests.append(sent)
            times = sum(other.key == sent.key for other in self.requests)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self._answer(sent, times)
        finally:
            with self._lock:
                self._at_once -= 1

    @property
    def effects(self) -> list[Any]:
        """The first body of each key: what a receiver that passes over keys it knows has done."""
        first: dict[str, Any] = {}
        for sent in self.requests:
            first.setdefault(sent.key, sent.body)
        return list(first.values())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Sender:
    """Sends messages, each until it is acknowledged; those of one key, ``order``, are counted in ``sent``."""

    def __init__(self, seed: int, port: int, path: str = "/ingest") -> None:
        self._draw = random.Random(seed)
        self._port, self._path = port, path
        self._pool = ThreadPoolExecutor(12)
        self._stopped = threading.Event()
        self.sent: Counter[str] = Counter()
        self.waiting: list[Future[None]] = []

    def send(self, messages: list[dict[str, Any]]) -> None:
        """Begin to send messages, some of them together, in an order of chance."""
        self._draw.shuffle(messages)
        while messages:
            size = self._draw.choice([1, 1, 1, 2, 5])
            batch, messages = messages[:size], messages[size:]
            self.waiting.append(self._pool.submit(self._until_acknowledged, batch))

    def _until_acknowledged(self, batch: list[dict[str, Any]]) -> None:
        while not self._stopped.wait(0.01):
            self.sent.update(message["order"] for message in batch)
            try:
                if post(self._port, batch, path=self._path).status == 200:
                    return
            except (OSError, http.client.HTTPException):
                continue

    def close(self) -> None:
        self._stopped.set()
        self._pool.shutdown()
