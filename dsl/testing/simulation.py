"""``simulate``: a whole job on one thread, in an order drawn from a seed, crashed and resumed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from millstream.engine.runtime.coordinator import CheckpointSettings
from millstream.engine.runtime.run import Control, RunSettings, run_job
from millstream.engine.runtime.scheduler import SimulatedScheduler
from millstream.engine.time import ManualClock
from millstream.job import Job


class SimulatedCrash(BaseException):
    """Ends a simulated run as a kill would: nothing after it runs but what the next start does."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a simulation went through."""

    seed: int
    crashes: int
    steps: int


def simulate(
    make_job: Callable[[], Job],
    store: Path,
    seed: int,
    *,
    crashes: int = 3,
    parallelism: int | None = None,
    steps_between: int = 150,
) -> Simulation:
    """Run a job on one thread, in an order drawn from ``seed``, crashing it up to ``crashes`` times; then to its end.

    Everything is decided by the seed: which subtask moves, when the store gets its turn, after how many steps the
    crash comes, how many subtasks the next start has. A failing seed fails again.

    Args:
        make_job: makes the job anew for each start; its sinks must outlive it.
        store: the checkpoint file, new.
        parallelism: fixed; None: drawn anew from 1 to 3 at every start.
        steps_between: crashes come after at most so many steps.

    >>> import tempfile
    >>> import millstream as ms
    >>> out = ms.memory_sink()
    >>> def make():
    ...     job = ms.Job("j")
    ...     job.read(ms.memory_source([{"n": n} for n in range(100)])).write(out)
    ...     return job
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = simulate(make, Path(folder) / "s.duckdb", seed=7)
    >>> sorted(row["n"] for row in out.rows()) == list(range(100))
    True
    """
    draw = random.Random(seed)  # noqa: S311 - repeatable on purpose
    clock = ManualClock()
    done = steps = 0
    while True:
        plan = make_job().plan(parallelism or draw.randint(1, 3))
        scheduler = SimulatedScheduler(draw.getrandbits(32), clock)
        budget = draw.randint(1, steps_between) if done < crashes else None

        def crash_when_due(scheduler: SimulatedScheduler = scheduler, budget: int | None = budget) -> bool:
            if budget is not None and scheduler.steps >= budget:
                raise SimulatedCrash
            return False

        settings = RunSettings(store=store, checkpoints=CheckpointSettings(every=0.02), channel_capacity=2)
        try:
            run_job(
                plan,
                settings,
                control=_Crashing(crash_when_due),
                clock=clock,
                scheduler=lambda _, s=scheduler: s,  # type: ignore[misc]
                sleep=clock.advance,
            )
        except SimulatedCrash:
            done += 1
            steps += scheduler.steps
            continue
        return Simulation(seed, done, steps + scheduler.steps)


class _Crashing(Control):
    """A Control whose ``stop_now_requested`` is the crash: it is asked at every step."""

    def __init__(self, crash_when_due: Callable[[], bool]) -> None:
        super().__init__()
        self._crash_when_due = crash_when_due

    @property
    def stop_now_requested(self) -> bool:
        """Crash, or go on."""
        return self._crash_when_due()
