"""Committables too big for the manifest's row: the bytes that sinks publish once the checkpoint is durable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa
from millstream.engine.element import Epoch
from millstream.engine.errors import StoreCorrupt
from millstream.engine.sink import Committable
from millstream.engine.store.digest import digest_of
from millstream.engine.store.encoding import Outbox, pack_committable, unpack
from millstream.engine.store.instance import insert_arrow

INLINE_BYTES: Final = 64 * 1024
"""Up to so many in all stay in the manifest, which saves a statement and its part of the log."""

OUTBOX: Final = pa.schema({"number": pa.int64(), "sink": pa.string(), "payload": pa.large_binary()})


@dataclass(frozen=True, slots=True)
class Staged:
    """An epoch's committables as they are written; ``rows`` has the columns OUTBOX."""

    described: Outbox
    rows: pa.Table


def stage(committables: Sequence[tuple[str, Committable]]) -> Staged | None:
    """Return committables as rows of ``outbox``; None if they are few bytes and belong into the manifest.

    Raises:
        InternalError: a payload holds what msgpack cannot carry, or is too big.

    >>> stage([("kafka", Committable({"bytes": b"x"}))]) is None
    True
    >>> stage([("kafka", Committable({"bytes": b"x" * 100_000}))]).described.counts
    {'kafka': 1}
    """
    packed = [(sink, pack_committable(sink, committable)) for sink, committable in committables]
    if sum(len(payload) for _, payload in packed) <= INLINE_BYTES:
        return None
    counts: dict[str, int] = {}
    for sink, _ in packed:
        counts[sink] = counts.get(sink, 0) + 1
    columns = [range(len(packed)), [sink for sink, _ in packed], [payload for _, payload in packed]]
    rows = pa.table([pa.array(values, field.type) for values, field in zip(columns, OUTBOX, strict=True)], OUTBOX)
    return Staged(Outbox(counts, digest_of(rows)), rows)


def write_outbox(connection: duckdb.DuckDBPyConnection, epoch: Epoch, staged: Staged | None, older: bool) -> None:
    """Write an epoch's rows, inside its transaction; with ``older`` there may be some of the epoch before, which go.

    Every sink has shown those: else this epoch would not have begun.
    """
    if older:
        connection.execute(f"DELETE FROM outbox WHERE epoch < {int(epoch)}")  # noqa: S608
    if staged is not None:
        insert_arrow(connection, "outbox", staged.rows, f"{int(epoch)},")


def read_outbox(query: Callable[[str], pa.Table], epoch: Epoch, described: Outbox) -> dict[str, list[Committable]]:
    """Return an epoch's committables by sink id, in the order they were prepared.

    Raises:
        StoreCorrupt: they are not those that were written.
    """
    columns = ", ".join(OUTBOX.names)
    rows = query(f"SELECT {columns} FROM outbox WHERE epoch = {int(epoch)} ORDER BY number")  # noqa: S608
    rows = rows.cast(OUTBOX).combine_chunks()
    if digest_of(rows) != described.digest:
        raise StoreCorrupt(
            f"the outbox of epoch {epoch} holds {rows.num_rows} committables that are not the "
            f"{sum(described.counts.values())} that were written: restore the store from a backup"
        )
    by_sink: dict[str, list[Committable]] = {}
    for sink, payload in zip(rows["sink"].to_pylist(), rows["payload"], strict=True):
        by_sink.setdefault(sink, []).append(_committable(payload.as_buffer(), epoch))
    return by_sink


def _committable(payload: pa.Buffer, epoch: Epoch) -> Committable:
    found: Mapping[str, Any] = unpack(memoryview(payload), f"a committable of epoch {epoch}")
    return Committable(found)
