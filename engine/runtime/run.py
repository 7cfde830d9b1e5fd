"""Runs a job from start to end: recovery, generations, restarts."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from millstream.engine.element import BarrierKind, Epoch, Generation
from millstream.engine.errors import JobFailed, MillstreamError, StateMismatch
from millstream.engine.failpoints import hit
from millstream.engine.graph import Node, Write
from millstream.engine.logs import log
from millstream.engine.operator import Calls
from millstream.engine.plan import Plan
from millstream.engine.recovery import CommitAgain, Refuse, Resume, StartFresh, decide
from millstream.engine.runtime.build import Builder, Running
from millstream.engine.runtime.coordinator import CheckpointSettings, Coordinator, Executor, publish
from millstream.engine.runtime.inquiries import Inquiries
from millstream.engine.runtime.letters import LetterLimit, check_replayable
from millstream.engine.runtime.monitor import JobStatus, look
from millstream.engine.runtime.scheduler import ThreadedScheduler
from millstream.engine.sink import SinkContext
from millstream.engine.store.savepoints import begin_from, check_begun_from
from millstream.engine.store.server import QueryServer
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import StoreFacts
from millstream.engine.time import Clock, SystemClock

HEALTHY_SECONDS = 60.0
"""A generation that ran so long before it failed starts the count of restarts anew."""


class Scheduler(Protocol):
    """What a generation is run by."""

    @property
    def executor(self) -> Executor:
        """Where the store's work is done."""
        ...

    @property
    def calls(self) -> Calls:
        """Where operators' coroutines run."""
        ...

    def run(
        self, running: Running, coordinator: Coordinator, *, on_tick: Callable[[], None], stop_now: Callable[[], bool]
    ) -> BarrierKind | None:
        """Run a generation to its end."""
        ...

    def wake(self) -> None:
        """An acknowledgement has come."""
        ...

    def close(self) -> None:
        """Let go of threads, and cancel calls."""
        ...


class Control:
    """How to stop a running job from another thread or a signal handler."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._stop_now = threading.Event()

    def stop(self) -> None:
        """Take a last checkpoint, commit it, and end."""
        self._stop.set()

    def stop_now(self) -> None:
        """End at once, without a last checkpoint; nothing is lost, the next run goes on from the one before."""
        self._stop_now.set()
        self._stop.set()

    def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until ``stop`` is called."""
        # In steps: a signal handler that calls `stop` while its own thread waits for the event would hang in it.
        until = time.monotonic() + seconds
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    @property
    def stop_requested(self) -> bool:
        """Whether the job should end after a last checkpoint."""
        return self._stop.is_set()

    @property
    def stop_now_requested(self) -> bool:
        """Whether the job should end without one."""
        return self._stop_now.is_set()


