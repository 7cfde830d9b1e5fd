"""The operators of one subtask at work: a tree through which batches, watermarks and barriers are pushed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import pyarrow as pa
from millstream.engine.element import Barrier, BarrierKind, Element, Idle, Watermark
from millstream.engine.errors import InternalError, MillstreamError, UserCodeError
from millstream.engine.failpoints import hit
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Fault, Operator
from millstream.engine.runtime.channel import Channel
from millstream.engine.sink import Committable, SinkWriter
from millstream.engine.source import DeadLetter
from millstream.engine.store.types import DeadRows, NamedDelta, NodeLetters
from millstream.engine.time import END_OF_TIME, START_OF_TIME, Clock

REPLAYING: Final = (
    "while dead letters were replayed; to do without them: millstream deadletters replay STORE JOB --undo --all"
)


@dataclass
class Snapshot:
    """What one subtask hands over at a barrier, gathered operator by operator.

    Attributes:
        behind_held: the operators behind one that may hold the watermark back, so that theirs are their own.
    """

    deltas: list[NamedDelta] = field(default_factory=list)
    committables: list[tuple[str, Committable]] = field(default_factory=list)
    watermarks: dict[str, int] = field(default_factory=dict)
    memory: dict[str, Mapping[str, int]] = field(default_factory=dict)
    dead_letters: list[NodeLetters] = field(default_factory=list)
    behind_held: set[str] = field(default_factory=set)


class Target(Protocol):
    """Something that takes elements: the next operator, a sink, or the channels to another stage."""

    def batch(self, batch: pa.RecordBatch) -> None:
        """Take a batch that is not empty."""
        ...

    def watermark(self, time: int) -> None:
        """Event time has reached ``time``."""
        ...

    def idle(self) -> None:
        """The input is idle."""
        ...

    def barrier(self, barrier: Barrier, into: Snapshot) -> None:
        """Add your part of the snapshot and pass the barrier on."""
        ...


class Ports:
    """The targets behind each port of an operator; also the Output it emits into."""

    def __init__(self, ports: Mapping[str, Sequence[Target]]) -> None:
        self._ports = dict(ports)
        self._all = [target for targets in ports.values() for target in targets]
        self._dead: list[DeadRows] = []
        self.rows = 0
        self.dead_letters = 0
        self.attempt = 1

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        """Pass a batch to whoever reads the port."""
        if not batch.num_rows:
            return
        self.rows += batch.num_rows
        for target in self._ports.get(port, ()):
            target.batch(batch)

    def dead_letter(
        self,
        rows: pa.RecordBatch,
        faults: Sequence[Fault],
        *,
        times: pa.Array | None = None,
        code: str = "",
        attempt: int | None = None,
    ) -> None:
        """Keep rows that could not be processed until the next barrier."""
        assert rows.num_rows == len(faults), f"{rows.num_rows=} {len(faults)=}"
        self.dead_letters += len(faults)
        self._dead.append(DeadRows(rows, tuple(faults), times, code, attempt or self.attempt))

    def take_dead_letters(self) -> list[DeadRows]:
        """Return what was put aside since the last call."""
        taken, self._dead = self._dead, []
        return taken

    def watermark(self, time: int) -> None:
        """Pass a watermark to every port."""
        for target in self._all:
            target.watermark(time)

    def idle(self) -> None:
        """Pass idleness to every port."""
        for target in self._all:
            target.idle()

    def barrier(self, barrier: Barrier, into: Snapshot) -> None:
        """Pass a barrier to every port."""
        for target in self._all:
            target.barrier(barrier, into)


class OperatorTarget:
    """An operator within a subtask.

    ``clock`` is None until state and watermarks are back: nothing may come due before that.
    """

    def __init__(self, id_: str, name: str, label: str, operator: Operator, ports: Ports, subtask: int) -> None:
        self.id = id_
        self.name = name
        self.label = label
        self.operator = operator
        self.ports = ports
        self._subtask = subtask
        self.time = START_OF_TIME
        self.rows = 0
        self.clock: Clock | None = None
        self._now = START_OF_TIME
        self._idle = False
        self._in_hand = False  # what held_watermark() said last, for other threads
        self.passed = START_OF_TIME
        self.busy = False

    @property
    def full(self) -> bool:
        """Whether the operator wants no more input for now."""
        return self.operator.works_aside and self.operator.is_full()

    @property
    def drained(self) -> bool:
        """Whether the input has ended and nothing is in hand any more; may be asked from any thread."""
        return not self.operator.works_aside or (self.passed == END_OF_TIME and not self._in_hand)

    def batch(self, batch: pa.RecordBatch) -> None:
        """Process a batch of the only input."""
        self.batch_of(0, batch)

    def batch_of(self, index: int, batch: pa.RecordBatch) -> None:
        """Process a batch of one of several inputs."""
        self.rows += batch.num_rows
        self._idle = False
        self._tell_time()
        self._guard(lambda: self.operator.process_input(index, batch, self.ports))
        self._in_hand = self.operator.works_aside and self.operator.held_watermark() is not None

    def replay(self, batch: pa.RecordBatch, attempts: int) -> None:
        """Process dead letters again that were tried so often before."""
        self._note_attempt(attempts + 1)
        try:
            self.batch(batch)
        except MillstreamError as error:
            error.add_note(REPLAYING)
            raise
        finally:
            self._note_attempt(1)

    def _note_attempt(self, attempt: int) -> None:
        self.ports.attempt = attempt
        self.operator.on_attempt(attempt)

    def input_end(self, index: int) -> None:
        """One of several inputs has ended."""
        self._guard(lambda: self.operator.on_input_end(index, self.ports))

    def watermark(self, time: int) -> None:
        """Let the operator act on the time first: what it fires belongs before the watermark."""
        if time <= self.time:
            return
        self.time = time
        self._idle = False
        self._tell_time()
        self._guard(lambda: self.operator.on_watermark(time, self.ports))
        if time == END_OF_TIME and self.clock is not None and self.operator.uses_clock:
            self._guard(lambda: self.operator.on_clock(END_OF_TIME, self.ports))
        self._pass_on()

    def _pass_on(self) -> None:
        """Pass the watermark on, and idleness, as far as no row in hand came before them."""
        held = self.operator.held_watermark() if self.operator.works_aside else None
        self._in_hand = held is not None
        time = self.time if held is None else min(held, self.time)
        if time > self.passed:
            self.passed = time
            self.ports.watermark(time)
        if self._idle and held is None:
            self._idle = False
            self.ports.idle()

    def wake_if_due(self) -> bool:
        """Let the operator go on if what it waits for has come: the time, or something outside; return whether."""
        if self.clock is None:
            return False
        woken = self.operator.works_aside and self.operator.is_ready()
        if woken:
            self._guard(lambda: self.operator.on_ready(self.ports))
            self._pass_on()
        return self._wake_by_clock(self.clock) or woken

    def _wake_by_clock(self, clock: Clock) -> bool:
        due = self.operator.next_due() if self.operator.uses_clock else None
        if due is None or due > self._read_clock(clock):
            return False
        self._guard(lambda: self.operator.on_clock(self._now, self.ports))
        return True

    def _tell_time(self) -> None:
        if self.clock is not None and self.operator.uses_clock:
            self._read_clock(self.clock)
            self._guard(lambda: self.operator.on_clock(self._now, self.ports))

    def _read_clock(self, clock: Clock) -> int:
        """A wall clock may be set back; operators' time stands still then."""
        self._now = max(self._now, clock.wall())
        return self._now

    def idle(self) -> None:
        """Idleness concerns only those who merge inputs: they must not go on without the rows in hand."""
        self._idle = True
        self._pass_on()

    def barrier(self, barrier: Barrier, into: Snapshot) -> None:
        """Take the snapshot, then pass the barrier on."""
        self._guard(lambda: self.operator.on_barrier(self.ports))
        into.watermarks[self.id] = self.time
        deltas = self.operator.snapshot(barrier.epoch)
        into.deltas += [NamedDelta(self.id, table, delta, self._subtask) for table, delta in deltas.items()]
        into.memory[self.id] = self.operator.memory()
        into.dead_letters += [
            NodeLetters(self.id, self.name, self._subtask, dead) for dead in self.ports.take_dead_letters()
        ]
        before = set(into.watermarks)
        self.ports.barrier(barrier, into)
        if self.operator.works_aside:
            into.behind_held |= into.watermarks.keys() - before

    def _guard(self, call: Callable[[], None]) -> None:
        """Name the operator in whatever goes wrong inside it, once."""
        self.busy = True
        try:
            call()
        except MillstreamError as error:
            if not getattr(error, "__notes__", None):
                error.add_note(f"in {self.label}, subtask {self._subtask}")
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, OSError, pa.ArrowException) as error:
            raise UserCodeError(f"{self.label}, subtask {self._subtask}: {type(error).__name__}: {error}") from error
        self.busy = False


