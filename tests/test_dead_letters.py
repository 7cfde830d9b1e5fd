"""Rows a function cannot take: put aside with their epoch, counted, bounded."""

from __future__ import annotations

import datetime as dt
import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.changelog import WEIGHT
from millstream.engine.operator import MAIN
from millstream.engine.store.letters import LetterChange, Selection, letter_id, pack_row, unpack_row
from millstream.engine.store.reader import StoreReader
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import LetterId
from millstream.operators.code_version import code_version
from millstream.operators.python import FlatMap, Map, MapBatches
from millstream.testing import BARRIER, check_operator
from millstream.testing.operators import DEAD_LETTERS

SCHEMA = pa.schema({"n": pa.int64(), "s": pa.string()})
BATCH = pa.RecordBatch.from_pylist([{"n": n, "s": None if n == 3 else "x" * n} for n in range(8)], schema=SCHEMA)
SCRIPT = [BATCH.slice(0, 5), BARRIER, BATCH.slice(5), BARRIER]
INT = {"n": "int64"}
START = dt.datetime(2026, 1, 1)


def rows_but(*bad: int) -> list[dict[str, Any]]:
    return [{"n": n} for n in range(8) if n not in bad]


def aside(got: dict[str, list[dict[str, Any]]]) -> list[tuple[int, str]]:
    return [(letter["row"]["n"], letter["error_type"]) for letter in got[DEAD_LETTERS]]


def odd(row: dict[str, Any]) -> dict[str, Any]:
    match row["n"]:
        case 1:
            raise ZeroDivisionError("no ones")
        case 4:
            return {"n": "four"}
        case 6:
            raise ms.DataError("six is closed")
    return {"n": row["n"]}


def odd_many(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"n": row["n"]}
    yield odd(row)


def odd_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    if pc.any(pc.is_in(batch["n"], pa.array([1, 6]))).as_py():
        raise ValueError("one or six")
    return batch.select(["n"])


def test_a_row_that_map_cannot_take_is_put_aside_and_the_others_go_on() -> None:
    got = check_operator(Map(odd, INT, "dead_letter"), SCRIPT)
    assert got[MAIN] == rows_but(1, 4, 6)
    assert sorted(aside(got)) == [(1, "ZeroDivisionError"), (4, "UserCodeError"), (6, "DataError")]
    errors = {letter["row"]["n"]: letter["error"] for letter in got[DEAD_LETTERS]}
    assert errors[1] == "no ones"
    assert "must return int64 for 'n', got 'four'" in errors[4]


def test_nothing_of_a_row_goes_on_if_flat_map_fails_half_way() -> None:
    got = check_operator(FlatMap(odd_many, INT, "dead_letter"), SCRIPT)
    assert got[MAIN] == [row for row in rows_but(1, 4, 6) for _ in range(2)]
    assert sorted(n for n, _ in aside(got)) == [1, 4, 6]
    misused = check_operator(FlatMap(lambda row: None, INT, "dead_letter"), SCRIPT)
    assert {kind for _, kind in aside(misused)} == {"UserCodeError"}
    assert len(aside(misused)) == 8


def test_map_batches_loses_only_the_rows_that_fail_by_themselves() -> None:
    got = check_operator(MapBatches(odd_batch, INT, "dead_letter"), SCRIPT)
    assert got[MAIN] == rows_but(1, 6)
    assert sorted(aside(got)) == [(1, "ValueError"), (6, "ValueError")]
    everything = check_operator(MapBatches(lambda batch: batch, INT, "dead_letter"), SCRIPT)
    assert MAIN not in everything
    assert len(aside(everything)) == 8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.sets(st.integers(0, 9)))
def test_what_is_put_aside_does_not_depend_on_the_batches(numbers: list[int], bad: set[int]) -> None:
    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        assert row["n"] not in bad
        return row

    def refuse_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
        assert not bad & set(batch["n"].to_pylist())
        return batch

    batch = pa.record_batch({"n": pa.array(numbers, pa.int64())})
    for spec in (Map(refuse, INT, "dead_letter"), MapBatches(refuse_batch, INT, "dead_letter")):
        got = check_operator(spec, [batch])
        assert [row["n"] for row in got.get(MAIN, [])] == [n for n in numbers if n not in bad]
        assert [letter["row"]["n"] for letter in got.get(DEAD_LETTERS, [])] == [n for n in numbers if n in bad]


def test_a_row_that_python_cannot_hold_is_put_aside() -> None:
    far = pa.record_batch({"n": [1, 2, 3], "at": pa.array([0, 2**62, 1], pa.timestamp("us"))})
    spec = Map(lambda row: {"n": row["n"] if row["at"] else 0}, INT, "dead_letter")
    made: list[Any] = []
    put: list[Any] = []

    class Out:
        def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
            made.extend(batch["n"].to_pylist())

        def dead_letter(self, rows: pa.RecordBatch, faults: Any, **more: Any) -> None:
            put.append((rows, faults))

    spec.build([far.schema]).process(far, Out())
    assert made == [1, 3]
    ((rows, (fault,)),) = put
    assert rows.equals(far.slice(1, 1))
    assert "Python cannot hold" in fault.message


