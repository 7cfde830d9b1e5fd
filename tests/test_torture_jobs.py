"""``millstream torture`` lets a job that is exact pass, and tells one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import millstream as ms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import PATIENCE
from millstream.engine.errors import JobError
from millstream.torture.capture import captured, check_tortureable, sink_folders, weight_columns
from millstream.torture.outputs import differences
from millstream.torture.trial import TortureOptions, Trial

RIGHT = """
import datetime as dt
import millstream as ms

rows = [{"id": n % 700, "shop": n % 7, "at": dt.datetime(2026, 1, 1) + dt.timedelta(seconds=n)} for n in range(3_000)]
job = ms.Job("shop")
orders = job.read(ms.memory_source(rows, name="orders", splits=3), event_time="at", max_delay="5s")
once = orders.deduplicate("id", within="10m")
once.group_by("shop").window(ms.tumbling("1m")).agg(n=ms.count()).write(ms.jsonl("windows"))
orders.group_by("shop").agg(n=ms.count()).changes().write(ms.blackhole())
"""

OFF_BY_ONE = """
import millstream as ms
import pyarrow as pa
from millstream.engine.source import Source, Split, SplitEnd, SplitReader

ROWS = 600


class Reader(SplitReader):
    def __init__(self, position):
        self.at = position

    def read(self):
        if self.at >= ROWS:
            return SplitEnd.FINISHED
        self.at += 1
        return pa.record_batch({"n": [self.at - 1]})

    def position(self):
        return self.at + (self.at < ROWS)  # one too many


class Numbers(Source):
    name = "numbers"
    schema = pa.schema({"n": pa.int64()})

    def identity(self):
        return "numbers"

    def discover(self):
        return [Split("all")]

    def open(self, split, position, context):
        return Reader(position or 0)


job = ms.Job("off-by-one")
job.read(Numbers()).write(ms.blackhole())
"""

BY_CHANCE = """
import os
import millstream as ms

job = ms.Job("by-chance")
rows = ms.memory_source([{"n": n} for n in range(500)])
schema = {"n": "int64", "by": "int64"}
job.read(rows).map(lambda row: {"n": row["n"], "by": os.getpid()}, schema=schema).write(ms.blackhole())
"""


def trial(folder: Path, text: str, kills: int) -> Trial:
    file = folder / "job.py"
    file.write_text(text)
    work = folder / "work"
    work.mkdir()
    return Trial(TortureOptions(str(file), kills, longest=0.2), work)


@pytest.mark.slow
def test_a_job_that_is_exact_passes(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(RIGHT)
    words = ("torture", "job.py", "--kills", "12", "--seed", "4", "--folder", "work")
    command = [sys.executable, "-m", "millstream", *words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE * 5, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "same: after 12 kills" in ran.stdout
    ledger = json.loads((tmp_path / "work" / "ledger.json").read_text())
    assert (len(ledger["kills"]), ledger["violations"]) == (12, [])
    assert ledger["rows"]["jsonl:windows"] > 0
    assert ledger["left"] > 0, "the input should outlast the kills"
    assert any(kill["restored"] for kill in ledger["kills"])
    assert not (tmp_path / "windows").exists(), "nothing may reach the job's own sinks"


@pytest.mark.slow
def test_a_source_that_is_off_by_one_is_found(tmp_path: Path) -> None:
    ledger = trial(tmp_path, OFF_BY_ONE, kills=6).run()
    assert ledger.repeatable
    assert any("rows are missing" in violation for violation in ledger.violations)
    assert ledger.verdict.startswith("VIOLATED")


@pytest.mark.slow
def test_a_job_that_depends_on_chance_is_told_apart(tmp_path: Path) -> None:
    ledger = trial(tmp_path, BY_CHANCE, kills=2).run()
    assert not ledger.repeatable
    assert ledger.verdict.startswith("undecided")


def test_a_job_that_fails_by_itself_is_not_tortured(tmp_path: Path) -> None:
    text = BY_CHANCE.replace('row["n"], "by"', 'row["m"], "by"')
    with pytest.raises(JobError, match=r"(?s)fails without being disturbed.*KeyError"):
        trial(tmp_path, text, kills=1).run()


def endless() -> ms.Job:
    job = ms.Job("endless")

    def numbers(start: int, stop: int) -> pa.RecordBatch:
        return pa.record_batch({"n": list(range(start, stop))})

    job.read(ms.generator(numbers, schema=pa.schema({"n": pa.int64()}), rows=None)).write(ms.blackhole())
    return job


def test_input_without_an_end_is_refused() -> None:
    with pytest.raises(JobError, match="has no end, so no two runs could be compared"):
        check_tortureable(endless())


def test_operators_keep_their_ids_and_every_sink_has_a_folder(tmp_path: Path) -> None:
    job = ms.Job("two")
    rows = job.read(ms.memory_source([{"n": 1}, {"n": 2}], name="rows"))
    rows.group_by("n").agg(rows=ms.count()).changes("sign").write(ms.memory_sink("a/b"))
    rows.write(ms.memory_sink("a_b"))
    other = captured(job, tmp_path, {"rows": 2}, 0.01)
    assert list(other.graph.nodes) == list(job.graph.nodes)
    assert len(set(sink_folders(job.graph).values())) == 2
    assert weight_columns(job.graph) == {"a/b": "sign"}
    assert other.run(tmp_path / "job.duckdb").outcome == "finished"
    written = {p.relative_to(tmp_path).parts[0]: pq.read_table(p).num_rows for p in tmp_path.rglob("*.parquet")}
    assert written == dict.fromkeys(sink_folders(job.graph).values(), 2)


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "part.parquet")
    return folder


def test_rows_are_compared_as_multisets(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"n": 1, "x": None}, {"n": 1, "x": None}, {"n": 2, "x": [1.5]}]
    wanted, nothing = write(tmp_path / "wanted", rows), tmp_path / "nothing"
    assert differences("s", wanted, write(tmp_path / "same", rows[::-1])) == []
    (told,) = differences("s", wanted, write(tmp_path / "lost", rows[1:]))
    assert "1 rows are missing and 0 are too many" in told
    (told,) = differences("s", wanted, write(tmp_path / "doubled", [*rows, rows[2]]))
    assert "0 rows are missing and 1 are too many, such as +1 x (2, [1.5])" in told
    (told,) = differences("s", wanted, nothing)
    assert "3 rows are missing" in told
    assert differences("s", nothing, nothing) == []


def test_changes_are_compared_by_what_is_left_of_them(tmp_path: Path) -> None:
    slow = [{"n": 1, "w": 1}, {"n": 1, "w": -1}, {"n": 2, "w": 1}]
    wanted, quick = write(tmp_path / "slow", slow), write(tmp_path / "quick", slow[2:])
    assert differences("s", wanted, quick, "w") == []
    assert differences("s", wanted, quick) != []
