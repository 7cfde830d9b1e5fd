"""Three real Kafka brokers that are one cluster: what is acknowledged is on two of them at least."""

from __future__ import annotations

import uuid
from types import TracebackType
from typing import Any

from servers.kafka import Broker, Clients

SIZE = 3
_PROPERTIES = {
    "default.replication.factor": SIZE,
    "min.insync.replicas": SIZE - 1,
    "offsets.topic.replication.factor": SIZE,
    "transaction.state.log.replication.factor": SIZE,
    "transaction.state.log.min.isr": SIZE - 1,
    "unclean.leader.election.enable": "false",
    "replica.lag.time.max.ms": 2000,
    "num.io.threads": 2,
}


class Cluster(Clients):
    """The brokers; a context manager.

    Attributes:
        brokers: by their ids.
    """

    replicas = SIZE

    def __init__(self) -> None:
        self.brokers = {node: Broker(_PROPERTIES) for node in range(1, SIZE + 1)}
        self.address = ",".join(broker.address for broker in self.brokers.values())
        self.client = {}
        voters = ",".join(f"{node}@127.0.0.1:{broker.controller}" for node, broker in self.brokers.items())
        for node, broker in self.brokers.items():
            broker.heap = "256m"
            broker.settings |= {"node.id": node, "controller.quorum.voters": voters}

    def __enter__(self) -> Cluster:
        try:
            name = uuid.uuid4().hex[:22]
            for broker in self.brokers.values():
                broker.format(name)
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for broker in self.brokers.values():
            broker.__exit__(kind, error, trace)

    def start(self) -> None:
        """Start those that do not run, and wait until they answer."""
        stopped = [broker for broker in self.brokers.values() if not broker.runs]
        for broker in stopped:
            broker.launch()
        for broker in stopped:
            broker.wait()

    def kill(self, *nodes: int) -> None:
        """SIGKILL."""
        for node in nodes:
            self.brokers[node].kill()

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return the id of the broker that leads a partition; -1: none does."""
        return int(self._partition(topic, partition).leader)

    def in_sync(self, topic: str) -> bool:
        """Whether every broker has all of a topic."""
        admin = self.admin
        partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions.values()
        return all(len(partition.isrs) == SIZE and partition.leader > 0 for partition in partitions)

    def _partition(self, topic: str, partition: int) -> Any:
        admin = self.admin
        return admin.list_topics(topic, timeout=10).topics[topic].partitions[partition]
