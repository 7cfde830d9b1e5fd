"""Joins with a table that is read first, against DuckDB, wherever the table ends; and jobs with them, crashed."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from join_kit import PAIR, SCHEMAS, WHERES, Streams, bag, streams, where_of
from millstream import col
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.element import Barrier, Epoch, Idle, Watermark
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.operator import OperatorSpec
from millstream.engine.runtime.chain import OperatorTarget, Ports
from millstream.engine.runtime.channel import Channel
from millstream.engine.runtime.subtask import ChannelSubtask, Parts, Progress
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators.table_join import TABLE_HOWS
from millstream.testing import Ended, On, check_operator, simulate
from nursery import Nursery, Start


def joined(*, changes: bool = False, **options: Any) -> OperatorSpec:
    job = ms.Job("j")
    left, right = (
        job.read(ms.memory_source(schema.empty_table(), name=name), event_time="at")
        for name, schema in zip(("l", "r"), SCHEMAS, strict=True)
    )
    left = left._as_changelog() if changes else left
    node = job.graph.nodes[left.join_table(right, **options)._edge.node]
    assert isinstance(node.body, OperatorSpec)
    return node.body


@pytest.mark.parametrize("how", TABLE_HOWS)
@settings(max_examples=8, deadline=None)
@given(given=streams(), end=st.floats(0, 1), where=st.sampled_from(list(WHERES)))
def test_rows_are_those_of_sql_wherever_the_table_ends(how: str, given: Streams, end: float, where: str | None) -> None:
    # No row of the table comes after its end.
    last = max((at for at, step in enumerate(given.steps) if getattr(step, "input", 0) == 1), default=-1)
    at = last + 1 + int(end * (len(given.steps) - last - 1))
    script = [*given.steps[:at], Ended(1), *given.steps[at:]]
    got = check_operator(joined(on="k", how=how, where=where_of(where)), script, schemas=SCHEMAS)
    condition = f"l.k = r.k and {WHERES[where]}"
    if how in {"semi", "anti"}:
        expected = given.sql(f"select l.* from l where {'not' * (how == 'anti')} exists (from r where {condition})")
    else:
        expected = given.sql(f"select {PAIR} from l {how} join r on {condition}")
    assert bag(got.get("main", [])) == expected


@pytest.mark.parametrize("how", TABLE_HOWS)
@settings(max_examples=5, deadline=None)
@given(given=streams(), end=st.floats(0, 1), seed=st.integers(0, 99))
def test_pairs_have_the_weight_of_their_left_row(how: str, given: Streams, end: float, seed: int) -> None:
    """A changelog joined with a table comes to what the rows that are there at last give."""
    draw = random.Random(seed)
    last = max((at for at, step in enumerate(given.steps) if getattr(step, "input", 0) == 1), default=-1)
    at = last + 1 + int(end * (len(given.steps) - last - 1))
    left = weighted(SCHEMAS[0])
    script: list[Any] = []
    there: list[dict[str, Any]] = []
    for number, step in enumerate(given.steps):
        script += [Ended(1)] if number == at else []
        if not isinstance(step, On) or step.input:
            script.append(step)
            continue
        there += step.batch.to_pylist()
        weights = [1] * step.batch.num_rows
        script.append(
            On(0, pa.RecordBatch.from_arrays([*step.batch.columns, pa.array(weights, pa.int64())], schema=left))
        )
        gone = [there.pop(draw.randrange(len(there))) for _ in range(draw.randint(0, len(there)))]
        taken = [{**row, WEIGHT: -1} for row in gone]
        script += [On(0, pa.RecordBatch.from_pylist(taken, left))] if taken else []
    got = check_operator(joined(on="k", how=how, changes=True), script, schemas=[left, SCHEMAS[1]])
    held = [On(0, pa.RecordBatch.from_pylist([row], SCHEMAS[0])) for row in there]
    plain = check_operator(
        joined(on="k", how=how),
        [*(s for s in script if getattr(s, "input", 0) == 1 and isinstance(s, On)), *held],
        schemas=SCHEMAS,
    )
    assert net_of(got.get("main", [])) == Counter(repr(sorted(row.items())) for row in plain.get("main", []))


def net_of(rows: list[dict[str, Any]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for row in rows:
        found[repr(sorted((name, value) for name, value in row.items() if name != WEIGHT))] += row[WEIGHT]
    return +found


START = dt.datetime(1970, 1, 1)
ROWS = [{"n": n, "k": None if n % 11 == 3 else f"k{n % 17}", "at": START + dt.timedelta(seconds=n)} for n in range(300)]
NAMES = [{"k": f"k{n % 13}", "name": f"name {n}"} for n in range(60)]
EXPECTED = Counter(
    (row["n"], name) for row in ROWS for name in [other["name"] for other in NAMES if other["k"] == row["k"]] or [None]
)


def batches(rows: list[dict[str, Any]], size: int) -> list[pa.RecordBatch]:
    schema = pa.RecordBatch.from_pylist(rows).schema
    return [pa.RecordBatch.from_pylist(rows[at : at + size], schema) for at in range(0, len(rows), size)]


def make(out: Any, windows: Any) -> ms.Job:
    """The table has an event time too, which must not let time pass rows that wait for the table."""
    job = ms.Job("enriched")
    table = [{**row, "at": START + dt.timedelta(days=n)} for n, row in enumerate(NAMES)]
    names = job.read(ms.memory_source(batches(table, 4), splits=2, name="names"), event_time="at").drop("at")
    rows = job.read(ms.memory_source(batches(ROWS, 7), splits=3, name="rows"), event_time="at", max_delay="1h")
    named = rows.join_table(names, on="k", how="left")
    named.select("n", "name").write(out)
    counts = named.group_by("k").window(ms.tumbling("1m")).agg(rows=ms.count())
    counts.select("rows").write(windows)
    counts.late.select("n").write(windows_late := ms.memory_sink(name="late"))
    job.late_sink = windows_late  # type: ignore[attr-defined]
    return job


def pairs(sink: Any) -> Counter[Any]:
    return Counter(tuple(row.values()) for row in sink.rows())


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_job_joins_every_row_with_the_whole_table_and_none_is_late(parallelism: int) -> None:
    out, windows = ms.memory_sink(name="pairs"), ms.memory_sink(name="windows")
    job = make(out, windows)
    job.run(parallelism=parallelism)
    assert pairs(out) == EXPECTED
    assert sum(row["rows"] for row in windows.rows()) == sum(EXPECTED.values())
    assert not job.late_sink.rows()  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(4))
def test_crashes_do_not_show(seed: int, tmp_path: Path) -> None:
    out, windows = ms.memory_sink(name="pairs"), ms.memory_sink(name="windows")
    done = simulate(lambda: make(out, windows), tmp_path / "s.duckdb", seed)
    assert done.crashes > 0
    assert pairs(out) == EXPECTED, f"seed {seed} reproduces it"
    assert sum(row["rows"] for row in windows.rows()) == sum(EXPECTED.values())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_sixty_seeds(tmp_path: Path) -> None:
    for seed in range(100, 160):
        test_crashes_do_not_show(seed, tmp_path / str(seed))


def test_a_table_may_be_made_of_a_stream_and_joins_may_follow_each_other() -> None:
    job, out = ms.Job("totals"), ms.memory_sink()
    amounts = ms.memory_source([{"k": n % 3, "amount": n} for n in range(9)], name="amounts")
    totals = job.read(amounts).group_by("k").agg(total=ms.sum("amount")).final()
    blocked = ms.memory_source([{"k": 1}], name="blocked")
    rows = job.read(ms.memory_source([{"k": k} for k in (0, 1, 2, 3)], name="rows"))
    rows.join_table(totals, on="k").join_table(blocked, on="k", how="anti").write(out)
    job.run(parallelism=2)
    assert sorted(tuple(row.values()) for row in out.rows()) == [(0, 9), (2, 15)]


def test_what_cannot_be_joined_is_refused() -> None:
    job = ms.Job("j")
    rows = job.read(ms.memory_source([{"k": 1, "s": "a"}], name="rows"))
    endless = ms.memory_source([{"k": 1}], name="endless", bounded=False)
    with pytest.raises(JobError, match=r"join_table\(\): source 'endless' never ends"):
        rows.join_table(endless, on="k")
    with pytest.raises(JobError, match=r"takes a source or a stream, got \{1: 2\}"):
        rows.join_table({1: 2}, on="k")  # type: ignore[arg-type]
    table = ms.memory_source([{"k": 1, "s": "a"}], name="table")
    stream = job.read(table)
    with pytest.raises(JobError, match=r"join_table\(how='full'\): how is one of 'inner', 'left', 'semi', 'anti'"):
        rows.join_table(stream, on="k", how="full")
    with pytest.raises(SchemaError, match="values of two types are never equal"):
        rows.join_table(stream, on={"k": "s"})
    with pytest.raises(JobError, match=r"put \.final\(\) behind it"):
        rows.join_table(stream.group_by("k").agg(n=ms.count()), on="k")
    with pytest.raises(JobError, match="streams of two jobs"):
        rows.join_table(ms.Job("k").read(table), on="k")


def test_a_source_that_would_wait_for_its_own_end_is_refused() -> None:
    job = ms.Job("j")
    one, two = (job.read(ms.memory_source([{"k": 1}], name=name)) for name in ("one", "two"))
    one.filter(col("k") > 0).join_table(one, on="k").write(ms.blackhole())
    with pytest.raises(JobError, match="source 'one' waits for 'one': a table is read to its end"):
        job.plan()
    job = ms.Job("j")
    one, two = (job.read(ms.memory_source([{"k": 1}], name=name)) for name in ("one", "two"))
    one.join_table(two, on="k").write(ms.blackhole())
    two.join_table(one, on="k").write(ms.blackhole("other"))
    with pytest.raises(JobError, match=r"source '(one|two)' waits for '(one|two)' waits for"):
        job.plan()


def test_until_the_table_has_ended_rows_are_read_only_up_to_a_barrier_that_waits_for_them() -> None:
    left, right = pa.schema({"k": pa.int64()}), pa.schema({"k": pa.int64(), "name": pa.string()})
    job = ms.Job("j")
    rows, names = (job.read(ms.memory_source(s.empty_table(), name=str(s))) for s in (left, right))
    spec = job.graph.nodes[rows.join_table(names, on="k")._edge.node].body
    assert isinstance(spec, OperatorSpec)
    ports, done = Ports({}), []
    target = OperatorTarget("o", "o", "o", spec.build([left, right]), ports, 0)
    stream, table = Channel(), Channel()
    subtask = ChannelSubtask("o[0]", Parts([target]), done.append, [(0, stream), (1, table)], target, frozenset([1]))

    def step() -> None:
        while subtask.step() is Progress.MADE:
            pass

    for k in (1, 2):
        stream.put(pa.record_batch({"k": [k]}, left))
    stream.put(Watermark(5))
    table.put(pa.record_batch([pa.array([1, 2]), pa.array(["a", "b"])], schema=right))
    step()
    assert (len(stream), len(table)) == (3, 0), "rows were read before the table had ended, and for no barrier"
    table.put(Barrier(Epoch(1)))
    stream.put(Barrier(Epoch(1)))
    stream.put(pa.record_batch({"k": [1]}, left))
    step()
    assert len(done) == 1, "the barrier waits for the end of the table"
    deltas = {named.table: named.delta.rows.num_rows for named in done[0].snapshot.deltas}
    assert (len(stream), deltas) == (1, {"early": 2, "table": 2})
    assert (ports.rows, target.time) == (0, START_OF_TIME), "time has passed rows that wait"
    table.put(Watermark(END_OF_TIME))
    step()
    assert (len(stream), ports.rows, target.time) == (0, 3, 5)


JOB = """
import millstream as ms
import pyarrow as pa

