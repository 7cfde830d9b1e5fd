"""Rows as requests to a URL, webhooks: sent behind the commit point, until each is confirmed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import pyarrow as pa
from millstream.connectors.file_formats import JsonLines
from millstream.connectors.http_journal import Journal
from millstream.connectors.http_outbox import Message, OutboxWriter, put_aside, unpacked
from millstream.connectors.secrets import resolve
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.failpoints import hit
from millstream.engine.retry import Retry
from millstream.engine.retry import retry as retry_rule
from millstream.engine.sink import Committable, Committer, Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.time import Duration, micros

if TYPE_CHECKING:
    from millstream.connectors.http_delivery import Delivery

TRIES: Final = retry_rule(8, wait="200ms", longest="30s")
"""About half a minute: longer than a receiver takes to start again."""

_METHODS: Final = ("POST", "PUT", "PATCH")


def http_sink(  # noqa: PLR0913 - all by name
    url: str,
    *,
    key: str | None = None,
    order_by: str | None = None,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
    key_header: str = "Idempotency-Key",
    concurrency: int = 8,
    timeout: Duration = "30s",
    retry: Retry | None = None,
    on_error: Literal["fail", "dead_letter"] = "fail",
    name: str | None = None,
) -> HttpSink:
    """Send each row to a URL as a JSON object, until the receiver confirms it by an answer from 200 to 299.

    Messages wait in the checkpoint and are sent once it is committed. Each has a key that stays the same however often
    it is sent: a receiver that passes over keys it knows sees each once, any other at least once.

    Args:
        url: begins with ``http://`` or ``https://``; redirects are not followed.
        key: the column that names a message; None: its place in the job, which stays the same after any crash.
        order_by: messages with the same value in this column are sent one after the other; None: in any order.
        method: POST, PUT or PATCH.
        headers: sent with each, as ``{"Authorization": "Bearer ${env:TOKEN}"}``.
        key_header: the header that carries the key.
        concurrency: requests under way at once.
        timeout: for one request, its answer included.
        retry: how often one is sent, and how long to wait before the next time, if the receiver does not say. Eight
            times over half a minute if left out; then the job fails, and goes on from here.
        on_error: what becomes of messages that are refused for good (400 and the like): ``"fail"``, or
            ``"dead_letter"``, which puts them aside with the answer. Refusals of all messages (401, 404) always fail.
        name: names the sink; the URL without what may be secret in it if left out.

    Raises:
        JobError: an argument makes no sense, or aiohttp is not installed.

    >>> http_sink("https://shop.example/hooks/orders?v=2", key="order").name
    'https://shop.example/hooks/orders'
    """
    name, seconds, rule = name or _name_of(url), micros(timeout) / 1_000_000, retry or TRIES
    given = dict(headers or {})
    sink = HttpSink(name, url, key, order_by, method, given, key_header, concurrency, seconds, rule, on_error)
    sink.check_arguments()
    return sink


def _name_of(url: str) -> str:
    """What of a URL can be shown."""
    if url.startswith("${"):
        raise JobError(f"http_sink({url!r}): give it a name, as in name='chat'; the URL itself is a secret")
    check_url(url, url)
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def check_url(url: str, shown: str) -> None:
    """Raise JobError if nothing can be sent to a URL."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise JobError(f"http_sink({shown!r}): a URL begins with http:// or https:// and names a host")
    if parts.username is not None:
        raise JobError("http_sink(): put credentials into headers=, as {'Authorization': 'Bearer ${env:TOKEN}'}")


