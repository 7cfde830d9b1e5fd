"""The files source: every row once from any position, bad input put aside with its place, and nothing read twice."""

from __future__ import annotations

import bz2
import csv
import datetime as dt
import gzip
import io
import json
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError
from millstream.engine.expression import col
from millstream.engine.source import Chunk, DeadLetter, ReadContext, Source, SplitEnd
from millstream.engine.store.reader import StoreReader
from millstream.testing import simulate

SCHEMA = pa.schema({"n": pa.int64(), "text": pa.string(), "x": pa.float64(), "at": pa.timestamp("us")})
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8) | st.sampled_from(
    [',";\n', "a\nb", '"', '""', "é🎈", " x ", "NULL", "1"]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "n": st.none() | st.integers(-(2**63), 2**63 - 1),
            "text": st.none() | TEXTS,
            "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "at": st.none() | st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)),
        }
    ),
    max_size=30,
)
PACKED = {"": lambda data: data, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda data: zstd(data)}  # noqa: PLW0108 - it is defined below
FORMATS = ["parquet", *(f"{kind}{packed}" for kind in ("csv", "jsonl") for packed in PACKED)]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=7)
        return
    if ".csv" in path.suffixes:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(SCHEMA.names)
        writer.writerows([row[name] for name in SCHEMA.names] for row in rows)
        data = text.getvalue()
    else:
        data = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    pack = PACKED.get(path.suffix, PACKED[""])
    path.write_bytes(pack(data.encode()))


