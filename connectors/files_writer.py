"""The data path of the file sink: rows wait per partition until they make a file worth having."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from millstream.connectors.durable import blame_disk, size_of, sync_file, sync_folder
from millstream.connectors.file_formats import FileFormat
from millstream.connectors.files_layout import Layout, StagedFile
from millstream.connectors.held_rows import HELD, HeldSchema, own_memory
from millstream.connectors.partition_path import split_by_folder
from millstream.connectors.roll_agreement import RollAgreement
from millstream.engine.failpoints import hit
from millstream.engine.sink import Committable, SinkContext, SinkWriter
from millstream.engine.state import StateDelta
from millstream.engine.time import Clock


@dataclass(frozen=True, slots=True)
class RollRule:
    """When held rows become a file. ``bytes`` are those of Arrow in memory; times are microseconds."""

    rows: int
    bytes: int
    age: int
    hold_bytes: int


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """What the writers of a sink have in common."""

    name: str
    partition_by: tuple[str, ...]
    file_format: FileFormat
    rule: RollRule
    clock: Clock


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with dictionaries decoded, which neither state nor other programs need to know of."""
    plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f.remove_metadata() for f in schema]
    return pa.schema([f.with_nullable(True) for f in plain])


@dataclass(slots=True)
class _OpenFile:
    """The rows of one partition that are in no file yet.

    Attributes:
        since: wall-clock microseconds at which the first of them came.
        in_state: how many of ``batches``, from the front, the checkpoints already have.
        buckets: under which buckets they have them; several after a restart with another parallelism.
    """

    since: int
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    in_state: int = 0
    buckets: set[int] = field(default_factory=set)

    def append(self, batch: pa.RecordBatch) -> None:
        self.batches.append(batch)
        self.rows += batch.num_rows
        self.bytes += batch.nbytes

    def take_new(self) -> list[pa.RecordBatch]:
        """Return the rows no checkpoint has yet, in memory of their own, and count them as handed over."""
        fresh = self.batches[self.in_state :]
        if fresh:
            fresh = self.batches[self.in_state :] = own_memory(fresh)
            self.in_state = len(self.batches)
        return fresh


class FileNumbers:
    """Numbers no other subtask and no other generation gives out: the generation, the subtask, a counter.

    >>> numbers = FileNumbers(generation=2, subtask=1)
    >>> hex(numbers.next()), hex(numbers.next())
    ('0x20010000000', '0x20010000001')
    """

    def __init__(self, generation: int, subtask: int) -> None:
        assert 0 <= generation < 2**23, f"{generation=}"
        assert 0 <= subtask < 2**12, f"{subtask=}"
        self._first = generation << 40 | subtask << 28
        self._count = 0

    def next(self) -> int:
        """Return the next number, an int64."""
        assert self._count < 2**28, f"{self._count=}"
        self._count += 1
        return self._first | (self._count - 1)