@dataclass(frozen=True, slots=True, eq=False)
class HttpSink(Sink):
    """Requests to a URL; made by ``http_sink``."""

    given_name: str
    url: str = field(repr=False)
    key: str | None
    order_by: str | None
    method: str
    headers: Mapping[str, str] = field(repr=False)
    key_header: str
    concurrency: int
    timeout: float
    retry: Retry
    on_error: str

    def check_arguments(self) -> None:
        """Raise JobError if one makes no sense."""
        if self.method not in _METHODS:
            raise JobError(f"http_sink(method={self.method!r}): method is one of {', '.join(_METHODS)}")
        if isinstance(self.concurrency, bool) or not isinstance(self.concurrency, int) or self.concurrency < 1:
            raise JobError(f"http_sink(): concurrency must be a whole number from 1 on, got {self.concurrency!r}")
        if not self.timeout:
            raise JobError("http_sink(): timeout must be longer than 0")
        if not isinstance(self.retry, Retry):
            raise JobError(f"http_sink(): retry= takes ms.retry(...), as in retry=ms.retry(5), got {self.retry!r}")
        if self.retry.on != (Exception,):
            raise JobError("http_sink(): retry= has no use for on=: the answer says whether to try again")
        if self.on_error not in {"fail", "dead_letter"}:
            raise JobError(f"http_sink(): on_error is 'fail' or 'dead_letter', got {self.on_error!r}")
        if find_spec("aiohttp") is None:
            raise JobError("http_sink() needs aiohttp: pip install 'millstream[http]'")

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """The name: credentials may change, the destination is the same."""
        return f"http {self.given_name!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once."""
        return SinkKind.OUTBOX

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when rows of this schema cannot be sent."""
        JsonLines().check(schema)
        for word, column in (("key", self.key), ("order_by", self.order_by)):
            if column is not None and column not in schema.names:
                raise SchemaError(f"{self.name}: {word}={column!r}: the columns are {', '.join(schema.names)}")
            if column is not None and not _is_name(schema.field(column).type):
                raise SchemaError(
                    f"{self.name}: {word}={column!r} is {schema.field(column).type}; take a text, a whole number, a "
                    "date or a time"
                )

    @property
    def replays(self) -> bool:
        """Messages are put aside with all that it takes to send them again."""
        return True

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        del schema
        return OutboxWriter(self.name, self.key, self.order_by, context)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer. Raises JobError if a secret is not there."""
        del schema
        return _HttpCommitter(self, context)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return (
            f"exactly once if the receiver passes over messages whose {self.key_header} it has seen, else at least "
            "once: each is sent after its checkpoint, and again, with the same key, until it is confirmed"
        )


def _is_name(type_: pa.DataType) -> bool:
    texts = pa.types.is_string(type_) or pa.types.is_large_string(type_)
    times = pa.types.is_temporal(type_) and not (pa.types.is_duration(type_) or pa.types.is_interval(type_))
    return bool(texts or times or pa.types.is_integer(type_))


class _HttpCommitter(Committer):
    """Sends what is not settled yet."""

    def __init__(self, sink: HttpSink, context: SinkContext) -> None:
        self._sink = sink
        self._context = context
        store = context.store
        path = None if store is None else store.with_name(f"{store.name}.{context.sink_id}.sent")
        self._journal = Journal(sink.name, path)
        self._delivery: Delivery | None = None

    def commit(self, epoch: int, committables: Sequence[Committable]) -> None:
        """Send an epoch's messages, except those that are known to be settled.

        Raises:
            ExternalError: one was not confirmed, or the disk failed.
        """
        messages = unpacked(committables, self._context.job_id, self._context.sink_id)
        if not messages:
            return
        digest = 0
        for message in messages:
            digest = zlib.crc32(message.body, digest)
        known = self._journal.begin(f"{self._context.job_id} {self._context.sink_id} {epoch} {digest:08x}")
        refused: list[tuple[Message, str]] = []

        def settled(message: Message, refusal: str | None) -> None:
            if refusal is None:
                self._journal.settle([message.place])
            else:
                refused.append((message, refusal))

        try:
            self._client().send([message for message in messages if message.place not in known], settled)
        finally:
            self._put_aside(epoch, refused)

    def _put_aside(self, epoch: int, refused: Sequence[tuple[Message, str]]) -> None:
        """First they are dead letters, then that is noted: after a crash between the two they are sent once more."""
        if not refused:
            return
        letters = [put_aside(message, self._sink.name, refusal) for message, refusal in refused]
        self._context.put_aside(epoch, letters)
        hit("http.put_aside")
        self._journal.settle(message.place for message, _ in refused)

    def _client(self) -> Delivery:
        if self._delivery is None:
            from millstream.connectors.http_delivery import Delivery, Target

            sink = self._sink
            url = resolve(sink.url)
            check_url(url, sink.name)
            headers = {header: resolve(value) for header, value in sink.headers.items()}
            self._delivery = Delivery(
                Target(
                    sink=sink.name,
                    url=url,
                    method=sink.method,
                    headers=headers,
                    key_header=sink.key_header,
                    timeout=sink.timeout,
                    concurrency=sink.concurrency,
                    retry=sink.retry,
                    keep_refused=sink.on_error == "dead_letter",
                )
            )
        return self._delivery

    def close(self) -> None:
        """Close connections and the journal."""
        self._journal.close()
        if self._delivery is not None:
            self._delivery.close()
