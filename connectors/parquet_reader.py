"""Reads row groups of one Parquet file as a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from millstream.connectors.parquet_files import OpenFile, ParquetFiles, refusal
from millstream.connectors.parquet_pruning import RowGroups
from millstream.connectors.reading_plan import BadFile, BadInput, FileChanged, ReadingPlan
from millstream.engine.errors import ExternalError
from millstream.engine.source import Chunk, Position, ReadContext, SplitEnd, SplitReader

if TYPE_CHECKING:
    from millstream.connectors.paths import InputPath

ROWS_OF_A_SPLIT: Final = 65_536
"""Row groups smaller than this are read together."""


def stretches(metadata: pq.FileMetaData) -> Iterator[tuple[int, int]]:
    """Yield first and one-past-last row group of every split; a file without rows has none."""
    first = rows = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= ROWS_OF_A_SPLIT or group + 1 == metadata.num_row_groups:
            if rows:
                yield first, group + 1
            first, rows = group + 1, 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive row groups of a file.

    Attributes:
        path: the file.
        size: its size in bytes when it was found.
        first: the first row group.
        end: the one after the last.
    """

    path: InputPath
    size: int
    first: int
    end: int


class ParquetReader(SplitReader):
    """Reads row groups one after the other. Its position counts the rows of the stretch that have been read."""

    def __init__(
        self, stretch: Stretch, files: ParquetFiles, position: Position, bad: BadInput, context: ReadContext
    ) -> None:
        self._stretch = stretch
        self._files = files
        self._read_rows: int = position or 0
        self._bad = bad
        self._plan = bad.plan
        self._output = bad.plan.output
        self._batch_rows = context.batch_rows
        self._file: OpenFile | None = None
        self._chunks: Iterator[pa.RecordBatch | Chunk] | None = None

    def read(self) -> pa.RecordBatch | Chunk | SplitEnd:
        """Return the next rows, or FINISHED.

        Raises:
            DataError: the file is damaged or lacks a column, and bad input is not kept; or the file changed.
            ExternalError: it cannot be read.
        """
        try:
            if self._chunks is None:
                self._chunks = self._through(self._open())
            chunk = next(self._chunks, None)
        except BadFile as error:
            self._bad.rest_of_file(f"after row {self._read_rows} of {self._bad.split.id}", str(error))
            return SplitEnd.FINISHED
        except FileChanged as error:
            raise self._bad.changed(str(error)) from error
        if chunk is None:
            return SplitEnd.FINISHED
        self._read_rows += chunk.rows_read if isinstance(chunk, Chunk) else chunk.num_rows
        return chunk

    def position(self) -> Position:
        """Return how many rows have been read."""
        return self._read_rows

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._files.give_back(self._stretch.path, self._stretch.size, self._file)
            self._file = self._chunks = None

    def _open(self) -> OpenFile:
        path = self._stretch.path
        try:
            size = path.stat().st_size if isinstance(path, Path) else path.size()
        except OSError as error:
            raise refusal(path, error) from error
        if size != self._stretch.size:
            raise FileChanged(f"it had {self._stretch.size} bytes when it was found, and has {size} now")
        self._file = self._files.take(path, size)
        if self._stretch.end == 0:
            raise ExternalError(
                f"{path} could not be read when it was found, and can be now: it seems to have been written in its "
                "place. Write files elsewhere and rename them; the job goes on from its last checkpoint"
            )
        check_columns(self._plan, self._file.columns)
        return self._file

    def _through(self, file: OpenFile) -> Iterator[pa.RecordBatch | Chunk]:
        skip = self._read_rows
        for group in range(self._stretch.first, self._stretch.end):
            rows = file.groups.rows(group)
            if skip >= rows:
                skip -= rows
                continue
            left_out = self._left_out(file.groups, group)
            if left_out is not None:
                yield Chunk(self._empty(), rows - skip, left_out.max_time)
            else:
                yield from self._rows_of(file.parquet, group, skip)
            skip = 0

    def _left_out(self, groups: RowGroups, group: int) -> Chunk | None:
        """Return a chunk without rows if none of a group gets through the filter, and its latest time is known."""
        plan = self._plan
        if plan.predicate is None or not groups.none_pass(group, plan.predicate):
            return None
        latest = groups.latest(group, plan.event_time) if plan.event_time is not None else None
        if plan.event_time is not None and latest is None:
            return None
        return Chunk(self._empty(), groups.rows(group), latest)

    def _rows_of(self, file: pq.ParquetFile, group: int, skip: int) -> Iterator[pa.RecordBatch]:
        batches = file.iter_batches(
            self._batch_rows, row_groups=[group], columns=list(self._plan.columns), use_threads=False
        )
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise refusal(self._stretch.path, error) from error
            if batch is None:
                return
            if skip < batch.num_rows:
                yield self._as_promised(batch.slice(skip) if skip else batch)
            skip = max(0, skip - batch.num_rows)

    def _as_promised(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch with the columns the source promises, in their order and of their types."""
        if batch.schema.equals(self._output):
            return batch
        arrays = []
        for field in self._output:
            values = batch.column(field.name)
            try:
                arrays.append(values if values.type == field.type else values.cast(field.type))
            except pa.ArrowException as error:
                raise BadFile(f"column {field.name!r}: {error}") from error
        return pa.RecordBatch.from_arrays(arrays, schema=self._output)

    def _empty(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([], schema=self._output)


def check_columns(plan: ReadingPlan, found: pa.Schema) -> None:
    """Raise BadFile if a column is missing, or of a type whose values would change on the way."""
    for field in plan.output:
        if len(found.get_all_field_indices(field.name)) != 1:
            how_many = "more than one" if field.name in found.names else "no"
            raise BadFile(
                f"it has {how_many} column {field.name!r} ({field.type}); its columns are {', '.join(found.names)}"
            )
        type_ = found.field(field.name).type
        if not _reads_as(type_, field.type):
            raise BadFile(
                f"its column {field.name!r} is of type {type_}, expected {field.type}; pass schema= if all files differ"
            )


def _reads_as(found: pa.DataType, wanted: pa.DataType) -> bool:
    if found == wanted or pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return _reads_as(found.value_type, wanted)
    kinds: tuple[Any, ...] = (
        _is_text,
        _is_bytes,
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
        pa.types.is_list,
        pa.types.is_struct,
        pa.types.is_time,
    )
    if any(kind(found) and kind(wanted) for kind in kinds):
        return True
    if isinstance(found, pa.TimestampType) and isinstance(wanted, pa.TimestampType):
        return (found.tz is None) == (wanted.tz is None)
    return bool(pa.types.is_integer(found) and pa.types.is_floating(wanted))


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_))
