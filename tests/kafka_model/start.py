"""A process that runs the job: it plays the engine around the real Kafka sink, in the engine's order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
from millstream.connectors.kafka_sink import KafkaSink
from millstream.engine.errors import MillstreamError
from millstream.engine.sink import Committable, Committer, SinkContext, SinkWriter

from kafka_model.store import Row, Store
from kafka_model.world import World

SCHEMA = pa.schema([("to", pa.int32()), ("v", pa.string())])
_RESTARTS = 3


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        rows: how many messages there are in all.
        partitions: of the topic.
        published_first: an epoch is published before it is committed, which is wrong.
    """

    rows: int
    partitions: int
    published_first: bool = False


class Start:
    """One process.

    Args:
        make_sink: makes the sink, which lives as long as the process.
    """

    def __init__(self, world: World, job: Job, store: Store, make_sink: Callable[[], KafkaSink]) -> None:
        self._world = world
        self._job = job
        self._store = store
        self._make_sink = make_sink
        self.recovered = False

    def run(self) -> None:
        """Run to the end, restarting after failures that may pass.

        Raises:
            MillstreamError: the job has failed.
        """
        sink = self._make_sink()
        in_a_row = 0
        while True:
            try:
                self._generation(sink)
            except MillstreamError as error:
                if not error.restartable or in_a_row >= _RESTARTS:
                    raise
                self._world.note(f"restarting: {error}")
                self._world.sleep(0.5 * 2**in_a_row)
                in_a_row += 1
            else:
                return

    def _generation(self, sink: KafkaSink) -> None:
        store, world = self._store, self._world
        world.step("recovery")
        store.generation += 1
        context = SinkContext("shop", "j1", "s1", store.generation, 0, 1, store.last)
        sink.check(SCHEMA)
        committer = sink.committer(SCHEMA, context)
        try:
            if store.epochs:
                world.step("commit again")
                committer.commit(store.last, store.epochs[-1].committables)
            committer.discard_uncommitted()
            writer = sink.writer(SCHEMA, context)
            if store.outbox:
                state = pa.record_batch({"one": [0], "epoch": [store.outbox]})
                writer.restore("outbox", [state], store.outbox)
            self.recovered = True
            self._epochs(committer, writer)
        finally:
            committer.close()

    def _epochs(self, committer: Committer, writer: SinkWriter) -> None:
        world, store, job = self._world, self._store, self._job
        held: list[Row] = []
        carried: list[Committable] = []
        outbox: int | None = None
        number = store.last
        while store.position < job.rows:
            number += 1
            self._idle()
            rows = self._read(store.position + len(held))
            held += rows
            for batch in _batches(rows, world.draw.randint(1, 3)):
                writer.write(batch)
            carried += writer.prepare(number, store.position + len(held) == job.rows)
            for delta in writer.snapshot(number).values():
                outbox = delta.rows["epoch"][0].as_py()
            world.step("prepared")
            if job.published_first:
                committer.commit(number, carried)
            if world.chance("store failed"):
                continue
            store.commit(number, held, carried, outbox)
            world.step(f"epoch {number} of {store.name} committed")
            if carried and not job.published_first:
                committer.commit(number, carried)
            world.step(f"epoch {number} of {store.name} published")
            held, carried = [], []

    def _idle(self) -> None:
        """Wait for rows, mostly not for long."""
        if self._world.chance("idle for days"):
            self._world.sleep(8 * 86_400.0)
        else:
            self._world.sleep(self._world.draw.choice((0.01, 0.1, 1.0)))

    def _read(self, position: int) -> list[Row]:
        """Return some of the next rows. Their values say who has made them: another start would not make the same."""
        world = self._world
        count = min(self._job.rows - position, world.draw.choice((0, 1, 2, 5, 8)))
        maker = f"{self._store.name}{self._store.generation}"
        return [((n * 7 // 3) % self._job.partitions, f"{n} {maker}") for n in range(position, position + count)]


def _batches(rows: list[Row], count: int) -> list[pa.RecordBatch]:
    step = max(1, -(-len(rows) // count))
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    return [pa.record_batch([[p for p, _ in part], [v for _, v in part]], schema=SCHEMA) for part in parts]