def rows(start, stop):
    return pa.record_batch({"n": list(range(start, stop)), "k": [n % 7 for n in range(start, stop)]})

job = ms.Job("enriched")
stream = job.read(ms.generator(rows, schema=pa.schema({"n": "int64", "k": "int64"}), rows=400, batch_rows=10, splits=2))
names = ms.files("names.jsonl", schema={"k": "int64", "name": "string"})
stream.join_table(names, on="k", how="left").select("n", "name").write(ms.jsonl("output"))
"""


def test_killed_jobs_have_the_whole_table_in_every_subtask(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    table = tmp_path / "names.jsonl"
    table.write_text("".join(json.dumps({"k": k, "name": f"name {k}"}) + "\n" for k in range(6)))
    with Nursery() as nursery:
        ends = [nursery.run(Start(str(tmp_path), failpoint="store.after_commit=kill@6", parallelism=2))]
        for point, parallelism in (("store.before_commit=kill@3", 3), ("subtask.snapshot=kill@9", 1)):
            ends.append(nursery.run(Start(str(tmp_path), failpoint=point, parallelism=parallelism)))
        last = nursery.run(Start(str(tmp_path), parallelism=2, batches=5))
    assert all(end.killed for end in ends), [end.log for end in ends]
    assert last.outcome == "finished", last.log
    found = [json.loads(line) for file in tmp_path.rglob("part-*") for line in file.read_text().splitlines()]
    assert Counter((row["n"], row["name"]) for row in found) == Counter(
        (n, f"name {n % 7}" if n % 7 < 6 else None) for n in range(400)
    )


class Heard:
    """Notes what is said of time."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def batch(self, batch: pa.RecordBatch) -> None:
        self.said.append(f"{batch.num_rows} rows")

    def watermark(self, time: int) -> None:
        self.said.append(f"time {time}")

    def idle(self) -> None:
        self.said.append("idle")

    def barrier(self, barrier: Barrier, into: object) -> None:
        self.said.append("barrier")


