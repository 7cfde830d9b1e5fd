"""Who steps the subtasks: worker threads in production, one seeded loop in tests and simulation."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from millstream.engine.element import BarrierKind
from millstream.engine.errors import JobHangs
from millstream.engine.runtime.build import Running
from millstream.engine.runtime.calls import SimulatedCalls, ThreadCalls
from millstream.engine.runtime.coordinator import Coordinator, Phase
from millstream.engine.runtime.subtask import Progress, Subtask
from millstream.engine.store.types import Manifest
from millstream.engine.time import ManualClock

POLL_SECONDS = 0.002
"""How long a worker that has nothing to do waits before it asks sources, and what waits for the clock, again."""

HANGS_AFTER = 30
"""Seconds after which a worker that was told to stop counts as hanging."""


class Worker(threading.Thread):
    """A loop over some subtasks."""

    def __init__(self, index: int, subtasks: Sequence[Subtask], failed: Callable[[BaseException], None]) -> None:
        super().__init__(name=f"millstream-worker-{index}", daemon=True)
        self._subtasks = tuple(subtasks)
        self._failed = failed
        self._wake = threading.Event()
        self._stopping = False

    def wake(self) -> None:
        """Something may have changed for one of the subtasks."""
        self._wake.set()

    def stop(self) -> None:
        """Leave after the current step."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Step the subtasks in turn; rest when none has anything to do."""
        try:
            while not self._stopping:
                self._wake.clear()
                if not self._round():
                    self._wake.wait(POLL_SECONDS)
        except BaseException as error:
            self._failed(error)

    def _round(self) -> bool:
        made = False
        for subtask in self._subtasks:
            if self._stopping:
                break
            made |= subtask.step() is Progress.MADE
        return made


class ThreadedScheduler:
    """Workers in threads, the coordinator in the caller's, the store in one of its own."""

    def __init__(self, workers: int) -> None:
        self._count = workers
        self.calls = ThreadCalls()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="millstream-store")
        self._failure: BaseException | None = None
        self._changed = threading.Event()

    @property
    def executor(self) -> ThreadPoolExecutor:
        """The store's thread."""
        return self._executor

    def run(
        self, running: Running, coordinator: Coordinator, *, on_tick: Callable[[], None], stop_now: Callable[[], bool]
    ) -> BarrierKind | None:
        """Run until the coordinator has ended; return how, or None when told to stop at once.

        Raises whatever a subtask, the coordinator or the store raised.
        """
        workers = self._start(running)
        try:
            outcome = self._until_ended(workers, coordinator, on_tick, stop_now)
        except BaseException as error:
            self._stop(workers, error)
            raise
        self._stop(workers, None)
        return outcome

    def _until_ended(
        self,
        workers: Sequence[Worker],
        coordinator: Coordinator,
        on_tick: Callable[[], None],
        stop_now: Callable[[], bool],
    ) -> BarrierKind | None:
        while coordinator.phase is not Phase.ENDED:
            if self._failure is not None:
                raise self._failure
            if stop_now():
                return None
            before = coordinator.phase
            moved = coordinator.step()
            if moved and before is Phase.IDLE:
                for worker in workers:
                    worker.wake()
            on_tick()
            if not moved:
                self._changed.wait(coordinator.seconds_to_wait)
                self._changed.clear()
        return coordinator.outcome

    def wake(self) -> None:
        """The coordinator has something to look at."""
        self._changed.set()

    def close(self) -> None:
        """End the calls, and wait for the store's thread."""
        self.calls.close()
        self._executor.shutdown(wait=True)

    def _start(self, running: Running) -> list[Worker]:
        workers = []
        for index in range(self._count):
            own = [s for s in running.subtasks if running.worker_of[s.name] == index]
            workers.append(Worker(index, own, self._fail))
        for producer, consumer, channel in running.channels:
            channel.connect(workers[running.worker_of[producer]].wake, workers[running.worker_of[consumer]].wake)
        for subtask in running.subtasks:
            subtask.parts.connect(workers[running.worker_of[subtask.name]].wake)
        for worker in workers:
            worker.start()
        return workers

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._changed.set()

    def _stop(self, workers: Sequence[Worker], reason: BaseException | None) -> None:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(timeout=HANGS_AFTER)
        stuck = [worker.name for worker in workers if worker.is_alive()]
        if stuck:
            # Not restarted in this process: what hangs may come back to life beside its successor.
            why = f" {reason};" if reason else ""
            raise JobHangs(
                f"{', '.join(stuck)} did not stop within {HANGS_AFTER} s:{why} a function or sink hangs, so the job "
                "cannot restart in this process; start it again, or run it with --supervise"
            ) from reason


class SimulatedExecutor:
    """Holds what the store's thread would do until the simulation lets it happen."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[], Manifest | None], Future[Manifest | None]]] = []

    def submit(self, fn: Callable[[], Manifest | None]) -> Future[Manifest | None]:
        """Queue a call."""
        future: Future[Manifest | None] = Future()
        self._waiting.append((fn, future))
        return future

    def step(self) -> bool:
        """Run the oldest call, if there is one."""
        if not self._waiting:
            return False
        fn, future = self._waiting.pop(0)
        try:
            future.set_result(fn())
        except Exception as error:
            future.set_exception(error)
        return True


class SimulatedScheduler:
    """Steps subtasks, coordinator and store one at a time, in an order drawn from a seed, on a hand-moved clock."""

    def __init__(self, seed: int, clock: ManualClock, tick: float = 0.001) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a simulation must be repeatable, not secret
        self._clock = clock
        self._tick = tick
        self.executor = SimulatedExecutor()
        self.calls = SimulatedCalls(self._random, clock)
        self.steps = 0

    def run(
        self, running: Running, coordinator: Coordinator, *, on_tick: Callable[[], None], stop_now: Callable[[], bool]
    ) -> BarrierKind | None:
        """Run until the coordinator has ended; return how, or None when told to stop at once."""
        actors: list[Callable[[], object]] = [s.step for s in running.subtasks]
        actors += [coordinator.step, self.executor.step]
        if running.works_aside:
            actors.append(self.calls.step)
        while coordinator.phase is not Phase.ENDED:
            if stop_now():
                return None
            self.steps += 1
            self._clock.advance(self._tick)
            self._random.choice(actors)()
            on_tick()
        return coordinator.outcome

    def wake(self) -> None:
        """Nobody sleeps here."""

    def close(self) -> None:
        """End the calls."""
        self.calls.close()
