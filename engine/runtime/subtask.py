"""A subtask: one parallel copy of a stage, a state machine with a non-blocking ``step()``."""

from __future__ import annotations

import enum
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from millstream.engine.element import Barrier, BarrierKind, Idle, Watermark
from millstream.engine.errors import InternalError
from millstream.engine.failpoints import hit
from millstream.engine.runtime.chain import ChannelTarget, OperatorTarget, Ports, SinkTarget, Snapshot
from millstream.engine.runtime.channel import Channel
from millstream.engine.runtime.source_reading import SourceReading
from millstream.engine.runtime.watermarks import WatermarkMerge
from millstream.engine.store.types import SplitPosition
from millstream.engine.time import END_OF_TIME, START_OF_TIME, Clock


class Progress(enum.Enum):
    """What a step came to, so that the worker never guesses."""

    MADE = "made"  # something was done: step again
    IDLE = "idle"  # no input is there
    BLOCKED = "blocked"  # an output has no room, or an operator has its hands full


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A subtask's whole part of a checkpoint.

    Attributes:
        ended: it reads no source, or has read it to its end.
    """

    subtask: str
    barrier: Barrier
    snapshot: Snapshot
    positions: Sequence[SplitPosition] = ()
    ended: bool = True


Acknowledge = Callable[[Acknowledgement], None]


@dataclass
class Parts:
    """The operators of a subtask, and where its output leaves it."""

    operators: list[OperatorTarget] = field(default_factory=list)
    sinks: list[SinkTarget] = field(default_factory=list)
    outputs: list[ChannelTarget] = field(default_factory=list)
    _waiting: list[OperatorTarget] = field(default_factory=list)
    _aside: list[OperatorTarget] = field(default_factory=list)
    _wake_worker: Callable[[], None] | None = None

    @property
    def blocked(self) -> bool:
        """Whether any consumer has no room: then nothing may be emitted."""
        return any(output.full for output in self.outputs)

    @property
    def takes_no_input(self) -> bool:
        """Whether any consumer has no room, or any operator its hands full."""
        return self.blocked or any(operator.full for operator in self._aside)

    @property
    def drained(self) -> bool:
        """Whether no operator will ever emit anything but by input."""
        return all(operator.drained for operator in self._aside)

    @property
    def works_aside(self) -> bool:
        """Whether any operator does."""
        return bool(self._aside)

    def connect(self, wake_worker: Callable[[], None]) -> None:
        """Say how to wake the worker."""
        self._wake_worker = wake_worker

    def wake(self) -> None:
        """Something has come for an operator from outside; called from any thread."""
        if self._wake_worker is not None:
            self._wake_worker()

    def close(self) -> None:
        """Close operators and writers."""
        for operator in self.operators:
            operator.operator.close()
        for sink in self.sinks:
            sink.writer.close()

    def start_clock(self, clock: Clock) -> None:
        """State and watermarks are back: from now on operators are told the time."""
        for operator in self.operators:
            operator.clock = clock
        self._aside = [operator for operator in self.operators if operator.operator.works_aside]
        self._waiting = [t for t in self.operators if t.operator.uses_clock or t.operator.works_aside]

    def wake_due(self) -> bool:
        """Let the operators go on that wait for the time or for something outside; return whether any did."""
        woken = [operator.wake_if_due() for operator in self._waiting]
        return any(woken)


class Subtask(ABC):
    """What workers and schedulers see."""

    def __init__(self, name: str, parts: Parts, acknowledge: Acknowledge) -> None:
        self.name = name
        self.parts = parts
        self._acknowledge = acknowledge
        self._stopped = False
        self._first: deque[Callable[[], None]] = deque()
        self.last_progress = Progress.IDLE
        self.stepping_since: float | None = None

    def do_first(self, work: Callable[[], None]) -> None:
        """Queue work for the first steps, before any input is read and any barrier is passed on."""
        self._first.append(work)

    def step(self) -> Progress:
        """Do one small piece of work, never waiting, and whatever the clock says is due.

        After the generation's last barrier nothing is due any more: what came of it would be in no checkpoint.
        """
        self.stepping_since = time.monotonic()
        woken = not self._stopped and not self.parts.blocked and self.parts.wake_due()
        progress = self._step_first() if self._first else self._step()
        self.stepping_since = None
        self.last_progress = Progress.MADE if woken else progress
        return self.last_progress

    def _step_first(self) -> Progress:
        if self.parts.blocked:
            return Progress.BLOCKED
        self._first[0]()
        self._first.popleft()  # only now: until then the job has not drained
        return Progress.MADE

    @property
    def drained(self) -> bool:
        """Whether nothing will come of it any more but by input; may be asked from any thread."""
        return not self._first and self.parts.drained

    @property
    @abstractmethod
    def watermark(self) -> int:
        """The last watermark passed on."""

    @abstractmethod
    def _step(self) -> Progress: ...

    def close(self) -> None:
        """Let go of what operators, writers and readers hold."""
        self.parts.close()


class SourceSubtask(Subtask):
    """Reads splits and injects barriers."""

    def __init__(
        self,
        name: str,
        parts: Parts,
        acknowledge: Acknowledge,
        reading: SourceReading,
        head: Ports,
        has_ended: Callable[[], None],
    ) -> None:
        super().__init__(name, parts, acknowledge)
        self.reading = reading
        self._head = head
        self._has_ended = has_ended
        self._time = START_OF_TIME
        self._idle = False
        self._requested: Barrier | None = None
        self.exhausted = False
        self.rows_read = 0

    def request(self, barrier: Barrier) -> None:
        """Ask for a barrier at the next step; called by the coordinator's thread."""
        self._requested = barrier

    def _step(self) -> Progress:
        if self._requested is not None:
            return self._inject()
        if self._stopped or self.exhausted:
            return Progress.IDLE
        if self.parts.takes_no_input:
            return Progress.BLOCKED
        rows = self.reading.next()
        if rows is not None:
            self._pass_on(rows.batch, rows.rows_read)
        self._advance()
        return Progress.IDLE if rows is None and not self.exhausted else Progress.MADE

    def _inject(self) -> Progress:
        """Record the offsets and send the barrier, in one step: no row may come between the two."""
        barrier, self._requested = self._requested, None
        assert barrier is not None
        snapshot = Snapshot()
        positions, snapshot.dead_letters = self.reading.take_positions(), self.reading.take_dead_letters()
        hit("subtask.snapshot")
        self._head.barrier(barrier, snapshot)
        self._stopped = barrier.kind is not BarrierKind.CHECKPOINT
        hit("subtask.acknowledge")
        self._acknowledge(Acknowledgement(self.name, barrier, snapshot, positions, self.exhausted))
        return Progress.MADE

    def _pass_on(self, batch: pa.RecordBatch, rows_read: int) -> None:
        self.rows_read += rows_read
        self._idle = False
        self._head.emit(batch)

    def _advance(self) -> None:
        time = self.reading.watermark()
        if time > self._time:
            self._time = time
            self._head.watermark(time)
        if time == END_OF_TIME:
            self.exhausted = True
            self._has_ended()
        elif self.reading.idle and not self._idle:
            self._idle = True
            self._head.idle()

    @property
    def watermark(self) -> int:
        """The last watermark sent."""
        return self._time

    def close(self) -> None:
        """Close readers too."""
        self.reading.close()
        super().close()