class SinkTarget:
    """A sink's writer within a subtask."""

    def __init__(self, id_: str, label: str, writer: SinkWriter, subtask: int) -> None:
        self.id = id_
        self.label = label
        self.writer = writer
        self._subtask = subtask
        self.rows = 0
        self.busy = False
        self.time = START_OF_TIME

    def batch(self, batch: pa.RecordBatch) -> None:
        """Write a batch."""
        self.rows += batch.num_rows
        self.busy = True
        self.writer.write(batch)
        self.busy = False

    def replay(self, messages: Sequence[DeadLetter]) -> None:
        """Take messages again that were put aside."""
        self.rows += len(messages)
        self.writer.replay(messages)

    def watermark(self, time: int) -> None:
        """Note it, to show it."""
        self.time = max(self.time, time)

    def idle(self) -> None:
        """Nothing to do: a sink holds no watermark back."""

    def barrier(self, barrier: Barrier, into: Snapshot) -> None:
        """Prepare the epoch, then take the snapshot of what is held back."""
        hit("sink.prepare")
        self.busy = True
        prepared = self.writer.prepare(barrier.epoch, barrier.kind is BarrierKind.FINAL)
        self.busy = False
        into.committables += [(self.id, committable) for committable in prepared]
        hit("sink.prepared")
        into.memory[self.id] = self.writer.memory()
        deltas = self.writer.snapshot(barrier.epoch)
        into.deltas += [NamedDelta(self.id, table, delta, self._subtask) for table, delta in deltas.items()]