@dataclass(frozen=True)
class RunSettings:
    """How to run a job.

    Attributes:
        store: the checkpoint file; None keeps checkpoints only as long as the job runs.
        restarts: how often to restart in a row after a failure that may pass.
        backoff: seconds before the first restart; doubled each time.
        on_status: called now and then with a fresh JobStatus.
        status_every: seconds between two such calls.
        moved_from: the folder, resolved, that held what the job reads and writes until all of it was moved.
        drop_state: names or ids of operators, sources and sinks whose state may be lost where it does not fit.
        start_from: ``FILE``, ``STORE@EPOCH`` or ``STORE@SAVEPOINT``: what a new store begins with.
    """

    store: Path | None = None
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    restarts: int = 3
    backoff: float = 0.5
    on_status: Callable[[JobStatus], None] | None = None
    status_every: float = 0.25
    drop_state: tuple[str, ...] = ()
    start_from: str | None = None
    channel_capacity: int = 8
    moved_from: Path | None = None


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a run ended.

    Attributes:
        outcome: ``finished``, ``stopped`` (it can be resumed), ``interrupted`` (at once, without a last
            checkpoint) or ``already finished``.
        epoch: the last committed epoch.
        restored_from: the epoch this run began with; 0 if it began anew.
        status: the last look at it; None if nothing ran.
    """

    outcome: str
    epoch: int
    restored_from: int
    restarts: int
    seconds: float
    status: JobStatus | None


def run_job(
    plan: Plan,
    settings: RunSettings,
    *,
    control: Control | None = None,
    clock: Clock | None = None,
    scheduler: Callable[[Plan], Scheduler] | None = None,
    sleep: Callable[[float], None] | None = None,
) -> JobResult:
    """Run a planned job to its end.

    Raises:
        StateMismatch: the store's checkpoint does not fit the job.
        StoreLocked: another process runs it.
        JobFailed: it kept failing; the cause is chained.
    """
    control = control or Control()
    run = _Run(plan, settings, control, clock or SystemClock(), scheduler or _threads, sleep or control.sleep)
    if settings.store is not None:
        return run.on(settings.store)
    with tempfile.TemporaryDirectory(prefix="millstream-") as folder:
        return run.on(Path(folder) / "job.duckdb")


def _threads(plan: Plan) -> Scheduler:
    return ThreadedScheduler(plan.parallelism)


class _Run:
    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        control: Control,
        clock: Clock,
        scheduler: Callable[[Plan], Scheduler],
        sleep: Callable[[float], None],
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._control = control
        self._clock = clock
        self._scheduler = scheduler
        self._sleep = sleep
        self._began = clock.monotonic()
        self._restarts = 0
        self._begun = False  # rows may have moved
        self._first_restored: int | None = None
        self._status: JobStatus | None = None

    def on(self, path: Path) -> JobResult:
        """Run on a store, restarting after failures that may pass."""
        start = self._settings.start_from
        if start is not None:
            begin_from(start, path)
        made = start is None and not path.exists()
        with ExitStack() as held:
            store = CheckpointStore.open(path)
            held.callback(store.close)
            held.push(partial(self._remove_if_refused, store if made else None))
            if start is not None:
                check_begun_from(start, path, store.parent)
            self._inquiries = Inquiries(store, self._clock)
            held.callback(QueryServer(path, self._inquiries.answer, store.interrupt_queries).close)
            held.callback(self._inquiries.close)
            for node in self._plan.graph.sinks():
                assert isinstance(node.body, Write)
                held.enter_context(node.body.sink.running(self._context(store, node)))
            return self._restarting(store)

    def _remove_if_refused(
        self, made: CheckpointStore | None, _kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        """A store that was made for a job which was then refused would only be in the way."""
        refused = isinstance(error, MillstreamError) and not isinstance(error, JobFailed) and not error.restartable
        # Another process may have made it, too, and have been quicker.
        if made is not None and refused and not self._begun and made.facts().last is None:
            made.remove()

    def _context(self, store: CheckpointStore, node: Node) -> SinkContext:
        """What a sink may know before there is a generation."""
        kept = None if self._settings.store is None else store.path
        return SinkContext(self._plan.job, store.job_id, node.id, store.generation, 0, 1, store=kept)

    def _restarting(self, store: CheckpointStore) -> JobResult:
        in_a_row = 0
        while True:
            started = self._clock.monotonic()
            try:
                return self._generation(store)
            except MillstreamError as error:
                if self._clock.monotonic() - started >= HEALTHY_SECONDS:
                    in_a_row = 0
                if not error.restartable:
                    raise
                if in_a_row >= self._settings.restarts or self._control.stop_requested:
                    tried = f", also after {in_a_row} restart{'s' * (in_a_row > 1)}" if in_a_row else ""
                    raise JobFailed(f"job {self._plan.job!r} failed{tried}: {error}") from error
                pause = self._settings.backoff * 2**in_a_row
                log.warning("restarting", job=self._plan.job, error=str(error), after_seconds=pause)
                self._sleep(pause)
                in_a_row += 1
                self._restarts += 1

    def _generation(self, store: CheckpointStore) -> JobResult:
        facts = store.facts()
        hit("recovery.begin")
        decision = decide(facts, self._plan.states, self._settings.moved_from, self._settings.drop_state)
        if isinstance(decision, Refuse):
            raise StateMismatch(_refusal(self._plan.job, store.path, decision))
        replayed = store.letters_to_replay() if facts.replays else []
        check_replayable(replayed, self._plan)
        restored = None if isinstance(decision, StartFresh) else decision.epoch
        if self._first_restored is None:
            self._first_restored = restored or 0
        dropped = {} if isinstance(decision, StartFresh) else decision.dropped
        if dropped:
            kept = {name: facts.dead_letters[id_] for id_, name in dropped.items() if id_ in facts.dead_letters}
            told = {"dead_letters_kept": kept} if kept else {}
            log.warning("dropping state", job=self._plan.job, dropped=list(dropped.values()), **told)
        generation = store.begin_generation(self._plan.states, dropped)
        hit("recovery.declared")
        scheduler = self._scheduler(self._plan)
        acknowledged = _Relay(scheduler.wake)
        builder = Builder(
            self._plan,
            store,
            generation=generation,
            restored=restored,
            replayed=replayed,
            clock=self._clock,
            acknowledge=acknowledged,
            has_ended=scheduler.wake,
            calls=scheduler.calls,
            channel_capacity=self._settings.channel_capacity,
            lasting=self._settings.store is not None,
        )
        try:
            with ExitStack() as unused:
                unused.callback(builder.close_committers)
                self._settle(store, builder, restored)
                if isinstance(decision, CommitAgain):
                    return self._result("already finished", decision.epoch)
                unused.pop_all()
            if isinstance(decision, Resume):
                self._warn_of_shared_sinks(store, facts)
                log.info(
                    "resuming",
                    job=self._plan.job,
                    epoch=decision.epoch,
                    new_operators=decision.new_operators,
                    migrated=decision.migrated,
                )
            return self._run_subtasks(store, builder, scheduler, acknowledged, generation, restored or Epoch(0))
        finally:
            scheduler.close()

    def _warn_of_shared_sinks(self, store: CheckpointStore, facts: StoreFacts) -> None:
        """Of a fork that has shown nothing yet: where both jobs write, readers see what follows twice."""
        last = facts.last
        if store.parent is None or last is None or last.epoch != store.parent.epoch:
            return
        before = {id_: operator.folders for id_, operator in last.operators.items()}
        shared = [s.name for s in self._plan.states if s.kind == "sink" and before.get(s.id) == s.folders]
        if shared:
            log.warning("sinks are those of the job this was forked from", job=self._plan.job, sinks=shared)

    def _settle(self, store: CheckpointStore, builder: Builder, restored: Epoch | None) -> None:
        """Make the world agree with the store: repeat the last epoch's effects, remove what came after."""
        committers = builder.committers
        if restored is not None:
            hit("recovery.commit_again")
            prepared = store.committables(restored)
            publish(committers, restored, {id_: prepared.get(id_, ()) for id_ in committers})
        hit("recovery.discard")
        for committer in committers.values():
            committer.discard_uncommitted()

    def _run_subtasks(
        self,
        store: CheckpointStore,
        builder: Builder,
        scheduler: Scheduler,
        acknowledged: _Relay,
        generation: Generation,
        epoch: Epoch,
    ) -> JobResult:
        running = builder.build()
        self._begun = True
        coordinator = Coordinator(
            store=store,
            executor=scheduler.executor,
            clock=self._clock,
            sources=running.sources,
            subtasks=[s.name for s in running.subtasks],
            uneven=running.uneven,
            drained=running.drained,
            committers=running.committers,
            names={id_: node.label for id_, node in self._plan.graph.nodes.items()},
            generation=generation,
            last_epoch=epoch,
            settings=self._settings.checkpoints,
            letters=self._letter_limit(store, builder, running),
            replayed=[letter.id for letter in builder.replayed],
            wake=scheduler.wake,
        )
        acknowledged.connect(coordinator)
        hit("recovery.done")
        watcher = _Watcher(running, coordinator, generation, self._settings, self._control, self._clock)
        self._inquiries.attend(running, coordinator)
        try:
            outcome = scheduler.run(
                running, coordinator, on_tick=watcher.tick, stop_now=lambda: self._control.stop_now_requested
            )
        except BaseException:
            # First of all the store's thread comes to an end: a committer may be at work there.
            scheduler.close()
            running.let_go()
            raise
        finally:
            self._inquiries.attend(None, None)
            self._status = watcher.look()
            scheduler.close()
        running.close()
        hit("job.stop")
        word = {BarrierKind.FINAL: "finished", BarrierKind.STOP: "stopped", None: "interrupted"}[outcome]
        return self._result(word, Epoch(coordinator.stats.last_epoch))

    def _letter_limit(self, store: CheckpointStore, builder: Builder, running: Running) -> LetterLimit:
        most = self._settings.checkpoints.max_dead_letters
        return LetterLimit(most, store.count_dead_letters() - len(builder.replayed), lambda: running.dead_letters)

    def _result(self, outcome: str, epoch: Epoch) -> JobResult:
        seconds = self._clock.monotonic() - self._began
        return JobResult(outcome, epoch, self._first_restored or 0, self._restarts, seconds, self._status)


