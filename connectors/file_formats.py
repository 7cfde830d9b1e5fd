"""How rows become the bytes of a file: Parquet, CSV and JSON lines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from millstream.engine.errors import JobError, SchemaError

_SUFFIX_OF_TEXT: Final = {"none": "", "gzip": ".gz", "zstd": ".zst", "bz2": ".bz2"}
_ROWS_AT_A_TIME: Final = 65_536


class FileFormat(ABC):
    """One format with its compression."""

    @property
    @abstractmethod
    def name(self) -> str:
        """One word."""

    @property
    @abstractmethod
    def suffix(self) -> str:
        """What file names end in, with the dot."""

    @abstractmethod
    def write(self, table: pa.Table, path: Path) -> None:
        """Write a whole file. Raises OSError."""

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError, naming the column, when rows of this schema cannot be written."""
        for column in schema:
            if not _is_plain(column.type, nested=True):
                raise SchemaError(
                    f"column {column.name!r} of type {column.type} cannot be written to {self.name} files; "
                    "cast it or leave it out before the sink"
                )


@dataclass(frozen=True, slots=True)
class Parquet(FileFormat):
    """Parquet; ``compression`` is zstd, snappy, lz4, gzip, brotli or none."""

    compression: str = "zstd"

    def __post_init__(self) -> None:
        known = ("zstd", "snappy", "lz4", "gzip", "brotli", "none")
        if self.compression not in known:
            raise JobError(f"compression {self.compression!r} is not known for Parquet; take one of {', '.join(known)}")

    @property
    def name(self) -> str:
        """One word."""
        return "parquet"

    @property
    def suffix(self) -> str:
        """What file names end in."""
        return ".parquet"

    def write(self, table: pa.Table, path: Path) -> None:
        """Write a whole file. Raises OSError."""
        pyarrow.parquet.write_table(table, path, compression=self.compression)


@dataclass(frozen=True, slots=True)
class Csv(FileFormat):
    """CSV with a header. NULL is nothing, an empty text ``""``; DuckDB tells them apart if told to.

    It is ``read_csv(…, allow_quoted_nulls = false)`` that does.
    """

    compression: str = "none"

    def __post_init__(self) -> None:
        _check_text_compression(self.compression)

    @property
    def name(self) -> str:
        """One word."""
        return "csv"

    @property
    def suffix(self) -> str:
        """What file names end in."""
        return ".csv" + _SUFFIX_OF_TEXT[self.compression]

    def write(self, table: pa.Table, path: Path) -> None:
        """Write a whole file. Raises OSError."""
        with pa.output_stream(str(path), compression=_stream_compression(self.compression)) as out:
            pyarrow.csv.write_csv(table, out)

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError for columns CSV has no way to write."""
        for column in schema:
            type_ = _value_type(column.type)
            if _is_binary(type_) or pa.types.is_duration(type_) or not _is_plain(type_, nested=False):
                raise SchemaError(
                    f"column {column.name!r} of type {column.type} cannot be written to CSV files, which "
                    "know only flat texts, numbers, booleans and times; cast it, or write Parquet or JSON lines"
                )


@dataclass(frozen=True, slots=True)
class JsonLines(FileFormat):
    """One JSON object a line: ISO 8601 times, base64 bytes, decimals as text; NaN and infinities as null."""

    compression: str = "none"

    def __post_init__(self) -> None:
        _check_text_compression(self.compression)

    @property
    def name(self) -> str:
        """One word."""
        return "jsonl"

    @property
    def suffix(self) -> str:
        """What file names end in."""
        return ".jsonl" + _SUFFIX_OF_TEXT[self.compression]

    def write(self, table: pa.Table, path: Path) -> None:
        """Write a whole file. Raises OSError."""
        with pa.output_stream(str(path), compression=_stream_compression(self.compression)) as out:
            for lines in json_lines(table):
                out.write(lines)

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError for columns whose values would lose their nanoseconds on the way."""
        FileFormat.check(self, schema)
        for column in schema:
            if not pa.types.is_timestamp(column.type) and _has_nanoseconds(column.type):
                raise SchemaError(
                    f"column {column.name!r} of type {column.type} cannot be written to JSON lines: only "
                    "timestamps may be in nanoseconds, and not inside lists or structs; cast it to microseconds"
                )


def json_lines(table: pa.Table) -> Iterator[bytes]:
    r"""Yield the rows as JSON lines, many at a time.

    >>> list(json_lines(pa.table({"a": [1, None], "b": ["x", "é"]})))
    [b'{"a":1,"b":"x"}\n{"a":null,"b":"\xc3\xa9"}\n']
    """
    encoder = msgspec.json.Encoder()
    for batch in table.to_batches(max_chunksize=_ROWS_AT_A_TIME):
        if batch.num_rows:
            columns = [_json_ready(column) for column in batch.columns]
            yield encoder.encode_lines(pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist())


def _json_ready(column: pa.Array) -> pa.Array:
    """Make texts of times: Python's datetime has no nanoseconds."""
    if not pa.types.is_timestamp(column.type):
        return column
    if column.type.tz is None:
        return pc.strftime(column, format="%Y-%m-%dT%H:%M:%S")
    return pc.strftime(pc.cast(column, pa.timestamp(column.type.unit, "UTC")), format="%Y-%m-%dT%H:%M:%SZ")


def _check_text_compression(compression: str) -> None:
    if compression not in _SUFFIX_OF_TEXT:
        raise JobError(f"compression {compression!r} is not known; take one of {', '.join(_SUFFIX_OF_TEXT)}")


def _stream_compression(compression: str) -> str | None:
    return None if compression == "none" else compression


def _value_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_))


def _has_nanoseconds(type_: pa.DataType) -> bool:
    if isinstance(type_, pa.TimestampType | pa.DurationType | pa.Time64Type):
        return bool(type_.unit == "ns")
    if pa.types.is_dictionary(type_):
        return _has_nanoseconds(type_.value_type)
    return any(_has_nanoseconds(type_.field(i).type) for i in range(type_.num_fields))


def _is_plain(type_: pa.DataType, nested: bool) -> bool:
    """Whether rows of the type can also wait in the checkpoint: flat ones, lists, structs."""
    if pa.types.is_dictionary(type_):
        return nested and _is_plain(type_.value_type, nested=False)
    if nested and (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        return not pa.types.is_dictionary(type_.value_type) and _is_plain(type_.value_type, nested=True)
    if nested and pa.types.is_struct(type_):
        fields = [type_.field(i).type for i in range(type_.num_fields)]
        return bool(fields) and all(not pa.types.is_dictionary(f) and _is_plain(f, nested=True) for f in fields)
    return bool(
        pa.types.is_boolean(type_)
        or pa.types.is_integer(type_)
        or pa.types.is_floating(type_)
        or pa.types.is_decimal(type_)
        or pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or (pa.types.is_temporal(type_) and not pa.types.is_interval(type_))
        or _is_binary(type_)
    )
