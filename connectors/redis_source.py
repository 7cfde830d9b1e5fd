"""Redis Streams as a source: each stream a split, read by ids that are kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import pyarrow as pa
from millstream.connectors.redis_entries import EntryDecoder
from millstream.connectors.redis_reader import BEFORE_ALL, Place, RedisReader, Rules, driver
from millstream.connectors.secrets import resolve
from millstream.engine.errors import ExternalError, JobError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.source import Position, ReadContext, Source, Split, SplitOrder, SplitReader
from millstream.engine.time import Duration, micros

_SECONDS: Final = 5.0


def redis_source(  # noqa: PLR0913
    url: str,
    streams: str | Sequence[str],
    *,
    schema: Schema,
    json: str | None = None,
    entry_id: str | None = None,
    start: Literal["earliest", "latest"] = "earliest",
    bounded: bool = False,
    on_error: Literal["fail", "dead_letter"] = "fail",
    on_lost: Literal["fail", "earliest"] = "fail",
    trim: bool = False,
    patience: Duration = "30s",
    name: str | None = None,
) -> RedisSource:
    """Read streams of Redis 7 or newer, each entry once as long as the server keeps it.

    Args:
        url: as in ``redis://me:${env:REDIS_KEY}@redis.example:6379/0``, with placeholders for secrets.
        streams: their keys.
        schema: the columns; each is the field of its name, null where an entry has none.
        json: the field with a JSON object that has the columns.
        entry_id: also a column of this name with the entry's id.
        start: where to begin what no checkpoint has: with what is there, or with what comes.
        bounded: end with the last entry that was there at the start.
        on_error: an entry that does not fit stops the job, or becomes a dead letter.
        on_lost: entries that were removed before they were read stop the job, or are a dead letter that counts them.
        trim: remove entries once every sink shows what came of them: the streams are this job's alone.
        patience: how long the server may be away before the job restarts.

    Raises:
        JobError: an argument makes no sense.

    >>> redis_source("redis://127.0.0.1:6379", "orders", schema={"id": int}).name
    'redis:orders'
    """
    keys = (streams,) if isinstance(streams, str) else tuple(streams)
    if not keys or not all(keys) or len(set(keys)) < len(keys):
        raise JobError(f"redis_source(): streams are one or more different keys, got {streams!r}")
    for option, value, allowed in (
        ("start", start, ("earliest", "latest")),
        ("on_error", on_error, ("fail", "dead_letter")),
        ("on_lost", on_lost, ("fail", "earliest")),
    ):
        if value not in allowed:
            raise JobError(f"redis_source(): {option} is {' or '.join(map(repr, allowed))}, got {value!r}")
    called = name or f"redis:{','.join(keys)}"
    decoder = EntryDecoder(schema_of(schema), json, entry_id)
    decoder.check(called)
    rules = Rules(called, on_error, on_lost, trim, micros(patience) / 1_000_000)
    return RedisSource(url, keys, decoder, start, bounded, rules)


@dataclass(frozen=True, repr=False)
class RedisSource(Source):
    """Streams of a Redis server; made by ``redis_source``."""

    url: str
    streams: tuple[str, ...]
    decoder: EntryDecoder
    start: str
    ends: bool
    rules: Rules

    def __repr__(self) -> str:
        return f"RedisSource({self.name})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.rules.source

    def identity(self) -> str:
        """Text that changes exactly when it is another source."""
        parts = urlsplit(self.url)
        return f"redis {parts.netloc.rpartition('@')[2]}{parts.path} {list(self.streams)!r}"

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields."""
        return self.decoder.columns

    @property
    def bounded(self) -> bool:
        """Whether it ends by itself."""
        return self.ends

    @property
    def order(self) -> SplitOrder:
        """All streams are read in turn."""
        return SplitOrder.CONCURRENT

    def discover(self) -> Sequence[Split]:
        """Return the streams."""
        return [Split(key) for key in self.streams]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open a stream; where it begins and ends is found out once, and kept.

        Raises:
            ExternalError: the server is away.
            JobError: it is older than Redis 7, or refuses this user.
        """
        client = driver().Redis.from_url(
            resolve(self.url), socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS, decode_responses=False
        )
        place = self._first(client, split.id) if position is None else Place(**position)
        return RedisReader(client, split.id, place, self.rules, self.decoder, context)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "by entry ids in the checkpoint: exactly once as long as the server keeps entries until they are read"

    def _first(self, client: Any, stream: str) -> Place:
        redis = driver()
        try:
            info = client.xinfo_stream(stream)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise ExternalError(f"source {self.name!r}: the server does not answer: {error}") from error
        except redis.ResponseError as error:
            if "no such key" not in str(error):
                raise JobError(f"source {self.name!r}, stream {stream!r}: {error}") from error
            return Place(BEFORE_ALL, 0, BEFORE_ALL if self.ends else None)
        if "entries-added" not in info:
            raise JobError(f"source {self.name!r}: it needs Redis 7 or newer, which counts the entries of a stream")
        last = info["last-generated-id"].decode()
        end = last if self.ends else None
        if self.start == "latest":
            return Place(last, info["entries-added"], end)
        return Place(BEFORE_ALL, info["entries-added"] - info["length"], end)
