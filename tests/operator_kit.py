"""Runs one operator as the engine would: exchange, watermarks, barriers, and restarts at another parallelism."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from millstream.engine.hashing import exchange_hash, partition
from millstream.engine.operator import MAIN, ExchangeKind, Operator, OperatorContext, OperatorSpec
from millstream.engine.time import END_OF_TIME, START_OF_TIME


@dataclass(frozen=True)
class Restart:
    """A barrier, a checkpoint, and the job started again from it with so many subtasks."""

    parallelism: int


@dataclass(frozen=True)
class Advance:
    """The watermark reaches a time."""

    time: int


Step = pa.RecordBatch | Restart | Advance


class Collected:
    """An output that keeps everything."""

    def __init__(self) -> None:
        self.batches: dict[str, list[pa.RecordBatch]] = defaultdict(list)

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        self.batches[port].append(batch)

    def table(self, schema: pa.Schema, port: str = MAIN) -> pa.Table:
        return pa.Table.from_batches(self.batches[port], schema)


class StoreModel:
    """What the checkpoint store promises: rows of all epochs from ``full_from`` on, in epoch order."""

    def __init__(self, spec: OperatorSpec, schema: pa.Schema) -> None:
        self.tables = {table.name: table for table in spec.state_tables([schema])}
        self.rows: dict[str, list[tuple[int, pa.Table]]] = defaultdict(list)
        self.full_from: dict[str, dict[int, int]] = defaultdict(dict)

    def write(self, epoch: int, subtasks: Sequence[Operator]) -> None:
        for number, subtask in enumerate(subtasks):
            for name, delta in subtask.snapshot(epoch).items():
                expected = [*self.tables[name].schema, pa.field("deleted", pa.bool_())]
                assert delta.rows.schema == pa.schema(expected)
                self.rows[name].append((epoch, delta.rows))
                self.full_from[name][number] = delta.full_from

    def restore(self, subtasks: Sequence[Operator]) -> None:
        for name, table in self.tables.items():
            if name not in self.rows:
                continue
            oldest = min(self.full_from[name].values())
            self.full_from[name] = dict.fromkeys(range(len(subtasks)), oldest)
            routed: list[list[pa.RecordBatch]] = [[] for _ in subtasks]
            for epoch, rows in self.rows[name]:
                for batch in rows.to_batches(max_chunksize=max(7, len(rows) // 20)) if epoch >= oldest else []:
                    hashes = exchange_hash([batch.column(k) for k in table.route_by], batch.num_rows)
                    for parts, part in zip(routed, partition(batch, hashes, len(subtasks)), strict=True):
                        parts.append(part)
            for subtask, parts in zip(subtasks, routed, strict=True):
                subtask.restore(name, iter(parts), oldest)


class Harness:
    """Runs a spec over steps; ``out`` has all that came out, ``late`` included."""

    def __init__(self, spec: OperatorSpec, schema: pa.Schema, parallelism: int = 1) -> None:
        self.spec = spec
        self.schema = schema
        self.out = Collected()
        self.store = StoreModel(spec, schema)
        self.counters: dict[str, int] = defaultdict(int)
        self.watermark = START_OF_TIME
        self.epoch = 0
        self._start(parallelism)

    def _start(self, parallelism: int) -> None:
        if self.spec.exchange().kind is ExchangeKind.SINGLE:
            parallelism = 1
        self.subtasks = [self.spec.build([self.schema]) for _ in range(parallelism)]
        for number, subtask in enumerate(self.subtasks):
            subtask.open(OperatorContext("job", "operator", number, parallelism))

    def run(self, steps: Iterable[Step]) -> Harness:
        for step in steps:
            match step:
                case Restart(parallelism):
                    self.restart(parallelism)
                case Advance(time):
                    self.advance(time)
                case _:
                    self.feed(step)
        return self

    def finish(self) -> Harness:
        self.advance(END_OF_TIME)
        for subtask in self.subtasks:
            self._count(subtask)
        return self

    def feed(self, batch: pa.RecordBatch) -> None:
        hashes = exchange_hash([batch.column(k) for k in self.spec.exchange().keys], batch.num_rows)
        for subtask, part in zip(self.subtasks, partition(batch, hashes, len(self.subtasks)), strict=True):
            if part.num_rows:
                subtask.process(part, self.out)

    def advance(self, time: int) -> None:
        self.watermark = max(self.watermark, time)
        for subtask in self.subtasks:
            subtask.on_watermark(self.watermark, self.out)

    def checkpoint(self) -> None:
        self.epoch += 1
        for subtask in self.subtasks:
            subtask.on_barrier(self.out)
        self.store.write(self.epoch, self.subtasks)

    def restart(self, parallelism: int) -> None:
        self.checkpoint()
        for subtask in self.subtasks:
            self._count(subtask)
        self._start(parallelism)
        self.store.restore(self.subtasks)
        emitted = len(self.out.batches[MAIN])
        for subtask in self.subtasks:
            subtask.on_watermark(self.watermark, self.out)
        assert len(self.out.batches[MAIN]) == emitted, "a window fired by a restart alone"

    def _count(self, subtask: Operator) -> None:
        for name, value in subtask.counters().items():
            self.counters[name] += value

    def results(self, port: str = MAIN) -> pa.Table:
        return self.out.table(self.spec.output_schemas([self.schema])[port], port)


def canonical(value: Any) -> Any:
    """Make values comparable by their text: NaN equals NaN, and -0.0 is 0.0."""
    if isinstance(value, float):
        return "NaN" if value != value else value + 0.0
    return [canonical(item) for item in value] if isinstance(value, list) else value


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    """Return rows as tuples, in order."""
    columns = [[canonical(v) for v in column.to_pylist()] for column in table.columns]
    return list(zip(*columns, strict=True)) if columns else []


def bag(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return rows in an order of their own: only their number counts."""
    return sorted(rows, key=repr)
