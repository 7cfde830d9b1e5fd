"""Virtual time, processes that crash and freeze, and faults: all of it drawn from one seed.

Processes run in threads of their own, so that one can be stopped in the middle of any call and go on later, but only
one thread ever runs at a time: which one, and until when, is decided here.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any


class Crash(BaseException):
    """Ends a process as a kill would: nothing of it has an effect any more."""


class Violation(AssertionError):
    """What must not happen has happened."""


class Process:
    """What dies and freezes as a whole.

    Attributes:
        crash_at: the step before which it dies; None: it does not.
        crash_in: only steps at places whose names begin so count.
        frozen_until: nothing of it runs before.
        on_frozen: told for how long it has just been frozen.
    """

    def __init__(self, world: World, name: str, crash_at: int | None, crash_in: str) -> None:
        self.world = world
        self.name = name
        self.crash_at = crash_at
        self.crash_in = crash_in
        self.dead = False
        self.steps = 0
        self.frozen_until = 0.0
        self.on_frozen: Callable[[float], None] = lambda seconds: None
        self.tasks: list[Task] = []

    def spawn(self, work: Callable[[], None]) -> None:
        """Begin a thread of this process."""
        task = Task(self, work)
        self.tasks.append(task)
        self.world.at(0, task.waker())

    def kill(self) -> None:
        """From now on nothing of it has an effect; its threads unwind when their turn comes."""
        self.dead = True
        for task in self.tasks:
            if not task.ended and task is not self.world.current:
                self.world.at(0, task.waker())


class Task:
    """One thread of a process. It runs between ``resume`` and its next wait, and nothing else runs then."""

    def __init__(self, process: Process, work: Callable[[], None]) -> None:
        self.process = process
        self.ended = False
        self._work = work
        self._awaited = 0
        self._baton = threading.Semaphore(0)
        self._thread: threading.Thread | None = None

    def waker(self) -> Callable[[], None]:
        """Return what lets it go on, once; what was returned before does nothing any more."""
        self._awaited += 1
        awaited = self._awaited
        return lambda: self._resume(awaited)

    def _resume(self, awaited: int) -> None:
        if self.ended or awaited != self._awaited:
            return
        world = self.process.world
        if self.process.frozen_until > world.now and not self.process.dead:
            world.at(self.process.frozen_until - world.now, self.waker())
            return
        world.current = self
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, daemon=True)
            self._thread.start()
        else:
            self._baton.release()
        world.turn.acquire()
        world.current = None

    def wait(self) -> None:
        """Let others run until woken. Raises Crash if the process has died meanwhile."""
        self.process.world.turn.release()
        self._baton.acquire()
        if self.process.dead:
            raise Crash

    def _main(self) -> None:
        world = self.process.world
        try:
            if not self.process.dead:
                self._work()
        except Crash:
            pass
        except BaseException as error:
            world.failure = world.failure or error
        self.ended = True
        world.turn.release()


class World:
    """The clock, what is to happen, and what goes wrong.

    Attributes:
        budget: after so many faults there are no more, and everything must come to its end.
        patience: after so many events nobody gets anywhere any more.
        rates: how likely a fault is, by name.
        counts: how often each has happened, and other things worth counting.
        crashed_at: where processes have died.
        trace: the last things that happened.
    """

    def __init__(self, seed: int, budget: int) -> None:
        self.seed = seed
        self.draw = random.Random(seed)
        self.budget = budget
        self.patience = 60_000
        self.rates: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.crashed_at: set[str] = set()
        self.trace: deque[str] = deque(maxlen=300)
        self.now = 0.0
        self.turn = threading.Semaphore(0)
        self.current: Task | None = None
        self.failure: BaseException | None = None
        self.processes: list[Process] = []
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0

    # -- time ------------------------------------------------------------------------------------------------------

    def at(self, delay: float, work: Callable[[], object]) -> None:
        """Have something happen later."""
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, work))

    def sleep(self, seconds: float) -> None:
        """Let the running task's time pass."""
        task = self.task
        until = self.now + seconds
        if (not self._events or self._events[0][0] > until) and task.process.frozen_until <= until:
            self._number += 1
            self._check_stuck()
            self.now = until
            return
        self.at(seconds, task.waker())
        task.wait()

    def run(self) -> None:
        """Run until nothing is left to happen; raises what a process or a check has raised."""
        try:
            while self._events and self.failure is None:
                self._check_stuck()
                when, _, work = heapq.heappop(self._events)
                self.now = max(self.now, when)
                work()
        finally:
            self._unwind()
        if self.failure is not None:
            raise self.failure

    def _check_stuck(self) -> None:
        if self._number > self.patience:
            self.fail("nobody gets anywhere")

    def _unwind(self) -> None:
        for process in self.processes:
            process.kill()
        while self._events:
            self._number = 0
            _, _, work = heapq.heappop(self._events)
            if getattr(work, "__qualname__", "").startswith("Task."):
                work()

    # -- processes -------------------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """The one that runs."""
        assert self.current is not None
        return self.current

    def process(self, name: str, crash_at: int | None, crash_in: str = "") -> Process:
        """Make a process."""
        process = Process(self, name, crash_at, crash_in)
        self.processes.append(process)
        return process

    def step(self, place: str) -> None:
        """The running process has come to a place where it may die or freeze."""
        process = self.task.process
        if process.dead:
            raise Crash
        process.steps += place.startswith(process.crash_in)
        self.note(place)
        if process.crash_at is not None and process.steps >= process.crash_at and not self.calm:
            self.fault("crash")
            self.crashed_at.add(place)
            process.kill()
            raise Crash
        if self.chance("freeze"):
            seconds = self.draw.choice((0.02, 0.5, 4.0, 25.0, 70.0, 200.0))
            process.frozen_until = self.now + seconds
            process.on_frozen(seconds)
            self.sleep(seconds)

    # -- faults ----------------------------------------------------------------------------------------------------

    @property
    def calm(self) -> bool:
        """Nothing goes wrong any more."""
        return self.budget <= 0

    def chance(self, name: str, times: float = 1.0) -> bool:
        """Whether a fault happens now."""
        rate = self.rates.get(name, 0.0) * times
        if self.calm or not rate or self.draw.random() >= rate:
            return False
        self.fault(name)
        return True

    def fault(self, name: str) -> None:
        """One has happened."""
        self.budget -= 1
        self.counts[name] += 1
        self.note(f"*** {name}")

    def note(self, what: str) -> None:
        """Remember what happened."""
        who = self.current.process.name if self.current is not None else "-"
        self.trace.append(f"{self.now:14.3f} {who:8} {what}")

    def fail(self, what: str) -> None:
        """Raises Violation, and ends the run even if somebody catches it."""
        story = "\n".join(self.trace)
        violation = Violation(f"seed {self.seed}: {what}\n{story}\nseed {self.seed}: {what}")
        self.failure = self.failure or violation
        raise violation


class Later:
    """A ``concurrent.futures.Future`` as far as ``Producers`` needs it, which waits in virtual time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: list[Task] = []
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def set_result(self, value: Any) -> None:
        self._set(value, None)

    def set_exception(self, error: BaseException) -> None:
        self._set(None, error)

    def _set(self, value: Any, error: BaseException | None) -> None:
        self._value, self._error, self._done = value, error, True
        for task in self._waiting:
            self._world.at(0, task.waker())

    def result(self) -> Any:
        while not self._done:
            self._waiting.append(self._world.task)
            self._world.task.wait()
        if self._error is not None:
            raise self._error
        return self._value
