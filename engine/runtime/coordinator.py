"""The checkpoint coordinator: decides on epochs, gathers acknowledgements, has the store write and the sinks commit."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from millstream.engine.element import Barrier, BarrierKind, Epoch, Generation
from millstream.engine.errors import ExternalError, InternalError, MemoryExceeded, StoreError, TooManyDeadLetters
from millstream.engine.failpoints import hit
from millstream.engine.logs import log
from millstream.engine.runtime.letters import LetterLimit
from millstream.engine.runtime.memory_limit import explain_memory, merge_memory, total_memory
from millstream.engine.runtime.merging import merge_deltas, merge_positions
from millstream.engine.runtime.subtask import Acknowledgement, SourceSubtask
from millstream.engine.sink import Committable, Committer
from millstream.engine.store.types import CheckpointData, LetterId, Manifest, Memory, NodeLetters, SplitPosition
from millstream.engine.time import START_OF_TIME, Clock


class CheckpointStoreLike(Protocol):
    """What the coordinator needs of the store."""

    def settle(self) -> None:
        """Finish what the generation's declaration has begun."""
        ...

    def commit(self, data: CheckpointData) -> Manifest:
        """Write an epoch in one transaction."""
        ...

    def prune(self) -> None:
        """Drop what no retained epoch needs."""
        ...

    def published(self, epoch: Epoch) -> None:
        """Write down that an epoch is visible in every sink."""
        ...


class Executor(Protocol):
    """Runs the slow parts of a checkpoint off the data path, one after the other."""

    def submit(self, fn: Callable[[], Manifest | None]) -> Future[Manifest | None]:
        """Run ``fn`` later; the future tells how it went."""
        ...


class Phase(enum.Enum):
    """What the coordinator is waiting for."""

    IDLE = "idle"  # for the next checkpoint to be due
    COLLECTING = "collecting"  # for every subtask to acknowledge the barrier
    WRITING = "writing"  # for the store to commit
    PUBLISHING = "publishing"  # for the sinks to make the epoch visible
    ENDED = "ended"  # nothing: the last epoch of this generation is committed


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """How often to checkpoint and how much failing is allowed.

    Attributes:
        every: seconds between the start of two checkpoints.
        timeout: seconds until a checkpoint that is still collecting fails the generation.
        tolerated_failures: how many checkpoints in a row the store may fail to write before the job fails.
        memory: bytes that the job's state may hold; None: any number.
        max_dead_letters: how many dead letters the store may hold before the job fails.
    """

    every: float = 10.0
    timeout: float = 600.0
    tolerated_failures: int = 3
    memory: int | None = None
    max_dead_letters: int = 10_000


@dataclass
class CheckpointStats:
    """What the coordinator has done, to show it."""

    committed: int = 0
    failed: int = 0
    last_epoch: int = 0
    last_seconds: float = 0.0
    last_rows: int = 0


RETRY_SECONDS = 1.0
"""How long after a failed write the last checkpoint of a job is tried again, at most."""


