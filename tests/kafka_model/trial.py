"""One trial: a job that writes to Kafka is run to its end, whatever goes wrong; all of it drawn from a seed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from millstream.connectors.kafka_sink import KafkaSink, kafka_sink
from millstream.engine import failpoints
from millstream.engine.errors import MillstreamError

from kafka_model.broker import DAY, Cluster
from kafka_model.clients import ModelBrokers
from kafka_model.neighbour import Neighbour
from kafka_model.oracle import Oracle
from kafka_model.start import Job, Start
from kafka_model.store import Store
from kafka_model.world import Later, Process, World

TOPIC, PROGRESS = "orders", "millstream.shop.orders"


@dataclass(frozen=True)
class Mutation:
    """A protocol that is wrong, in one place.

    Attributes:
        patches: what is replaced in the connector, by the name of its place.
        published_first: see ``Job``.
    """

    patches: Mapping[str, Any] = field(default_factory=dict)
    published_first: bool = False


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a trial went through.

    Attributes:
        counts: of each kind of fault, of starts, and of fail points.
        crashed_at: where processes have died.
        deepest: how many starts in a row ended before they had recovered, at most.
        looked: how often what readers see was checked.
        trace: the last things that happened.
    """

    counts: Counter[str]
    crashed_at: frozenset[str]
    deepest: int
    looked: int
    trace: tuple[str, ...]


def run(seed: int, mutation: Mutation | None = None) -> Ledger:
    """Run a trial. Raises Violation, with what led to it."""
    mutation = mutation or Mutation()
    trial = Trial(seed, mutation)
    with virtual(trial.world, mutation.patches):
        return trial.run()


class Trial:
    """The operator: starts the job, and starts it again when it has died, or seems to have."""

    def __init__(self, seed: int, mutation: Mutation) -> None:
        world = self.world = World(seed, budget=0)
        draw = world.draw
        world.budget = draw.randint(5, 40)
        world.rates = {name: draw.choice(rates) for name, rates in RATES.items()}
        self._crashes = draw.choice((0.3, 0.8, 0.95))
        self._copies = draw.choice((0.0, 0.5, 0.9))
        self.cluster = Cluster(world)
        self.cluster.create(TOPIC, draw.randint(1, 3), {"cleanup.policy": "delete"})
        self._parts = draw.random() < 0.3
        self._job = Job(draw.randint(6, 24), len(self.cluster.topics[TOPIC].partitions), mutation.published_first)
        self._stores = [Store("a")]
        self._oracle = Oracle(self.cluster, TOPIC, PROGRESS, self._stores, whole=not self._parts)
        self._running: dict[str, Process] = {}
        self._current: Process | None = None
        self._finished = False
        self._refusals = 0
        self._depth = self._deepest = 0

    def run(self) -> Ledger:
        """Run to the end, and check it."""
        world = self.world
        world.at(0, lambda: self._start(self._stores[0]))
        for _ in range(world.draw.choice((0, 0, 1, 3))):
            world.at(world.draw.uniform(0, 20), self._bounce)
        for _ in range(6):
            world.at(world.draw.uniform(0, 60), self._compact)
        neighbour = Neighbour(self.cluster, PROGRESS, TOPIC)
        for _ in range(world.draw.choice((0, 0, 5))):
            world.at(world.draw.uniform(0, world.draw.choice((2, 100))), neighbour.begin)
        world.run()
        self._oracle.check_end(self._job.rows)
        return Ledger(world.counts, frozenset(world.crashed_at), self._deepest, self._oracle.seen, tuple(world.trace))

    # -- processes -------------------------------------------------------------------------------------------------

    def _start(self, store: Store) -> None:
        if self._finished:
            return
        old = self._running.get(store.name)
        if old is not None:
            old.kill()  # the store's lock would keep out a second one
        draw = self.world.draw
        name = f"{store.name}{store.generation + 1}"
        death = self._death() if draw.random() < self._crashes else (None, "")
        process = self.world.process(name, *death)
        process.on_frozen = lambda seconds: self._frozen(process, store, seconds)
        self._running[store.name] = self._current = process
        self.world.counts["start"] += 1
        start = Start(self.world, self._job, store, self._make_sink)
        process.spawn(lambda: self._main(process, store, start))

    def _death(self) -> tuple[int, str]:
        """When a process is to die: at any step, or at a place where it matters most."""
        draw = self.world.draw
        if draw.random() < 0.5:
            return int(draw.expovariate(1 / draw.choice((6, 25, 80)))) + 1, ""
        return draw.randint(1, 3), draw.choice(_DANGEROUS)

    def _make_sink(self) -> KafkaSink:
        sink = kafka_sink(
            "model:1", TOPIC, value="raw", column="v", partition="to", transaction_bytes=200 if self._parts else "256MB"
        )
        return dataclasses.replace(sink, brokers=ModelBrokers("model:1", cluster=self.cluster))

    def _main(self, process: Process, store: Store, start: Start) -> None:
        refusal: MillstreamError | None = None
        try:
            start.run()
        except MillstreamError as error:
            refusal = error
        finally:
            # Also after a crash: the operator sees that it is gone.
            ended = refusal
            finished = not process.dead and refusal is None
            self.world.at(0, lambda: self._ended(process, store, start, ended, finished))

    def _ended(
        self, process: Process, store: Store, start: Start, refusal: MillstreamError | None, finished: bool
    ) -> None:
        world = self.world
        process.kill()
        current = process is self._current
        if finished:
            self._finished = self._finished or current
            return
        if world.failure is not None or self._finished:
            return
        if refusal is not None:
            world.note(f"{process.name} gives up: {refusal}")
        if not current:
            if self._running.get(store.name) is process and world.chance("restarted elsewhere", 10):
                self._take_turns(store)
            return
        self._depth = 0 if start.recovered else self._depth + 1
        self._deepest = max(self._deepest, self._depth)
        if refusal is not None and not refusal.restartable:
            self._refused(store, refusal)
            return
        world.at(self._downtime(), lambda: self._start_unless(process, store))

    def _start_unless(self, process: Process, store: Store) -> None:
        if self._current is process:
            self._start(store)

    def _take_turns(self, store: Store) -> None:
        """A process that has been given up, but has lived on with its own store, is started again."""
        self.world.at(self.world.draw.uniform(0, 20), lambda: self._start(store))

    def _refused(self, store: Store, refusal: MillstreamError) -> None:
        """Another copy of the store must be the one that goes on."""
        self._refusals += 1
        self.world.counts["refused"] += 1
        if len(self._stores) == 1 or self._refusals > 20 * len(self._stores):
            self.world.fail(f"nobody may go on: {refusal}")
        # A copy that may not go on has still counted its starts: the right one may have to catch up with it.
        late = "has been seen in" in str(refusal)
        other = store if late else self._stores[(self._stores.index(store) + 1) % len(self._stores)]
        self.world.at(1.0, lambda: self._start(other))

    def _downtime(self) -> float:
        if self.world.chance("down for days", 5):
            return 8 * DAY
        return self.world.draw.choice((0.01, 0.01, 1.0, 5.0, 70.0, 1000.0))

    def _frozen(self, process: Process, store: Store, seconds: float) -> None:
        """A process does not answer: perhaps it is given up, and a copy of its store takes over."""
        if process is not self._current or len(self._stores) >= 4 or self.world.draw.random() >= self._copies:
            return
        self.world.counts["taken over"] += 1
        copy = store.copy("abcd"[len(self._stores)])
        self._stores.append(copy)
        self.world.at(self.world.draw.uniform(0.1, 1.2) * seconds, lambda: self._start_unless(process, copy))

    # -- brokers ---------------------------------------------------------------------------------------------------

    def _bounce(self) -> None:
        self.world.fault("brokers away")
        self.cluster.bounce(self.world.draw.choice((0.5, 5.0, 40.0, 150.0)))

    def _compact(self) -> None:
        if PROGRESS in self.cluster.topics:
            self.cluster.topics[PROGRESS].partitions[0].compact()


