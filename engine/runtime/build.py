"""From a plan to subtasks wired by channels, with their state handed back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import pyarrow as pa
from millstream.engine.element import Epoch, Generation
from millstream.engine.errors import InternalError
from millstream.engine.failpoints import hit
from millstream.engine.graph import Node, OperatorId, Read, Write
from millstream.engine.logs import log
from millstream.engine.operator import FORWARD, Calls, ExchangeKind, Operator, OperatorContext, OperatorSpec
from millstream.engine.plan import Plan, Stage, StageInput
from millstream.engine.runtime.chain import ChannelTarget, OperatorTarget, Ports, SinkTarget, Target
from millstream.engine.runtime.channel import CAPACITY, ROWS_BEFORE_SLOW, Channel
from millstream.engine.runtime.letters import SinkLetters, schedule_replays
from millstream.engine.runtime.pace import Pace, Pacing
from millstream.engine.runtime.source_reading import SourceReading
from millstream.engine.runtime.splits import SplitQueue
from millstream.engine.runtime.subtask import Acknowledge, ChannelSubtask, Parts, SourceSubtask, Subtask
from millstream.engine.sink import Committer, SinkContext, SinkWriter
from millstream.engine.state import StateTable
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import MarkedLetter, SplitPosition
from millstream.engine.time import END_OF_TIME, Clock
from millstream.engine.waiting import sources_met


@dataclass
class Running:
    """A generation's subtasks, in an order in which producers come before consumers.

    ``worker_of`` says which of ``plan.parallelism`` workers steps a subtask. ``uneven`` are the subtasks whose
    watermarks are their own: those of sources, and those that read from one subtask of each input only, besides what is
    broadcast. ``sink_letters`` is what committers have put aside since.
    """

    plan: Plan
    subtasks: list[Subtask]
    worker_of: dict[str, int]
    committers: dict[str, Committer]
    channels: list[tuple[str, str, Channel]]
    uneven: frozenset[str]
    sink_letters: SinkLetters

    @property
    def dead_letters(self) -> int:
        """How many dead letters this generation has made so far."""
        of_operators = (o.ports.dead_letters for s in self.subtasks for o in s.parts.operators)
        of_sources = (s.reading.dead_letters for s in self.sources)
        return sum(of_sources) + sum(of_operators) + self.sink_letters.counts.total()

    @property
    def sources(self) -> list[SourceSubtask]:
        """The subtasks that read splits."""
        return [s for s in self.subtasks if isinstance(s, SourceSubtask)]

    @property
    def works_aside(self) -> bool:
        """Whether any operator has rows in hand while something outside is at work on them."""
        return any(subtask.parts.works_aside for subtask in self.subtasks)

    def drained(self) -> bool:
        """Whether no row is in hand any more, nor will be."""
        return all(subtask.drained for subtask in self.subtasks)

    def close(self) -> None:
        """Let go of everything the generation holds."""
        for subtask in self.subtasks:
            subtask.close()
        for committer in self.committers.values():
            committer.close()

    def let_go(self) -> None:
        """After a failure: close files and connections. Operators and writers stay as a crash would leave them."""
        close_all(*(s.reading.close for s in self.sources), *(c.close for c in self.committers.values()))


def close_all(*closing: Callable[[], None]) -> None:
    """Close one after the other, whatever happens: there is nothing to be done about it any more."""
    for close in closing:
        try:
            close()
        except Exception as error:
            log.warning("not closed", error=str(error))


class Builder:
    """Builds one generation.

    Args:
        restored: the epoch to take state from, None for a fresh start.
        replayed: dead letters that are processed again before anything else.
        has_ended: called by each subtask of a source that will never read another row, from any thread.
        lasting: whether the store outlives the run.
    """

    def __init__(  # noqa: PLR0913 - its collaborators, all by name
        self,
        plan: Plan,
        store: CheckpointStore,
        *,
        generation: Generation,
        restored: Epoch | None,
        replayed: Sequence[MarkedLetter],
        clock: Clock,
        acknowledge: Acknowledge,
        has_ended: Callable[[], None],
        calls: Calls,
        channel_capacity: int = CAPACITY,
        lasting: bool = True,
    ) -> None:
        self._plan = plan
        self._store = store
        self._generation = generation
        self._restored = restored
        self.replayed = replayed
        self._clock = clock
        self._acknowledge = acknowledge
        self._has_ended = has_ended
        self._calls = calls
        self._capacity = channel_capacity
        self._lasting = lasting
        self._sink_letters = SinkLetters(store)
        self._committers: dict[str, Committer] = {}
        self._channels: dict[tuple[int, int, int], list[Channel]] = {}  # (stage, input, subtask) -> from upstream
        self._wiring: list[tuple[str, str, Channel]] = []
        self._hurrying: set[int] = set()  # stages with an operator that works aside, and those before them
        self._tables = {s.id: s.tables for s in plan.states}
        self._watermarks: Mapping[str, int] = {}
        positions: list[SplitPosition] = []
        ended: frozenset[str] = frozenset()
        if restored is not None:
            manifest = store.facts().last
            assert manifest is not None
            assert manifest.epoch == restored, f"{manifest.epoch=} {restored=}"
            self._watermarks = manifest.watermarks
            positions = store.positions(restored)
            if manifest.finished:
                ended = frozenset(node.id for node in plan.graph.sources())
            elif manifest.ended:  # but for sources that the job has got since
                ended = frozenset(manifest.operators)
        self._queues = {
            node.id: SplitQueue(
                node.body.source,
                [p for p in positions if p.source_id == node.id],
                self._width(node),
                clock,
                ended=node.id in ended,
            )
            for node in plan.graph.sources()
            if isinstance(node.body, Read)
        }

    def build(self) -> Running:
        """Make every subtask, consumers first so that their channels exist, and restore all state."""
        subtasks: list[Subtask] = []
        for stage in reversed(self._plan.stages):
            subtasks += [self._subtask(stage, index) for index in reversed(range(stage.parallelism))]
        subtasks.reverse()
        hit("recovery.restore")
        if self._restored is not None:
            self._restore(subtasks, self._restored)
        schedule_replays(self.replayed, self._plan, subtasks)
        for subtask in subtasks:
            subtask.parts.start_clock(self._clock)
        self._sink_letters.begin()
        workers = {s.name: i for s, i in zip(subtasks, self._placement(), strict=True)}
        uneven = frozenset(self._uneven())
        return Running(self._plan, subtasks, workers, self.committers, self._wiring, uneven, self._sink_letters)

    def _uneven(self) -> Iterator[str]:
        for stage in self._plan.stages:
            if all(into.exchange.kind in {ExchangeKind.FORWARD, ExchangeKind.BROADCAST} for into in stage.inputs):
                yield from (f"{stage.index}:{self._name(stage, index)}" for index in range(stage.parallelism))

    @cached_property
    def committers(self) -> dict[str, Committer]:
        """One committer per sink."""
        for node in self._plan.graph.sinks():
            assert isinstance(node.body, Write)
            context = self._sink_context(node, 0, self._width(node))
            self._committers[node.id] = node.body.sink.committer(self._input(node), context)
        return self._committers

    @cached_property
    def _pacings(self) -> dict[OperatorId, Pacing]:
        """By source, if it waits for others or others for it."""
        met = sources_met(self._plan.graph)
        together = {id_ for others in met.values() for id_ in others}
        nodes = self._plan.graph.nodes
        pace = Pace({id_: self._width(nodes[id_]) for id_ in together})
        made = {}
        for id_ in together:
            body = nodes[id_].body
            assert isinstance(body, Read)
            made[id_] = Pacing(pace, met.get(id_, frozenset()), body.max_ahead or 0)
        return made

    def close_committers(self) -> None:
        """Close those that have been made, where no subtasks are to run."""
        close_all(*(committer.close for committer in self._committers.values()))

    def _placement(self) -> Iterator[int]:
        for stage in self._plan.stages:
            for index in range(stage.parallelism):
                yield index if stage.parallelism > 1 else stage.index % self._plan.parallelism

    def _width(self, node: Node) -> int:
        return self._plan.stage_of(node.id).parallelism

    def _input(self, node: Node) -> pa.Schema:
        return self._plan.graph.schema(node.inputs[0])

    def _name(self, stage: Stage, index: int) -> str:
        return f"{self._plan.graph.nodes[stage.root].name}[{index}]"

    def _sink_context(self, node: Node, index: int, parallelism: int) -> SinkContext:
        return SinkContext(
            job=self._plan.job,
            job_id=self._store.job_id,
            sink_id=node.id,
            generation=self._generation,
            subtask=index,
            parallelism=parallelism,
            restored=self._store.shown_until(self._restored),
            store=self._store.path if self._lasting else None,
            put_aside=partial(self._sink_letters.put_aside, node.id, node.name),
        )

    # -- one subtask -------------------------------------------------------------------------------------------

    def _subtask(self, stage: Stage, index: int) -> Subtask:
        parts = Parts()
        name = f"{stage.index}:{self._name(stage, index)}"
        root = self._plan.graph.nodes[stage.root]
        if isinstance(root.body, Read):
            head = self._ports(stage, index, root, parts, name)
            pacing = self._pacings.get(root.id)
            reading = SourceReading(root, root.body, self._queues[root.id], self._clock, index, pacing)
            return SourceSubtask(name, parts, self._acknowledge, reading, head, self._has_ended)
        target = self._target(stage, index, root, parts, name)
        aside = any(made.operator.works_aside for made in parts.operators)
        if aside or self._hurrying & self._behind(stage):
            self._hurrying.add(stage.index)
        inputs = []
        for position, stage_input in enumerate(stage.inputs):
            for producer, channel in self._incoming(stage, position, stage_input, index, aside=aside):
                inputs.append((position, channel))
                self._wiring.append((producer, name, channel))
        broadcast = {n for n, into in enumerate(stage.inputs) if into.exchange.kind is ExchangeKind.BROADCAST}
        hurries = stage.index in self._hurrying
        return ChannelSubtask(name, parts, self._acknowledge, inputs, target, frozenset(broadcast), hurries=hurries)

    def _behind(self, stage: Stage) -> set[int]:
        """The stages that read from a stage."""
        plan = self._plan
        return {
            into.index for into in plan.stages if stage.index in {plan.stage_of(i.edge.node).index for i in into.inputs}
        }

    def _incoming(
        self, stage: Stage, position: int, into: StageInput, index: int, *, aside: bool
    ) -> list[tuple[str, Channel]]:
        """Make this subtask's channels of one input: from every upstream subtask, or only from its own for FORWARD."""
        upstream = self._plan.stage_of(into.edge.node)
        indices = range(upstream.parallelism)
        if into.exchange == FORWARD:
            indices = range(index, upstream.parallelism, stage.parallelism) if upstream.parallelism else indices
        made = [(i, Channel(self._capacity, ROWS_BEFORE_SLOW if aside else None)) for i in indices]
        for i, channel in made:
            self._channels.setdefault((stage.index, position, i), []).append(channel)
        return [(f"{upstream.index}:{self._name(upstream, i)}", channel) for i, channel in made]

    def _target(self, stage: Stage, index: int, node: Node, parts: Parts, name: str) -> OperatorTarget | SinkTarget:
        match node.body:
            case Write(sink):
                context = self._sink_context(node, index, stage.parallelism)
                target = SinkTarget(node.id, node.label, sink.writer(self._input(node), context), index)
                parts.sinks.append(target)
                return target
            case OperatorSpec():
                operator = node.body.build(self._plan.input_schemas(node))
                operator.open(
                    OperatorContext(self._plan.job, node.name, index, stage.parallelism, parts.wake, self._calls)
                )
                ports = self._ports(stage, index, node, parts, name)
                made = OperatorTarget(node.id, node.name, node.label, operator, ports, index)
                parts.operators.append(made)
                return made
            case Read():
                raise InternalError(f"source {node.name!r} is not at the head of its stage")

    def _ports(self, stage: Stage, index: int, node: Node, parts: Parts, name: str) -> Ports:
        targets: dict[str, list[Target]] = defaultdict(list)
        for consumer in self._plan.graph.consumers(node.id):
            into = self._plan.stage_of(consumer.id)
            for position, edge in enumerate(consumer.inputs):
                if edge.node != node.id:
                    continue
                if into.index == stage.index and consumer.id != into.root:
                    targets[edge.port].append(self._target(stage, index, consumer, parts, name))
                else:
                    targets[edge.port].append(self._leaving(into, position, index, parts))
        return Ports(targets)

    def _leaving(self, into: Stage, position: int, index: int, parts: Parts) -> ChannelTarget:
        stage_input = into.inputs[position]
        combiner: Operator | None = None
        if stage_input.combiner is not None:
            combiner = stage_input.combiner.build([self._plan.graph.schema(stage_input.edge)])
        # Consumers were built from the last subtask to the first: turn their channels round.
        channels = list(reversed(self._channels[into.index, position, index]))
        target = ChannelTarget(stage_input.exchange, channels, 0, combiner)
        parts.outputs.append(target)
        return target

    # -- state -------------------------------------------------------------------------------------------------

    def _restore(self, subtasks: Sequence[Subtask], epoch: Epoch) -> None:
        operators: dict[str, list[Operator | SinkWriter]] = defaultdict(list)
        for subtask in subtasks:
            for target in subtask.parts.operators:
                operators[target.id].append(target.operator)
            for sink in subtask.parts.sinks:
                operators[sink.id].append(sink.writer)
        manifest = self._store.facts().last
        assert manifest is not None
        for id_, copies in operators.items():
            for table in self._tables.get(id_, ()):
                described = manifest.tables.get((id_, table.name))
                if described is not None:
                    self._restore_table(id_, table, copies, epoch, described.full_from)
        # Sources say anew that they have ended, after what is replayed. So must the end of time be new: whoever acts at
        # the end does so for those rows too, and no operator counts as drained before they have passed.
        latest = END_OF_TIME - 1 if self.replayed else END_OF_TIME
        for subtask in subtasks:
            for target in subtask.parts.operators:
                if target.id in self._watermarks:
                    # Lateness is judged by the operator's own watermark: without it a row that was late before
                    # the crash would be taken now, and a window that has fired would fire again.
                    target.watermark(min(self._watermarks[target.id], latest))

    def _restore_table(
        self, id_: str, table: StateTable, copies: Sequence[Operator | SinkWriter], epoch: Epoch, full_from: int
    ) -> None:
        if table.broadcast:
            batches = list(self._store.restore_rows(id_, table, epoch))
            for copy in copies:
                copy.restore(table.name, batches, full_from)
            return
        if len(copies) == 1 or not table.route_by:
            copies[0].restore(table.name, self._store.restore_rows(id_, table, epoch), full_from)
            return
        from millstream.engine.hashing import exchange_hash, partition

        routed: list[list[pa.RecordBatch]] = [[] for _ in copies]
        for batch in self._store.restore_rows(id_, table, epoch):
            hashes = exchange_hash([batch.column(name) for name in table.route_by])
            for rows, part in zip(routed, partition(batch, hashes, len(copies)), strict=True):
                if part.num_rows:
                    rows.append(part)
        for copy, rows in zip(copies, routed, strict=True):
            copy.restore(table.name, rows, full_from)
