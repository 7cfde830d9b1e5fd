"""CSV to Arrow: a block at a time with ``pyarrow.csv``, halving it only where a record is bad."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as arrow_csv
from millstream.connectors.reading_plan import BadFile, empty_batch, failing
from millstream.connectors.record_blocks import Block, Offsets, line_ends
from millstream.connectors.timestamp_text import parse_timestamps
from millstream.engine.errors import JobError


@dataclass(frozen=True, slots=True)
class CsvDialect:
    """How a CSV file is written.

    Attributes:
        delimiter: one ASCII character between fields.
        quote: one ASCII character around fields that hold delimiters or newlines; None if there is none.
        header: whether the first record holds the columns' names.
        null_values: fields that are null, quoted or not.
    """

    delimiter: str = ","
    quote: str | None = '"'
    header: bool = True
    null_values: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        for what, text in (("delimiter", self.delimiter), ("quote", self.quote)):
            if text is not None and not (len(text) == 1 and text.isascii() and text not in "\r\n"):
                raise JobError(f"{what}={text!r}: expected one ASCII character other than a newline")
        if self.delimiter == self.quote:
            raise JobError(f"delimiter and quote are both {self.quote!r}: they must differ")

    def find_ends(self, text: npt.NDArray[np.uint8]) -> tuple[Offsets, bool]:
        """Return the offset after each record, and whether the text stops inside quotes."""
        if self.quote is None or not (text == ord(self.quote)).any():
            return line_ends(text)
        # Numba is loaded only for files that have quotes.
        from millstream.connectors.csv_records import quoted_record_ends

        ends = quoted_record_ends(text, ord(self.delimiter), ord(self.quote))
        return ends[:-1], bool(ends[-1])

    def fields(self, record: bytes) -> list[str]:
        """Return the fields of one record.

        Raises:
            BadFile: the record is not UTF-8.

        >>> CsvDialect().fields(b'a,"b,c"\\r\\n')
        ['a', 'b,c']
        """
        try:
            text = record.decode()
        except UnicodeDecodeError as error:
            raise BadFile(f"its header is not UTF-8: {error}") from error
        lines = io.StringIO(text, newline="")
        if self.quote is None:
            return next(csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE), [])
        return next(csv.reader(lines, delimiter=self.delimiter, quotechar=self.quote), [])

    def parse_options(self, *, newlines: bool) -> arrow_csv.ParseOptions:
        """As Arrow takes it."""
        return arrow_csv.ParseOptions(
            delimiter=self.delimiter, quote_char=self.quote or False, newlines_in_values=newlines
        )


class CsvDecoder:
    """Decodes blocks of CSV records into batches of one schema.

    A record is bad if its number of fields differs from the header's, or a field does not hold what its type says.
    Empty lines are passed over.

    Args:
        schema: the columns to decode, in this order.
        names: the names of the file's columns, in the file's order.

    Raises:
        BadFile: the file lacks a column, or has two of one name.
    """

    def __init__(self, schema: pa.Schema, names: Sequence[str], dialect: CsvDialect) -> None:
        missing = [field for field in schema if field.name not in names]
        if missing:
            lacks = ", ".join(f"{field.name!r} ({field.type})" for field in missing)
            raise BadFile(f"it has no column {lacks}; its columns are {', '.join(map(repr, names))}")
        twice = sorted({name for name in schema.names if list(names).count(name) > 1})
        if twice:
            raise BadFile(f"it has more than one column named {', '.join(map(repr, twice))}")
        self._schema = schema
        self._names = list(names)
        self._dialect = dialect
        self._convert = arrow_csv.ConvertOptions(
            column_types={f.name: pa.string() if pa.types.is_timestamp(f.type) else f.type for f in schema},
            include_columns=schema.names,
            null_values=list(dialect.null_values),
            strings_can_be_null=True,
        )

    def decode(self, block: Block) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Return the rows of the good records, and per bad record (its index in the block) what is wrong with it."""
        batches, bad = failing(len(block.ends), lambda start, end: self._decode(block, start, end))
        return (pa.concat_batches(batches) if batches else empty_batch(self._schema)), bad

    def _decode(self, block: Block, start: int, end: int) -> pa.RecordBatch:
        """Decode some of the records. Raises ValueError if one of them is bad."""
        text = memoryview(block.text)[block.start(start) : int(block.ends[end - 1])]
        blank = _blank_records(block, start, end)
        if blank == end - start:
            return empty_batch(self._schema)
        table = arrow_csv.read_csv(
            pa.py_buffer(text),
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=len(text), column_names=self._names),
            parse_options=self._dialect.parse_options(newlines=True),
            convert_options=self._convert,
        )
        if table.num_rows != end - start - blank:
            raise ValueError("a carriage return stands in the middle of the record")
        batch = table.combine_chunks().to_batches()[0]
        return pa.RecordBatch.from_arrays(
            [self._times(batch.column(i), field) for i, field in enumerate(self._schema)], schema=self._schema
        )

    def _times(self, values: pa.Array, field: pa.Field) -> pa.Array:
        if not pa.types.is_timestamp(field.type):
            return values
        times, bad = parse_timestamps(values, field.type)
        if bad:
            raise ValueError(f"column {field.name!r} ({field.type}): {next(iter(bad.values()))}")
        return times


def check_csv_types(schema: pa.Schema) -> None:
    """Raise JobError, naming the column, for a type that has no CSV form."""
    for field in schema:
        if pa.types.is_nested(field.type) or pa.types.is_duration(field.type) or pa.types.is_null(field.type):
            raise JobError(f"column {field.name!r}: {field.type} cannot be read from CSV; read it as a string")


def _blank_records(block: Block, start: int, end: int) -> int:
    starts = np.concatenate(([block.start(start)], block.ends[start : end - 1]))
    short = np.flatnonzero(block.ends[start:end] - starts <= 2)
    return sum(not block.record(start + int(i)).strip(b"\r\n") for i in short)
