"""What a Kafka cluster says of topics: their partitions, where these begin and end; and what a group has read."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec
from millstream.connectors.kafka_connection import Brokers, blame_brokers, code_of, explained, may_pass
from millstream.engine.errors import ExternalError, MillstreamError
from millstream.engine.logs import log
from millstream.engine.source import Split

Place: TypeAlias = tuple[str, int]
"""Topic and partition."""

_PATIENCE: Final = 10.0
"""Seconds in which an answer must have come."""
_LOOK_EVERY: Final = 5.0
"""Seconds between two looks for new partitions."""
_TELL_EVERY: Final = 1.0
"""Seconds between two commits to the group."""
_RIGHTS: Final = "Reading takes the rights DESCRIBE and READ on the topic"
_NO_ID: Final = "AAAAAAAAAAAAAAAAAAAAAA"


@dataclass(frozen=True, slots=True)
class Found:
    """A partition.

    Attributes:
        place: topic and partition.
        topic_id: tells the topic from one of the same name that was there before; None if the cluster has no such ids.
    """

    place: Place
    topic_id: str | None

    def split(self) -> Split:
        """As the engine takes it. Where another topic has taken the name of one that was read, the engine sees it."""
        return Split(f"{self.place[0]}/{self.place[1]}", {"topic_id": self.topic_id} if self.topic_id else {})


class Topics:
    """The topics of a source, as the cluster knows them. Any thread may call.

    Args:
        brokers: where to ask.
        topics: their names.
        source: what errors call the source.
        read_committed: the end is where the first open transaction begins, not that of the log.
    """

    def __init__(self, brokers: Brokers, topics: Sequence[str], source: str, read_committed: bool) -> None:
        self._brokers = brokers
        self._topics = list(topics)
        self._source = source
        self._isolation = IsolationLevel.READ_COMMITTED if read_committed else IsolationLevel.READ_UNCOMMITTED
        self._lock = threading.Lock()
        self._client: AdminClient | None = None
        self._known: list[Found] = []
        self._looking: list[Future[Any]] = []
        self._look_at = 0.0

    def partitions(self, *, anew: bool) -> Sequence[Found]:
        """Return the partitions, topic by topic: those there are now, or else those of the last look.

        Args:
            anew: wait for the answer. If not, it is asked for every few seconds, and taken when it is there.

        Raises:
            ExternalError: the cluster does not answer, or a topic is not there.
            JobError: it refuses to.
        """
        with self._lock:
            if anew or not self._known:
                self._look()
                self._known = self._found()
            elif not self._looking and time.monotonic() >= self._look_at:
                self._look()
            elif self._looking and all(future.done() for future in self._looking):
                self._known = self._found()
            return list(self._known)

    def starts(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Return the offsets of the first messages that are there."""
        return self._offsets(dict.fromkeys(places, OffsetSpec.earliest()))

    def ends(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Return the offsets after the last messages that can be read."""
        return self._offsets(dict.fromkeys(places, OffsetSpec.latest()))

    def since(self, places: Sequence[Place], milliseconds: int) -> Mapping[Place, int]:
        """Return the offsets of the first messages that are not older than a time; the end if there are none."""
        found = dict(self._offsets(dict.fromkeys(places, OffsetSpec.for_timestamp(milliseconds))))
        none = [place for place in places if found[place] < 0]
        return {**found, **(self.ends(none) if none else {})}

    def commit(self, group: str, offsets: Mapping[Place, int]) -> Future[Any]:
        """Tell the cluster up to where a group has read."""
        places = [TopicPartition(*place, offset) for place, offset in offsets.items()]
        asked = self._ask().alter_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)])
        future: Future[Any] = asked[group]
        return future

    def _ask(self) -> AdminClient:
        if self._client is None:
            self._client = self._brokers.admin()
        self._client.poll(0)  # for what the client has to say
        return self._client

    def _look(self) -> None:
        asked = self._ask().describe_topics(TopicCollection(self._topics), request_timeout=_PATIENCE)
        self._looking = list(asked.values())
        self._look_at = time.monotonic() + _LOOK_EVERY

    def _found(self) -> list[Found]:
        looking, self._looking = self._looking, []
        found: list[Found] = []
        for topic, future in zip(self._topics, looking, strict=True):
            try:
                described = future.result()
            except KafkaException as error:
                if self._known and may_pass(error) and not _is_unknown(error):
                    return self._known
                self._known = []  # the next generation of the job asks anew
                raise self._no_topic(topic, error) from None
            topic_id = str(described.topic_id)
            partitions = sorted(partition.id for partition in described.partitions)
            found += [Found((topic, number), None if topic_id == _NO_ID else topic_id) for number in partitions]
        return found

    def _no_topic(self, topic: str, error: KafkaException) -> MillstreamError:
        if _is_unknown(error):
            return ExternalError(f"{self._what}: there is no topic {topic!r}; create it, or correct its name")
        try:
            with blame_brokers(self._what, f"looking up topic {topic!r}", self._brokers, advice=_RIGHTS):
                raise error
        except MillstreamError as blamed:
            return blamed

    def _offsets(self, specs: Mapping[Place, OffsetSpec]) -> Mapping[Place, int]:
        if not specs:
            return {}
        asked = {TopicPartition(*place): spec for place, spec in specs.items()}
        with blame_brokers(self._what, "looking up where partitions begin and end", self._brokers, advice=_RIGHTS):
            answers = self._ask().list_offsets(asked, isolation_level=self._isolation, request_timeout=_PATIENCE)
            return {(at.topic, at.partition): future.result().offset for at, future in answers.items()}

    @property
    def _what(self) -> str:
        return f"Kafka source {self._source!r}"


class GroupOffsets:
    """Keeps the offsets of a consumer group up to date, for tools that show how far behind a reader is.

    What is read does not depend on them, so a failure is logged and no more. Any thread may call.
    """

    def __init__(self, topics: Topics, group: str, source: str) -> None:
        self._topics = topics
        self._group = group
        self._source = source
        self._lock = threading.Lock()
        self._noted: dict[Place, int] = {}
        self._asked: Future[Any] | None = None
        self._tell_at = 0.0
        self._failed = False

    def note(self, place: Place, offset: int) -> None:
        """A checkpoint that covers everything below the offset is durable."""
        with self._lock:
            self._noted[place] = offset

    def tell(self) -> None:
        """Commit what is noted, if it is time to, without waiting."""
        with self._lock:
            if self._asked is not None and self._asked.done():
                self._take_answer()
            if self._noted and self._asked is None and time.monotonic() >= self._tell_at:
                self._send()

    def tell_now(self) -> None:
        """Commit what is noted, and wait for it."""
        with self._lock:
            if self._asked is not None:
                self._take_answer()
            if self._noted:
                self._send()
                self._take_answer()

    def _send(self) -> None:
        noted, self._noted = self._noted, {}
        self._tell_at = time.monotonic() + _TELL_EVERY
        try:
            self._asked = self._topics.commit(self._group, noted)
        except KafkaException as error:
            self._warn(error)

    def _take_answer(self) -> None:
        asked, self._asked = self._asked, None
        if asked is None:
            return
        try:
            answer = asked.result(_PATIENCE)
        except (KafkaException, TimeoutError) as error:
            self._warn(error)
            return
        refused = [at.error for at in answer.topic_partitions if at.error is not None]
        if refused:
            self._warn(KafkaException(refused[0]))
        else:
            self._failed = False

    def _warn(self, error: Exception) -> None:
        if not self._failed:
            log.warning(
                "cannot commit offsets to the Kafka group; only tools that show lag need them",
                source=self._source,
                group=self._group,
                error=explained(error),
            )
        self._failed = True


def _is_unknown(error: KafkaException) -> bool:
    return code_of(error) == "UNKNOWN_TOPIC_OR_PART"
