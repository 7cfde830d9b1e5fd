"""Jobs on a clock moved by hand, fed with numbers when the test says so."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
from millstream.engine.runtime.coordinator import CheckpointSettings
from millstream.engine.runtime.run import Control, RunSettings, run_job
from millstream.engine.runtime.scheduler import SimulatedScheduler
from millstream.engine.source import ReadContext, Source, Split, SplitEnd, SplitReader
from millstream.testing import ManualClock

SCHEMA = pa.schema({"n": pa.int64()})


def rows(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch({"n": numbers}, schema=SCHEMA)


class Faucet(Source):
    """Yields the numbers that are put in, when they are put in; ends when told to."""

    name = "faucet"
    schema = SCHEMA

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.ended = False

    def identity(self) -> str:
        return "faucet"

    def discover(self) -> list[Split]:
        return [Split("all")]

    def open(self, split: Split, position: Any, context: ReadContext) -> SplitReader:
        return _Tap(self, position or 0)


class _Tap(SplitReader):
    def __init__(self, faucet: Faucet, position: int) -> None:
        self._faucet = faucet
        self._next = position

    def read(self) -> pa.RecordBatch | SplitEnd:
        if self._next < len(self._faucet.numbers):
            self._next += 1
            return rows(self._faucet.numbers[self._next - 1])
        return SplitEnd.FINISHED if self._faucet.ended else SplitEnd.PENDING

    def position(self) -> int:
        return self._next


class Bench:
    """A job on a clock moved by hand, started and stopped as often as a test wants."""

    def __init__(self, folder: Path, make: Callable[[ms.Stream], ms.Stream]) -> None:
        self.faucet, self.clock, self.out = Faucet(), ManualClock(), ms.memory_sink()
        self._make = make
        self._store = folder / "job.duckdb"
        self._draw = random.Random(3)

    def run(self, until: float | None, *, stop: bool = True) -> str:
        """Run until the clock has reached ``until`` seconds (None: to the end), then stop, or crash."""
        job = ms.Job("by the clock")
        self._make(job.read(self.faucet)).write(self.out)
        bench = self

        class Until(Control):
            @property
            def stop_requested(self) -> bool:
                return stop and until is not None and bench.clock.monotonic() >= until

            @property
            def stop_now_requested(self) -> bool:
                return not stop and until is not None and bench.clock.monotonic() >= until

        return run_job(
            job.plan(self._draw.randint(1, 3)),
            RunSettings(store=self._store, checkpoints=CheckpointSettings(every=0.5)),
            control=Until(),
            clock=self.clock,
            scheduler=lambda _: SimulatedScheduler(self._draw.getrandbits(32), self.clock, tick=0.01),
            sleep=self.clock.advance,
        ).outcome
