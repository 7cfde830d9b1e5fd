"""A trial with the whole engine: a job with its DuckDB store, on one thread, that writes to the model of Kafka."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import millstream as ms
import pyarrow as pa
from millstream.engine.errors import MillstreamError
from millstream.engine.runtime.coordinator import CheckpointSettings
from millstream.engine.runtime.run import Control, RunSettings, run_job
from millstream.engine.runtime.scheduler import SimulatedScheduler
from millstream.engine.time import ManualClock

from kafka_model.broker import Cluster
from kafka_model.clients import ModelBrokers
from kafka_model.trial import PROGRESS, RATES, TOPIC, virtual
from kafka_model.world import Process, World

_PARTITIONS = 2
_SPLITS = 2
_ROWS = 60


class JobTrial:
    """The operator: starts the job anew whenever it has died."""

    def __init__(self, seed: int, store: Path) -> None:
        world = self.world = World(seed, 0)
        draw = world.draw
        world.budget = draw.randint(5, 25)
        world.patience = 400_000
        world.rates = {name: draw.choice(rates) for name, rates in RATES.items()}
        # It is asked at every step of the engine, of which there are many.
        world.rates |= {"freeze": world.rates["freeze"] / 20, "idle for days": 0.0}
        self._store = store
        self._rows = [{"to": n % 3 % _PARTITIONS, "v": f"{n * _SPLITS // _ROWS} {n}"} for n in range(_ROWS)]
        self._cluster = Cluster(world)
        self._cluster.create(TOPIC, _PARTITIONS, {"cleanup.policy": "delete"})
        self._cluster.on_marker = lambda place, committed: self._check(whole=False)
        self.looked = 0

    def run(self) -> Counter[str]:
        """Run to the end, and check it."""
        world = self.world
        world.at(0, self._start)
        if world.draw.random() < 0.5:
            world.at(world.draw.uniform(0, 1), lambda: self._cluster.bounce(world.draw.choice((0.5, 40.0))))
        world.run()
        self._check(whole=True)
        return world.counts

    def _start(self) -> None:
        world = self.world
        crash_at = int(world.draw.expovariate(1 / world.draw.choice((50, 200, 600)))) + 1
        process = world.process(f"start {world.counts['start'] + 1}", crash_at)
        world.counts["start"] += 1
        process.spawn(lambda: self._main(process))

    def _main(self, process: Process) -> None:
        world = self.world
        refusal: MillstreamError | None = None
        clock = _Clock(world)
        settings = RunSettings(store=self._store, checkpoints=CheckpointSettings(every=0.02), channel_capacity=2)
        try:
            run_job(
                self._job().plan(world.draw.randint(1, 3)),
                settings,
                control=_Stepping(world),
                clock=clock,
                scheduler=lambda _: SimulatedScheduler(world.draw.getrandbits(32), clock),
                sleep=world.sleep,
            )
        except MillstreamError as error:
            refusal = error
        finally:
            ended = refusal
            finished = not process.dead and refusal is None
            world.at(world.draw.choice((0.01, 1.0, 100.0)), lambda: None if finished else self._again(ended))

    def _again(self, refusal: MillstreamError | None) -> None:
        if refusal is not None:
            self.world.note(f"gave up: {refusal}")
            if "failed" not in str(refusal):
                self.world.fail(f"the job may not go on: {refusal}")
        if self.world.failure is None:
            self._start()

    def _job(self) -> ms.Job:
        sink = ms.kafka_sink("model:1", TOPIC, value="raw", column="v", partition="to", progress=PROGRESS)
        job = ms.Job("shop")
        batches = [pa.RecordBatch.from_pylist(self._rows[start : start + 3]) for start in range(0, _ROWS, 3)]
        source = ms.memory_source(batches, splits=_SPLITS)
        job.read(source).write(dataclasses.replace(sink, brokers=ModelBrokers("model:1", cluster=self._cluster)))
        return job

    def _check(self, whole: bool) -> None:
        """Of each split readers see the first rows, in each partition, or all."""
        self.looked += 1
        for number, partition in enumerate(self._cluster.topics[TOPIC].partitions):
            seen = [(entry.value or b"").decode() for entry in partition.committed()]
            wanted = [row["v"] for row in self._rows if row["to"] == number]
            for split in {str(value).split()[0] for value in wanted}:
                of_split = [value for value in seen if value.startswith(split)]
                expected = [value for value in wanted if str(value).startswith(split)]
                if of_split != expected[: len(of_split)] or (whole and len(of_split) < len(expected)):
                    self.world.fail(f"readers see {of_split} of split {split}, and there is {expected}")


def run_with_engine(seed: int, store: Path) -> Counter[str]:
    """Run a trial. Raises Violation, with what led to it."""
    trial = JobTrial(seed, store)
    with virtual(trial.world, {}):
        return trial.run()


class _Clock(ManualClock):
    """The world's time; moving it lets others run."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def advance(self, seconds: float) -> None:
        self._world.sleep(seconds)

    def monotonic(self) -> float:
        return self._world.now

    def wall(self) -> int:
        return int(self._world.now * 1_000_000)


class _Stepping(Control):
    """A Control whose ``stop_now_requested`` is a place to die at: it is asked at every step."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    @property
    def stop_now_requested(self) -> bool:
        self._world.step("step")
        return False