class _Relay:
    """Takes acknowledgements for a coordinator that is made only after the subtasks that call it."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._coordinator: Coordinator | None = None

    def connect(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def __call__(self, part: object) -> None:
        assert self._coordinator is not None
        self._coordinator.acknowledge(part)  # type: ignore[arg-type]
        self._wake()


class _Watcher:
    """Passes on stop requests and shows the job to whoever wants to look."""

    def __init__(
        self,
        running: Running,
        coordinator: Coordinator,
        generation: Generation,
        settings: RunSettings,
        control: Control,
        clock: Clock,
    ) -> None:
        self._running, self._coordinator, self._generation = running, coordinator, generation
        self._settings, self._control, self._clock = settings, control, clock
        self._next = 0.0

    def look(self) -> JobStatus:
        return look(self._running, self._coordinator, self._generation)

    def tick(self) -> None:
        if self._control.stop_requested:
            self._coordinator.request_stop()
        show = self._settings.on_status
        if show is not None and self._clock.monotonic() >= self._next:
            self._next = self._clock.monotonic() + self._settings.status_every
            show(self.look())


def _refusal(job: str, path: Path, decision: Refuse) -> str:
    reasons = "\n".join(f"  - {reason}" for reason in decision.reasons)
    return f"job {job!r} does not fit the checkpoint in {path}:\n{reasons}\n{decision.advice}"
