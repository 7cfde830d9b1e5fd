"""Brokers with the transaction coordinator of Kafka before KIP-890, the protocol that librdkafka speaks.

What each request does is that of Kafka's TransactionCoordinator, TransactionMetadata and ProducerStateManager: epochs
and fencing, CONCURRENT_TRANSACTIONS while something is being decided, markers that reach partitions one after the
other, time-outs, ids and group offsets that expire. Batches are verified against the coordinator (KIP-890's first
part, which brokers do for all clients).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from confluent_kafka import KafkaError

from kafka_model.partition import Message, Partition
from kafka_model.world import World

Place = tuple[str, int]

OK: Final = 0
DAY: Final = 86_400.0
OFFSETS_KEPT: Final = 7 * DAY
IDS_KEPT: Final = 7 * DAY
_DECIDED: Final = ("Empty", "CompleteCommit", "CompleteAbort")


@dataclass(eq=False)
class Transaction:
    """What the coordinator knows of a transactional id."""

    id: str
    producer: int
    epoch: int
    timeout: float
    state: str = "Empty"
    places: dict[Place, None] = field(default_factory=dict)
    offsets: dict[str, str] = field(default_factory=dict)
    count: int = 0
    touched: float = 0.0


@dataclass
class Topic:
    """A topic and its settings."""

    partitions: list[Partition]
    settings: dict[str, str]


class Cluster:
    """All brokers.

    Attributes:
        groups: of each group the metadata of its one offset, and when it was committed.
        on_marker: called with a place when a transaction has been decided there.
        on_complete: called when one has been decided everywhere.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.topics: dict[str, Topic] = {}
        self.transactions: dict[str, Transaction] = {}
        self.groups: dict[str, tuple[str, float]] = {}
        self.down_until = 0.0
        self.on_marker: Callable[[Place, bool], None] = lambda place, committed: None
        self.on_complete: Callable[[], None] = lambda: None
        self._producers = 0

    @property
    def down(self) -> bool:
        """Nobody answers."""
        return self.world.now < self.down_until

    def bounce(self, seconds: float) -> None:
        """Go away for some time. What is in the logs stays."""
        self.down_until = max(self.down_until, self.world.now + seconds)

    def create(self, name: str, partitions: int, settings: dict[str, str]) -> bool:
        """Make a topic, unless it is there."""
        if name in self.topics:
            return False
        self.topics[name] = Topic([Partition() for _ in range(partitions)], settings)
        return True

    def partition(self, place: Place) -> Partition:
        """Look up a partition."""
        return self.topics[place[0]].partitions[place[1]]

    # -- requests of producers: each returns an error code --------------------------------------------------------

    def init_producer(self, id: str, timeout: float) -> tuple[int, int, int]:
        """InitProducerId; returns error, producer id and epoch."""
        found = self._find(id)
        if found is None:
            self._producers += 1
            found = self.transactions[id] = Transaction(id, self._producers, -1, timeout)
        if found.state.startswith("Prepare"):
            return KafkaError.CONCURRENT_TRANSACTIONS, -1, -1
        if found.state == "Ongoing":
            self._abort(found)
            return KafkaError.CONCURRENT_TRANSACTIONS, -1, -1
        found.epoch += 1
        found.state, found.timeout, found.touched = "Empty", timeout, self.world.now
        return OK, found.producer, found.epoch

    def add_partitions(self, id: str, producer: int, epoch: int, places: Sequence[Place]) -> int:
        """AddPartitionsToTxn; begins the transaction."""
        found = self._find(id)
        error = self._refusal(found, producer, epoch)
        if error or found is None:
            return error
        if found.state.startswith("Prepare"):
            return KafkaError.CONCURRENT_TRANSACTIONS
        self._begin(found)
        found.places.update(dict.fromkeys(places))
        return OK

    def add_offsets(self, id: str, producer: int, epoch: int, group: str, metadata: str) -> int:
        """AddOffsetsToTxn and TxnOffsetCommit."""
        error = self.add_partitions(id, producer, epoch, ())
        if not error:
            self.transactions[id].offsets[group] = metadata
        return error

    def produce(self, id: str, producer: int, epoch: int, place: Place, sequence: int, messages: list[Message]) -> int:
        """Produce a batch."""
        partition = self.partition(place)
        error = partition.refusal(producer, epoch, sequence)
        if error is not None:
            return OK if error == -1 else error
        if producer not in partition.open:
            found = self._find(id)
            if self._refusal(found, producer, epoch) or found is None:
                return KafkaError.INVALID_PRODUCER_EPOCH
            if found.state != "Ongoing" or place not in found.places:
                return KafkaError.INVALID_TXN_STATE
        partition.append(producer, epoch, messages)
        return OK

    def end(self, id: str, producer: int, epoch: int, commit: bool) -> int:
        """EndTxn. Nothing tells it for which of a producer's transactions it was meant (KAFKA-17754)."""
        found = self._find(id)
        error = self._refusal(found, producer, epoch)
        if error or found is None:
            return error
        wanted = "Commit" if commit else "Abort"
        if found.state == "Ongoing":
            self._decide(found, commit)
            return OK
        if found.state == f"Prepare{wanted}":
            return KafkaError.CONCURRENT_TRANSACTIONS
        return OK if found.state == f"Complete{wanted}" else KafkaError.INVALID_TXN_STATE

    # -- transactions ----------------------------------------------------------------------------------------------

    def _find(self, id: str) -> Transaction | None:
        found = self.transactions.get(id)
        if found is not None and found.state in _DECIDED and self.world.now - found.touched > IDS_KEPT:
            del self.transactions[id]
            return None
        return found

    def _refusal(self, found: Transaction | None, producer: int, epoch: int) -> int:
        if found is None or found.producer != producer:
            return KafkaError.INVALID_PRODUCER_ID_MAPPING
        return OK if found.epoch == epoch else KafkaError.INVALID_PRODUCER_EPOCH

    def _begin(self, found: Transaction) -> None:
        if found.state == "Ongoing":
            return
        found.state, found.touched = "Ongoing", self.world.now
        found.places, found.offsets = {}, {}
        found.count += 1
        # Brokers look every ten seconds.
        self._expire(found, found.count, found.timeout + self.world.draw.uniform(0, 10))

    def _expire(self, found: Transaction, count: int, delay: float) -> None:
        def look() -> None:
            if found.state != "Ongoing" or found.count != count:
                return
            if self.down:
                self._expire(found, count, self.down_until - self.world.now + 1)
                return
            self.world.counts["transaction timed out"] += 1
            self.world.note("transaction timed out")
            self._abort(found)

        self.world.at(delay, look)

    def _abort(self, found: Transaction) -> None:
        """Fence who has begun it, and abort it."""
        found.epoch += 1
        self._decide(found, commit=False)

    def _decide(self, found: Transaction, commit: bool) -> None:
        world = self.world
        found.state = "PrepareCommit" if commit else "PrepareAbort"
        world.note(f"{found.state} of producer epoch {found.epoch}")
        left = list(found.places)

        def mark() -> None:
            if self.down:
                world.at(self.down_until - world.now + 0.1, mark)
                return
            if left:
                place = left.pop(world.draw.randrange(len(left)))
                self.partition(place).mark(found.producer, found.epoch, commit)
                self.on_marker(place, commit)
                world.at(self._lag(), mark)
                return
            if commit:
                self.groups.update({group: (metadata, world.now) for group, metadata in found.offsets.items()})
            found.state, found.touched = "CompleteCommit" if commit else "CompleteAbort", world.now
            self.on_complete()

        world.at(self._lag(), mark)

    def _lag(self) -> float:
        slow = self.world.chance("slow marker")
        return self.world.draw.uniform(1, 40) if slow else self.world.draw.uniform(0.0005, 0.004)

    # -- group offsets ---------------------------------------------------------------------------------------------

    def group_offset(self, group: str) -> tuple[int, str | None]:
        """OffsetFetch that waits for what is decided (``require_stable``); returns error and metadata."""
        if any(group in t.offsets for t in self.transactions.values() if t.state not in _DECIDED):
            return KafkaError.UNSTABLE_OFFSET_COMMIT, None
        metadata, at = self.groups.get(group, (None, 0.0))
        return OK, metadata if self.world.now - at <= OFFSETS_KEPT else None
