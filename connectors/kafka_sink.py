"""Writes rows to a Kafka topic, each exactly once: as JSON or bytes, appended, or as upserts of a compacted topic."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pyarrow as pa
from millstream.connectors.byte_size import byte_size
from millstream.connectors.kafka_committer import KafkaCommitter, Target
from millstream.connectors.kafka_connection import Brokers, blame_brokers, driver, persistently
from millstream.connectors.kafka_messages import KEY, Encoders, Messages, Shape
from millstream.connectors.kafka_progress import Progress, progress_name, topic_settings
from millstream.connectors.kafka_writers import OutboxMessages, SentAtOnce
from millstream.connectors.outbox import Generations, check_keys, outbox_table
from millstream.connectors.outbox_marker import Publisher
from millstream.connectors.schema_values import SchemaValues
from millstream.connectors.value_encoding import Encoding
from millstream.engine.changelog import is_changelog
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.logs import log
from millstream.engine.sink import Committer, NothingToCommit, Sink, SinkContext, SinkKind, SinkWriter
from millstream.engine.state import StateTable
from millstream.engine.time import Duration, micros

_MOST_BYTES: Final = 1_000_000
"""That a client sends in a message, unless told otherwise."""
_SECONDS: Final = 30.0


def kafka_sink(  # noqa: PLR0913
    brokers: str | Sequence[str],
    topic: str,
    *,
    key: str | Sequence[str] | None = None,
    key_as: SchemaValues | None = None,
    value: Literal["json", "csv", "raw"] | SchemaValues = "json",
    column: str | None = None,
    headers: Mapping[str, str] | None = None,
    timestamp: str | None = None,
    partition: str | None = None,
    mode: Literal["append", "upsert"] | None = None,
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once",
    again: bool = False,
    progress: str | None = None,
    transaction_bytes: int | str = "256MB",
    patience: Duration = "60s",
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> KafkaSink:
    """Write rows to a Kafka topic, exactly once for readers of what is committed (``read_committed``).

    The messages of an epoch wait in the checkpoint. After it is committed they are sent, together with the epoch's
    number for the topic ``progress``, in one Kafka transaction: readers see an epoch whole or not at all.

    Args:
        brokers: ``"host:port"`` of some of the brokers, separated by commas or as a list.
        topic: it must be there.
        key: the column with messages' keys, whose partitions are those that Kafka's Java client chooses; several
            columns make a JSON object. None: messages have no key, and partitions take turns.
        key_as: ``avro_values(...)`` or ``protobuf_values(...)``: what keys are. None: text, bytes or JSON, as above.
        value: ``json``: a JSON object of the row; ``csv``: a record without header; ``raw``: the text or the bytes of
            ``column`` (None: ``value``); or ``avro_values(...)`` or ``protobuf_values(...)``.
        headers: from the name of a header to the column it comes from.
        timestamp: the column with messages' times; None: when they are sent.
        partition: the column that says which partition a row goes to.
        mode: ``append``: a message for each row; ``upsert``: of each epoch and key the last row, and of a changelog a
            message without value, a tombstone, for a key that is gone. None: upsert for a changelog with a key.
        delivery: ``at_least_once``: messages are sent at once, and again after a crash.
        again: the job may start anew beside what it has written from another store.
        progress: the topic with the numbers, made if it is not there; None: ``millstream.JOB.TOPIC``.
        transaction_bytes: an epoch with more than that takes several transactions.
        patience: how long to try again while the brokers are away, before the job restarts.
        settings: librdkafka's, as in ``{"security.protocol": "SASL_SSL", "sasl.password": "${env:KAFKA_PASSWORD}"}``.

    Raises:
        JobError: an argument makes no sense.

    >>> kafka_sink("broker.example:9092", "orders", key="id")
    KafkaSink(kafka:orders)
    """
    keys = (key,) if isinstance(key, str) else tuple(key or ())
    _check_choices(topic, value, column, mode, delivery)
    _check_keys(keys, key_as, mode, delivery)
    kind, encoding = _encoding(topic, value)
    of_key = None if key_as is None else Encoding(key_as, key_as.subject_of(topic, "key"), lone=True)
    shape = Shape(keys, kind, column or "value", dict(headers or {}), timestamp, partition, encoding, of_key)
    cluster = Brokers(brokers if isinstance(brokers, str) else ",".join(brokers), dict(settings or {}))
    options = Options(mode, delivery, again, progress, byte_size(transaction_bytes), micros(patience) / 1e6)
    return KafkaSink(cluster, topic, shape, options, name or f"kafka:{topic}")


def _check_choices(topic: str, value: str | SchemaValues, column: str | None, mode: str | None, delivery: str) -> None:
    if value not in ("json", "csv", "raw") and not isinstance(value, SchemaValues):
        raise JobError(
            "kafka_sink(): value must be 'json', 'csv' or 'raw', or avro_values(...) or protobuf_values(...), got "
            f"{value!r}"
        )
    if value != "raw" and column is not None:
        raise JobError(f"kafka_sink(): column= is for value='raw'; others are made of all columns, got {column!r}")
    if mode not in ("append", "upsert", None):
        raise JobError(f"kafka_sink(): mode must be 'append' or 'upsert', got {mode!r}")
    if delivery not in ("exactly_once", "at_least_once"):
        raise JobError(f"kafka_sink(): delivery must be 'exactly_once' or 'at_least_once', got {delivery!r}")
    if not topic:
        raise JobError("kafka_sink(): the topic has no name")


def _check_keys(keys: Sequence[str], key_as: object, mode: str | None, delivery: str) -> None:
    if mode == "upsert" and not (keys and delivery == "exactly_once"):
        raise JobError("kafka_sink(): upserts need key= and delivery='exactly_once'")
    if key_as is not None and not isinstance(key_as, SchemaValues):
        raise JobError(f"kafka_sink(): key_as must be avro_values(...) or protobuf_values(...), got {key_as!r}")
    if key_as is not None and not keys:
        raise JobError("kafka_sink(): key_as= says what keys are, and there are none: say of which columns, with key=")


def _encoding(topic: str, value: str | SchemaValues) -> tuple[str, Encoding | None]:
    """Return the word for what values are, and how they are encoded if the word does not say it all."""
    if isinstance(value, SchemaValues):
        return value.kind, Encoding(value, value.subject_of(topic, "value"))
    return value, Encoding() if value == "csv" else None


@dataclass(frozen=True, slots=True)
class Options:
    """How a topic is written to; as the arguments of ``kafka_sink``, ``patience`` in seconds."""

    mode: str | None
    delivery: str
    again: bool
    progress: str | None
    transaction_bytes: int
    patience: float


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What is known of the topic since the start.

    Attributes:
        most_bytes: that topic and client allow a message.
        compacted: it takes no messages without a key.
        encoders: of values and keys.
    """

    partitions: int
    most_bytes: int
    compacted: bool
    encoders: Encoders


