"""Reads one Redis stream from the id in the checkpoint, and notices what was removed before it was read.

The server counts the entries that were ever added to a stream. The position counts those that have been read or were
gone when reading began; so when the oldest entry is a newer one than the last one read, what lies between is known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
from millstream.connectors.redis_entries import Entry, EntryDecoder
from millstream.engine.errors import DataError, ExternalError, JobError
from millstream.engine.logs import log
from millstream.engine.source import DeadLetter, Position, ReadContext, SplitEnd, SplitReader

BEFORE_ALL: Final = "0-0"
_PAUSE: Final = 0.02
_MOST: Final = 10_000
_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Rules:
    """What becomes of what cannot be read.

    Attributes:
        trim: entries are removed from the stream once every sink shows what came of them.
        patience: seconds for which the server may be away.
    """

    source: str
    on_error: str
    on_lost: str
    trim: bool
    patience: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where reading goes on.

    Attributes:
        id: of the last entry read.
        seen: how many entries were ever added up to it.
        end: the last id to read, if there is one.
    """

    id: str
    seen: int
    end: str | None = None


def order(id_: str | bytes) -> tuple[int, int]:
    """Return what ids are compared by.

    >>> order("9-1") < order(b"10-0")
    True
    """
    text = id_.decode() if isinstance(id_, bytes) else id_
    time_, _, number = text.partition("-")
    return int(time_), int(number or 0)


class RedisReader(SplitReader):
    """One stream."""

    def __init__(
        self, client: Any, stream: str, place: Place, rules: Rules, decoder: EntryDecoder, context: ReadContext
    ) -> None:
        self._client = client
        self._stream = stream
        self._place = place
        self._rules = rules
        self._decoder = decoder
        self._context = context
        self._count = min(context.batch_rows, _MOST)
        self._ask_at = 0.0
        self._away_since: float | None = None

    def read(self) -> pa.RecordBatch | SplitEnd:
        """Return the next rows.

        Raises:
            DataError: entries were removed before they were read, or do not fit.
            ExternalError: the server is away for too long.
        """
        end = self._place.end
        if end is not None and order(self._place.id) >= order(end):
            return SplitEnd.FINISHED
        if time.monotonic() < self._ask_at:
            return SplitEnd.PENDING
        found = self._ask()
        if found is None:
            return SplitEnd.PENDING
        info, entries = found
        self._check(info)
        if entries:
            return self._take(info, entries)
        self._ask_at = time.monotonic() + _PAUSE
        self._place = Place(end or self._place.id, info["entries-added"], end)
        return SplitEnd.PENDING if end is None else SplitEnd.FINISHED

    def position(self) -> Position:
        """The last id read, and what is known of the stream up to it."""
        return asdict(self._place)

    def committed(self, position: Position) -> None:
        """Remove what has been read up to there, except for its last entry, by which gaps are noticed."""
        if not self._rules.trim or position is None or position["id"] == BEFORE_ALL:
            return
        redis = driver()
        try:
            self._client.xtrim(self._stream, minid=position["id"], approximate=False)
        except redis.RedisError as error:
            raise ExternalError(f"{self._where}: entries that were read cannot be removed: {error}") from error

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    # -- the server -------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return f"source {self._rules.source!r}, stream {self._stream!r}"

    def _ask(self) -> tuple[Mapping[str, Any], Sequence[Entry]] | None:
        """Return what the stream is and its next entries, of one moment; None if there is nothing to be had."""
        redis = driver()
        try:
            together = self._client.pipeline(transaction=True)
            together.xinfo_stream(self._stream)
            together.xrange(self._stream, f"({self._place.id}", self._place.end or "+", self._count)
            info, entries = together.execute(raise_on_error=False)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._wait_for_server(error)
            return None
        self._away_since = None
        for answer in (entries, info):
            if isinstance(answer, redis.RedisError) and "no such key" not in str(answer):
                raise JobError(f"{self._where}: {answer}")
        if not isinstance(info, redis.RedisError):
            return info, entries
        if self._place.id != BEFORE_ALL:
            raise DataError(
                f"{self._where} has gone, and {self._place.id} was the last entry read: it was deleted, or the server "
                "has lost it. Put it back, or start anew with a new store"
            )
        self._ask_at = time.monotonic() + _PAUSE
        return None

    def _wait_for_server(self, error: Exception) -> None:
        now = time.monotonic()
        self._away_since = self._away_since if self._away_since is not None else now
        if now - self._away_since >= self._rules.patience:
            raise ExternalError(f"{self._where}: the server does not answer: {error}") from error
        self._ask_at = now + 10 * _PAUSE

    def _check(self, info: Mapping[str, Any]) -> None:
        place, last = self._place, info["last-generated-id"]
        if order(last) < order(place.id):
            raise DataError(
                f"{self._where} ends at {last.decode()}, before {place.id}, which was read from it: it was deleted and "
                "made again, or the server has lost entries, as after a failover. Start anew with a new store"
            )
        first = info["first-entry"]
        if first is not None and order(first[0]) <= order(place.id):
            return
        lost = info["entries-added"] - place.seen - info["length"]
        if lost <= 0:
            return
        before = f"before {first[0].decode()}" if first is not None else f"up to {last.decode()}"
        gap = f"{lost} entries after {place.id} and {before}"
        if self._rules.on_lost == "fail":
            raise DataError(
                f"{self._where}: {gap} were removed before they were read: the stream is trimmed too early; pass "
                "on_lost='earliest' to go on without them"
            )
        self._keep(gap, "removed before they were read", b"")
        self._place = Place(place.id, place.seen + lost, place.end)

    # -- entries ----------------------------------------------------------------------------------------------------

    def _take(self, info: Mapping[str, Any], entries: Sequence[Entry]) -> pa.RecordBatch:
        rows, bad = self._decoder.decode(entries)
        for index in sorted(bad):
            id_, fields = entries[index]
            raw = b" ".join(b"%s=%s" % pair for pair in fields.items())
            if self._rules.on_error == "fail":
                raise DataError(
                    f"{self._where}, entry {id_.decode()}: {bad[index]}, in {raw[:_SHOWN]!r}; pass "
                    "on_error='dead_letter' to put such entries aside"
                )
            self._keep(f"entry {id_.decode()}", bad[index], raw)
        place, seen = self._place, self._place.seen + len(entries)
        if len(entries) < self._count and place.end is None:
            deleted = info["entries-added"] - seen
            if deleted > 0:
                log.warning("entries were deleted one by one before they were read", where=self._where, count=deleted)
            seen = info["entries-added"]
        self._place = Place(entries[-1][0].decode(), seen, place.end)
        return rows

    def _keep(self, position: str, problem: str, raw: bytes) -> None:
        self._context.dead_letter(DeadLetter(self._rules.source, self._stream, position, problem, raw))


def driver() -> Any:
    """Import redis. Raises JobError if it is not installed."""
    try:
        import redis
    except ImportError as error:
        raise JobError(
            f"Redis needs the package redis, which cannot be loaded ({error}): pip install 'millstream[redis]'"
        ) from None
    return redis