class FileWriter(SinkWriter):
    """Holds rows per partition; stages a file when there are many, and at barriers when it is time."""

    def __init__(
        self,
        settings: WriterSettings,
        schema: pa.Schema,
        context: SinkContext,
        layout: Layout,
        agreement: RollAgreement | None,
    ) -> None:
        self._name = settings.name
        self._partition_by = settings.partition_by
        self._format = settings.file_format
        self._rule = settings.rule
        self._clock = settings.clock
        self._schema = plain_schema(schema)
        self._layout = layout
        self._agreement = agreement
        self._held = HeldSchema.of(self._schema)
        self._numbers = FileNumbers(context.generation, context.subtask)
        self._open: dict[str, _OpenFile] = {}
        self._bytes = 0
        self._epoch = 0
        self._staged: list[StagedFile] = []
        self._dropped: list[int] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Take one batch; stages a file at once where rows have become many, so that memory stays bounded."""
        for partition, rows in split_by_folder(batch.cast(self._schema), self._partition_by):
            self._append(partition, rows, self._clock.wall())
        if self._agreement is not None and self._bytes >= self._rule.hold_bytes:
            self._agreement.want(self._epoch)
        full = list(self._full())
        if full and (self._agreement is None or self._agreement.want(self._epoch)):
            for partition in full:
                self._roll(partition)

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        """Stage what is due, keep the rest in state."""
        for partition in list(self._due(epoch, final)):
            self._roll(partition)
        self._epoch = epoch
        staged, self._staged = self._staged, []
        if staged:
            with blame_disk(self._name, "making staged files durable"):
                sync_folder(self._layout.generation_folder)
        return [file.committable() for file in staged]

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """Hand over the rows that came since the last barrier and are in no file."""
        del epoch
        tables = []
        for waiting in self._open.values():
            fresh = waiting.take_new()
            if fresh:
                waiting.buckets = waiting.buckets or {self._numbers.next()}
                tables.append(self._held.rows(fresh, min(waiting.buckets), waiting.since))
        dropped, self._dropped = tuple(self._dropped), []
        if not tables and not dropped:
            return {}
        rows = pa.concat_tables(tables) if tables else self._held.schema.empty_table()
        return {HELD: StateDelta(rows, dropped=dropped)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """Take held rows back; they stay as old as they were."""
        del full_from
        assert table == HELD, f"{table=}"
        for batch in batches:
            for partition, rows in split_by_folder(batch.select(self._held.schema.names), self._partition_by):
                plain = rows.drop_columns([self._held.bucket, self._held.since]).cast(self._schema)
                self._append(partition, plain, pc.min(rows.column(self._held.since)).as_py())
                waiting = self._open[partition]
                waiting.in_state = len(waiting.batches)
                waiting.buckets.update(pc.unique(rows.column(self._held.bucket)).to_pylist())
        if self._agreement is not None and self._bytes >= self._rule.hold_bytes:
            self._agreement.want(self._epoch)

    def _append(self, partition: str, rows: pa.RecordBatch, since: int) -> None:
        waiting = self._open.get(partition)
        if waiting is None or since < waiting.since:
            waiting = self._open.setdefault(partition, _OpenFile(since))
            waiting.since = since
            if self._agreement is not None:
                self._agreement.note_oldest(since)
        before = waiting.bytes
        waiting.append(rows)
        self._bytes += waiting.bytes - before

    def _full(self) -> Iterator[str]:
        """The partitions that cannot wait for the barrier: each too large itself, or all together."""
        left = self._bytes
        by_size = sorted(self._open.items(), key=lambda item: item[1].bytes, reverse=True)
        crowded = left >= 2 * self._rule.bytes
        for partition, waiting in by_size:
            too_large = waiting.rows >= self._rule.rows or waiting.bytes >= self._rule.bytes
            if too_large or (crowded and left > self._rule.bytes):
                left -= waiting.bytes
                yield partition

    def _due(self, epoch: int, final: bool) -> Iterator[str]:
        """The partitions to stage at this barrier: all or none, or each by itself if nothing was agreed."""
        now = self._clock.wall()
        if self._agreement is not None:
            force = final or self._rule.hold_bytes == 0
            if self._agreement.decide(epoch, force, now, self._rule.age):
                yield from self._open
            else:
                assert not self._staged, f"{epoch=} is held back, but has files: {self._staged}"
            return
        for partition, waiting in self._open.items():
            old = not 0 <= now - waiting.since < self._rule.age
            if final or old or waiting.bytes >= self._rule.hold_bytes:
                yield partition

    def _roll(self, partition: str) -> None:
        """Make a staged file of a partition's rows."""
        waiting = self._open.pop(partition)
        self._bytes -= waiting.bytes
        self._dropped += sorted(waiting.buckets)
        number = f"{self._numbers.next():016x}"
        final = f"part-{self._layout.tag}-{number}{self._format.suffix}"
        path = self._layout.generation_folder / f"{number}{self._format.suffix}.staged"
        table = pa.Table.from_batches(waiting.batches).drop_columns(list(self._partition_by))
        size = self._write(table, path)
        self._staged.append(
            StagedFile(f"{self._layout.generation_name}/{path.name}", partition, final, waiting.rows, size)
        )

    def _write(self, table: pa.Table, path: Path) -> int:
        """Write a file durably and return its size; nothing is left of it if that fails."""
        with blame_disk(self._name, f"writing {table.num_rows} rows"):
            try:
                self._format.write(table, path)
                hit("files.staged")
                sync_file(path)
                size = size_of(path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        assert size is not None, f"{path=} is gone"
        return size