class ChannelTarget:
    """The channels to the subtasks of another stage, with the exchange that chooses among them."""

    def __init__(
        self, exchange: Exchange, channels: Sequence[Channel], subtask: int, combiner: Operator | None
    ) -> None:
        self.channels = tuple(channels)
        self._exchange = exchange
        self._own = subtask % len(self.channels)
        self._combine = combiner

    @property
    def full(self) -> bool:
        """Whether any channel has no room: the slowest consumer sets the pace."""
        return any(channel.full for channel in self.channels)

    def batch(self, batch: pa.RecordBatch) -> None:
        """Send a batch, or its parts, where it belongs."""
        if self._combine is not None:
            self._combine.process(batch, _Sender(self))
        else:
            self.send(batch)

    def send(self, batch: pa.RecordBatch) -> None:
        """Send a combined batch."""
        if self._exchange.kind is ExchangeKind.BROADCAST:
            self._broadcast(batch)
            return
        if self._exchange.kind is not ExchangeKind.HASH or len(self.channels) == 1:
            self.channels[self._own if self._exchange.kind is ExchangeKind.FORWARD else 0].put(batch)
            return
        from millstream.engine.hashing import exchange_hash, partition

        hashes = exchange_hash([batch.column(name) for name in self._exchange.keys])
        for channel, part in zip(self.channels, partition(batch, hashes, len(self.channels)), strict=True):
            if part.num_rows:
                channel.put(part)

    def watermark(self, time: int) -> None:
        """Tell everyone: each subtask's watermark is the minimum over all that feed it."""
        self._broadcast(Watermark(time))

    def idle(self) -> None:
        """Tell everyone."""
        self._broadcast(Idle())

    def barrier(self, barrier: Barrier, into: Snapshot) -> None:
        """Send the barrier down every channel; the snapshot of what lies beyond is others' business."""
        del into
        self._broadcast(barrier)

    def _broadcast(self, element: Element) -> None:
        if self._exchange.kind is ExchangeKind.FORWARD:
            self.channels[self._own].put(element)
            return
        for channel in self.channels:
            channel.put(element)


class _Sender:
    """Lets a combiner emit into the exchange."""

    def __init__(self, target: ChannelTarget) -> None:
        self._target = target

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        if port != MAIN:
            raise InternalError(f"a combiner emitted into port {port!r}; it has only {MAIN!r}")
        if batch.num_rows:
            self._target.send(batch)

    def dead_letter(
        self,
        rows: pa.RecordBatch,
        faults: Sequence[Fault],
        *,
        times: pa.Array | None = None,
        code: str = "",
        attempt: int | None = None,
    ) -> None:
        del rows, times, code, attempt
        raise InternalError(f"a combiner cannot put rows aside: {faults[0]}")
