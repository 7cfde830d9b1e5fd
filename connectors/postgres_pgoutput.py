"""The messages of PostgreSQL's logical replication: pgoutput, protocol version 1, inside the streaming protocol."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

Cells: TypeAlias = Sequence[bytes | None]
"""A row as text, column by column."""

_HEADER: Final = struct.Struct(">cqqq")
_KEEPALIVE: Final = struct.Struct(">cqqb")
_STATUS: Final = struct.Struct(">cqqqqb")
_LSN_XID: Final = struct.Struct(">qqi")
_COMMIT: Final = struct.Struct(">bqqq")
_UINT: Final = struct.Struct(">I")
_SHORT: Final = struct.Struct(">h")
_COUNT_OPTIONS: Final = struct.Struct(">ib")

UNCHANGED: Final = b"\x00unchanged"
"""What stands for a large value that an update has left as it was; no text has a NUL."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction follows; ``lsn`` is where its commit is."""

    lsn: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The transaction is over; what comes after ``end`` is not of it."""

    end: int


@dataclass(frozen=True, slots=True)
class Relation:
    """How rows of a table look from now on."""

    oid: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A row that came (``new``), went (``old``) or changed (both)."""

    oid: int
    old: Cells | None
    new: Cells | None


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A row changed or went, and the server does not say which: the table's replica identity is not full."""

    oid: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """All rows of some tables went, nobody says which."""

    oids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server has nothing that lies before ``end``; it may want to hear from us."""

    end: int
    answer: bool


Message: TypeAlias = Begin | Commit | Relation | Change | Incomplete | Truncate | Keepalive | None


def read_message(data: bytes) -> Message:
    """Return what the server says; None: something that does not matter here.

    Raises:
        ValueError: it is of no protocol known.
    """
    kind = data[:1]
    if kind == b"k":
        _, end, _, answer = _KEEPALIVE.unpack_from(data)
        return Keepalive(end, bool(answer))
    if kind != b"w":
        raise ValueError(f"unexpected message {kind!r} in a replication stream")
    at = _HEADER.size
    kind, at = data[at : at + 1], at + 1
    match kind:
        case b"I" | b"U" | b"D":
            return _change(data, at, kind)
        case b"B":
            return Begin(_LSN_XID.unpack_from(data, at)[0])
        case b"C":
            return Commit(_COMMIT.unpack_from(data, at)[2])
        case b"R":
            return _relation(data, at)
        case b"T":
            count, _ = _COUNT_OPTIONS.unpack_from(data, at)
            return Truncate(struct.unpack_from(f">{count}I", data, at + _COUNT_OPTIONS.size))
        case b"O" | b"Y" | b"M":
            return None
    raise ValueError(f"unexpected message {kind!r} of pgoutput")


def status(durable: int, now: int) -> bytes:
    """Return what tells the server how far we are for good, in bytes of its log; ``now``: microseconds since 2000."""
    return _STATUS.pack(b"r", durable, durable, durable, now, 0)


def _relation(data: bytes, at: int) -> Relation:
    (oid,) = _UINT.unpack_from(data, at)
    _, at = _text(data, at + 4)
    _, at = _text(data, at)
    (count,) = _SHORT.unpack_from(data, at + 1)
    at += 3
    names = []
    for _ in range(count):
        name, at = _text(data, at + 1)
        at += 8
        names.append(name)
    return Relation(oid, tuple(names))


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1


def _change(data: bytes, at: int, kind: bytes) -> Change | Incomplete:
    (oid,) = _UINT.unpack_from(data, at)
    at += 4
    old: Cells | None = None
    if kind != b"I":
        if data[at : at + 1] != b"O":
            return Incomplete(oid)
        old, at = _cells(data, at + 1)
        if kind == b"D":
            return Change(oid, old, None)
    new, _ = _cells(data, at + 1)
    return Change(oid, old, new)


def _cells(data: bytes, at: int) -> tuple[Cells, int]:
    (count,) = _SHORT.unpack_from(data, at)
    at += 2
    cells: list[bytes | None] = []
    for _ in range(count):
        kind = data[at : at + 1]
        at += 1
        if kind == b"t":
            (length,) = _UINT.unpack_from(data, at)
            at += 4
            cells.append(data[at : at + length])
            at += length
        else:
            cells.append(UNCHANGED if kind == b"u" else None)
    return cells, at
