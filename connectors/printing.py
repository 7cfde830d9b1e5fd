"""Prints rows as they come, for looking at a stream."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TextIO

import pyarrow as pa
from millstream.connectors.file_formats import JsonLines, json_lines
from millstream.engine.errors import ExternalError, JobError, JobFailed
from millstream.engine.sink import Committable, Sink, SinkContext, SinkKind, SinkWriter


def print_sink(limit: int | None = None, stream: TextIO | None = None, *, name: str = "print") -> PrintSink:
    """Print each row as a line of JSON, at once: after a crash the rows since the last checkpoint come again.

    Args:
        limit: the number of rows after which nothing more is printed; None: print all.
        stream: where to; None: standard output.
    """
    if limit is not None and limit < 0:
        raise JobError(f"print sink {name!r}: limit must not be negative, got {limit}")
    return PrintSink(name, limit, stream)


class PrintSink(Sink):
    """Lines of JSON on a text stream; made by ``print_sink``."""

    def __init__(self, name: str, limit: int | None, stream: TextIO | None) -> None:
        self._name = name
        self._left = limit
        self._stream = stream
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PrintSink({self._name!r})"

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self._name

    def identity(self) -> str:
        """Text that changes exactly when it is another destination."""
        return f"print {self._name!r}"

    @property
    def kind(self) -> SinkKind:
        """How it has its effect: visible at once."""
        return SinkKind.AT_LEAST_ONCE

    def check(self, schema: pa.Schema) -> None:
        """Raise SchemaError when rows of this schema cannot be written as JSON."""
        JsonLines().check(schema)

    def writer(self, schema: pa.Schema, context: SinkContext) -> SinkWriter:
        """Make one running copy."""
        del schema, context
        return _PrintWriter(self)

    def guarantee(self) -> str:
        """One sentence for the plan."""
        return "at least once: rows are printed as they come, and again after a crash if no checkpoint covers them"

    def show(self, batch: pa.RecordBatch) -> None:
        """Print a batch, as far as the limit allows. For the writers."""
        with self._lock:
            if self._left is not None:
                batch = batch.slice(0, self._left)
                self._left -= batch.num_rows
            # Looked up now: a program may have redirected standard output since.
            stream = self._stream or sys.stdout
            try:
                for lines in json_lines(pa.Table.from_batches([batch])):
                    stream.write(lines.decode())
                stream.flush()
            except BrokenPipeError as error:
                # As with `| head`: no restart brings the reader back.
                raise JobFailed(f"{self._name}: whoever read the printed rows has gone") from error
            except OSError as error:
                raise ExternalError(f"{self._name}: the rows cannot be printed: {error}") from error


class _PrintWriter(SinkWriter):
    def __init__(self, sink: PrintSink) -> None:
        self._sink = sink

    def write(self, batch: pa.RecordBatch) -> None:
        self._sink.show(batch)

    def prepare(self, epoch: int, final: bool) -> Sequence[Committable]:
        del epoch, final
        return []
