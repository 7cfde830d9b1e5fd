"""Messages sent by HTTP, each acknowledged once it is durable: ``POST /ingest``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.http_inbox import Inbox
from millstream.connectors.http_messages import Answer, Request
from millstream.connectors.http_settings import Address, Limits, address, limits
from millstream.connectors.json_decoder import JsonDecoder
from millstream.connectors.record_blocks import Block
from millstream.connectors.secrets import resolve
from millstream.engine.errors import JobError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.source import (
    DeadLetter,
    MessageSource,
    Position,
    ReadContext,
    Source,
    Split,
    SplitEnd,
    SplitOrder,
    SplitReader,
)
from millstream.engine.time import Duration, micros, show_duration

SPLIT: Final = "requests"
"""The only split: all that is sent to the port."""

_MOST_SHOWN: Final = 5
"""Of so many bad messages of a request the sender is told what is wrong."""

_MOST_NUMBERS: Final = 100
"""And of so many which they are."""


@overload
def http_source(
    port: int,
    *,
    schema: Schema,
    id: str,
    id_header: str | None = ...,
    within: Duration | None = ...,
    host: str = ...,
    path: str = ...,
    token: str | None = ...,
    tls: tuple[str | Path, str | Path] | None = ...,
    on_error: Literal["refuse", "dead_letter"] = ...,
    max_body: str | int = ...,
    max_waiting: str | int = ...,
    max_requests: int = ...,
    timeout: Duration = ...,
    name: str | None = ...,
) -> HttpMessages: ...


@overload
def http_source(
    port: int,
    *,
    schema: Schema,
    id: None,
    host: str = ...,
    path: str = ...,
    token: str | None = ...,
    tls: tuple[str | Path, str | Path] | None = ...,
    on_error: Literal["refuse", "dead_letter"] = ...,
    max_body: str | int = ...,
    max_waiting: str | int = ...,
    max_requests: int = ...,
    timeout: Duration = ...,
    name: str | None = ...,
) -> HttpSource: ...


def http_source(  # noqa: PLR0913 - all by name
    port: int,
    *,
    schema: Schema,
    id: str | None,
    id_header: str | None = None,
    within: Duration | None = None,
    host: str = "127.0.0.1",
    path: str = "/ingest",
    token: str | None = None,
    tls: tuple[str | Path, str | Path] | None = None,
    on_error: Literal["refuse", "dead_letter"] = "refuse",
    max_body: str | int = "16MB",
    max_waiting: str | int = "64MB",
    max_requests: int = 1_000,
    timeout: Duration = "60s",
    name: str | None = None,
) -> HttpSource:
    """Take messages that are sent by ``POST``, as JSON, and answer 200 when their checkpoint is committed.

    Until then nothing is promised: a sender without that answer sends the same again, and ``job.read`` drops repeats.

    Args:
        port: where to listen; each source needs its own.
        schema: the columns; a field that a message lacks is null, one that the schema lacks is passed over.
        id: the column that names a message, each time it is sent. If ``schema`` lacks it, it is a text column filled
            from a header. None: repeats count again, which is at-least-once.
        id_header: that header, if it is not ``Idempotency-Key``.
        within: how long, in event time, ids are remembered, see ``Stream.deduplicate``; None: for ever.
        host: the address to listen on; one that other machines can reach only with a token.
        path: where messages are taken.
        token: what senders must show as ``Authorization: Bearer ...``, best as ``"${env:NAME}"``.
        tls: the files of a certificate and of its key, to be spoken to by HTTPS.
        on_error: ``"refuse"`` answers 400 and takes nothing of a request with bad messages; ``"dead_letter"`` puts
            them aside and takes the others.
        max_body: bytes of a body, unpacked, at most; beyond it the answer is 413.
        max_waiting: bytes that may wait to be read; beyond it the answer is 503, to come again.
        max_requests: how many may wait for their answers; beyond it the answer is 503.
        timeout: until a request that is not durable is answered 503.
        name: positions and ids are kept under it; the last part of the path if left out.

    Raises:
        JobError: an argument makes no sense, another machine could send without a token, or aiohttp is not installed.

    >>> http_source(8080, schema={"order": str, "amount": float}, id="order").schema.names
    ['order', 'amount']
    """
    name = name or path.rsplit("/", 1)[-1] or "http"
    where = f"http_source {name!r}"
    kept = None if within is None else micros(within)
    listening, most = (
        address(where, host, port, path, token, tls),
        limits(where, max_body, max_waiting, max_requests, timeout),
    )
    kind = HttpSource if id is None else HttpMessages
    source = kind(name, listening, schema_of(schema), id, id_header, kept, on_error, most)
    source.check(where)
    return source


@dataclass(frozen=True, slots=True, eq=False)
class HttpSource(Source):
    """Messages sent by HTTP; made by ``http_source``."""

    given_name: str
    address: Address
    body: pa.Schema
    id: str | None
    given_header: str | None
    remembered: int | None
    on_error: str
    limits: Limits

    def check(self, where: str) -> None:
        """Raise JobError if what is asked for does not fit together."""
        names = set(self.body.names)
        if self.id is None and (self.given_header is not None or self.remembered is not None):
            raise JobError(f"{where}: id_header= and within= are about ids; name their column with id=")
        if self.given_header is not None and self.id in names:
            raise JobError(
                f"{where}: ids come from column {self.id!r} of the body or from header {self.given_header}, not both"
            )
        if self.on_error not in {"refuse", "dead_letter"}:
            raise JobError(f"{where}: on_error is 'refuse' or 'dead_letter', got {self.on_error!r}")
        if find_spec("aiohttp") is None:
            raise JobError(f"{where} needs aiohttp: pip install 'millstream[http]'")
        JsonDecoder(self.body)  # what cannot be read from JSON is told now

    @property
    def id_header(self) -> str | None:
        """The header that names messages; None: none does."""
        if self.id is None or self.id in self.body.names:
            return None
        return self.given_header or "Idempotency-Key"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """The name: where it listens may change, what was sent is the same."""
        return f"http {self.given_name!r}"

    @property
    def schema(self) -> pa.Schema:
        """The columns of the body, and the id if a header has it."""
        return self.body if self.id_header is None else self.body.append(pa.field(self.id, pa.string()))

    @property
    def bounded(self) -> bool:
        """It listens until the job is stopped."""
        return False

    @property
    def replayable(self) -> bool:
        """Not by itself: without ids nobody knows whether a message that is sent again has been processed."""
        return False

    @property
    def order(self) -> SplitOrder:
        """All at once: it never ends."""
        return SplitOrder.CONCURRENT

    def discover(self) -> Sequence[Split]:
        """Return the one split there is: one port is listened on once."""
        return [Split(SPLIT)]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Begin to listen; the position is how many messages have been read. Raises ExternalError if it cannot."""
        del split
        return _HttpReader(self, position or 0, context)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return (
            "at least once: senders are answered when their messages are durable, and a message that is sent again is "
            "processed again; give id= to tell"
        )