class Alignment(enum.Enum):
    """Where a subtask with channels stands between two barriers."""

    READING = "reading"  # no input has brought the next barrier
    ALIGNING = "aligning"  # some have: they are not read until the others' has come


class ChannelSubtask(Subtask):
    """Reads from channels, aligning barriers and merging watermarks.

    Until all ``broadcast`` inputs have ended, the others are read only while a barrier is waited for. So little of them
    comes too early, no more than stands in channels when there is a barrier. And no barrier waits for the end of an
    input: were the others not read at all, one that stands behind their rows would never come, and the input that has
    brought it already would never be read on.

    One that ``hurries`` takes what stands in a channel before a barrier also while it has no room: where hands are full
    until functions outside return, a barrier would wait for as many calls as there are rows before it.
    """

    def __init__(
        self,
        name: str,
        parts: Parts,
        acknowledge: Acknowledge,
        inputs: Sequence[tuple[int, Channel]],
        root: OperatorTarget | SinkTarget,
        broadcast: frozenset[int] = frozenset(),
        *,
        hurries: bool = False,
    ) -> None:
        super().__init__(name, parts, acknowledge)
        self._hurries = hurries
        self._inputs = tuple(inputs)
        self._root = root
        self._merge = WatermarkMerge(len(self._inputs))
        self._waiting_for = set(range(len(self._inputs)))
        self._turn = 0
        self._going_on = set(self._waiting_for)
        self._tables = set(broadcast)

    @property
    def watermark(self) -> int:
        """As ``Subtask.watermark``."""
        return self._merge.current

    @property
    def held_by(self) -> int | None:
        """The input whose watermark is the lowest of those that count; None if all are idle."""
        return self._merge.lowest

    def watermark_of(self, index: int) -> int:
        """The last watermark that came by an input."""
        return self._merge.times[index]

    @property
    def inputs(self) -> list[Channel]:
        """The channels it reads from."""
        return [channel for _, channel in self._inputs]

    @property
    def root(self) -> OperatorTarget | SinkTarget:
        """What its inputs go to."""
        return self._root

    @property
    def open_tables(self) -> list[Channel]:
        """Those of tables that are still read, while all others wait."""
        return [self._inputs[index][1] for index in sorted(self._going_on) if self._inputs[index][0] in self._tables]

    @property
    def missing_barriers(self) -> frozenset[int]:
        """The inputs that have not brought the next barrier."""
        return frozenset(self._waiting_for)

    @property
    def alignment(self) -> Alignment:
        """Whether a barrier has come on some inputs and not on others."""
        return Alignment.READING if len(self._waiting_for) == len(self._inputs) else Alignment.ALIGNING

    def _step(self) -> Progress:
        no_room = self.parts.takes_no_input
        if no_room and not self._hurries:
            return Progress.BLOCKED
        if self._hurries and not no_room:
            for _, channel in self._inputs:
                channel.settle()
        for offset in range(len(self._inputs)):
            index = (self._turn + offset) % len(self._inputs)
            if index not in self._waiting_for or self._held_back(index):
                continue
            channel = self._inputs[index][1]
            if no_room and not channel.holds_barrier:
                continue
            element = channel.take(owed=no_room)
            if element is not None:
                self._turn = index + 1
                self._take(index, element)
                return Progress.MADE
        return Progress.BLOCKED if no_room else Progress.IDLE

    def _held_back(self, index: int) -> bool:
        """Whether a channel is not read now, because others must end first."""
        return bool(self._tables) and self.alignment is Alignment.READING and self._inputs[index][0] not in self._tables

    def _take(self, index: int, element: object) -> None:
        match element:
            case Watermark(time):
                risen = self._merge.advance(index, time)
                if time == END_OF_TIME:
                    self._end(index)
                    risen = self._merge.current
                self._advance(risen)
                self._note_idle()
            case Barrier():
                self._align(index, element)
            case Idle():
                self._advance(self._merge.set_idle(index))
                self._note_idle()
            case pa.RecordBatch():
                self._merge.set_active(index)
                if isinstance(self._root, OperatorTarget):
                    self._root.batch_of(self._inputs[index][0], element)
                else:
                    self._root.batch(element)
            case _:
                raise InternalError(f"{self.name}: a channel brought {type(element).__name__}")

    def _end(self, index: int) -> None:
        """A channel has ended, and with the last of an input so has that."""
        self._going_on.discard(index)
        input = self._inputs[index][0]
        if any(self._inputs[other][0] == input for other in self._going_on):
            return
        self._tables.discard(input)
        if isinstance(self._root, OperatorTarget):
            self._root.input_end(input)

    def _note_idle(self) -> None:
        """Pass idleness on, unless rows wait for a table: others would go on without them, and they would be late."""
        if self._merge.all_idle and not self._tables:
            self._root.idle()

    def _advance(self, time: int | None) -> None:
        """Pass time on, unless rows are held back that it has passed."""
        if time is not None and not self._tables:
            self._root.watermark(time)

    def _align(self, index: int, barrier: Barrier) -> None:
        if self.alignment is Alignment.READING and len(self._inputs) > 1:
            hit("barrier.align")
        self._waiting_for.discard(index)
        if self._waiting_for:
            return
        self._waiting_for = set(range(len(self._inputs)))
        snapshot = Snapshot()
        hit("subtask.snapshot")
        self._root.barrier(barrier, snapshot)
        self._stopped = barrier.kind is not BarrierKind.CHECKPOINT
        hit("subtask.acknowledge")
        self._acknowledge(Acknowledgement(self.name, barrier, snapshot))