def read(
    source: Source, batch_rows: int = 65_536, letters: list[DeadLetter] | None = None, reopen: bool = False
) -> list[dict[str, Any]]:
    """Read all splits; ``reopen``: go on with a new reader after every batch."""
    context = ReadContext((letters if letters is not None else []).append, batch_rows)
    rows: list[dict[str, Any]] = []
    for split in source.discover():
        reader = source.open(split, None, context)
        try:
            while not isinstance(got := reader.read(), SplitEnd):
                rows += (got.batch if isinstance(got, Chunk) else got).to_pylist()
                if reopen:
                    position = reader.position()
                    reader.close()
                    reader = source.open(split, position, context)
        finally:
            reader.close()
    return rows


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=25, deadline=None)
@given(rows=ROWS, batch_rows=st.integers(1, 12))
def test_every_row_comes_once_from_any_position(
    tmp_path_factory: pytest.TempPathFactory, format_: str, rows: list[dict[str, Any]], batch_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("in")
    write(folder / f"a.{format_}", rows)
    source = ms.files(folder / f"*.{format_}", schema=SCHEMA)
    assert read(source) == rows
    assert read(source, batch_rows, reopen=True) == rows


@pytest.mark.parametrize("format_", ["parquet", "csv", "jsonl.gz"])
def test_columns_that_nobody_needs_are_not_decoded(tmp_path: Path, format_: str) -> None:
    write(tmp_path / f"a.{format_}", [{"n": 1, "text": "a", "x": 0.5, "at": None}])
    narrow = ms.files(tmp_path / f"a.{format_}").pushed_down(frozenset({"x", "n"}), None, None)
    assert read(narrow) == [{"n": 1, "x": 0.5}]


def test_files_come_in_natural_order_and_unfinished_ones_not_at_all(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"part-{number}.csv").write_text(f"n\n{number}\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x.csv").write_text("n\n0\n")
    for hidden in (".part-0.csv", "_part-0.csv", "part-0.csv.tmp", "notes.txt"):
        (tmp_path / hidden).write_text("n\n99\n")
    assert [row["n"] for row in read(ms.files(tmp_path))] == [0, 1, 2, 10]
    assert [row["n"] for row in read(ms.files(tmp_path / "*.csv"))] == [1, 2, 10]
    assert [row["n"] for row in read(ms.files([tmp_path / "part-10.csv", tmp_path / "deep"]))] == [0, 10]


def test_a_split_is_a_stretch_of_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": range(200_000)}), tmp_path / "a.parquet", row_group_size=30_000)
    splits = ms.files(tmp_path).discover()
    assert [split.id for split in splits] == ["a.parquet#0", "a.parquet#3", "a.parquet#6"]
    assert [row["n"] for row in read(ms.files(tmp_path), batch_rows=9_999, reopen=True)] == list(range(200_000))


def test_row_groups_which_the_filter_rules_out_are_passed_over(tmp_path: Path) -> None:
    at = [dt.datetime(2026, 1, 1) + dt.timedelta(seconds=n) for n in range(300)]
    table = pa.table({"n": range(300), "u": [n % 3 for n in range(300)], "at": pa.array(at, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    predicate = (col("n") >= 100) & (col("n") < 200) & (col("u") == 1)
    source = ms.files(tmp_path).pushed_down(frozenset({"n"}), predicate, "at")
    (split,) = source.discover()
    reader = source.open(split, None, ReadContext(lambda letter: None))
    first, second, third = reader.read(), reader.read(), reader.read()
    assert isinstance(first, Chunk)
    assert (first.rows_read, first.batch.num_rows, first.max_time) == (100, 0, micros(at[99]))
    assert second.num_rows == 100
    assert isinstance(third, Chunk)
    assert third.max_time == micros(at[299])
    assert reader.read() is SplitEnd.FINISHED
    assert reader.position() == 300


def micros(time: dt.datetime) -> int:
    return (time - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)


@pytest.mark.parametrize(
    "predicate",
    [
        col("n") > 99,
        col("n") == 50,
        (col("n") < 10) | (col("n") > 290),
        ~(col("n") < 290),
        col("x") > 98.5,
        col("n").is_null(),
        col("m") <= 5,
        col("text") == "row 7",
        col("text") >= "row 250",
        col("text") < "s",
    ],
)
def test_passing_over_row_groups_changes_no_result(tmp_path: Path, predicate: Any) -> None:
    nan = float("nan")
    table = pa.table(
        {
            "n": [None if n % 50 == 3 else n for n in range(300)],
            "m": [n if n < 100 else None for n in range(300)],
            "x": [nan if n % 7 == 0 else float(n) for n in range(300)],
            "text": [f"row {n}" for n in range(300)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    out = ms.memory_sink()
    job = ms.Job("j")
    job.read(ms.files(tmp_path)).filter(predicate).select("n").write(out)
    job.run()
    passed = predicate.evaluate(table.to_batches()[0])
    expected = table.filter(passed).column("n").to_pylist()
    assert [row["n"] for row in out.rows()] == expected


GOOD = {"n": 1, "text": "a", "x": 0.5, "at": dt.datetime(2026, 1, 1)}
CSV_HEAD = "n,text,x,at\n"
BAD_LINES = [
    ("csv", "1,a\n", "line 2, byte 12", "4 columns"),
    ("csv", "one,a,0.5,\n", "line 2, byte 12", "int64"),
    ("csv", "1,a,0.5,yesterday\n", "line 2, byte 12", "ISO 8601 time, got 'yesterday'"),
    ("csv", "9223372036854775808,a,0.5,\n", "line 2, byte 12", "9223372036854775808"),
    ("csv", "1,\xff,0.5,\n", "line 2, byte 12", "UTF8"),
    ("jsonl", '{"n": 1,\n', "line 1, byte 0", "truncated"),
    ("jsonl", '{"n": "1"}\n', "line 1, byte 0", "Expected `int | null`, got `str`"),
    ("jsonl", '{"at": "soon"}\n', "line 1, byte 0", "column 'at' (timestamp[us]): expected an ISO 8601 time"),
    ("jsonl", '{"n": 9223372036854775808}\n', "line 1, byte 0", "9223372036854775808|too large|out of range"),
    ("jsonl", "[1]\n", "line 1, byte 0", "Expected `object`, got `array`"),
    ("jsonl", '{"n": 1}{"n": 2}\n', "line 1, byte 0", "trailing characters"),
]


@pytest.mark.parametrize(("format_", "line", "place", "problem"), BAD_LINES)
def test_a_bad_line_is_put_aside_with_its_place_and_bytes(
    tmp_path: Path, format_: str, line: str, place: str, problem: str
) -> None:
    raw = line.encode("latin-1")
    head = CSV_HEAD if format_ == "csv" else ""
    good = "1,a,0.5,2026-01-01\n" if format_ == "csv" else '{"n":1,"text":"a","x":0.5,"at":"2026-01-01"}\n'
    path = tmp_path / f"a.{format_}"
    path.write_bytes(head.encode() + raw + good.encode() * 3)
    letters: list[DeadLetter] = []
    assert read(ms.files(path, schema=SCHEMA, on_error="dead_letter"), letters=letters) == [GOOD] * 3
    (letter,) = letters
    assert (letter.source, letter.split, letter.position, letter.raw) == (str(path), path.name, place, raw)
    assert any(part in letter.error for part in problem.split("|"))
    with pytest.raises(DataError) as refused:
        read(ms.files(path, schema=SCHEMA))
    number = place.split(",", maxsplit=1)[0].removeprefix("line ")
    assert f"{path}:{number}: " in str(refused.value)
    assert "pass on_error='dead_letter'" in str(refused.value)


def test_a_quote_that_is_never_closed_takes_only_its_line_along(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('n,text\n1,"open\n2,b\n3,c\n')
    letters: list[DeadLetter] = []
    rows = read(ms.files(tmp_path, schema=pa.schema({"n": pa.int64(), "text": pa.string()}), on_error="dead_letter"),
                letters=letters)  # fmt: skip
    assert [row["n"] for row in rows] == [2, 3]
    assert [(letter.position, letter.raw) for letter in letters] == [("line 2, byte 7", b'1,"open\n')]


def test_a_guess_that_is_wrong_says_that_it_was_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n\n" + "1\n" * 600_000 + "1.5\n")
    with pytest.raises(DataError, match=r"a\.csv:600002: .*1\.5.*types are guesses .*pass schema="):
        read(ms.files(tmp_path))


def damaged(kind: str, path: Path) -> str:
    """Write 5,000 rows with damage behind the first ones; return what the error must say."""
    rows = [{"n": n, "text": f"text {n}", "x": 0.5, "at": None} for n in range(5_000)]
    write(path, rows)
    data = bytearray(path.read_bytes())
    match kind:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "flipped":
            middle = len(data) // 2
            data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
            path.write_bytes(data)
        case "not one":
            path.write_bytes(b"this is something else altogether\n" * 10)
    return "not a Parquet file, or damaged" if path.suffix == ".parquet" else "cannot be unpacked"


@pytest.mark.parametrize("format_", ["parquet", "csv.gz", "jsonl.zst", "csv.bz2"])
@pytest.mark.parametrize("kind", ["cut", "flipped", "not one"])
def test_a_damaged_file_is_put_aside_from_where_the_damage_is(tmp_path: Path, format_: str, kind: str) -> None:
    path = tmp_path / f"1.{format_}"
    problem = damaged(kind, path)
    write(tmp_path / f"2.{format_}", [GOOD])
    letters: list[DeadLetter] = []
    source = ms.files(tmp_path, schema=SCHEMA, on_error="dead_letter")
    rows = read(source, batch_rows=100, letters=letters, reopen=format_ == "parquet")
    assert rows[-1] == GOOD
    assert [row["n"] for row in rows[:-1]] == list(range(len(rows) - 1)), "what was readable came in order"
    assert problem in letters[-1].error
    assert letters[-1].split.startswith(path.name)
    assert letters[-1].raw == path.read_bytes()[:1024]
    with pytest.raises(DataError, match=rf"(?s)1\.{format_}.*(damaged|unpacked).*replace the file, or pass on_error="):
        read(ms.files(tmp_path, schema=SCHEMA))


@pytest.mark.parametrize(
    ("name", "write_it", "problem"),
    [
        ("a.parquet", lambda p: pq.write_table(pa.table({"m": [1]}), p), "no column 'n' (int64); its columns are m"),
        ("a.csv", lambda p: p.write_text("m,text\n1,2\n"), "no column 'n' (int64); its columns are 'm', 'text'"),
        ("a.csv", lambda p: p.write_text("n,n\n1,2\n"), "more than one column named 'n'"),
        (
            "a.parquet",
            lambda p: pq.write_table(pa.table({"n": ["x"]}), p),
            "column 'n' is of type string, expected int64",
        ),
    ],
)
def test_a_file_without_the_columns_is_refused_as_a_whole(
    tmp_path: Path, name: str, write_it: Any, problem: str
) -> None:
    write_it(tmp_path / name)
    schema = pa.schema({"n": pa.int64()})
    letters: list[DeadLetter] = []
    assert read(ms.files(tmp_path, schema=schema, on_error="dead_letter"), letters=letters) == []
    assert [problem in letter.error for letter in letters] == [True]
    with pytest.raises(DataError) as refused:
        read(ms.files(tmp_path, schema=schema))
    assert problem in str(refused.value)


def test_a_file_that_changes_is_not_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("n\n1\n2\n")
    source = ms.files(path)
    (split,) = source.discover()
    path.write_text("n\n1\n2\n3\n")
    with pytest.raises(DataError, match=r"it had 6 bytes when it was found, and has 8 now.*put the old file back"):
        source.open(split, None, ReadContext(lambda letter: None)).read()
    path.unlink()
    with pytest.raises(DataError, match=r"a\.csv is gone.*put it back"):
        source.open(split, None, ReadContext(lambda letter: None))


def test_new_files_are_followed(tmp_path: Path) -> None:
    schema = pa.schema({"n": pa.int64()})
    source = ms.files(tmp_path / "*.csv", schema=schema, follow=True)
    assert (source.bounded, source.discover()) == (False, [])
    (tmp_path / "1.csv").write_text("n\n1\n")
    assert [split.id for split in source.discover()] == ["1.csv"]
    (tmp_path / "0.csv").write_text("n\n0\n")
    assert [split.id for split in source.discover()] == ["0.csv", "1.csv"]
    assert [row["n"] for row in read(source)] == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "a,b,c\n1,x,2026-01-01 10:00:00\n2.5,,\n", {"a": "double", "b": "string", "c": "timestamp[us]"}),
        ("a.csv", "a,b\n,true\n,false\n", {"a": "string", "b": "bool"}),
        ("a.tsv", "a\tb\n1\t2026-01-01\n", {"a": "int64", "b": "date32[day]"}),
        (
            "a.jsonl",
            '{"a":1,"b":{"c":[1.5]}}\nnot json\n{"a":null,"d":"2026-01-01T00:00:00"}\n',
            {"a": "int64", "b": "struct<c: list<item: double>>", "d": "timestamp[us]"},
        ),
    ],
)
def test_schemas_of_text_are_guessed(tmp_path: Path, name: str, text: str, expected: dict[str, str]) -> None:
    (tmp_path / name).write_text(text)
    assert {field.name: str(field.type) for field in ms.files(tmp_path / name).schema} == expected


def test_a_guess_takes_several_files_into_account(tmp_path: Path) -> None:
    for number, text in enumerate(["", "n\n", "n\n1\n", "n\n1.5\n"]):
        (tmp_path / f"{number}.csv").write_text(text)
    assert ms.files(tmp_path).schema == pa.schema({"n": pa.float64()})
    assert read(ms.files(tmp_path)) == [{"n": 1.0}, {"n": 1.5}]


def test_parquet_types_that_operators_do_not_know_are_decoded(tmp_path: Path) -> None:
    table = pa.table(
        {
            "d": pa.array(["a", "b", "a"]).dictionary_encode(),
            "t": pa.array([1, 2, 3], pa.timestamp("ms")),
            "u": pa.array([1, 2, 3], pa.uint8()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    source = ms.files(tmp_path)
    assert source.schema == pa.schema({"d": pa.string(), "t": pa.timestamp("us"), "u": pa.uint8()})
    assert [row["d"] for row in read(source)] == ["a", "b", "a"]


def test_csv_without_header_and_with_other_marks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf1;'x;y'\n2;-\n")
    schema = pa.schema({"n": pa.int64(), "text": pa.string()})
    source = ms.files(tmp_path, schema=schema, header=False, delimiter=";", quote="'", null_values=["-"])
    assert read(source) == [{"n": 1, "text": "x;y"}, {"n": 2, "text": None}]
    assert read(source.pushed_down(frozenset({"text"}), None, None)) == [{"text": "x;y"}, {"text": None}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ms.files("nowhere/*.csv"), r"no such file; looked in /.*nowhere; paths are relative to"),
        (lambda: ms.files("nowhere/*.csv", follow=True), r"say which columns will come with schema="),
        (lambda: ms.files([]), "got an empty list"),
        (lambda: ms.files("gs://bucket/a.csv"), "local files, or objects"),
        (lambda: ms.files("data"), "does not tell the format; pass format="),
        (lambda: ms.files("a.csv", format="xml"), "format is 'parquet' or 'csv' or 'jsonl', got 'xml'"),
        (lambda: ms.files("a.csv", order="size"), "order is 'name' or 'event_time', got 'size'"),
        (lambda: ms.files("a.csv", on_error="skip"), "on_error is 'fail' or 'dead_letter', got 'skip'"),
        (lambda: ms.files(["a.csv", "b.jsonl"]), r"files of several formats \(csv, jsonl\)"),
        (lambda: ms.files("there.csv", header=False), "header=False needs schema="),
        (lambda: ms.files("there.csv", delimiter=";;"), "delimiter=';;': expected one ASCII character"),
        (
            lambda: ms.files("there.csv", schema=pa.schema({"a": pa.list_(pa.int64())})),
            r"column 'a': list<.*> cannot be read from CSV",
        ),
        (
            lambda: ms.files("there.csv", schema=pa.schema([("a", pa.int64()), ("a", pa.int64())])),
            "more than one column named 'a'",
        ),
        (lambda: ms.files("broken.parquet"), "no schema can be found in it: it is not a Parquet file"),
        (lambda: ms.files("empty.csv"), "empty.csv is empty: say which columns"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("there.csv").write_text("a\n1\n")
    Path("broken.parquet").write_text("no")
    Path("empty.csv").write_text("")
    with pytest.raises(JobError, match=message):
        make()


def test_dead_letters_are_durable_with_their_epoch(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n":1}\n{"n":oops}\n{"n":2}\n')
    out = ms.memory_sink()
    job = ms.Job("j")
    job.read(ms.files(tmp_path / "a.jsonl", on_error="dead_letter", name="orders")).write(out)
    job.run(store=tmp_path / "j.duckdb")
    assert [row["n"] for row in out.rows()] == [1, 2]
    with StoreReader.open(tmp_path / "j.duckdb") as reader:
        (letter,) = reader.dead_letters().to_pylist()
    assert (letter["source"], letter["split"], letter["position"]) == ("orders", "a.jsonl", "line 2, byte 8")
    assert letter["raw"] == b'{"n":oops}\n'


@pytest.mark.parametrize("order", ["name", "event_time"])
@pytest.mark.parametrize("format_", ["parquet", "csv.gz", "jsonl"])
@pytest.mark.parametrize("seed", range(4))
def test_crashes_anywhere_change_nothing(tmp_path: Path, format_: str, order: Any, seed: int) -> None:
    """Two files that overlap in time: by name they are out of order, by event time they are not."""
    start = dt.datetime(2026, 1, 1)
    rows = [{"n": n, "text": f"s{n % 3}", "x": 1.0, "at": start + dt.timedelta(seconds=n)} for n in range(200)]
    for part in (0, 1):
        write(tmp_path / f"{part}.{format_}", rows[part::2])
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("j")
        source = ms.files(tmp_path / f"*.{format_}", schema=SCHEMA, order=order)
        stream = job.read(source, event_time="at", max_delay="5m")
        stream.group_by("text").window(ms.tumbling("1m")).agg(rows=ms.count(), total=ms.sum("n")).write(out)
        return job

    done = simulate(make, tmp_path / "j.duckdb", seed, steps_between=12)
    assert done.crashes
    totals: dict[tuple[str, dt.datetime], list[int]] = {}
    for row in rows:
        cell = totals.setdefault((row["text"], row["at"].replace(second=0)), [0, 0])
        cell[0] += 1
        cell[1] += row["n"]
    got = sorted((row["text"], row["window_start"], row["rows"], row["total"]) for row in out.rows())
    assert got == sorted((*key, *cell) for key, cell in totals.items())


def test_a_worker_without_a_file_to_follow_does_not_hold_time_back(tmp_path: Path) -> None:
    """One file, two subtasks: windows fire though one of them has nothing to read."""
    inbox = tmp_path / "in"
    inbox.mkdir()
    start = dt.datetime(2026, 1, 1)
    write(inbox / "1.csv", [{"n": n, "text": "a", "x": 1.0, "at": start + dt.timedelta(minutes=n)} for n in range(3)])
    out, control = ms.memory_sink(), ms.Control()
    job = ms.Job("j")
    stream = job.read(ms.files(inbox / "*.csv", schema=SCHEMA, follow=True), event_time="at")
    stream.group_by("text").window(ms.tumbling("1m")).agg(rows=ms.count()).write(out)

    def stop_when_fired(status: object) -> None:
        if len(out.rows()) >= 2:
            control.stop()

    done = job.run(tmp_path / "j.duckdb", every="10ms", parallelism=2, control=control, on_status=stop_when_fired)
    assert done.outcome == "stopped"
    assert [row["window_start"] for row in out.rows()] == [start, start + dt.timedelta(minutes=1)]


def test_a_pattern_without_a_folder_is_looked_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("n\n1\n")
    for pattern in ("*.csv", "./*.csv", "a.csv", "**/*.csv", "."):
        assert read(ms.files(pattern)) == [{"n": 1}], pattern