def test_the_weight_of_a_changelog_is_put_aside_with_its_row() -> None:
    changes = BATCH.append_column(WEIGHT, pa.array([1, -1, 1, 1, 1, 1, -1, 1], pa.int64()))
    got = check_operator(Map(odd, INT, "dead_letter"), [changes])
    assert {letter["row"]["n"]: letter["row"][WEIGHT] for letter in got[DEAD_LETTERS]} == {1: -1, 4: 1, 6: -1}


def test_what_is_not_the_rows_fault_still_stops_the_job() -> None:
    def outage(_: Any) -> Any:
        raise ms.ExternalError("the price server is down")

    for spec in (Map(outage, INT, "dead_letter"), MapBatches(outage, INT, "dead_letter")):
        with pytest.raises(ms.ExternalError, match="price server"):
            check_operator(spec, [BATCH])


def test_the_operator_is_the_same_whatever_becomes_of_errors() -> None:
    strict, lenient = Map(odd, INT), Map(odd, INT, "dead_letter")
    assert strict.identity() == lenient.identity(), "a running job may be given on_error"
    assert strict != lenient
    assert "dead letters" in lenient.describe()
    with pytest.raises(ms.JobError, match=r"map\(\): on_error is 'fail' or 'dead_letter', got 'skip'"):
        Map(odd, INT, "skip")  # type: ignore[arg-type]


# -- the version of a function ---------------------------------------------------------------------------------


def _made(factor: float) -> Callable[[Any], Any]:
    return lambda row: row * factor


class Callee:
    def __call__(self, row: Any) -> Any:
        return row in {"north", "south", "east"}


def test_the_version_follows_the_code_and_what_it_encloses() -> None:
    assert code_version(_made(2)) == code_version(_made(2)) != code_version(_made(3))
    assert code_version(functools.partial(odd, 1)) != code_version(functools.partial(odd, 2)) != code_version(odd)
    assert len(code_version(Callee())) == 12
    assert code_version(math.sin) == code_version(functools.partial(math.sin, 1)) == ""
    assert code_version(lambda row, by=1: row * by) != code_version(lambda row, by=2: row * by)


