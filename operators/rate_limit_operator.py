"""The running part of ``RateLimit``. Importing this module loads numba."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa
from millstream.engine.operator import Output
from millstream.engine.state import StateTable
from millstream.engine.time import END_OF_TIME
from millstream.operators.rows_in_hand import HoldingOperator

if TYPE_CHECKING:
    from millstream.operators.rate_limit import RateLimit

_SAVED: Final = 100_000
"""Microseconds' worth of rows that may go at once after nothing went for so long, and no more."""

_TOGETHER: Final = 10_000
"""Microseconds' worth of rows that go in one batch, if there are so many."""


class RateLimitOperator(HoldingOperator):
    """Rows are on loan from the clock: each makes the next one wait for its share of a second.

    (The generic cell rate algorithm of ITU-T I.371: what is kept is the time from which on nothing is owed.) The end of
    the input changes nothing: rows in hand go at their rate, and the job ends after the last. After a start nothing
    is saved up.
    """

    uses_clock = True

    def __init__(self, spec: RateLimit, table: StateTable, schema: pa.Schema) -> None:
        super().__init__(table, schema)
        self._schema = schema
        self._share = 1_000_000 / spec.rate  # microseconds for each row
        self._together = max(1, int(_TOGETHER / self._share))
        self._now: int | None = None
        self._even_at = 0.0  # processing time from which on nothing is owed

    def on_clock(self, now: int, out: Output) -> None:
        """See what may go."""
        del out
        if now == END_OF_TIME:
            return
        if self._now is None:
            self._even_at = float(now)
        self._now = now
        self._even_at = max(self._even_at, now - _SAVED)

    @property
    def _allowed(self) -> int:
        """How many rows may go now."""
        if self._now is None or self._now < self._even_at:
            return 0
        return 1 + int((self._now - self._even_at) / self._share)

    @property
    def _wanted(self) -> int:
        """How many rows there have to be a right to before any goes."""
        return min(self._together, self._hand.untaken)

    def next_due(self) -> int | None:
        """When enough rows may go."""
        if not self._hand.has_untaken or self.is_ready():
            return None
        return int(self._even_at + (self._wanted - 1) * self._share) + 1

    def is_full(self) -> bool:
        """Whether rows wait already."""
        return self._hand.has_untaken

    def is_ready(self) -> bool:
        """Whether enough rows may go."""
        return self._hand.has_untaken and self._allowed >= self._wanted

    def on_ready(self, out: Output) -> None:
        """Let rows go."""
        for rows in self._hand.let_go(self._allowed):
            self._even_at += rows.num_rows * self._share
            out.emit(rows if rows.schema.equals(self._schema) else rows.cast(self._schema))
