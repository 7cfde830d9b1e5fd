"""Groups that are forgotten: what there is at any time is what SQL makes of the rows of groups that live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from changelog_kit import aggregated, net
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.time import END_OF_TIME
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.group_aggregate import GroupAggregate, TimeToLive
from millstream.testing import BARRIER, Tick, Watermark, check_operator, simulate
from operator_kit import Advance, Harness, Step
from test_group_aggregate import AGGREGATES
from window_kit import SCHEMA, streams

START = -(2**62)


def spec_of(*aggregates: AggregateSpec, keys: tuple[str, ...] = ("k",), ttl: int = 20, clock: Any = "event") -> Any:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(aggregates))
    return GroupAggregate(keys, named, col("t"), TimeToLive(ttl, clock))


class Model:
    """Groups with their rows and when they were last touched, a dict and nothing else."""

    def __init__(self, keys: tuple[str, ...], ttl: int) -> None:
        self.keys, self.ttl, self.reached = keys, ttl, START
        self.groups: dict[str, tuple[list[dict[str, Any]], int]] = {}

    def run(self, step: Step) -> None:
        if isinstance(step, Advance):
            self.reached = max(self.reached, step.time)
            self.groups = {k: (rows, last) for k, (rows, last) in self.groups.items() if last + self.ttl > self.reached}
        if not isinstance(step, pa.RecordBatch):
            return
        for row, time in zip(step.to_pylist(), step["t"].cast(pa.int64()).to_pylist(), strict=True):
            shown = [row[key] + 0.0 if isinstance(row[key], float) else row[key] for key in self.keys]
            rows, last = self.groups.setdefault(repr(shown), ([], START))
            rows.append(row)
            self.groups[repr(shown)] = rows, max(last, self.reached, START if time is None else time)

    def rows(self) -> pa.Table:
        return pa.Table.from_pylist([row for rows, _ in self.groups.values() for row in rows], SCHEMA)


@settings(max_examples=12, deadline=None)
@given(streams(), st.sampled_from([(), ("k",), ("g", "k"), ("h",)]), st.sampled_from([1, 5, 40]), st.integers(0, 3))
def test_what_there_is_are_the_groups_that_live(
    steps: list[Step], keys: tuple[str, ...], ttl: int, quarter: int
) -> None:
    made = AGGREGATES[quarter::4]
    run = Harness(spec_of(*(aggregate for aggregate, _ in made), keys=keys, ttl=ttl), SCHEMA, 2)
    model = Model(keys, ttl)
    for step in steps:
        run.run([step])
        model.run(step)
        assert net(run.out.batches["main"]) == aggregated(model.rows(), keys, [sql for _, sql in made])
    before = net(run.out.batches["main"])
    run.finish()
    assert net(run.out.batches["main"]) == before, "the end is no time at which anything is forgotten"


SMALL = pa.schema({"k": pa.string(), "v": pa.int64(), "t": pa.timestamp("us")})


def rows(*values: tuple[str, int, int | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([dict(zip(SMALL.names, row, strict=True)) for row in values], schema=SMALL)


EVERY = (
    ms.count(),
    ms.sum("v"),
    ms.min("k"),
    ms.last("v"),
    ms.approx_count_distinct("v"),
    ms.collect("v"),
    ms.median("v"),
)


def test_the_kit_in_event_time() -> None:
    script = [
        rows(("a", 1, 0), ("b", 2, 15), ("c", 3, None)),
        BARRIER,
        Watermark(19),
        rows(("a", 5, 3)),  # it is late, and so comes at 19
        BARRIER,
        Watermark(36),  # b had its last row at 15; c, without a time, at none there was
        rows(("b", 7, 36)),
        BARRIER,
        Watermark(39),
        BARRIER,
        rows(("a", 9, 41)),
    ]
    got = check_operator(spec_of(*EVERY), script)["main"]
    assert {(row["k"], row["x1"], row["x5"] and tuple(row["x5"])) for row in got} == {("a", 9, (9,)), ("b", 7, (7,))}


def test_the_kit_in_processing_time() -> None:
    script = [
        Tick(100),
        rows(("a", 1, 0), ("b", 2, 15)),
        BARRIER,
        Tick(110),
        rows(("a", 5, 3)),
        Tick(120),
        BARRIER,
        Tick(129),
        rows(("b", 1, 0)),
        BARRIER,
        Tick(130),
        Tick(148),
        rows(("a", 8, 0)),
    ]
    got = check_operator(spec_of(*EVERY, clock="processing"), script)["main"]
    assert [(row["k"], row["x1"]) for row in got] == [("b", 1), ("a", 8)]


def test_what_is_forgotten_is_taken_back_and_its_key_begins_anew() -> None:
    run = Harness(spec_of(ms.sum("v"), ttl=10), SMALL)
    run.run([rows(("a", 1, 0), ("b", 2, 5)), Advance(9)])
    assert [batch.to_pylist() for batch in run.out.batches["main"][1:]] == []
    run.run([Advance(10), rows(("a", 4, 10))])
    shown = [tuple(row.values()) for batch in run.out.batches["main"] for row in batch.to_pylist()]
    assert shown == [("a", 1, 1), ("b", 2, 1), ("a", 1, -1), ("a", 4, 1)]
    assert run.finish().counters == {"forgotten_groups": 1}


def test_memory_and_the_store_forget_too() -> None:
    run = Harness(spec_of(ms.sum("v"), ms.count_distinct("v"), ttl=10), SMALL)
    numbers = np.arange(30_000)
    for turn in range(12):
        names = pa.array([f"{turn}-{n}" for n in numbers])
        batch = pa.record_batch(
            [names, pa.array(numbers), pa.array(np.full(30_000, 10 * turn)).cast("timestamp[us]")], schema=SMALL
        )
        run.run([batch, Advance(10 * turn)])
        run.checkpoint()
    (operator,) = run.subtasks
    assert sum(operator.memory().values()) < 60_000 * 300
    run.advance(10_000)
    run.restart(2)
    assert net(run.out.batches["main"]) == {}
    delta = run.subtasks[0].snapshot(99)
    assert all(not part.rows.num_rows for part in delta.values())


def test_the_end_of_time_at_which_rows_are_replayed_forgets_nothing() -> None:
    run = Harness(spec_of(ms.sum("v")), SMALL).run([rows(("a", 1, 0)), Advance(END_OF_TIME - 1), rows(("a", 2, 1))])
    assert net(run.out.batches["main"]) == {("a", 3): 1}


@pytest.mark.parametrize("seed", range(3))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    """A whole job, crashed: what is left at the end, and in an aggregate of the aggregate, are those that live."""
    table = pa.table(
        {
            "user": [n % 40 if n < 150 else n % 7 for n in range(300)],
            "at": pa.array([n * 1_000_000 for n in range(300)]).cast("timestamp[us]"),
        }
    )
    out, totals = ms.memory_sink("out"), ms.memory_sink("totals")

    def make() -> ms.Job:
        job = ms.Job("lately")
        visits = job.read(ms.memory_source(table.to_batches(max_chunksize=10), name="visits"), event_time="at")
        lately = visits.group_by("user").agg(visits=ms.count(), ttl="60s")
        lately.final().write(out)
        lately.agg(users=ms.count(), visits=ms.sum("visits")).final().write(totals)
        return job

    assert simulate(make, tmp_path / "store", seed).crashes > 0
    left = {row["user"]: row["visits"] for row in out.rows()}
    assert left.keys() == set(range(7))
    assert totals.rows() == [{"users": 7, "visits": sum(left.values())}]


def test_mistakes() -> None:
    job = ms.Job("j")
    stream = job.read(ms.memory_source([rows(("a", 1, 0))]), event_time="t")
    untimed = job.read(ms.memory_source([{"k": 1}], name="untimed"))
    for grouped, options, message in (
        (stream, {"ttl": 0}, "would forget groups at once"),
        (stream, {"ttl": "soon"}, "not a duration"),
        (stream, {"ttl": "1d", "clock": "wall"}, "measured by 'event' or by 'processing' time"),
        (stream, {"clock": "event"}, "and there is no ttl="),
        (untimed, {"ttl": "1d", "clock": "event"}, "needs event time: name its column"),
        (stream, {"ttl": ms.count()}, "give an aggregate another name"),
    ):
        with pytest.raises(JobError, match=message):
            grouped.group_by("k").agg(n=ms.count(), **options)
    with pytest.raises(SchemaError, match=r"agg\(ttl=...\) takes no changelog"):
        stream.group_by("k").agg(n=ms.count()).group_by("n").agg(m=ms.count(), ttl="1d")
    assert untimed.agg(n=ms.count(), ttl="1d").is_changelog


def test_another_time_is_the_same_operator() -> None:
    one, other = spec_of(ms.count(), ttl=5), spec_of(ms.count(), ttl=9)
    assert one.identity() == other.identity()
    assert one.identity() != spec_of(ms.count(), clock="processing").identity()
