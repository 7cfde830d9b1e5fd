"""Reads one text file (CSV or JSON lines) as a split: whole records, exact positions, bad ones put aside."""

from __future__ import annotations

from typing import Final, Protocol

import pyarrow as pa
from millstream.connectors.byte_input import ByteInput
from millstream.connectors.reading_plan import BadFile, BadInput, FileChanged, empty_batch
from millstream.connectors.record_blocks import Block, RecordBlocks
from millstream.engine.source import Position, ReadContext, SplitEnd, SplitReader

_MOST_BYTES: Final = 16 << 20
"""No batch is filled up beyond so much text: a read must not take long."""


class Decoder(Protocol):
    """Decodes blocks of records."""

    def decode(self, block: Block) -> tuple[pa.RecordBatch, dict[int, str]]:
        """Return the rows of the good records, and per bad record what is wrong with it."""
        ...


class TextFormat(Protocol):
    """What differs between CSV and JSON lines."""

    def blocks(self, source: ByteInput) -> RecordBlocks:
        """Cut the file into records."""
        ...

    def begin(self, blocks: RecordBlocks, schema: pa.Schema) -> Decoder:
        """Read what stands before the rows, and return the decoder. Raises BadFile."""
        ...


class TextReader(SplitReader):
    """Reads one text file.

    Its position is ``[offset, line]`` of the next record: a byte offset in the (unpacked) text, and a line number
    from 1. A record that stands there has not been read, and all before it have.
    """

    def __init__(
        self, format_: TextFormat, source: ByteInput, position: Position, bad: BadInput, context: ReadContext
    ) -> None:
        self._source = source
        self._format = format_
        self._blocks = format_.blocks(source)
        self._start = position
        self._bad = bad
        self._batch_rows = context.batch_rows
        self._schema = bad.plan.output
        self._decoder: Decoder | None = None
        self._finished = False
        self._damage: BadFile | None = None

    def read(self) -> pa.RecordBatch | SplitEnd:
        """Return the next rows, none of them if all records were bad, or FINISHED.

        Raises:
            DataError: a record is bad, or the file is, and bad input is not kept; or the file changed.
            ExternalError: the file cannot be read.
        """
        batches: list[pa.RecordBatch] = []
        records = size = 0
        while not self._finished and records < self._batch_rows and size < _MOST_BYTES:
            block = self._next_block(self._batch_rows - records)
            if block is not None:
                batches.append(self._decode(block))
                records += len(block.ends)
                size += len(block.text)
        if not records:
            self._put_damage_aside()
            return SplitEnd.FINISHED
        return batches[0] if len(batches) == 1 else pa.concat_batches(batches)

    def position(self) -> Position:
        """Return offset and line of the next record."""
        return self._start if self._decoder is None else [self._blocks.offset, self._blocks.line]

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def _next_block(self, most: int) -> Block | None:
        """Return the next records; None, and finished, at the end of the file or where it is damaged."""
        try:
            if self._decoder is None:
                self._decoder = self._begin()
            block = self._blocks.next(most)
        except BadFile as error:
            self._damage = error
            block = None
        except FileChanged as error:
            raise self._bad.changed(str(error)) from error
        self._finished = block is None
        return block

    def _put_damage_aside(self) -> None:
        """Refuse what is left of a damaged file, at the split's end: after mere rows a restart would read on."""
        if self._damage is not None:
            where = f"after line {self._blocks.line - 1}" if self._decoder else ""
            self._bad.rest_of_file(where, str(self._damage))

    def _begin(self) -> Decoder:
        self._blocks.skip_byte_order_mark()
        decoder = self._format.begin(self._blocks, self._schema)
        if self._start is not None:
            self._blocks.seek(*self._start)
        return decoder

    def _decode(self, block: Block) -> pa.RecordBatch:
        if block.problem is not None:
            self._bad.line(block.line, block.offset, block.problem, block.text)
            return empty_batch(self._schema)
        assert self._decoder is not None
        batch, bad = self._decoder.decode(block)
        for index in sorted(bad):
            offset = block.offset + block.start(index)
            self._bad.line(block.line_of(index), offset, bad[index], block.record(index))
        return batch
