"""Small values as strict msgpack: what goes in comes out, and nothing that is read can run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
from millstream.engine.element import Epoch
from millstream.engine.errors import InternalError, StoreCorrupt
from millstream.engine.sink import Committable
from millstream.engine.source import Split
from millstream.engine.store.types import Memory, SplitPosition, TableManifest

TableKey = tuple[str, str]
"""(operator id, state table name)."""

_MAX_BYTES: Final = 256 * 1024 * 1024
"""DuckDB keeps the length of a BLOB modulo 2^32 without a word; nothing that belongs here comes near this."""


@dataclass(frozen=True, slots=True)
class Written:
    """What one epoch wrote to one state table (to one bucket of it, if ROWS); a row of ``written``."""

    epoch: Epoch
    table: TableKey
    bucket: int | None
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Outbox:
    """What a manifest says of committables that are in the table ``outbox``.

    Attributes:
        counts: how many of each sink, by its id.
        digest: over all of them, in order.
    """

    counts: Mapping[str, int]
    digest: str


@dataclass(frozen=True, slots=True)
class Body:
    """The part of a manifest that only Millstream reads; the BLOB ``manifest.body``.

    Attributes:
        positions: splits that moved, unless there were so many that they are in ``positions``.
        splits: how many splits have a position at this epoch, those of earlier epochs included.
        committables: (sink id, handle), unless they are so big that they are in ``outbox``.
        ended: every source had ended.
        written: what this epoch wrote; moves to ``written`` when the manifest is pruned.
    """

    tables: Mapping[TableKey, TableManifest]
    watermarks: Mapping[str, int]
    positions: Sequence[SplitPosition]
    splits: int
    committables: Sequence[tuple[str, Committable]]
    written: Sequence[Written]
    memory: Memory = field(default_factory=dict)
    outbox: Outbox | None = None
    ended: bool = False


def pack(value: Any, what: str) -> bytes:
    """Return a value as msgpack.

    Raises:
        InternalError: it holds something that msgpack cannot carry; ``what`` says whose it is.

    >>> unpack(pack({"offset": 3, "file": b"x"}, "a position"), "a position")
    {'offset': 3, 'file': b'x'}
    """
    try:
        data: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise InternalError(
            f"{what} cannot be kept in a checkpoint ({error}): it must be made of None, bool, int (64 bits), float, "
            f"str, bytes, list and dict, but is {_shorten(value)}"
        ) from error
    if len(data) > _MAX_BYTES:
        raise InternalError(f"{what} takes {len(data):,} bytes; at most {_MAX_BYTES:,} fit into a checkpoint")
    return data


def unpack(data: bytes | memoryview, what: str) -> Any:
    """Return what ``pack`` was given; tuples have become lists.

    Raises:
        StoreCorrupt: these are not the bytes that were packed.
    """
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False, use_list=True, ext_hook=_refuse_extension)
    except (ValueError, TypeError) as error:
        raise StoreCorrupt(f"{what} cannot be read ({error}): restore the store from a backup") from error


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"unexpected extension type {code} of {len(data)} bytes")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


def checksum(data: bytes) -> str:
    """Hex digest of the bytes of a manifest's body."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def pack_body(body: Body) -> bytes:
    """Return a manifest's body as msgpack."""
    sections = {
        "tables": [[*key, t.full_from, t.rows, t.digest] for key, t in body.tables.items()],
        "watermarks": dict(body.watermarks),
        "splits": body.splits,
        "memory": {id_: dict(parts) for id_, parts in body.memory.items()},
        "written": [[*w.table, w.bucket, w.rows, w.digest] for w in body.written],
        "ended": body.ended,
        "outbox": None if body.outbox is None else [dict(body.outbox.counts), body.outbox.digest],
    }
    whole = pack(sections, "the manifest")
    positions = [_position_row(p) for p in body.positions]
    committables = [[sink, pack_committable(sink, c)] for sink, c in body.committables]
    return pack([whole, positions, committables], "the manifest")


def unpack_body(data: bytes, epoch: Epoch) -> Body:
    """Return the body of an epoch's manifest."""
    what = f"the manifest of epoch {epoch}"
    try:
        whole, positions, committables = unpack(data, what)
        sections = unpack(whole, what)
        return Body(
            tables={(o, t): TableManifest(f, r, d) for o, t, f, r, d in sections["tables"]},
            watermarks=sections["watermarks"],
            positions=tuple(read_position(*row) for row in positions),
            splits=sections["splits"],
            committables=tuple((sink, Committable(unpack(c, what))) for sink, c in committables),
            written=tuple(Written(epoch, (o, t), b, r, d) for o, t, b, r, d in sections["written"]),
            memory=sections["memory"],
            outbox=None if sections["outbox"] is None else Outbox(*sections["outbox"]),
            ended=sections["ended"],
        )
    except (ValueError, TypeError, KeyError) as error:
        raise StoreCorrupt(f"{what} cannot be read ({error!r}): restore the store from a backup") from error


def _position_row(p: SplitPosition) -> list[Any]:
    return [p.source_id, p.split.id, pack_info(p), pack_position(p), p.max_time, p.finished]


def pack_info(position: SplitPosition) -> bytes:
    """Return the info of a split as msgpack."""
    return pack(dict(position.split.info), f"the info of split {position.split.id!r} of source {position.source_id}")


def pack_position(position: SplitPosition) -> bytes:
    """Return the position of a split as msgpack."""
    return pack(position.position, f"the position of split {position.split.id!r} of source {position.source_id}")


def read_position(
    source: str, split: str, info: bytes, position: bytes, max_time: int | None, finished: bool
) -> SplitPosition:
    """Return a split's position from the columns it is kept in."""
    what = f"the position of split {split!r} of source {source}"
    return SplitPosition(source, Split(split, unpack(info, what)), unpack(position, what), max_time, finished)


def pack_committable(sink: str, committable: Committable) -> bytes:
    """Return what a sink has handed over as msgpack."""
    return pack(dict(committable.payload), f"a committable of sink {sink}")


def latest_positions(rows: Iterable[tuple[int, SplitPosition]]) -> list[SplitPosition]:
    """Return the newest position of each split, given (epoch, position) in any order."""
    newest: dict[tuple[str, str], tuple[int, SplitPosition]] = {}
    for epoch, position in rows:
        key = (position.source_id, position.split.id)
        if key not in newest or newest[key][0] <= epoch:
            newest[key] = (epoch, position)
    return [newest[key][1] for key in sorted(newest)]
