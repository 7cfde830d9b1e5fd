"""The Kafka source: partitions are splits, and offsets are in the checkpoint."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import pyarrow as pa
from millstream.connectors.csv_decoder import CsvDialect, check_csv_types
from millstream.connectors.kafka_connection import Brokers, driver
from millstream.connectors.kafka_keys import KeyFormat, PlainKeys, key_format
from millstream.connectors.kafka_metadata import KEY_TYPES, METADATA_TYPES
from millstream.connectors.message_decoders import RAW_COLUMN, JsonMessages
from millstream.connectors.schema_values import SchemaValues
from millstream.connectors.value_format import PlainFormat, ValueFormat, value_format
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.source import Position, ReadContext, Source, Split, SplitOrder, SplitReader

if TYPE_CHECKING:
    from millstream.connectors.kafka_reader import Cluster, OnError, OnLost
    from millstream.connectors.kafka_topics import Place, Topics
    from millstream.engine.expression import Expr

Start: TypeAlias = Literal["earliest", "latest"] | dt.datetime
Value: TypeAlias = Literal["json", "csv", "string", "raw"]
Key: TypeAlias = Literal["binary", "string", "int32", "int64"]

_CHOICES: Final = {
    "value": ("json", "csv", "string", "raw"),
    "key": tuple(KEY_TYPES),
    "tombstones": ("keep", "skip"),
    "on_error": ("fail", "dead_letter"),
    "on_lost": ("fail", "earliest"),
}
_OURS: Final = {
    "group.id": "pass group=",
    "auto.offset.reset": "pass start= and on_lost=",
    "enable.auto.commit": "offsets are kept in the checkpoint",
    "enable.auto.offset.store": "offsets are kept in the checkpoint",
    "enable.partition.eof": "the source needs to know where a partition ends",
}


def kafka_source(  # noqa: PLR0913 - all but the first two by name
    brokers: str | Sequence[str],
    topic: str | Sequence[str],
    *,
    schema: Schema | None = None,
    value: Value | SchemaValues = "json",
    metadata: Sequence[str] | Mapping[str, str] = (),
    key: Key | SchemaValues = "binary",
    start: Start = "earliest",
    bounded: bool = False,
    tombstones: Literal["keep", "skip"] = "keep",
    on_error: OnError = "fail",
    on_lost: OnLost = "fail",
    group: str | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    delimiter: str = ",",
    quote: str | None = '"',
    null_values: Sequence[str] = ("",),
) -> KafkaSource:
    """Read topics of Apache Kafka, or of what speaks its protocol; needs ``pip install 'millstream[kafka]'``.

    Every partition is a split, and the offset in each is part of the checkpoint: after a crash every message comes
    exactly once more or not at all. Partitions that are added later are read from their beginning.

    Args:
        brokers: ``"host:port"`` of some of the brokers, separated by commas or as a list.
        topic: the name of a topic, or several.
        schema: the columns of the value, as in ``{"id": "int64"}``, of CSV in order; unless ``value`` says it all.
        value: what values are: "json" (an object each), "csv" (a record each), "string" or "raw", one column
            ``value``; or ``avro_values(...)`` or ``protobuf_values(...)``.
        metadata: more columns: "key", "timestamp" (of the message, in UTC), "headers", "topic", "partition", "offset";
            as a list, or a mapping to the names the columns get, as in ``{"timestamp": "at"}``.
        key: what keys are: "binary", "string", or "int32" and "int64" as Kafka has them; or as for ``value``, a struct.
        start: where a job without a checkpoint begins: "earliest", "latest" or a time (UTC if it has no zone).
        bounded: end where the partitions end when the job begins.
        tombstones: what becomes of messages without a value: "keep" makes a row with nulls, "skip" passes them over.
        on_error: what becomes of a message that does not fit: "fail" stops the job with its place; "dead_letter"
            puts it aside in the store (table ``dead_letters``), with its place and its bytes, and goes on.
        on_lost: where the broker has removed unread messages: "fail" stops the job; "earliest" leaves a dead letter.
        group: a consumer group, whose offsets follow the checkpoints, for tools that show lag. Nothing is read by it.
        settings: for librdkafka, such as ``{"security.protocol": "SASL_SSL", "sasl.password": "${env:SECRET}"}``.
        name: how plans and logs call it; otherwise the topics.
        delimiter, quote, null_values: of CSV, as for ``files``.

    Raises:
        JobError, ExternalError: the options contradict each other, or the client library or registry is not there.

    >>> kafka_source("localhost:9092", "orders", schema={"item": str}, metadata={"timestamp": "at"}).schema.names
    ['item', 'at']
    """
    topics = (topic,) if isinstance(topic, str) else tuple(topic)
    called = name or ", ".join(topics)
    _check(called, topics, start, value=value, key=key, tombstones=tombstones, on_error=on_error, on_lost=on_lost)
    values = _values(called, value, schema, CsvDialect(delimiter, quote, False, tuple(null_values)), topics[0])
    kinds = _metadata_columns(called, metadata, values.fields)
    keys = _keys(called, key, kinds, topics[0])
    columns = _columns(values.fields, kinds, keys.type)
    client = _Client(*_reached(called, brokers, settings or {}), topics, group, called, start, bounded)
    return KafkaSource(called, topics, columns, kinds, values, keys, tombstones, on_error, on_lost, client)


class _Client:
    """What the readers of a source share in this process, made when it is first needed."""

    def __init__(
        self,
        brokers: Brokers,
        isolation: str,
        topics: tuple[str, ...],
        group: str | None,
        source: str,
        start: Start,
        bounded: bool,
    ) -> None:
        self._brokers = brokers
        self._topics = topics
        self._group = group
        self._isolation = isolation
        self._source = source
        self.start = start
        self.bounded = bounded
        self._lock = threading.Lock()
        self._cluster: Cluster | None = None
        self._bounds: dict[Place, tuple[int | None, int | None]] | None = None

    @property
    def cluster(self) -> Cluster:
        """The clients, and what is known of the topics."""
        with self._lock:
            if self._cluster is None:
                self._cluster = self._connect()
            return self._cluster

    def splits(self) -> Sequence[Split]:
        """Return the partitions there are; when the job begins, find out where they begin and end."""
        cluster = self.cluster
        begins = self._bounds is None or cluster.consumer.idle
        found = cluster.topics.partitions(anew=begins)
        if begins:
            self._bounds = self._look_up(cluster.topics, [partition.place for partition in found])
        return [partition.split() for partition in found]

    def bounds(self, place: Place, *, new: bool) -> tuple[int | None, int | None]:
        """Return where a partition begins that has never been read, and where it ends.

        Args:
            place: topic and partition.
            new: it was not there when the job began. Then all of it is read, or nothing if the job ends with what
                was there.
        """
        if self._bounds is None:
            self.splits()
        assert self._bounds is not None
        of_new = (None, 0 if self.bounded else None)
        return of_new if new else self._bounds.get(place, of_new)

    def _look_up(self, topics: Topics, places: Sequence[Place]) -> dict[Place, tuple[int | None, int | None]]:
        ends: Mapping[Place, int] = topics.ends(places) if self.bounded or self.start == "latest" else {}
        starts: Mapping[Place, int] = ends if self.start == "latest" else {}
        if isinstance(self.start, dt.datetime):
            at = self.start if self.start.tzinfo else self.start.replace(tzinfo=dt.UTC)
            starts = topics.since(places, round(at.timestamp() * 1000))
        return {place: (starts.get(place), ends.get(place) if self.bounded else None) for place in places}

    def _connect(self) -> Cluster:
        from millstream.connectors.kafka_consumer import SharedConsumer
        from millstream.connectors.kafka_reader import Cluster
        from millstream.connectors.kafka_topics import GroupOffsets, Topics

        ours = {
            "group.id": self._group or "millstream",
            "auto.offset.reset": "error",
            "enable.auto.offset.store": False,
            "isolation.level": self._isolation,
        }
        topics = Topics(self._brokers, self._topics, self._source, self._isolation == "read_committed")
        group = GroupOffsets(topics, self._group, self._source) if self._group else None
        return Cluster(SharedConsumer(self._brokers, ours, self._source), topics, group)


@dataclass(frozen=True, slots=True, eq=False)
class KafkaSource(Source):
    """Topics; made by ``kafka_source``."""

    given_name: str
    topics: tuple[str, ...]
    columns: pa.Schema
    metadata: Mapping[str, str]
    values: ValueFormat
    keys: KeyFormat
    tombstones: str
    on_error: OnError
    on_lost: OnLost
    client: _Client = field(repr=False)

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """The topics, and whether it ends: a partition that has been read to its end is not opened again."""
        return f"kafka {list(self.topics)!r}" + (" to the end" if self.client.bounded else "")

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields."""
        return self.columns

    @property
    def bounded(self) -> bool:
        """Whether it ends where the partitions ended when the job began."""
        return self.client.bounded

    @property
    def order(self) -> SplitOrder:
        """All partitions at once."""
        return SplitOrder.CONCURRENT

    def discover(self) -> Sequence[Split]:
        """Return the partitions there are.

        Raises:
            ExternalError: a topic is not there, or the cluster does not answer.
        """
        return self.client.splits()

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open a partition at an offset."""
        from millstream.connectors.kafka_reader import KafkaReader, Rules, Stretch
        from millstream.connectors.kafka_rows import Columns, RowDecoder

        topic, _, number = split.id.rpartition("/")
        place = (topic, int(number))
        if position is None:
            stretch = Stretch(*self.client.bounds(place, new=not context.starts_anew))
        else:
            stretch = Stretch.of(position)
        columns = Columns(self.columns, self.metadata, self.tombstones == "keep")
        keys = self.keys.decoder() if "key" in self.metadata.values() else None
        rows = RowDecoder(columns, self.values.decoder(columns.of_value), keys, *place)
        rules = Rules(self.name, self.on_error, self.on_lost)
        return KafkaReader(self.client.cluster, place, stretch, rows, rules, context)

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        """Return a source that decodes only these columns, and of the value at least one: it has to be looked at."""
        wanted = set(columns) | (set(predicate.columns()) if predicate is not None else set())
        wanted |= {event_time} if event_time is not None else set()
        of_value = [f for f in self.columns if f.name not in self.metadata]
        kept = [f for f in of_value if f.name in wanted] or of_value[:1]
        kept += [f for f in self.columns if f.name in wanted and f.name in self.metadata]
        metadata = {column: kind for column, kind in self.metadata.items() if column in wanted}
        return replace(self, columns=pa.schema(kept), metadata=metadata)

    def guarantee(self) -> str:
        """What is read again after a crash."""
        return "replayable: the offset in every partition is in the checkpoint"


def _check(source: str, topics: Sequence[str], start: object, **chosen: object) -> None:
    driver()
    if not topics or not all(topics) or len(set(topics)) < len(topics):
        raise JobError(f"kafka_source() takes a topic or several different ones, got {list(topics)!r}")
    for option, choice in chosen.items():
        known = _CHOICES[option]
        of_schema = option in ("value", "key")
        if choice not in known and not (of_schema and isinstance(choice, SchemaValues)):
            others = ", or avro_values(...) or protobuf_values(...)" if of_schema else ""
            known_ones = " or ".join(map(repr, known)) + others
            raise JobError(f"kafka_source({source!r}): {option} is {known_ones}, got {choice!r}")
    if start not in ("earliest", "latest") and not isinstance(start, dt.datetime):
        raise JobError(f"kafka_source({source!r}): start is 'earliest', 'latest' or a datetime, got {start!r}")


def _reached(source: str, brokers: str | Sequence[str], settings: Mapping[str, Any]) -> tuple[Brokers, str]:
    """Return how the brokers are reached, and the isolation level."""
    for setting in settings:
        if setting in _OURS:
            raise JobError(f"kafka_source({source!r}): {setting!r} cannot be set: {_OURS[setting]}")
    others = {setting: value for setting, value in settings.items() if setting != "isolation.level"}
    addresses = brokers if isinstance(brokers, str) else ",".join(brokers)
    return Brokers(addresses, others), settings.get("isolation.level", "read_committed")


def _values(
    source: str, value: Value | SchemaValues, schema: Schema | None, dialect: CsvDialect, topic: str
) -> ValueFormat:
    if isinstance(value, str):
        return PlainFormat(value, _value_schema(source, value, schema), dialect)
    try:
        declared = None if schema is None else _named_columns(source, schema)
        return value_format(value, value.subject_of(topic, "value"), declared)
    except (JobError, SchemaError) as error:
        raise JobError(f"kafka_source({source!r}): {error}") from None


def _keys(source: str, key: Key | SchemaValues, metadata: Mapping[str, str], topic: str) -> KeyFormat:
    if isinstance(key, str):
        return PlainKeys(KEY_TYPES[key])
    if "key" not in metadata.values():
        raise JobError(f"kafka_source({source!r}): key= says what keys are, and no column has them: metadata=['key']")
    try:
        return key_format(key, topic)
    except (JobError, SchemaError) as error:
        raise JobError(f"kafka_source({source!r}): key: {error}") from None


def _value_schema(source: str, value: Value, schema: Schema | None) -> pa.Schema:
    if value in {"string", "raw"}:
        if schema is not None:
            raise JobError(f"kafka_source({source!r}): value={value!r} has the column {RAW_COLUMN!r}; leave schema out")
        return pa.schema({RAW_COLUMN: pa.string() if value == "string" else pa.binary()})
    if schema is None:
        raise JobError(
            f"kafka_source({source!r}): say which columns the values have, as in schema={{'id': int, 'name': str}}"
        )
    columns = _named_columns(source, schema)
    if value == "csv":
        check_csv_types(columns)
    else:
        JsonMessages(columns)
    return columns


def _named_columns(source: str, schema: Schema) -> pa.Schema:
    columns = schema_of(schema)
    if not len(columns) or len(set(columns.names)) < len(columns):
        raise JobError(f"kafka_source({source!r}): schema needs one or more columns, each of another name")
    return columns


def _columns(fields: pa.Schema, metadata: Mapping[str, str], key: pa.DataType) -> pa.Schema:
    types = {**METADATA_TYPES, "key": key}
    return pa.schema([*fields, *(pa.field(column, types[kind]) for column, kind in metadata.items())])


def _metadata_columns(
    source: str, metadata: Sequence[str] | Mapping[str, str], of_value: pa.Schema
) -> Mapping[str, str]:
    """Return what each column is that does not come out of the value."""
    if isinstance(metadata, str):
        metadata = (metadata,)
    wanted = dict(metadata) if isinstance(metadata, Mapping) else {kind: kind for kind in metadata}
    unknown = sorted(wanted.keys() - METADATA_TYPES.keys())
    if unknown:
        raise JobError(
            f"kafka_source({source!r}): metadata {', '.join(map(repr, unknown))} is not known; there are "
            f"{', '.join(METADATA_TYPES)}"
        )
    names = [*of_value.names, *wanted.values()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise JobError(
            f"kafka_source({source!r}): there would be two columns {', '.join(map(repr, twice))}; give those of the "
            "metadata other names, as in metadata={'timestamp': 'sent_at'}"
        )
    return {column: kind for kind, column in wanted.items()}