def test_the_version_is_the_same_in_another_process() -> None:
    import subprocess
    import sys

    program = (
        "from millstream.operators.code_version import code_version\n"
        "def f(row): return row in {'north', 'south', 'east'}, [x for x in row]\n"
        "print(code_version(f))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


# -- in a job --------------------------------------------------------------------------------------------------


ROWS = [{"n": n, "price": None if n % 10 == 3 else float(n), "at": START + dt.timedelta(seconds=n)} for n in range(50)]


def rate(row: dict[str, Any]) -> dict[str, Any]:
    return {"n": row["n"], "rate": 1 / row["price"]}


def priced(sink: Any, on_error: Any = "dead_letter", rows: Any = ROWS) -> ms.Job:
    job = ms.Job("rates")
    source = ms.memory_source([pa.RecordBatch.from_pylist(rows[at : at + 5]) for at in range(0, len(rows), 5)])
    rated = job.read(source, event_time="at", name="orders").map(
        rate, schema={"n": int, "rate": float}, on_error=on_error, name="rate"
    )
    rated.write(sink)
    return job


def test_letters_are_durable_with_all_that_is_known_of_them(tmp_path: Path) -> None:
    out = ms.memory_sink()
    result = priced(out).run(tmp_path / "s.duckdb")
    assert result.status is not None
    assert result.status.dead_letters == {"orders": 0, "rate": 6}
    assert sorted(row["n"] for row in out.rows()) == [n for n in range(1, 50) if n % 10 != 3]
    with StoreReader.open(tmp_path / "s.duckdb") as reader:
        letters = reader.dead_letters().to_pylist()
        zero = reader.dead_letters(Selection((LetterId(1, 1),))).to_pylist()
    assert [letter["number"] for letter in letters] == list(range(1, 7))
    assert zero == letters[:1]
    first, second = letters[:2]
    assert (first["operator"], first["source"], first["subtask"]) == ("rate", None, 0)
    assert (first["error_type"], first["error"]) == ("ZeroDivisionError", "float division by zero")
    assert second["error_type"] == "TypeError"
    assert second["event_time"] == START + dt.timedelta(seconds=3)
    assert (first["attempts"], first["code"], first["replay"]) == (1, code_version(rate), False)
    assert json.loads(second["row_json"]) == {"n": 3, "price": None, "at": "2026-01-01 00:00:03"}
    assert unpack_row(second["raw"]).to_pylist() == [ROWS[3]]


def test_a_job_without_a_store_puts_aside_too() -> None:
    out = ms.memory_sink()
    priced(out).run()
    assert len(out.rows()) == 44


def test_too_many_letters_fail_the_job_after_they_are_committed(tmp_path: Path) -> None:
    out = ms.memory_sink()
    store = tmp_path / "s.duckdb"
    with pytest.raises(
        ms.TooManyDeadLetters,
        match=r"6 dead letters in the store, .*allows 5; one is of 'rate': TypeError: .*\. Everything .*epoch 1",
    ):
        priced(out).run(store, max_dead_letters=5)
    with StoreReader.open(store) as reader:
        assert reader.dead_letters().num_rows == 6, "they can be looked at"
        assert reader.manifests()[-1].kind.value == "stop", "the job has not finished"
    assert len(out.rows()) == 44
    with pytest.raises(ms.TooManyDeadLetters):
        priced(out).run(store, max_dead_letters=5)
    assert priced(out).run(store, max_dead_letters=6).outcome == "finished"
    assert len(out.rows()) == 44
    with pytest.raises(ms.JobError, match="at least 0"):
        priced(out).run(max_dead_letters=-1)


def test_an_endless_job_stops_soon_after_it_has_too_many(tmp_path: Path) -> None:
    schema = pa.schema({"n": pa.int64()})
    job = ms.Job("endless")
    source = ms.generator(
        lambda a, b: pa.record_batch({"n": pa.array(range(a, b), pa.int64())}), schema=schema, batch_rows=200
    )
    job.read(source).map(lambda row: 1 / 0, schema={"n": int}, on_error="dead_letter").write(ms.blackhole())
    with pytest.raises(ms.TooManyDeadLetters):
        job.run(tmp_path / "s.duckdb", every="1h", max_dead_letters=1_000)


def test_letters_of_a_source_count_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n":1}\n{"n":oops}\n{"n":2}\n')
    job = ms.Job("j")
    out = ms.memory_sink()
    source = ms.files(tmp_path / "a.jsonl", schema=pa.schema({"n": pa.int64()}), on_error="dead_letter")
    job.read(source, name="orders").write(out)
    with pytest.raises(ms.TooManyDeadLetters):
        job.run(tmp_path / "s.duckdb", max_dead_letters=0)
    with StoreReader.open(tmp_path / "s.duckdb") as reader:
        (letter,) = reader.dead_letters(Selection(source="orders")).to_pylist()
    assert letter["raw"] == b'{"n":oops}\n'


def test_a_message_of_any_kind_can_be_kept(tmp_path: Path) -> None:
    messages = ["\udcff", "a\0b", "x" * 100_000, ""]

    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        raise ValueError(messages[row["n"]])

    job = ms.Job("j")
    rows = [{"n": n} for n in range(len(messages))]
    job.read(ms.memory_source(rows)).map(refuse, schema={"n": int}, on_error="dead_letter").write(ms.blackhole())
    job.run(tmp_path / "s.duckdb")
    with StoreReader.open(tmp_path / "s.duckdb") as reader:
        kept = reader.dead_letters().column("error").to_pylist()
    assert kept[:2] == ["\\udcff", "a\0b"]
    assert len(kept[2]) < 5_000
    assert kept[3] == ""


def test_only_rows_can_be_marked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n":oops}\n')
    job = ms.Job("j")
    source = ms.files(tmp_path / "a.jsonl", schema=pa.schema({"n": pa.int64()}), on_error="dead_letter")
    job.read(source).write(ms.memory_sink())
    job.run(tmp_path / "s.duckdb")
    store = CheckpointStore.open(tmp_path / "s.duckdb")
    assert store.change_letters(Selection(), LetterChange.MARK) == 0
    assert store.facts().replays == 0
    store.close()


def test_ids_are_read_as_they_are_shown() -> None:
    assert letter_id("12.3") == LetterId(12, 3)
    for text in ("12", "12.", "a.b", "-1.2", ""):
        with pytest.raises(ms.JobError, match=r"not the id of a dead letter; ids look like 12\.3"):
            letter_id(text)


def test_a_row_is_packed_alone_and_comes_back_as_it_was() -> None:
    types = pa.schema(
        {
            "d": pa.decimal128(9, 2),
            "l": pa.list_(pa.int8()),
            "k": pa.dictionary(pa.int8(), pa.string()),
            "b": pa.binary(),
        }
    )
    rows = [{"d": None, "l": [1], "k": "a" * 1000, "b": b"\xff"}, {"d": None, "l": None, "k": "b", "b": None}]
    batch = pa.RecordBatch.from_pylist(rows * 1_000, schema=types)
    row = batch.take([1])
    assert unpack_row(pack_row(row)).equals(row)
    assert len(pack_row(row)) < 5_000
