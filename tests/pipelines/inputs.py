"""Writes the input of the pipelines: always the same rows, in many small files."""

from __future__ import annotations

import csv
import gzip
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from millstream.benchmarks.nexmark_events import MAKERS, Timing

DATA = Path(__file__).parent.parent.parent / "examples" / "data"
FILES = 24


def write_inputs(folder: Path) -> None:
    """Write everything below ``folder``."""
    flights = every(pq.read_table(DATA / "flights.parquet"), 340)
    in_pieces(flights, folder / "flights", FILES)
    jersey = pc.equal(flights["origin"], "EWR")
    in_pieces(flights.filter(jersey), folder / "flights_jersey", FILES)
    for number, piece in enumerate(pieces(flights.filter(pc.invert(jersey)), FILES)):
        write_csv(folder / "flights_york", number, piece)
    weather = every(pq.read_table(DATA / "weather.parquet"), 50)
    for number, piece in enumerate(pieces(weather.select(["observed_at", "origin", "temp", "wind_gust"]), FILES)):
        write_csv(folder / "weather", number, piece)
    write_notes(folder / "notes")
    write_visits(folder / "visits")
    write_readings(folder / "readings.parquet")
    bids = MAKERS["bid"](7, 0, 2_400, Timing(rate=20, disorder=3_000_000))
    in_pieces(pa.Table.from_batches([bids]), folder / "bids", FILES)


def every(table: pa.Table, step: int) -> pa.Table:
    """Every ``step``-th row."""
    return table.take(pa.array(range(0, table.num_rows, step)))


def pieces(table: pa.Table, count: int) -> list[pa.Table]:
    """Cut a table into ``count`` parts of about the same length."""
    bounds = [table.num_rows * i // count for i in range(count + 1)]
    return [table.slice(first, last - first) for first, last in pairwise(bounds)]


def in_pieces(table: pa.Table, folder: Path, count: int) -> None:
    """Write ``count`` Parquet files."""
    folder.mkdir(parents=True)
    for number, piece in enumerate(pieces(table, count)):
        pq.write_table(piece, folder / f"{number:02}.parquet")


def write_csv(folder: Path, number: int, table: pa.Table) -> None:
    """Write one CSV file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{number:02}.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(table.column_names)
        writer.writerows([row.values() for row in table.to_pylist()])


def write_notes(folder: Path) -> None:
    """Packed JSON lines with texts that CSV finds hard to write."""
    texts = ["plain", "", None, 'he said "no"', "a,b;c", "two\nlines", " spaces ", "naïve — 東京 🚲", "null", "\t"]
    draw = random.Random(11)
    rows = [
        {"id": n, "user": f"u{n % 13}", "note": texts[n % len(texts)], "amount": draw.choice([None, 0, 5, -7, 2**40])}
        for n in range(720)
    ]
    write_jsonl(folder, rows, FILES, packed=True)


def write_visits(folder: Path) -> None:
    """Two text keys: null, empty, and such that putting them one after the other says nothing."""
    draw = random.Random(12)
    keys = [None, "", "a", "ab", "b", "a\x1fb", "ä", "A"]
    rows = [
        {
            "site": draw.choice(keys),
            "page": draw.choice(keys),
            "seconds": draw.choice([None, *range(9)]),
            "at": iso(n * 7 - draw.randrange(25)),
        }
        for n in range(900)
    ]
    write_jsonl(folder, rows, FILES, packed=False)


def write_readings(file: Path) -> None:
    """Rows out of order by up to 30 s, and some that come whole minutes too late."""
    draw = random.Random(13)
    rows = [
        {
            "row": n,
            "sensor": f"s{draw.randrange(5)}",
            "value": draw.randrange(100),
            "at": 1_000 + n - draw.randrange(30) - (400 if n > 400 and n % 37 == 0 else 0),
        }
        for n in range(1_600)
    ]
    table = pa.Table.from_pylist(rows)
    at = pa.array([row["at"] * 1_000_000 for row in rows], pa.timestamp("us"))
    pq.write_table(table.set_column(table.schema.get_field_index("at"), "at", at), file)


def iso(seconds: int) -> str:
    """A time on the first of January 2026."""
    minutes, second = divmod(max(seconds, 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"2026-01-01T{hours:02}:{minute:02}:{second:02}"


def write_jsonl(folder: Path, rows: list[dict[str, Any]], count: int, *, packed: bool) -> None:
    """Write JSON lines in ``count`` files."""
    folder.mkdir(parents=True)
    for number in range(count):
        piece = rows[len(rows) * number // count : len(rows) * (number + 1) // count]
        text = "".join(json.dumps(row, ensure_ascii=number % 2 == 0) + "\n" for row in piece).encode()
        name = folder / f"{number:02}.jsonl"
        if packed:
            # No name and no time in the header: the same bytes each time.
            name.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text, mtime=0))
        else:
            name.write_bytes(text)
