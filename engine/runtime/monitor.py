"""What a running job looks like from outside: plain numbers, read without stopping anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from millstream.engine.runtime.build import Running
from millstream.engine.runtime.coordinator import CheckpointStats, Coordinator, Phase
from millstream.engine.runtime.subtask import Progress, SourceSubtask
from millstream.engine.time import START_OF_TIME


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A moment of a job.

    Attributes:
        rows_read: by source, rows of this generation.
        rows_written: by sink, rows of this generation.
        watermarks: by source, the lowest over its subtasks (microseconds); None: nothing known.
        counters: by operator, what it counts (late rows and the like), summed over its subtasks.
        dead_letters: by source, rows of this generation that could not be read and were put aside; by operator and
            sink, if there are any, rows that could not be processed and messages that were refused.
        memory: bytes by operator or sink at the last barrier; those that hold next to nothing are left out.
        blocked: subtasks that wait for room at the moment.
        waiting_for: subtasks a running checkpoint waits for.
    """

    generation: int
    rows_read: Mapping[str, int]
    rows_written: Mapping[str, int]
    watermarks: Mapping[str, int | None]
    counters: Mapping[str, Mapping[str, int]]
    dead_letters: Mapping[str, int]
    memory: Mapping[str, int]
    blocked: tuple[str, ...]
    checkpoints: CheckpointStats
    phase: Phase
    waiting_for: tuple[str, ...]


def look(running: Running, coordinator: Coordinator, generation: int) -> JobStatus:
    """Read the numbers of a running generation; a little torn between subtasks, which is fine to look at."""
    nodes = running.plan.graph.nodes
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    times: dict[str, int | None] = {}
    counters: dict[str, dict[str, int]] = {}
    dead: dict[str, int] = {}
    for stage_name, subtask in ((s.name, s) for s in running.subtasks):
        if isinstance(subtask, SourceSubtask):
            source = stage_name.partition(":")[2].rpartition("[")[0]
            read[source] = read.get(source, 0) + subtask.rows_read
            dead[source] = dead.get(source, 0) + subtask.reading.dead_letters
            known = None if subtask.watermark == START_OF_TIME else subtask.watermark
            before = times.get(source, known)
            times[source] = None if known is None or before is None else min(known, before)
        for sink in subtask.parts.sinks:
            name = nodes[sink.id].name  # type: ignore[index]
            written[name] = written.get(name, 0) + sink.rows
        for operator in subtask.parts.operators:
            for key, value in operator.operator.counters().items():
                of = counters.setdefault(nodes[operator.id].name, {})  # type: ignore[index]
                of[key] = of.get(key, 0) + value
            if operator.ports.dead_letters:
                dead[operator.name] = dead.get(operator.name, 0) + operator.ports.dead_letters
    dead.update(running.sink_letters.counts)
    return JobStatus(
        generation=generation,
        rows_read=read,
        rows_written=written,
        watermarks=times,
        counters=counters,
        dead_letters=dead,
        memory={nodes[id_].name: sum(parts.values()) for id_, parts in coordinator.memory.items() if parts},  # type: ignore[index]
        blocked=tuple(s.name for s in running.subtasks if s.last_progress is Progress.BLOCKED),
        checkpoints=coordinator.stats,
        phase=coordinator.phase,
        waiting_for=tuple(sorted(coordinator.waiting_for)) if coordinator.phase is Phase.COLLECTING else (),
    )
