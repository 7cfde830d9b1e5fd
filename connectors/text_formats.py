"""CSV and JSON lines, as the text reader takes them."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from millstream.connectors.byte_input import ByteInput
from millstream.connectors.csv_decoder import CsvDecoder, CsvDialect
from millstream.connectors.json_decoder import JsonDecoder
from millstream.connectors.reading_plan import BadFile
from millstream.connectors.record_blocks import RecordBlocks, line_ends
from millstream.connectors.text_reader import Decoder, TextFormat


@dataclass(frozen=True, slots=True)
class CsvText(TextFormat):
    """CSV files.

    Attributes:
        dialect: how they are written.
        names: the columns of files without a header, in order.
    """

    dialect: CsvDialect
    names: tuple[str, ...]

    def blocks(self, source: ByteInput) -> RecordBlocks:
        """Cut at newlines outside quotes."""
        return RecordBlocks(source, self.dialect.find_ends)

    def begin(self, blocks: RecordBlocks, schema: pa.Schema) -> Decoder:
        """Read the header. Raises BadFile."""
        return CsvDecoder(schema, csv_header(blocks, self.dialect) or self.names, self.dialect)


def csv_header(blocks: RecordBlocks, dialect: CsvDialect) -> list[str] | None:
    """Read the names of the columns; None if there are none to read: no header, or an empty file."""
    block = blocks.next(1) if dialect.header else None
    if block is None:
        return None
    if block.problem is not None:
        raise BadFile(f"its header cannot be read: {block.problem}")
    return dialect.fields(block.text)


@dataclass(frozen=True, slots=True)
class JsonText(TextFormat):
    """JSON lines files."""

    def blocks(self, source: ByteInput) -> RecordBlocks:
        """Cut at newlines."""
        return RecordBlocks(source, line_ends)

    def begin(self, blocks: RecordBlocks, schema: pa.Schema) -> Decoder:
        """Nothing stands before the rows."""
        del blocks
        return JsonDecoder(schema)
