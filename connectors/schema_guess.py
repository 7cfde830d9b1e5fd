"""The schema of files, looked up or guessed from where they begin."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
from millstream.connectors.byte_input import open_bytes
from millstream.connectors.csv_decoder import CsvDialect
from millstream.connectors.parquet_files import open_parquet
from millstream.connectors.paths import FoundFile
from millstream.connectors.reading_plan import BadFile, FileChanged
from millstream.connectors.record_blocks import RecordBlocks, line_ends
from millstream.connectors.text_formats import csv_header
from millstream.engine.errors import JobError

FILES_LOOKED_AT: Final = 4
_BYTES_LOOKED_AT: Final = 1 << 20
_RECORDS_LOOKED_AT: Final = 20_000


def parquet_schema(files: Sequence[FoundFile]) -> pa.Schema:
    """Return the columns of the first file. Raises JobError if it cannot be read."""
    return _plain(_first_of(files, lambda file: open_parquet(file.path).schema_arrow))


def csv_schema(files: Sequence[FoundFile], dialect: CsvDialect) -> pa.Schema:
    """Guess the columns' types from the first files. Raises JobError if nothing can be guessed."""
    return _guessed(files, lambda file: _csv_schema(file, dialect))


def json_schema(files: Sequence[FoundFile]) -> pa.Schema:
    """Guess columns and types from the first files. Raises JobError if nothing can be guessed."""
    return _guessed(files, _json_schema)


def _first_of(files: Sequence[FoundFile], look: Callable[[FoundFile], pa.Schema]) -> pa.Schema:
    file = files[0]
    try:
        return look(file)
    except (BadFile, FileChanged, pa.ArrowException) as error:
        raise JobError(
            f"{file.path}: no schema can be found in it: {error}; replace the file, or say which columns there are "
            "with schema=pa.schema(...)"
        ) from error


def _guessed(files: Sequence[FoundFile], look: Callable[[FoundFile], pa.Schema]) -> pa.Schema:
    looked_at = [file for file in files if file.size][:FILES_LOOKED_AT]
    if not looked_at:
        raise JobError(f"{files[0].path} is empty: say which columns there will be with schema=pa.schema(...)")
    merged = _first_of(looked_at[:1], look)
    for file in looked_at[1:]:
        merged = _merged(merged, _first_of([file], look), file)
    if not len(merged):
        raise JobError(f"{looked_at[0].path}: it has no columns; say which there are with schema=pa.schema(...)")
    return _plain(merged)


def _merged(known: pa.Schema, more: pa.Schema, file: FoundFile) -> pa.Schema:
    try:
        return pa.unify_schemas([known, more], promote_options="permissive")
    except pa.ArrowException as error:
        raise JobError(
            f"{file.path}: its columns seem to have other types than those of the files before it: {error}; say which "
            "they have with schema=pa.schema(...)"
        ) from error


def _csv_schema(file: FoundFile, dialect: CsvDialect) -> pa.Schema:
    sample, names = _sample(file, dialect)
    if not sample.strip():
        return pa.schema([(name, pa.null()) for name in names or []])
    reader = arrow_csv.read_csv(
        io.BytesIO(sample),
        read_options=arrow_csv.ReadOptions(
            use_threads=False, block_size=len(sample) + 1, column_names=names, autogenerate_column_names=not names
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char=dialect.quote or False,
            newlines_in_values=True,
            invalid_row_handler=lambda _: "skip",
        ),
        convert_options=arrow_csv.ConvertOptions(null_values=list(dialect.null_values), strings_can_be_null=True),
    )
    return reader.schema


def _json_schema(file: FoundFile) -> pa.Schema:
    sample = b"".join(line for line in _sample(file, None)[0].splitlines(keepends=True) if _is_object(line))
    if not sample:
        return pa.schema([])
    return arrow_json.read_json(
        io.BytesIO(sample), read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(sample) + 1)
    ).schema


def _is_object(line: bytes) -> bool:
    """Whether a line is one JSON object: bad lines are refused when they are read, with their place."""
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, RecursionError):
        return False


def _sample(file: FoundFile, dialect: CsvDialect | None) -> tuple[bytes, list[str] | None]:
    """Return the first records of a file, and the names in its header if it is a CSV file with one."""
    source = open_bytes(file.path, file.size)
    try:
        blocks = RecordBlocks(source, dialect.find_ends if dialect else line_ends)
        blocks.skip_byte_order_mark()
        names = csv_header(blocks, dialect) if dialect else None
        sample = b""
        while len(sample) < _BYTES_LOOKED_AT and (block := blocks.next(_RECORDS_LOOKED_AT)) is not None:
            if block.problem is None:
                sample += block.text
        return sample, names
    finally:
        source.close()


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema([(field.name, _plain_type(field.type)) for field in schema])


def _plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the type operators are to see: no dictionaries or views, microseconds, texts where all is null."""
    if pa.types.is_dictionary(type_):
        return _plain_type(type_.value_type)
    if isinstance(type_, pa.TimestampType) and type_.unit in {"s", "ms"}:
        return pa.timestamp("us", type_.tz)
    if pa.types.is_null(type_) or pa.types.is_string_view(type_):
        return pa.string()
    if pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_list(type_):
        return pa.list_(_plain_type(type_.value_type))
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, _plain_type(field.type)) for field in type_.fields])
    return type_
