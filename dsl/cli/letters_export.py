"""Dead letters as a file: rows as Parquet or JSON lines, what sources could not read as the bytes it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq
from millstream.engine.errors import ExternalError, JobError

if TYPE_CHECKING:
    from millstream.engine.store.letters import Selection
    from millstream.engine.store.reader import StoreReader

_PAGE: Final = 1_000


def export_letters(reader: StoreReader, selection: Selection, out: Path) -> int:
    """Write letters to a new file, which appears whole or not at all; return how many.

    Raises:
        JobError: there are none, the file is there already, or what is to be written does not go into one file.
        ExternalError: the disk failed.
    """
    rows = reader.count_dead_letters(replace(selection, rows=True))
    lines = reader.count_dead_letters(replace(selection, rows=False))
    _check(rows, lines, out)
    # A source that watches the folder passes over such a name.
    fresh = out.with_name(f".{out.name}.tmp")
    try:
        with fresh.open("wb") as file:
            if lines:
                _write_bytes(reader, selection, file)
            elif out.suffix == ".parquet":
                _write_parquet(reader, selection, file)
            else:
                _write_json_lines(reader, selection, file)
        fresh.rename(out)
    except OSError as error:
        raise ExternalError(
            f"cannot write {out} ({error.strerror or error}): give another path, or make room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return rows + lines


def _check(rows: int, lines: int, out: Path) -> None:
    if out.exists():
        raise JobError(f"{out} is there already: give a new file")
    if not rows + lines:
        raise JobError("there are no such dead letters; see deadletters ls")
    if rows and lines:
        raise JobError(
            f"{rows:,} dead letters are rows of operators, {lines:,} are lines of sources: they do not go into one "
            "file; choose with --operator or --source"
        )
    if rows and out.suffix not in (".parquet", ".jsonl"):
        raise JobError(f"{out}: rows are written to a .parquet or a .jsonl file")
    if lines and out.suffix == ".parquet":
        raise JobError(f"{out}: what sources could not read has no columns; give another file than .parquet")


def _pages(reader: StoreReader, selection: Selection, column: str) -> Iterator[list[Any]]:
    from millstream.engine.store.types import LetterId

    while True:
        page = reader.dead_letters(selection, ("epoch", "number", column), _PAGE).to_pylist()
        if not page:
            return
        yield [letter[column] for letter in page]
        selection = replace(selection, after=LetterId(page[-1]["epoch"], page[-1]["number"]))


def _write_bytes(reader: StoreReader, selection: Selection, file: BinaryIO) -> None:
    for page in _pages(reader, selection, "raw"):
        file.writelines(raw if raw.endswith(b"\n") else raw + b"\n" for raw in page)


def _write_json_lines(reader: StoreReader, selection: Selection, file: BinaryIO) -> None:
    for page in _pages(reader, selection, "row_json"):
        file.writelines(f"{row}\n".encode() for row in page)


def _write_parquet(reader: StoreReader, selection: Selection, file: BinaryIO) -> None:
    from millstream.engine.store.letters import unpack_row

    with contextlib.ExitStack() as held:
        writer: pq.ParquetWriter | None = None
        for page in _pages(reader, selection, "raw"):
            rows = [unpack_row(raw) for raw in page]
            writer = writer or held.enter_context(pq.ParquetWriter(file, rows[0].schema))
            _check_alike(rows, writer.schema)
            writer.write_table(pa.Table.from_batches(rows))


def _check_alike(rows: Sequence[pa.RecordBatch], schema: pa.Schema) -> None:
    for row in rows:
        if not row.schema.equals(schema):
            raise JobError(
                "rows of several operators, or of one that was changed, do not go into one Parquet file: their columns "
                f"are {', '.join(row.schema.names)} and {', '.join(schema.names)}. Choose with --operator or --since, "
                "or write a .jsonl file"
            )
