"""What holds a running job back: behind which split or operator the watermark or a barrier waits, and since when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from millstream.engine.graph import OperatorId, Read
from millstream.engine.runtime.build import Running
from millstream.engine.runtime.chain import OperatorTarget, SinkTarget
from millstream.engine.runtime.channel import Channel
from millstream.engine.runtime.coordinator import Coordinator, Phase
from millstream.engine.runtime.pace import Slowest
from millstream.engine.runtime.source_reading import OpenSplit
from millstream.engine.runtime.subtask import ChannelSubtask, Progress, SourceSubtask, Subtask
from millstream.engine.time import END_OF_TIME, START_OF_TIME, show_duration


@dataclass(frozen=True, slots=True)
class Hold:
    """One thing that something waits for.

    Attributes:
        waits: ``watermark``, ``barrier``, ``table``: the rows that are joined with one, until it has been read; or
            ``reading``: of a source that is too far ahead of another.
        holder: the split or operator, by name.
        seconds: for how long; None: nobody knows.
        watermark: the watermark it holds, microseconds; None: there is none yet, or it is a barrier.
        reason: what is known of why.
    """

    waits: str
    holder: str
    seconds: float | None
    watermark: int | None
    reason: str


def holds(running: Running, coordinator: Coordinator, now: float) -> list[Hold]:
    """Say what holds a job back at this moment; it goes on meanwhile, so that what moves is a little torn.

    Args:
        now: the monotonic time of the job's clock.
    """
    look = _Look(running, coordinator, now)
    watermarks = look.watermarks() if running.plan.event_time else ()
    found = [*look.barrier(), *look.tables(), *watermarks, *look.reading()]
    return list(dict.fromkeys(found))


class _Look:
    def __init__(self, running: Running, coordinator: Coordinator, now: float) -> None:
        self._running = running
        self._coordinator = coordinator
        self._now = now
        self._by_name = {subtask.name: subtask for subtask in running.subtasks}
        self._producer = {id(channel): producer for producer, _, channel in running.channels}
        self._consumer = {id(channel): consumer for _, consumer, channel in running.channels}

    # --- the barrier ------------------------------------------------------------------------------------------

    def barrier(self) -> Iterator[Hold]:
        coordinator = self._coordinator
        epoch, since = coordinator.epoch, self._now - coordinator.begun
        match coordinator.phase:
            case Phase.WRITING:
                yield Hold("barrier", "the store", since, None, f"it is writing epoch {epoch}")
            case Phase.PUBLISHING:
                sink = coordinator.committing
                holder = self._label(sink) if sink else "the store"
                what = "making it visible" if sink else "removing old epochs"
                yield Hold("barrier", holder, since, None, f"epoch {epoch} is committed; it is {what}")
            case Phase.COLLECTING:
                missing = coordinator.waiting_for
                for name in sorted(missing):
                    if not self._upstream(self._by_name[name]) & missing:
                        yield self._behind(self._by_name[name], since)

    def _behind(self, subtask: Subtask, since: float) -> Hold:
        """Why a subtask has not passed the barrier on, though all before it have."""
        epoch = self._coordinator.epoch
        consumer = self._slowest(subtask)
        if consumer is not subtask:
            reason = f"it has no room for more, so {_bare(subtask)} cannot pass on the barrier of epoch {epoch}"
            return Hold("barrier", self._busy_part(consumer), self._stepping(consumer) or since, None, reason)
        busy = self._stepped_by_its_worker(subtask)
        if busy is not None:
            reason = f"it has been at one piece of work since, with the barrier of epoch {epoch} behind it"
            return Hold("barrier", self._busy_part(busy), self._stepping(busy), None, reason)
        reason = f"it has yet to come to the barrier of epoch {epoch}"
        if isinstance(subtask, ChannelSubtask):
            ahead = sum(len(subtask.inputs[index]) for index in subtask.missing_barriers)
            reason += f"; {ahead} elements are waiting before it"
        return Hold("barrier", _bare(subtask), since, None, reason)

    def _slowest(self, subtask: Subtask) -> Subtask:
        """Follow full channels to the consumer that everybody before it waits for."""
        seen = set()
        while subtask.last_progress is Progress.BLOCKED and subtask.name not in seen:
            seen.add(subtask.name)
            channels = [c for output in subtask.parts.outputs for c in output.channels if c.full]
            if not channels:
                break
            subtask = self._by_name[self._consumer[id(channels[0])]]
        return subtask

    def _stepped_by_its_worker(self, subtask: Subtask) -> Subtask | None:
        worker = self._running.worker_of[subtask.name]
        for other in self._running.subtasks:
            if self._running.worker_of[other.name] == worker and other.stepping_since is not None:
                return other
        return None

    def _stepping(self, subtask: Subtask) -> float | None:
        began = subtask.stepping_since
        return None if began is None else time.monotonic() - began

    def _busy_part(self, subtask: Subtask) -> str:
        """The innermost operator or sink at work in a subtask."""
        parts: list[OperatorTarget | SinkTarget] = [*subtask.parts.operators, *subtask.parts.sinks]
        busy = [part for part in parts if part.busy]
        order = list(self._running.plan.graph.nodes)
        busy.sort(key=lambda part: order.index(OperatorId(part.id)))
        return self._part(busy[-1], subtask) if busy else _bare(subtask)

    def _part(self, part: OperatorTarget | SinkTarget, subtask: Subtask) -> str:
        return f"{part.label}, subtask {subtask.name.rpartition('[')[2].rstrip(']')}"

    # --- the watermark ----------------------------------------------------------------------------------------

    def watermarks(self) -> Iterator[Hold]:
        ends = [s for s in self._running.subtasks if s.parts.sinks]
        for end in sorted(ends, key=lambda subtask: subtask.watermark):
            hold = self._holder(end)
            if hold is not None:
                yield hold

    def _holder(self, subtask: Subtask) -> Hold | None:
        """Go against the stream along the inputs with the lowest watermark."""
        while True:
            waiting = self._in_hand(subtask)
            if waiting is not None:
                return waiting
            if not isinstance(subtask, ChannelSubtask):
                break
            if subtask.open_tables:  # ``tables`` says so
                return None
            index = subtask.held_by
            if index is None:
                return None
            channel = subtask.inputs[index]
            producer = self._by_name[self._producer[id(channel)]]
            if producer.watermark > subtask.watermark_of(index):
                slow = self._slowest(subtask)
                reason = f"{len(channel)} elements with a later watermark wait in front of it"
                return Hold("watermark", self._busy_part(slow), self._stepping(slow), _known(subtask.watermark), reason)
            subtask = producer
        assert isinstance(subtask, SourceSubtask)
        return self._split(subtask)

    def _in_hand(self, subtask: Subtask) -> Hold | None:
        """The operator, if any, that keeps a watermark that has come from going on."""
        for part in subtask.parts.operators:
            if part.passed < part.time:
                reason = (
                    "a later one waits for the rows it has in hand, until what is outside, or the clock, lets them go"
                )
                return Hold("watermark", self._part(part, subtask), None, _known(part.passed), reason)
        return None

    def _split(self, subtask: SourceSubtask) -> Hold | None:
        if subtask.watermark == END_OF_TIME:
            return None
        source = _bare(subtask).rpartition("[")[0]
        open_ = [split for split in subtask.reading.open_splits if not split.idle]
        if not open_:
            if subtask.reading.idle:
                return None
            reason = "it has no split to read"
            return Hold("watermark", f"source {source!r}", None, _known(subtask.watermark), reason)
        split = min(open_, key=_time)
        label = f"split {split.at.split.id!r} of source {source!r}"
        return Hold("watermark", label, self._now - split.moved_at, _known(subtask.watermark), self._why(source, split))

    def _why(self, source: str, split: OpenSplit) -> str:
        node = next(n for n in self._running.plan.graph.sources() if n.name == source)
        assert isinstance(node.body, Read)
        if split.at.max_time is None:
            return "it has not brought a row with an event time yet" + self._no_timeout(node.body)
        if split.quiet_since is not None:
            return "it has had no rows for so long" + self._no_timeout(node.body)
        return "of the splits being read its rows are the oldest"

    def _no_timeout(self, read: Read) -> str:
        return "" if read.idle_timeout else "; with idle_timeout= it would stop holding the others back"

    # --- tables ------------------------------------------------------------------------------------------------

    def tables(self) -> Iterator[Hold]:
        """Of each table that rows wait for, the sources that are still read for it."""
        for subtask in self._running.subtasks:
            if isinstance(subtask, ChannelSubtask) and subtask.open_tables:
                yield from self._table(subtask)

    def _table(self, subtask: ChannelSubtask) -> Iterator[Hold]:
        operator = subtask.root.label
        sources = self._read_for(subtask.open_tables)
        if not sources:
            reason = "rows of its table wait in front of it, and the rows that are joined with it for these"
            yield Hold("table", self._busy_part(subtask), self._stepping(subtask), None, reason)
        for source in sources:
            name, splits = _bare(source).rpartition("[")[0], source.reading.open_splits
            split = min(splits, key=lambda split: split.moved_at, default=None)
            label = f"source {name!r}" if split is None else f"split {split.at.split.id!r} of source {name!r}"
            since = None if split is None else self._now - split.moved_at
            reason = f"{operator} reads it to its end, as a table, before the first row that is joined with it"
            yield Hold("table", label, since, None, reason)

    def _read_for(self, channels: list[Channel]) -> list[SourceSubtask]:
        """The sources whose rows come by some channels, and that have not ended."""
        found: dict[str, Subtask] = {}
        waiting = [self._producer[id(channel)] for channel in channels]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = self._by_name[name]
                waiting += self._upstream(found[name])
        return [s for s in found.values() if isinstance(s, SourceSubtask) and s.watermark < END_OF_TIME]

    # --- sources that wait for others -----------------------------------------------------------------------------

    def reading(self) -> Iterator[Hold]:
        """Of each source that waits, the split that is furthest ahead, and what it waits for."""
        furthest: dict[str, tuple[OpenSplit, Slowest]] = {}
        for subtask in self._running.sources:
            slowest = subtask.reading.slowest
            ahead = [split for split in subtask.reading.open_splits if split.ahead_since is not None]
            if slowest is None or not ahead:
                continue
            name, split = _bare(subtask).rpartition("[")[0], max(ahead, key=_time)
            if name not in furthest or _time(split) > _time(furthest[name][0]):
                furthest[name] = split, slowest
        for name, (split, slowest) in furthest.items():
            yield self._too_far_ahead(name, split, slowest)

    def _too_far_ahead(self, name: str, split: OpenSplit, slowest: Slowest) -> Hold:
        other = self._running.plan.graph.nodes[slowest.source].name
        behind = [s for s in self._running.sources if _bare(s).rpartition("[")[0] == other]
        found = [hold for hold in (self._split(subtask) for subtask in behind) if hold is not None]
        hold = min(found, key=lambda hold: START_OF_TIME if hold.watermark is None else hold.watermark, default=None)
        by = "" if slowest.time == START_OF_TIME else f" {show_duration(max(0, _time(split) - slowest.time))}"
        reason = f"split {split.at.split.id!r} of source {name!r} is{by} ahead of it, further than its max_ahead"
        since = None if split.ahead_since is None else self._now - split.ahead_since
        if hold is None:
            return Hold("reading", f"source {other!r}", since, _known(slowest.time), reason)
        return Hold("reading", hold.holder, since, _known(slowest.time), f"{reason}; {hold.reason}")

    # --- names ------------------------------------------------------------------------------------------------

    def _upstream(self, subtask: Subtask) -> set[str]:
        if not isinstance(subtask, ChannelSubtask):
            return set()
        return {self._producer[id(channel)] for channel in subtask.inputs}

    def _label(self, id_: str) -> str:
        return self._running.plan.graph.nodes[OperatorId(id_)].label


def _bare(subtask: Subtask) -> str:
    return subtask.name.partition(":")[2]


def _known(time: int) -> int | None:
    return None if time == START_OF_TIME else time


def _time(split: OpenSplit) -> int:
    return START_OF_TIME if split.at.max_time is None else split.at.max_time
