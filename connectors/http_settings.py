"""Where an HTTP source listens, whom it lets in, and how much it takes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from millstream.engine.errors import JobError
from millstream.engine.memory import parse_bytes
from millstream.engine.time import Duration, micros


@dataclass(frozen=True, slots=True)
class Address:
    """Where it listens and whom it lets in.

    Attributes:
        token: what senders must show; None: nobody is asked, and no browser is listened to.
        tls: the files of a certificate and of its key; None: plain HTTP.
    """

    host: str
    port: int
    path: str
    token: str | None = field(repr=False)
    tls: tuple[str, str] | None

    @property
    def url(self) -> str:
        """Where senders find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls is None else 'https'}://{host}:{self.port}{self.path}"


def address(
    where: str, host: str, port: int, path: str, token: str | None, tls: tuple[str | Path, str | Path] | None
) -> Address:
    """Return what a user has asked for.

    Args:
        where: begins errors.

    Raises:
        JobError: it makes no sense, or another machine could send without a token.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65_535:
        raise JobError(f"{where}: port must be from 1 to 65535, got {port!r}")
    if not path.startswith("/") or "?" in path or "#" in path:
        raise JobError(f"{where}: path is where messages are taken, as in '/ingest', got {path!r}")
    if token is not None and not token.strip():
        raise JobError(f"{where}: token= is empty; anybody could show that")
    if token is None and not _is_own(host):
        raise JobError(
            f"{where}: with host={host!r} other machines could send messages. Give token='${{env:...}}', which they "
            "must show, and tls=(certificate, key) unless a proxy before it speaks HTTPS; or listen on 127.0.0.1"
        )
    return Address(host, port, path, token, None if tls is None else (str(tls[0]), str(tls[1])))


def _is_own(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Limits:
    """How much it takes.

    Attributes:
        body: bytes of a body, unpacked, at most.
        waiting: bytes of bodies that may wait to be read.
        requests: how many may wait for their answers.
        timeout: seconds until a request whose messages are not durable is told to come again; also for a body to come.
    """

    body: int
    waiting: int
    requests: int
    timeout: float


def limits(where: str, body: str | int, waiting: str | int, requests: int, timeout: Duration) -> Limits:
    """Return what a user has asked for. Raises JobError if it makes no sense."""
    if requests < 1 or not micros(timeout):
        raise JobError(f"{where}: max_requests and timeout must be above 0, got {requests} and {timeout!r}")
    return Limits(parse_bytes(body), parse_bytes(waiting), requests, micros(timeout) / 1_000_000)
