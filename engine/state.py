"""What an operator keeps between batches, as the checkpoint store sees it: typed tables and their deltas."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa


class StateKind(enum.Enum):
    """How rows of a state table come and go."""

    KEYED = "keyed"  # one row per key; a later row replaces an earlier one; deletions are rows too
    ROWS = "rows"  # immutable rows, grouped in buckets; a bucket is dropped as a whole, and never written again


@dataclass(frozen=True, slots=True)
class StateTable:
    """The declaration of one state table; made when the job is planned, before the first row.

    Attributes:
        name: unique within the operator, ``[a-z_]+``.
        schema: all columns. Flat Arrow types, lists, structs and maps; no dictionaries.
        keys: KEYED: the columns that name a row. ROWS: exactly one int64 column, the bucket.
        route_by: the columns whose hash decides which subtask owns a row after a restart; they must be the
            operator's exchange keys, in the same order. Empty: subtask 0 owns every row.
        broadcast: every subtask gets every row after a restart; only subtask 0 may hand rows over. ROWS only.
        defaults: what rows of older checkpoints have in columns that were added since; null where nothing is said.
    """

    name: str
    schema: pa.Schema
    keys: tuple[str, ...]
    route_by: tuple[str, ...] = ()
    kind: StateKind = StateKind.KEYED
    defaults: Mapping[str, object] = field(default_factory=dict, compare=False)
    broadcast: bool = field(default=False, compare=False)


DELETED = "deleted"
"""The last column of KEYED rows: true on a row that says its key is gone (its other values are null)."""


@dataclass(frozen=True, slots=True)
class StateDelta:
    """What one subtask hands over at a barrier for one state table: references, never copies.

    Attributes:
        rows: KEYED: ``schema`` plus ``deleted``, in the order they must be applied. ROWS: ``schema``. May be empty.
        full_from: KEYED: the oldest epoch a restore has to read to get every live row of this subtask
            (this epoch, if ``rows`` is the whole state). Ignored for ROWS.
        dropped: ROWS: the buckets dropped since the last delta.
    """

    rows: pa.Table
    full_from: int = 0
    dropped: tuple[int, ...] = ()


SLICES = 20
"""A delta carries one slice in this many of the whole state, so the last SLICES deltas always hold everything."""

WHOLE_STATE_ROWS = 20_000
"""Below this many live rows a delta is simply the whole state: as cheap, and nothing older need be read."""


class RollingBase:
    """Decides which slice of a keyed state goes along with a delta, and how far back a restore must read.

    Rows belong to slice ``sequence % SLICES`` for any number that stays with a row while it lives. Each delta
    that is written carries the next slice; an epoch in which nothing changed writes nothing and uses no turn.

    >>> base = RollingBase()
    >>> base.whole(7)
    7
    >>> [base.next_slice(epoch) for epoch in (8, 9)]
    [(0, 7), (1, 7)]
    """

    def __init__(self, restored_full_from: int = 0) -> None:
        self._turn = 0
        self._written = [restored_full_from] * SLICES

    def whole(self, epoch: int) -> int:
        """Record that the delta of ``epoch`` holds the whole state; return its ``full_from``."""
        self._written = [epoch] * SLICES
        return epoch

    def next_slice(self, epoch: int) -> tuple[int, int]:
        """Return the slice the delta of ``epoch`` must carry, and that delta's ``full_from``."""
        piece = self._turn
        self._turn = (self._turn + 1) % SLICES
        self._written = [*self._written[1:], epoch]
        return piece, self._written[0]

    @property
    def full_from(self) -> int:
        """The oldest epoch a restore must read now."""
        return self._written[0]
