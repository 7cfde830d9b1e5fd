"""Nexmark's streams made on the fly: input without end for demonstrations, soak tests and torture."""

from __future__ import annotations

import millstream as ms
import pyarrow as pa
from millstream.benchmarks.nexmark_events import MAKERS, SCHEMAS, USUAL, Timing, event_of_row, rows_of
from millstream.engine.errors import JobError
from millstream.engine.source import Source


def nexmark_source(
    stream: str,
    *,
    events: int | None = None,
    rate: float | None = None,
    seed: int = 1,
    timing: Timing = USUAL,
    splits: int = 1,
    batch_rows: int = 8_192,
) -> Source:
    """Make one of Nexmark's streams, row by number, so that it can be read again from anywhere.

    The rows are those that ``millstream nexmark generate`` writes with the same seed and timing.

    Args:
        stream: ``person``, ``auction`` or ``bid``.
        events: how many events there are of all three streams together; None: no end.
        rate: rows of this stream a second; None: as fast as they are read.
        timing: events per second of event time, and how far they are out of order.
        splits: into how many pieces that are read side by side it is dealt.
        batch_rows: rows of a batch.

    Raises:
        JobError: there is no such stream.

    >>> nexmark_source("bid", events=1_000, rate=100).name
    'bid'
    """
    if stream not in MAKERS:
        raise JobError(f"nexmark_source({stream!r}): the streams are {', '.join(MAKERS)}")
    make = MAKERS[stream]

    def rows(start: int, stop: int) -> pa.RecordBatch:
        return make(seed, event_of_row(stream, start), event_of_row(stream, stop - 1) + 1, timing)

    return ms.generator(
        rows,
        schema=SCHEMAS[stream],
        rows=None if events is None else rows_of(stream, events),
        rate=rate,
        batch_rows=batch_rows,
        splits=splits,
        name=stream,
    )
