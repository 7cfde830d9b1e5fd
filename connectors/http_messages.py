"""What a request brought: a body cut into messages, each one JSON object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import msgspec

LINES: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
"""Content types whose bodies are JSON lines, whatever they look like."""

_OVERHEAD: Final = 64
"""Bytes of memory for a message besides its own: a body of many tiny ones is larger than it looks."""

_SPACES: Final = bytes.maketrans(b"\n\r", b"  ")
_ARRAY: Final = msgspec.json.Decoder(list[msgspec.Raw])
_ONE: Final = msgspec.json.Decoder(msgspec.Raw)


class BadBody(ValueError):
    """A body is not what it must be; the text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a sender is told.

    Attributes:
        body: becomes a JSON object.
        again: seconds after which the sender may try again; None: it should not.
    """

    status: HTTPStatus
    body: Mapping[str, Any]
    again: int | None = None


@dataclass(slots=True, eq=False)
class Request:
    """The messages of one request: all of them are taken in, in one epoch, or none is.

    Attributes:
        messages: one JSON object each, on one line and without its end.
        answer: tells the sender; called once, from any thread.
        id: of its only message, from a header; None: messages have theirs in a column, or none at all.
        problem: why it is bad, if that is known already.
        size: bytes it takes up while it waits, about.
    """

    messages: Sequence[bytes]
    answer: Callable[[Answer], None]
    id: str | None = None
    problem: str | None = None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.messages)) + _OVERHEAD * len(self.messages)


def cut(body: bytes, content_type: str) -> list[bytes]:
    r"""Return the messages of a body, each on one line.

    A body is an array of objects, or one object on however many lines, or an object on every line. Objects are not
    looked into any further.

    Args:
        content_type: without parameters, in lower case; only that of JSON lines makes a difference.

    Raises:
        BadBody: it is none of these.

    >>> cut(b'[{"n": 1},\n {"n":\n2}]', "application/json")
    [b'{"n": 1}', b'{"n": 2}']
    >>> cut(b'{"n":\n1}', ""), cut(b'{"n": 1}\n\n{"n": 2}\n', "")
    ([b'{"n": 1}'], [b'{"n": 1}', b'{"n": 2}'])
    """
    body = body.strip()
    if content_type in LINES:
        return _lines(body)
    if body.startswith(b"["):
        try:
            return [bytes(item).translate(_SPACES) for item in _ARRAY.decode(body)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadBody(f"the array of messages cannot be read: {error}") from error
    if b"\n" not in body and b"\r" not in body:
        return [body] if body else []
    try:
        _ONE.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _lines(body)
    return [body.translate(_SPACES)]


def _lines(body: bytes) -> list[bytes]:
    return [line for line in (line.strip() for line in body.splitlines()) if line]