_DANGEROUS = (
    "recovery", "commit again", "prepared", "epoch", "init", "fetch", "add", "produce", "commit", "commit answered",
    "kafka.fenced", "kafka.begun", "kafka.sent", "kafka.visible",
)  # fmt: skip

RATES = {
    "freeze": (0.0, 0.01, 0.03),
    "lost": (0.0, 0.01, 0.05),
    "late": (0.0, 0.01, 0.05),
    "repeated": (0.0, 0.01, 0.05),
    "unanswered": (0.0, 0.01, 0.05),
    "slow marker": (0.0, 0.02, 0.1),
    "queue full": (0.0, 0.05),
    "store failed": (0.0, 0.1),
    "idle for days": (0.0, 0.05),
    "down for days": (0.0, 0.02),
    "restarted elsewhere": (0.0, 0.05),
    "failed at": (0.0, 0.01),
}


@contextmanager
def virtual(world: World, patches: Mapping[str, Any]) -> Iterator[None]:
    """Put the connector's clock, threads and fail points under the world's control."""

    def thread(target: Callable[[], None], name: str, daemon: bool) -> Any:
        process = world.task.process
        return SimpleNamespace(start=lambda: process.spawn(target))

    def hit(name: str) -> None:
        if world.task.process.dead:
            return  # what it lets go of here the system would have taken from it
        world.counts[name] += 1
        world.step(name)
        if world.chance("failed at"):
            raise failpoints.FailpointError(name)

    clock = SimpleNamespace(monotonic=lambda: world.now, sleep=world.sleep)
    connectors = "millstream.connectors."
    own = {
        **{
            f"{connectors}{module}.time": clock
            for module in ("patience", "kafka_producers", "kafka_progress", "kafka_sending")
        },
        f"{connectors}patience.random": world.draw,
        f"{connectors}kafka_producers.threading": SimpleNamespace(Thread=thread),
        f"{connectors}kafka_producers.Future": lambda: Later(world),
        "millstream.engine.failpoints._armed": {"": None},
        "millstream.engine.failpoints._act": hit,
    }
    with ExitStack() as stack:
        for target, replacement in {**own, **patches}.items():
            stack.enter_context(mock.patch(target, replacement))
        yield
