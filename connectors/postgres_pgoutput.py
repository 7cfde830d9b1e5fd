"""The messages of PostgreSQL's logical replication: pgoutput, protocol version 1, inside the streaming protocol."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, TypeAlias

DATA: Final = ord("w")
"""How a message begins that brings one of pgoutput; that one's kind is at ``KIND``."""
KIND: Final = 25
INSERT, UPDATE, DELETE = ord("I"), ord("U"), ord("D")
"""The kinds that are changes of rows. They are read many at a time, by ``ChangedRows``."""
TABLE: Final = struct.Struct(f">{KIND + 1}xI")
"""Takes a change's table out of it, by number."""
OLD_ROW: Final = 30
"""Where an update or delete says which old row it brings."""
WHOLE: Final = ord("O")
"""It brings the whole old row."""

_HEADER: Final = struct.Struct(">cqqq")
_KEEPALIVE: Final = struct.Struct(">cqqb")
_STATUS: Final = struct.Struct(">cqqqqb")
_LSN_XID: Final = struct.Struct(">qqi")
_COMMIT: Final = struct.Struct(">bqqq")
_UINT: Final = struct.Struct(">I")
_SHORT: Final = struct.Struct(">h")
_COUNT_OPTIONS: Final = struct.Struct(">ib")


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
    place: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Truncate:
    """All rows of some tables went, nobody says which."""

    oids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server has nothing that lies before ``end``; it may want to hear from us."""

    end: int
    answer: bool


Message: TypeAlias = Begin | Commit | Relation | Truncate | Keepalive | None


def read_message(data: bytes) -> Message:
    """Return what the server says that is no change of a row; None: something that does not matter here.

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
    schema, at = _text(data, at + 4)
    table, at = _text(data, at)
    (count,) = _SHORT.unpack_from(data, at + 1)
    at += 3
    names = []
    for _ in range(count):
        name, at = _text(data, at + 1)
        at += 8
        names.append(name)
    return Relation(oid, f"{schema}.{table}", tuple(names))


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\0", at)
    return data[at:end].decode(), end + 1