@dataclass(frozen=True, slots=True, eq=False)
class HttpMessages(HttpSource, MessageSource):
    """Messages that name themselves; made by ``http_source``."""

    @property
    def replayable(self) -> bool:
        """Senders keep what they have no answer for, and repeats are dropped."""
        return True

    @property
    def message_id(self) -> str:
        """The column of the ids."""
        assert self.id is not None
        return self.id

    @property
    def within(self) -> int | None:
        """How long ids are remembered."""
        return self.remembered

    def guarantee(self) -> str:
        """One sentence for the plan."""
        kept = "for ever" if self.remembered is None else f"for {show_duration(self.remembered)}"
        return (
            f"each message counts once: its sender sends it again until it is answered, which is when it is durable, "
            f"and repeats are known by {self.id!r}, which is remembered {kept}"
        )


class _HttpReader(SplitReader):
    """Listens, reads what has come, and answers when it is durable."""

    def __init__(self, source: HttpSource, position: int, context: ReadContext) -> None:
        from millstream.connectors.http_server import HttpServer, Listening

        self._source = source
        self._context = context
        self._decoder = JsonDecoder(source.body)
        self._keep_bad = source.on_error == "dead_letter"
        self._inbox = Inbox(position, source.limits.requests, source.limits.waiting)
        listening = Listening(source.name, _opened(source), source.limits, source.id_header, self._keep_bad)
        self._server = HttpServer(listening, self._inbox)

    def read(self) -> pa.RecordBatch | SplitEnd:
        requests = self._inbox.take(self._context.batch_rows)
        if not requests:
            return SplitEnd.PENDING
        batch, bad = self._decoded(requests)
        owner = np.repeat(np.arange(len(requests)), [len(request.messages) for request in requests])
        taken = self._settle(requests, owner, bad)
        if not taken.any():
            return SplitEnd.PENDING
        good = np.ones(len(owner), bool)
        good[list(bad)] = False
        return batch if taken.all() else batch.filter(pa.array(taken[owner[good]]))

    def _decoded(self, requests: Sequence[Request]) -> tuple[pa.RecordBatch, dict[int, str]]:
        """The rows of the good messages, and what is wrong with each of the others, by its number among all."""
        messages = [message for request in requests for message in request.messages]
        ends = np.cumsum(np.fromiter(map(len, messages), np.int64, len(messages)) + 1)
        batch, bad = self._decoder.decode(Block(b"\n".join([*messages, b""]), ends, 0, 1))
        rows = [number for number in range(len(messages)) if number not in bad] if bad else None
        source = self._source
        if source.id_header is not None:
            ids = [request.id for request in requests for _ in request.messages]
            kept = ids if rows is None else [ids[number] for number in rows]
            batch = batch.append_column(pa.field(source.id, pa.string()), pa.array(kept, pa.string()))
        if source.id is not None and batch.column(source.id).null_count:
            nameless = pc.is_null(batch.column(source.id))
            found = np.flatnonzero(nameless.to_numpy(zero_copy_only=False)).tolist()
            problem = f"column {source.id!r}, which names the message, is missing or null"
            bad |= {at if rows is None else rows[at]: problem for at in found}
            batch = batch.filter(pc.invert(nameless))
        return batch, bad

    def _settle(
        self, requests: Sequence[Request], owner: npt.NDArray[np.int64], bad: dict[int, str]
    ) -> npt.NDArray[np.bool_]:
        """Refuse requests or put their bad messages aside, and keep the others; return which are kept."""
        taken = np.ones(len(requests), bool)
        if not bad:
            self._inbox.keep([(request, _good(len(request.messages))) for request in requests])
            return taken
        problems: dict[int, dict[int, str]] = {}
        first = np.concatenate(([0], np.cumsum([len(request.messages) for request in requests])))
        for number, problem in sorted(bad.items()):
            index = int(owner[number])
            problems.setdefault(index, {})[number - int(first[index])] = problem
        read: list[tuple[Request, Answer]] = []
        position = self._inbox.position
        for index, request in enumerate(requests):
            wrong = problems.get(index, {})
            if wrong and not self._keep_bad:
                taken[index] = False
                self._inbox.refuse(request, _refusal(request, wrong))
                continue
            self._put_aside(request, wrong, position)
            position += len(request.messages)
            read.append((request, _good(len(request.messages) - len(wrong), len(wrong))))
        self._inbox.keep(read)
        return taken

    def _put_aside(self, request: Request, wrong: dict[int, str], position: int) -> None:
        for at, problem in wrong.items():
            where, why = f"message {position + at + 1}", request.problem or problem
            self._context.dead_letter(DeadLetter(self._source.name, SPLIT, where, why, request.messages[at]))

    def position(self) -> Position:
        return self._inbox.position

    def committed(self, position: Position) -> None:
        self._inbox.committed(position)

    def close(self) -> None:
        self._inbox.close()
        self._server.close()


def _opened(source: HttpSource) -> Address:
    """Return where it listens with the token itself."""
    if source.address.token is None:
        return source.address
    token = resolve(source.address.token).strip()
    if not token:
        raise JobError(f"http_source {source.name!r}: token={source.address.token!r} is empty; anybody could show that")
    return replace(source.address, token=token)


@lru_cache
def _good(taken: int, put_aside: int = 0) -> Answer:
    return Answer(HTTPStatus.OK, {"messages": taken} | ({"put_aside": put_aside} if put_aside else {}))


def _refusal(request: Request, wrong: dict[int, str]) -> Answer:
    """Say what is wrong with which messages, counted from 1."""
    several = len(request.messages) > 1
    shown = [(f"message {at + 1}: " if several else "") + problem for at, problem in wrong.items()][:_MOST_SHOWN]
    more = len(wrong) - len(shown)
    error: dict[str, Any] = {"error": "; ".join(shown) + (f"; and {more} more like these" if more else "")}
    numbers = [at + 1 for at in wrong][:_MOST_NUMBERS]
    return Answer(HTTPStatus.BAD_REQUEST, error | ({"bad_messages": numbers} if several else {}))
