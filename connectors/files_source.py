"""The files source: Parquet, CSV and JSON lines files, read once each, exactly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import pyarrow as pa
from millstream.connectors.byte_input import COMPRESSIONS, open_bytes
from millstream.connectors.csv_decoder import CsvDialect, check_csv_types
from millstream.connectors.json_decoder import JsonDecoder
from millstream.connectors.object_listing import ObjectListing
from millstream.connectors.object_store import SCHEME, ObjectStore
from millstream.connectors.parquet_files import ParquetFiles
from millstream.connectors.parquet_reader import ParquetReader, Stretch, stretches
from millstream.connectors.paths import FileListing, FoundFile
from millstream.connectors.reading_plan import BadFile, BadInput, FileChanged, ReadingPlan
from millstream.connectors.schema_guess import csv_schema, json_schema, parquet_schema
from millstream.connectors.text_formats import CsvText, JsonText
from millstream.connectors.text_reader import TextFormat, TextReader
from millstream.engine.errors import JobError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.source import Position, ReadContext, Source, Split, SplitOrder, SplitReader

if TYPE_CHECKING:
    from millstream.engine.expression import Expr

_SUFFIXES: Final = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_CHOICES: Final = {
    "format": ("parquet", "csv", "jsonl"),
    "order": ("name", "event_time"),
    "on_error": ("fail", "dead_letter"),
}

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""What ``files`` takes: a file, a folder, a pattern, or several of them."""


def files(  # noqa: PLR0913 - all but the first by name
    paths: Paths,
    *,
    format: Literal["parquet", "csv", "jsonl"] | None = None,
    schema: Schema | None = None,
    follow: bool = False,
    order: Literal["name", "event_time"] = "name",
    on_error: Literal["fail", "dead_letter"] = "fail",
    name: str | None = None,
    delimiter: str | None = None,
    quote: str | None = '"',
    header: bool = True,
    null_values: Sequence[str] = ("",),
    options: Mapping[str, str] | None = None,
) -> FilesSource:
    """Read Parquet, CSV or JSON lines files; text may be packed (``.gz``, ``.zst``, ``.bz2``).

    Every file is a split (of a Parquet file, its row groups), and the position in each is part of the checkpoint:
    after a crash every row comes exactly once more or not at all. So files must not change once they are there.
    Write a new file elsewhere, or under a name that begins with ``.`` or ``_`` or ends in ``.tmp``, and rename it.

    Args:
        paths: a file, a folder with all below it, a pattern (``*``, ``?``, ``[a-z]``, ``**``), or several; ``s3://…``.
        format: "parquet", "csv" or "jsonl"; otherwise the suffix of the files tells.
        schema: the columns to read and their types, as in ``{"id": "int64", "name": str}``. Otherwise a Parquet file's
            own; those of text files are guessed from where the first files begin.
        follow: whether to wait for new files for ever. A new file is found within a second.
        order: "name" (``part-2`` before ``part-10``), or "event_time": all files at once, always the one that
            is furthest behind, for files that each hold a part of the keys.
        on_error: what becomes of a file that is damaged or lacks a column, and of a line that does not fit: "fail"
            stops the job; "dead_letter" puts it aside in the store (table ``dead_letters``), with place and bytes.
        name: how plans and logs call it; otherwise the paths.
        delimiter: between the fields of CSV; otherwise a tab for ``.tsv``, a comma for others.
        quote: around fields of CSV that hold delimiters or newlines; None if there is none.
        header: whether CSV files begin with the columns' names. If not, ``schema`` says them, in order.
        null_values: fields of CSV that are null.
        options: of the objects' store, such as ``AWS_ENDPOINT_URL``; secrets as ``${env:NAME}`` or ``${file:/path}``.

    Raises:
        JobError: no file is there and no schema given, the options contradict each other, or a bucket is not there.
        ExternalError: the objects' store is away.

    >>> import pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "1.csv").write_text("shop,paid_at\\nnorth,2026-01-01 10:00:03\\n")
    >>> print(files(folder / "*.csv").schema)
    shop: string
    paid_at: timestamp[us]
    """
    patterns = _checked(paths, format=format, order=order, on_error=on_error)
    listing = _listing(patterns, options, partial(_belongs, format))
    found = listing.files()
    kind = format or _kind(patterns, found)
    dialect = CsvDialect(delimiter or _delimiter(patterns, found), quote, header, tuple(null_values))
    if schema is None and not found:
        raise _nothing_found(patterns, listing, follow)
    columns = _columns(kind, schema, found, dialect)
    bad, guessed = on_error == "dead_letter", schema is None and kind != "parquet"
    plan = ReadingPlan(name or ", ".join(patterns), columns, tuple(columns.names), keep_bad=bad, guessed=guessed)
    return FilesSource(kind, patterns, listing, plan, dialect, follow, order)