@dataclass(frozen=True, slots=True)
class _Checked:
    """The topics of running generations as they were found at the start; their writers need not ask again."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    facts: dict[tuple[str, int], TopicFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class KafkaSink(Sink):
    """A topic; made by ``kafka_sink``."""

    brokers: Brokers
    topic: str
    shape: Shape
    options: Options
    given_name: str
    _generations: Generations = field(default_factory=Generations, compare=False)
    _checked: _Checked = field(default_factory=_Checked, compare=False)

    def __repr__(self) -> str:
        return f"KafkaSink({self.name})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.given_name

    def identity(self) -> str:
        """Text that changes exactly when it is another destination; brokers may move."""
        return f"kafka {self.topic!r} {self.options.delivery} by {list(self.shape.keys)!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect once."""
        return SinkKind.OUTBOX if self._once else SinkKind.AT_LEAST_ONCE

    @property
    def takes_changelog(self) -> bool:
        """With a key it does: a row that is taken back leaves a tombstone."""
        return bool(self.shape.keys) and self._once and self.options.mode != "append"

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when no messages can be made of rows of this schema."""
        try:
            self.shape.check(schema)
        except SchemaError as error:
            raise SchemaError(f"{self.name}: {error}") from None
        if self._upserts(schema):
            check_keys(self.name, schema, self.shape.keys)

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy.

        Raises:
            ExternalError: the brokers are away.
            JobError: the topic is not there, or does not fit.
        """
        facts = self._facts(schema, context)
        needs_key = facts.compacted or self._upserts(schema)
        first = context.subtask % facts.partitions
        messages = Messages(
            self.name,
            self.shape,
            facts.partitions,
            facts.most_bytes,
            needs_key=needs_key,
            first=first,
            encoders=facts.encoders,
        )
        if not self._once:
            return SentAtOnce(self.name, self.brokers, self.topic, messages, facts.most_bytes, self.options.patience)
        keys = (KEY,) if self._upserts(schema) else ()
        of = self.shape.message_schema(schema)
        return OutboxMessages(self.name, of, keys, context, self._generations.of(context), messages)

    def committer(self, schema: pa.Schema, context: SinkContext) -> Committer:
        """Make the committer, which takes over from earlier starts.

        Raises:
            ExternalError: the brokers are away.
            JobError: the topic is ahead of the store, or has messages of this job from another store.
        """
        facts = self._facts(schema, context)
        if not self._once:
            return NothingToCommit()
        options = self.options
        publisher = Publisher(self.name, f"topic {self.topic!r}", context)
        kept = options.progress or progress_name(context.job, self.topic)
        progress = Progress(self.brokers, publisher, kept, self.topic, options.again)
        target = Target(self.brokers, self.topic, self._upserts(schema), options.transaction_bytes, options.patience)
        return KafkaCommitter(target, progress, self._generations.of(context), facts.most_bytes)

    def state_tables(self, schema: pa.Schema) -> tuple[StateTable, ...]:
        """Declare what is kept of epochs."""
        del schema
        return (outbox_table(),) if self._once else ()

    def columns_needed(self, schema: pa.Schema) -> frozenset[str]:
        """The columns that messages are made of."""
        return self.shape.columns(schema)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        if self._once:
            return (
                "exactly once: messages wait in the checkpoint and are sent with the epoch's number in one "
                "transaction; readers with isolation.level=read_committed see it whole"
            )
        return "at least once: messages are sent at once, and again after a crash"

    @property
    def _once(self) -> bool:
        return self.options.delivery == "exactly_once"

    def _upserts(self, schema: pa.Schema) -> bool:
        return self.options.mode == "upsert" or is_changelog(schema)

    def _facts(self, schema: pa.Schema, context: SinkContext) -> TopicFacts:
        """Return the topic, checked."""
        key = (context.job_id, context.generation)
        with self._checked.lock:
            found = self._checked.facts.get(key)
            if found is None:
                with blame_brokers(self.name, f"looking at topic {self.topic!r}", self.brokers):
                    encoders = self._encoders(schema)
                    found = persistently(lambda: self._look(encoders), self.name, self.options.patience, self.brokers)
                self._checked.facts.clear()
                self._checked.facts[key] = found
            return found

    def _encoders(self, schema: pa.Schema) -> Encoders:
        """Settle how messages are encoded, before the first is: what waits in the checkpoint names its schemas."""
        shape = self.shape
        try:
            values = None if shape.encoding is None else shape.encoding.start(shape.value_schema(schema))
            keys = None if shape.key_encoding is None else shape.key_encoding.start(shape.key_schema(schema))
        except (SchemaError, JobError) as error:
            raise type(error)(f"{self.name}: {error}") from None
        return Encoders(values, keys)

    def _look(self, encoders: Encoders) -> TopicFacts:
        kafka = driver()
        admin = self.brokers.admin()
        topic = admin.list_topics(self.topic, timeout=_SECONDS).topics[self.topic]
        if topic.error is not None and topic.error.code() == kafka.KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise JobError(
                f"{self.name}: there is no topic {self.topic!r} at {self.brokers.addresses}. How many partitions it "
                "has, and how often they are kept, is for you to decide: kafka-topics.sh --create --topic "
                f"{self.topic} --partitions 6 --replication-factor 3 --config min.insync.replicas=2"
            )
        if topic.error is not None:
            raise kafka.KafkaException(topic.error)
        found = topic_settings(admin, self.topic)
        compacted = "compact" in found.get("cleanup.policy", "")
        if compacted and not self.shape.keys:
            raise JobError(f"{self.name}: topic {self.topic!r} is compacted and takes no messages without key=")
        if self.options.mode == "upsert" and found and not compacted:
            log.warning("upserts go to a Kafka topic that is not compacted", sink=self.name, topic=self.topic)
        allowed = int(self.brokers.settings.get("message.max.bytes", _MOST_BYTES))
        most = min(allowed, int(found.get("max.message.bytes", allowed)))
        return TopicFacts(len(topic.partitions), most, compacted, encoders)
