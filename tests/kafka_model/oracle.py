"""What must hold: a reader of what is committed sees, at any time, epochs of one store, each once, whole, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from millstream.connectors.kafka_progress import Record

from kafka_model.broker import Cluster, Place
from kafka_model.neighbour import KEY
from kafka_model.store import Store


class Oracle:
    """Watches the topics.

    Args:
        stores: all copies of the store there are; any of them may turn out to be the one that goes on.
        whole: epochs are visible whole as soon as a transaction is decided; else they may come in parts.
    """

    def __init__(self, cluster: Cluster, topic: str, progress: str, stores: Sequence[Store], whole: bool) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._topic = topic
        self._progress = progress
        self._stores = stores
        self._whole = whole
        self._marker = (0, 0)
        self.seen = 0
        cluster.on_marker = self._decided
        cluster.on_complete = self._complete

    def visible(self) -> list[list[str]]:
        """What a reader sees of each partition."""
        partitions = self._cluster.topics[self._topic].partitions
        return [[(entry.value or b"").decode() for entry in p.committed()] for p in partitions]

    def _decided(self, place: Place, committed: bool) -> None:
        if not committed:
            return
        if place[0] == self._progress:
            self._check_marker()
        else:
            self._check(self._is_prefix)

    def _complete(self) -> None:
        deciding = any(t.state.startswith("Prepare") for t in self._cluster.transactions.values())
        if self._whole and not deciding:
            self._check(self._is_whole)

    def check_end(self, rows: int) -> None:
        """One store has got through all rows, and all of it is there."""
        self._check(lambda s: s.position == rows and self._wanted(s, len(s.epochs)) == self.visible())

    def _check(self, holds: Callable[[Store], bool]) -> None:
        self.seen += 1
        if any(holds(store) for store in self._stores):
            return
        known = "\n".join(f"store {s.name}: {self._wanted(s, len(s.epochs))}" for s in self._stores)
        self._world.fail(f"readers see {self.visible()}, which is nothing that a store knows:\n{known}")

    def _wanted(self, store: Store, epochs: int) -> list[list[str]]:
        found: list[list[str]] = [[] for _ in self._cluster.topics[self._topic].partitions]
        for epoch in store.epochs[:epochs]:
            for partition, value in epoch.rows:
                found[partition].append(value)
        return found

    def _is_prefix(self, store: Store) -> bool:
        pairs = zip(self.visible(), self._wanted(store, len(store.epochs)), strict=True)
        return all(seen == wanted[: len(seen)] for seen, wanted in pairs)

    def _is_whole(self, store: Store) -> bool:
        seen = self.visible()
        return any(seen == self._wanted(store, count) for count in range(len(store.epochs) + 1))

    def _check_marker(self) -> None:
        entries = self._cluster.topics[self._progress].partitions[0].committed()
        entries = [entry for entry in entries if entry.key != KEY]
        if not entries:
            return
        last = msgspec.json.decode(entries[-1].value or b"", type=Record)
        marker = (last.epoch, last.messages if last.part else 0)
        if marker < self._marker:
            self._world.fail(f"the marker went down from {self._marker} to {marker}")
        self._marker = marker