def _checked(paths: Paths, **chosen: str | None) -> tuple[str, ...]:
    patterns = tuple(os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths))
    if not patterns:
        raise JobError("files() takes a file, a folder or a pattern such as 'orders/*.jsonl', got an empty list")
    for option, value in chosen.items():
        known = _CHOICES[option]
        if value is not None and value not in known:
            raise JobError(f"files({patterns[0]!r}): {option} is {' or '.join(map(repr, known))}, got {value!r}")
    return patterns


@dataclass(frozen=True, slots=True, eq=False)
class FilesSource(Source):
    """Files; made by ``files``."""

    kind: str
    patterns: tuple[str, ...]
    listing: FileListing | ObjectListing
    plan: ReadingPlan
    dialect: CsvDialect
    follow: bool
    by: str
    parquet: ParquetFiles = field(default_factory=ParquetFiles)

    @property
    def name(self) -> str:
        """How plans, logs and errors call it."""
        return self.plan.source

    def identity(self) -> str:
        """What positions depend on: which files, and how they are cut into rows."""
        return f"files {self.kind} {list(self.patterns)!r}" + (f" {self.dialect!r}" if self.kind == "csv" else "")

    @property
    def schema(self) -> pa.Schema:
        """The columns it yields."""
        return self.plan.output

    @property
    def bounded(self) -> bool:
        """Whether it ends with the files there were at the start."""
        return not self.follow

    @property
    def order(self) -> SplitOrder:
        """How the files are gone through."""
        return SplitOrder.EVENT_TIME if self.by == "event_time" else SplitOrder.SEQUENTIAL

    def discover(self) -> Sequence[Split]:
        """Return the files there are now, by name; of a Parquet file, its row groups."""
        found = self.listing.files()
        if self.kind == "parquet":
            return [split for file in found for split in self._parquet_splits(file)]
        return [Split(file.relative, file.info()) for file in found]

    def open(self, split: Split, position: Position, context: ReadContext) -> SplitReader:
        """Open a file at a position.

        Raises:
            DataError: it is gone.
            ExternalError: it cannot be looked up.
        """
        path, size = self.listing.locate(split.info), int(split.info["size"])
        bad = BadInput(self.plan, split, path, context)
        if self.kind == "parquet":
            first, end = split.info["groups"]
            return ParquetReader(Stretch(path, size, first, end), self.parquet, position, bad, context)
        return TextReader(self._text_format(), open_bytes(path, size), position, bad, context)

    def pushed_down(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> Source:
        """Return a source that decodes only these columns, and passes over Parquet row groups the filter rules out."""
        # Only Parquet says something about rows before they are decoded.
        used = predicate if self.kind == "parquet" else None
        return replace(self, plan=self.plan.narrowed(columns, used, event_time))

    @property
    def filters_by(self) -> Expr | None:
        """What row groups are passed over by."""
        return self.plan.predicate

    def folders(self) -> tuple[str, ...]:
        """The folder, or file, that positions are relative to."""
        return self.listing.folders()

    def guarantee(self) -> str:
        """What is read again after a crash."""
        return "replayable: the position in every file is in the checkpoint"

    def _parquet_splits(self, file: FoundFile) -> list[Split]:
        info = file.info()
        try:
            open_file = self.parquet.take(file.path, file.size)
        except (BadFile, FileChanged):  # found again, and refused, when the split is read
            return [Split(f"{file.relative}#0", {**info, "groups": [0, 0]})]
        pieces = list(stretches(open_file.parquet.metadata))
        self.parquet.give_back(file.path, file.size, open_file)
        # Named by where they begin, so that a file that has changed is known again, and refused.
        return [Split(f"{file.relative}#{first}", {**info, "groups": [first, end]}) for first, end in pieces]

    def _text_format(self) -> TextFormat:
        if self.kind == "csv":
            return CsvText(self.dialect, tuple(self.plan.schema.names))
        return JsonText()


def _kind(patterns: Sequence[str], found: Sequence[FoundFile]) -> str:
    """Return the format that suffixes tell: of the patterns, or else of the files."""
    names = [*patterns, *(file.relative for file in found)]
    kinds = {kind for kind in map(_kind_of, names) if kind}
    if len(kinds) == 1:
        return kinds.pop()
    if kinds:
        raise JobError(
            f"files({patterns[0]!r}): files of several formats ({', '.join(sorted(kinds))}); a source has one: say "
            "which with format=, or narrow the pattern, as in '*.csv'"
        )
    shown = found[0].relative if found else patterns[0]
    raise JobError(
        f"files({patterns[0]!r}): {shown!r} does not tell the format; pass format='csv', 'jsonl' or 'parquet'"
    )


def _kind_of(name: str) -> str | None:
    path = Path(name)
    if path.suffix in COMPRESSIONS:
        path = path.with_suffix("")
    return _SUFFIXES.get(path.suffix.lower())


def _belongs(format_: str | None, path: str) -> bool:
    """Whether a file in a folder is one of the source's."""
    kind = _kind_of(path)
    return kind is not None and format_ in (None, kind)


def _delimiter(patterns: Sequence[str], found: Sequence[FoundFile]) -> str:
    return "\t" if any(".tsv" in name for name in [*patterns, *(f.relative for f in found[:1])]) else ","


def _looked_up(kind: str, found: Sequence[FoundFile], dialect: CsvDialect) -> pa.Schema:
    if kind == "parquet":
        return parquet_schema(found)
    if kind == "csv" and not dialect.header:
        raise JobError(f"{found[0].path}: header=False needs schema=pa.schema(...), the columns in their order")
    return csv_schema(found, dialect) if kind == "csv" else json_schema(found)


def _columns(kind: str, given: Schema | None, found: Sequence[FoundFile], dialect: CsvDialect) -> pa.Schema:
    """Return the columns that are given, or looked up. Raises JobError if the format does not have such."""
    schema = _looked_up(kind, found, dialect) if given is None else schema_of(given)
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise JobError(f"there is more than one column named {', '.join(map(repr, twice))}; names must differ")
    if kind == "csv":
        check_csv_types(schema)
    elif kind == "jsonl":
        JsonDecoder(schema)
    return schema


def _listing(
    patterns: Sequence[str], options: Mapping[str, str] | None, in_folder: Callable[[str], bool]
) -> FileListing | ObjectListing:
    if all(pattern.startswith(SCHEME) for pattern in patterns):
        return ObjectListing(patterns, ObjectStore(dict(options or {})), in_folder)
    if options is not None:
        raise JobError(f"files({patterns[0]!r}): options= are for objects, as in 's3://bucket/orders/*.csv'")
    return FileListing(patterns, in_folder)


def _nothing_found(patterns: Sequence[str], listing: FileListing | ObjectListing, follow: bool) -> JobError:
    problem = f"files({patterns[0]!r}): no such file; looked in {listing.where}"
    if follow:
        return JobError(f"{problem}; say which columns will come with schema=pa.schema(...)")
    if isinstance(listing, ObjectListing):
        return JobError(f"{problem}, where names with '.' or '_' before them, or '.tmp' behind, are passed over")
    return JobError(f"{problem}; paths are relative to the folder the job is started in")