class Coordinator:
    """One checkpoint at a time, as an explicit state machine; ``step`` never waits.

    A checkpoint that could not be written is not lost: its snapshots stand before those of the next epoch and are
    written with them, since operators have already forgotten what they handed over.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, all by name
        self,
        *,
        store: CheckpointStoreLike,
        executor: Executor,
        clock: Clock,
        sources: Sequence[SourceSubtask],
        subtasks: Sequence[str],
        uneven: frozenset[str],
        drained: Callable[[], bool],
        committers: Mapping[str, Committer],
        names: Mapping[str, str],
        generation: Generation,
        last_epoch: Epoch,
        settings: CheckpointSettings,
        letters: LetterLimit,
        replayed: Sequence[LetterId],
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._executor = executor
        self._clock = clock
        self._sources = tuple(sources)
        self._subtasks = frozenset(subtasks)
        self._uneven = uneven
        self._drained = drained
        self._committers = dict(committers)
        self._generation = generation
        self._settings = settings
        self._letters = letters
        self._replayed = tuple(replayed)
        self._last_letters: NodeLetters | None = None
        self._wake = wake
        self._epoch = last_epoch
        self._due = clock.monotonic() + settings.every
        self._acknowledged: deque[Acknowledgement] = deque()
        self._gathered: list[Acknowledgement] = []
        self._carried: list[Acknowledgement] = []
        self._barrier: Barrier | None = None
        self._started = 0.0
        self._writing: Future[Manifest | None] | None = None
        # On the store's thread, before its first commit, while the sources are read already.
        self._settling: Future[Manifest | None] | None = executor.submit(store.settle)
        self._failures = 0
        self._not_before = 0.0
        self._committing = ""
        self._stop_requested = False
        self._names = names
        self.phase = Phase.IDLE
        self.memory: Memory = {}
        self.stats = CheckpointStats(last_epoch=last_epoch)
        self.outcome: BarrierKind | None = None

    def acknowledge(self, part: Acknowledgement) -> None:
        """Take a subtask's part; called from any thread."""
        self._acknowledged.append(part)

    def request_stop(self) -> None:
        """Take a last checkpoint, then end; called from any thread, even a signal handler."""
        self._stop_requested = True

    def request_checkpoint(self) -> None:
        """Take the next checkpoint as soon as possible; called from any thread."""
        self._due = self._clock.monotonic()
        self._wake()

    @property
    def epoch(self) -> Epoch:
        """The newest epoch that has begun."""
        return self._epoch

    @property
    def begun(self) -> float:
        """When it began, by the clock's monotonic time."""
        return self._started

    @property
    def committing(self) -> str:
        """The id of the sink that is being asked to make an epoch visible; empty if none is."""
        return self._committing

    @property
    def waiting_for(self) -> frozenset[str]:
        """The subtasks whose acknowledgement is missing."""
        return self._subtasks - {part.subtask for part in self._gathered}

    @property
    def seconds_to_wait(self) -> float:
        """How long nothing will happen by itself, at most."""
        if self.phase is not Phase.IDLE:
            return 0.05
        return max(0.0, min(self._due - self._clock.monotonic(), 0.05))

    def step(self) -> bool:
        """Move on if possible; return whether anything happened.

        Raises:
            StoreError: the store failed too often in a row.
            ExternalError: a checkpoint took longer than its timeout, or a sink could not commit.
            TooManyDeadLetters: the last checkpoint is committed, and the store holds more than it may.
        """
        match self.phase:
            case Phase.IDLE:
                return self._begin_if_due()
            case Phase.COLLECTING:
                return self._collect()
            case Phase.WRITING:
                return self._finish_writing()
            case Phase.PUBLISHING:
                return self._finish_publishing()
            case Phase.ENDED:
                return False

    def _begin_if_due(self) -> bool:
        if self._settling is not None and self._settling.done():
            self._settling.result()
            self._settling = None
        kind = self._next_kind()
        if kind is None:
            return False
        self._started = self._clock.monotonic()
        self._due = self._started + self._settings.every
        hit("barrier.inject")
        self._epoch = Epoch(self._epoch + 1)
        self._barrier = Barrier(self._epoch, kind)
        self._gathered = []
        self.phase = Phase.COLLECTING
        for source in self._sources:
            source.request(self._barrier)
        return True

    def _next_kind(self) -> BarrierKind | None:
        if self._clock.monotonic() < self._not_before:
            return None
        if all(source.exhausted for source in self._sources) and self._drained():
            return BarrierKind.FINAL
        if self._stop_requested or self._letters.exceeded:
            return BarrierKind.STOP
        return BarrierKind.CHECKPOINT if self._clock.monotonic() >= self._due else None

    def _collect(self) -> bool:
        moved = False
        while self._acknowledged:
            part = self._acknowledged.popleft()
            if part.barrier != self._barrier:
                raise InternalError(f"{part.subtask} acknowledged {part.barrier}, expected {self._barrier}")
            self._gathered.append(part)
            moved = True
        if not self.waiting_for:
            self.memory = merge_memory(part.snapshot.memory for part in self._gathered)
            data = self._data()
            self.phase = Phase.WRITING
            self._hand_over(lambda: self._store.commit(data))
            return True
        if self._clock.monotonic() - self._started > self._settings.timeout:
            raise ExternalError(
                f"checkpoint {self._epoch} is not complete after {self._settings.timeout:g} s; still waiting for "
                f"{', '.join(sorted(self.waiting_for))}. A function or sink there may hang; if it is only slow, give "
                f"checkpoints more time: checkpoint_timeout (--checkpoint-timeout)"
            )
        return moved

    def _data(self) -> CheckpointData:
        assert self._barrier is not None
        parts = self._carried + self._gathered
        return CheckpointData(
            epoch=self._barrier.epoch,
            generation=self._generation,
            kind=self._kind(self._barrier),
            deltas=merge_deltas(delta for part in parts for delta in part.snapshot.deltas),
            positions=merge_positions(position for part in parts for position in part.positions),
            committables=[committable for part in parts for committable in part.snapshot.committables],
            dead_letters=self._letters_of(parts),
            replayed=self._replayed,
            watermarks=self._watermarks(),
            memory=self.memory,
            # As it was at the barrier: what has been read since is not in this checkpoint.
            ended=all(part.ended for part in self._gathered),
        )

    def _letters_of(self, parts: Sequence[Acknowledgement]) -> list[NodeLetters]:
        found = [letters for part in parts for letters in part.snapshot.dead_letters]
        self._last_letters = found[-1] if found else self._last_letters
        return found

    def _kind(self, barrier: Barrier) -> BarrierKind:
        """A job with too many dead letters has not finished, though its sources have ended: it can be resumed."""
        return BarrierKind.STOP if barrier.kind is BarrierKind.FINAL and self._letters.exceeded else barrier.kind

    def _watermarks(self) -> dict[str, int]:
        """Return the watermark each operator is to start from again, in however many subtasks.

        Behind an exchange all its subtasks have had the same watermarks, unless an input was idle: the highest is
        the one up to which windows have fired. The subtasks of a source, or of a union of sources, each have their
        own, and the splits will be dealt out anew: only the lowest holds for all of them. Behind an operator
        with rows in hand it is the same.
        """
        times: dict[str, int] = {}
        for part in self._gathered:
            for id_, time in part.snapshot.watermarks.items():
                own = part.subtask in self._uneven or id_ in part.snapshot.behind_held
                agreed = min if own else max
                times[id_] = agreed(time, times.get(id_, time))
        return {id_: time for id_, time in times.items() if time > START_OF_TIME}

    def _finish_writing(self) -> bool:
        assert self._writing is not None
        if not self._writing.done():
            return False
        try:
            self._writing.result()
        except StoreError as error:
            return self._write_failed(error)
        self._failures = 0
        committables = [c for part in self._carried + self._gathered for c in part.snapshot.committables]
        rows = sum(d.delta.rows.num_rows for part in self._gathered for d in part.snapshot.deltas)
        positions = merge_positions(at for part in self._carried + self._gathered for at in part.positions)
        self._carried, self._replayed = [], ()
        self.stats = replace(self.stats, committed=self.stats.committed + 1, last_epoch=self._epoch, last_rows=rows)
        epoch = self._epoch
        self.phase = Phase.PUBLISHING
        ends = self._outgrown or (self._barrier is not None and self._barrier.kind is not BarrierKind.CHECKPOINT)
        self._hand_over(lambda: self._publish(epoch, committables, positions, ends))
        return True

    @property
    def _outgrown(self) -> bool:
        return self._settings.memory is not None and total_memory(self.memory) > self._settings.memory

    def _hand_over(self, work: Callable[[], Manifest | None]) -> None:
        self._writing = self._executor.submit(work)
        self._writing.add_done_callback(lambda _: self._wake())

    def _write_failed(self, error: StoreError) -> bool:
        self._failures += 1
        self.stats = replace(self.stats, failed=self.stats.failed + 1)
        if not error.restartable or self._failures > self._settings.tolerated_failures:
            raise error
        log.warning("checkpoint failed", epoch=self._epoch, error=str(error), failures_in_a_row=self._failures)
        self._carried += self._gathered
        self.phase = Phase.IDLE
        now = self._clock.monotonic()
        # The last checkpoint of a job is due at once, but must not use up its attempts in no time.
        self._not_before, self._due = now + min(self._settings.every, RETRY_SECONDS), now + self._settings.every
        return True

    def _publish(
        self,
        epoch: Epoch,
        committables: Sequence[tuple[str, Committable]],
        positions: Sequence[SplitPosition],
        ends: bool,
    ) -> None:
        by_sink: dict[str, list[Committable]] = {}
        for sink_id, committable in committables:
            by_sink.setdefault(sink_id, []).append(committable)
        for sink_id, prepared in by_sink.items():
            self._committing = sink_id
            publish(self._committers, epoch, {sink_id: prepared})
        self._committing = ""
        hit("source.committed")
        for source in self._sources:
            source.reading.committed(positions)
        try:
            self._store.prune()
            if ends and committables:
                # Until then the next epoch says so; without one nobody could take a sink out of the job.
                self._store.published(epoch)
        except StoreError as error:
            if not error.restartable:
                raise
            # Everything is committed and visible; what is too old goes with the next checkpoint.
            log.warning("the store was not tidied", epoch=epoch, error=str(error))

    def _finish_publishing(self) -> bool:
        assert self._writing is not None
        assert self._barrier is not None
        if not self._writing.done():
            return False
        self._writing.result()
        self.stats = replace(self.stats, last_seconds=self._clock.monotonic() - self._started)
        if self._barrier.kind is BarrierKind.CHECKPOINT:
            if self._outgrown:
                raise MemoryExceeded(explain_memory(self.memory, self._names, self._settings.memory or 0, self._epoch))
            self.phase = Phase.IDLE
        else:
            self.phase = Phase.ENDED
            self.outcome = self._barrier.kind
            self._check_letters()
        return True

    def _check_letters(self) -> None:
        if self._letters.exceeded:
            example = f"; one is of {self._last_letters}" if self._last_letters is not None else ""
            raise TooManyDeadLetters(
                f"there are {self._letters.count:,} dead letters in the store, max_dead_letters (--max-dead-letters) "
                f"allows {self._letters.most:,}{example}. Everything up to them is committed, at epoch {self._epoch}. "
                f"See what is wrong with 'millstream deadletters ls STORE', replay or drop them, or allow more; then "
                f"run the job again, and it goes on from there"
            )


def publish(
    committers: Mapping[str, Committer], epoch: Epoch, committables: Mapping[str, Sequence[Committable]]
) -> None:
    """Have every sink that prepared something make the epoch visible; repeating it changes nothing."""
    for sink_id, prepared in committables.items():
        hit("sink.commit")
        committers[sink_id].commit(epoch, prepared)
        hit("sink.committed")
