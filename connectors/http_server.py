"""The server of an HTTP source: a thread that turns requests into messages in an inbox. Importing it loads aiohttp."""

from __future__ import annotations

import asyncio
import hmac
import socket
import ssl
import threading
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Final

import msgspec
from aiohttp import StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_exceptions import HTTPRequestEntityTooLarge
from aiohttp.web_protocol import RequestPayloadError
from aiohttp.web_request import BaseRequest
from millstream.connectors.http_answers import Answers
from millstream.connectors.http_inbox import Inbox
from millstream.connectors.http_messages import Answer, BadBody, Request, cut
from millstream.connectors.http_settings import Address, Limits
from millstream.engine.errors import ExternalError, InternalError
from millstream.engine.logs import log

LAST_ANSWERS: Final = 2.0
"""Seconds that connections have, when the server closes, to take their answers."""

_BACKLOG: Final = 1024


@dataclass(frozen=True, slots=True)
class Listening:
    """What a server is to do.

    Attributes:
        source: the source's name, for errors.
        id_header: the header that names the only message of a request; None: messages are not named that way.
        keep_bad: a body that cannot be read is passed on as one bad message, instead of refused.
    """

    source: str
    address: Address
    limits: Limits
    id_header: str | None
    keep_bad: bool


class HttpServer:
    """Listens from when it is made until it is closed.

    Raises:
        ExternalError: the port cannot be listened on, or the certificate not be read.
    """

    def __init__(self, listening: Listening, inbox: Inbox) -> None:
        self._listening = listening
        self._inbox = inbox
        self._tls = _tls(listening)
        self._socket = _bound(listening)
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._answers: Answers
        self._thread = threading.Thread(target=self._run, name=f"millstream-http-{listening.address.port}", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise InternalError(f"{listening.source}: the server did not start: {self._failure}") from self._failure
        log.info("listening", source=listening.source, url=listening.address.url)

    def close(self) -> None:
        """Let the answers that are given go out, then close every connection and free the port."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(2 * LAST_ANSWERS + 5)

    # -- in the server's thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
            log.warning("the server has ended", source=self._listening.source, error=str(error))
        finally:
            self._socket.close()
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        timeout = self._listening.limits.timeout
        error = f"the messages are not durable after {timeout:g} s; send them again"
        late = Answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": error}, again=1)
        self._answers = Answers(self._loop, timeout, late)
        server = web.Server(self._handle, request_factory=self._request, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=LAST_ANSWERS)
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket, ssl_context=self._tls, backlog=_BACKLOG).start()
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()
            # A connection may have been accepted meanwhile; left open, its sender would wait for ever.
            await asyncio.sleep(0.01)
            await server.shutdown(0)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> BaseRequest:
        most = self._listening.limits.body
        return BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=most)

    async def _handle(self, request: BaseRequest) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        return _response(await self._received(request))

    def _refusal(self, request: BaseRequest) -> web.Response | None:
        """What is answered to a request by its head alone; None: it may go on."""
        listening = self._listening.address
        if listening.token is not None and not _shows(listening.token, request):
            error = "the header Authorization must be 'Bearer' and the token of this source"
            return _response(Answer(HTTPStatus.UNAUTHORIZED, {"error": error}), {hdrs.WWW_AUTHENTICATE: "Bearer"})
        if listening.token is None and hdrs.ORIGIN in request.headers:
            # Any page that a browser shows could have it send here; one that rebinds its name even read the answer.
            error = "requests of browsers are taken only by a source with a token"
            return _response(Answer(HTTPStatus.FORBIDDEN, {"error": error}))
        if request.path != listening.path:
            return _response(Answer(HTTPStatus.NOT_FOUND, {"error": f"messages are taken at {listening.path}"}))
        if request.method != hdrs.METH_POST:
            error = f"messages are taken by POST, not by {request.method}"
            return _response(Answer(HTTPStatus.METHOD_NOT_ALLOWED, {"error": error}), {hdrs.ALLOW: hdrs.METH_POST})
        if (request.content_length or 0) > self._listening.limits.body:
            return _response(self._too_large())
        return None

    def _too_large(self) -> Answer:
        error = f"a body may have {self._listening.limits.body:,} bytes; send its messages in several requests"
        return Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": error})

    async def _received(self, request: BaseRequest) -> Answer:
        try:
            # A timeout costs as much as the rest of this, and most bodies are there already.
            if request.content.is_eof():
                body = await request.read()
            else:
                async with asyncio.timeout(self._listening.limits.timeout):
                    body = await request.read()
        except HTTPRequestEntityTooLarge:
            return self._too_large()
        except TimeoutError:
            return Answer(HTTPStatus.REQUEST_TIMEOUT, {"error": "the body did not come in time"})
        except RequestPayloadError as error:
            return _bad(f"the body cannot be unpacked: {error}")
        problem = None
        try:
            messages = cut(body, _content_type(request))
        except BadBody as error:
            problem = str(error)
            messages = [body]
            if not self._listening.keep_bad:
                return _bad(problem)
        id_ = None
        if self._listening.id_header is not None and problem is None:
            id_ = _unquoted(request.headers.get(self._listening.id_header, "").strip())
            wrong = _wrong_id(self._listening.id_header, id_, len(messages))
            if wrong is not None:
                return _bad(wrong)
        if not messages:
            return Answer(HTTPStatus.OK, {"messages": 0})
        return await self._settled(messages, id_, problem)

    async def _settled(self, messages: list[bytes], id_: str | None, problem: str | None) -> Answer:
        """Hand messages on; return the answer once they are durable, or are not taken."""
        future = self._answers.expected()
        self._inbox.put(Request(messages, partial(self._answers.give, future), id_, problem))
        return await future


def _content_type(request: BaseRequest) -> str:
    """As ``request.content_type``, which takes the parameters apart, too."""
    return request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()


def _bad(error: str) -> Answer:
    return Answer(HTTPStatus.BAD_REQUEST, {"error": error})


def _response(answer: Answer, headers: dict[str, str] | None = None) -> web.Response:
    told: dict[str, str] = {hdrs.SERVER: "millstream", hdrs.CONTENT_TYPE: "application/json", **(headers or {})}
    if answer.again is not None:
        told[hdrs.RETRY_AFTER] = str(answer.again)
    return web.Response(status=answer.status, body=msgspec.json.encode(answer.body), headers=told)


def _shows(token: str, request: BaseRequest) -> bool:
    scheme, _, shown = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    # Always both: how long it takes is then the same whatever is wrong.
    same = hmac.compare_digest(shown.strip().encode(errors="replace"), token.encode())
    return same and scheme.lower() == "bearer"


def _unquoted(id_: str) -> str:
    """The header may hold a quoted string, as its draft standard has it, or the bare text, as most senders do."""
    quoted = len(id_) >= 2 and id_[0] == id_[-1] == '"'
    return id_[1:-1].replace('\\"', '"').replace("\\\\", "\\") if quoted else id_


def _wrong_id(header: str, id_: str, messages: int) -> str | None:
    if messages > 1:
        return f"the header {header} names one message, and there are {messages}; send each in a request of its own"
    if not id_ and messages:
        return f"the header {header} is missing: it names the message, the same way each time it is sent"
    return None if id_.isascii() and id_.isprintable() else f"the header {header} must be printable ASCII"


def _tls(listening: Listening) -> ssl.SSLContext | None:
    tls = listening.address.tls
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(*tls)
    except OSError as error:
        raise ExternalError(
            f"{listening.source}: certificate {tls[0]} and key {tls[1]} cannot be used: {error}"
        ) from error
    return context


def _bound(listening: Listening) -> socket.socket:
    host, port = listening.address.host, listening.address.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        made = socket.socket(family, kind)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise ExternalError(
            f"{listening.source}: {host}, port {port} cannot be listened on: {error}. Stop what "
            f"uses it, or take another port="
        ) from error
    return made