def test_idle_inputs_do_not_let_others_go_on_without_the_rows_that_wait() -> None:
    left, right = pa.schema({"k": pa.int64()}), pa.schema({"k": pa.int64(), "name": pa.string()})
    job = ms.Job("j")
    rows, names = (job.read(ms.memory_source(s.empty_table(), name=str(s))) for s in (left, right))
    spec = job.graph.nodes[rows.join_table(names, on="k", how="left")._edge.node].body
    assert isinstance(spec, OperatorSpec)
    down = Heard()
    target = OperatorTarget("o", "o", "o", spec.build([left, right]), Ports({"main": [down]}), 0)
    stream, table = Channel(), Channel()
    done: list[object] = []
    subtask = ChannelSubtask("o[0]", Parts([target]), done.append, [(0, stream), (1, table)], target, frozenset([1]))
    for element in (pa.record_batch({"k": [1]}, left), Watermark(5), Idle(), Barrier(Epoch(1))):
        stream.put(element)
    for element in (Idle(), Barrier(Epoch(1))):
        table.put(element)
    while subtask.step() is Progress.MADE:
        pass
    assert down.said == ["barrier"], "what comes behind may let time pass the row that waits"
    table.put(Watermark(END_OF_TIME))
    while subtask.step() is Progress.MADE:
        pass
    assert down.said == ["barrier", "1 rows", "time 5", "idle"]
