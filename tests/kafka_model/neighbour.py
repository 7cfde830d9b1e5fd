"""Another sink of the same job, which keeps its marker in the same topic: its transactions hold up readers there."""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec
from millstream.connectors.kafka_progress import Record

from kafka_model.broker import OK, Cluster, Place

_ID: Final = "millstream-j1-s2"
KEY: Final = b"j1/s2"


class Neighbour:
    """Writes a marker now and then; ends its transaction soon, late, or not at all."""

    def __init__(self, cluster: Cluster, topic: str, target: str) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._place: Place = (topic, 0)
        self._target = target
        self._epoch = 0

    def begin(self) -> None:
        """Write a marker, if the brokers let it."""
        cluster, world = self._cluster, self._world
        if self._place[0] not in cluster.topics or cluster.down:
            return
        error, producer, epoch = cluster.init_producer(_ID, 60.0)
        if error != OK:
            return
        self._epoch += 1
        record = Record(
            job="shop", job_id="j1", sink_id="s2", target=self._target, epoch=self._epoch, generation=1, owner="n"
        )
        cluster.add_partitions(_ID, producer, epoch, [self._place])
        cluster.produce(_ID, producer, epoch, self._place, 0, [(KEY, msgspec.json.encode(record))])
        world.counts["neighbour"] += 1
        commit = world.draw.random() < 0.7
        world.at(world.draw.choice((0.002, 0.1, 5.0, 45.0, 100.0)), partial(cluster.end, _ID, producer, epoch, commit))
