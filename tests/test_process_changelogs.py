"""``process`` over changelogs: the code sees each change by itself, and may make a changelog of its own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import millstream as ms
import pyarrow as pa
import pytest
from changelog_kit import aggregated, changelogs, held_by, net
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream import col
from millstream.engine.changelog import WEIGHT, weighted
from millstream.operators import process_operator
from millstream.operators.process import ProcessSpec, schema_for
from millstream.testing import BARRIER, Watermark, check_operator, simulate
from nursery import Nursery, Start
from operator_kit import Harness, Step
from process_kit import SCHEMA as ROWS
from process_kit import START, micros
from process_kit import rows as plain_rows
from window_kit import KEYS, SCHEMA

Row = dict[str, Any]


class Totals(ms.Process):
    """``agg(rows=count(), total=sum("seq"))`` by hand: the last result of a key is taken back, and the new one made."""

    schema = pa.schema([("key", pa.string()), ("rows", pa.int64()), ("total", pa.int64())])
    rows = ms.value_state(int, default=0)
    total = ms.value_state(int, default=0)

    def on_row(self, row: Row, ctx: Any) -> Any:
        if self.rows:
            ctx.retract(self.result(ctx))
        self.rows += ctx.weight
        self.total += ctx.weight * row["seq"]
        assert self.rows >= 0
        if self.rows:
            yield self.result(ctx)

    def result(self, ctx: Any) -> Row:
        return {"key": ctx.key, "rows": self.rows, "total": self.total}


def totals_by(key: str) -> ProcessSpec:
    class OfKey(Totals):
        schema = pa.schema([("key", KEYS[key][0]), ("rows", pa.int64()), ("total", pa.int64())])

    return ProcessSpec((key,), OfKey, schema_for(OfKey, None), col("t"), changes=True, retracts=True)


@settings(max_examples=20, deadline=None)
@given(changelogs(), st.sampled_from(["k", "g"]), st.integers(1, 2))
def test_every_prefix_comes_to_what_sql_gives(steps: list[Step], key: str, parallelism: int) -> None:
    run = Harness(totals_by(key), weighted(SCHEMA), parallelism)
    batches: list[pa.RecordBatch] = []
    for step in steps:
        run.run([step])
        if isinstance(step, pa.RecordBatch):
            batches.append(step)
            assert net(run.out.batches["main"]) == aggregated(held_by(batches), (key,), ["count(*)", "sum(seq)"])


def changes(*given: tuple[str | None, int, float | None, int]) -> pa.RecordBatch:
    """Rows of (user, n, seconds after START, weight)."""
    batch = plain_rows(*(row[:3] for row in given))
    weights = pa.array([row[3] for row in given], pa.int64())
    return pa.RecordBatch.from_arrays([*batch.columns, weights], schema=weighted(ROWS))


SCRIPT = [
    changes(("a", 1, 0, 1), ("b", 2, 1, 3), (None, 3, 2, 1), ("a", 4, None, 1)),
    BARRIER,
    changes(("b", 2, 1, -2), ("a", 1, 0, -1), ("a", 5, 9, 1)),
    Watermark(micros(8)),
    BARRIER,
    BARRIER,
    changes((None, 3, 2, -1), ("a", 4, None, -1), ("b", 2, 1, -1), ("c", 7, 30, 2)),
    Watermark(micros(40)),
    changes(("a", 5, 9, -1), ("c", 7, 30, -2)),
]


class Bag(ms.Process):
    """Keeps the rows there are; tells of them when asked by a timer, which it takes back with the next one."""

    schema = pa.schema([("user", pa.string()), ("rows", pa.list_(pa.int64()))])
    held = ms.map_state(int, int)
    told = ms.value_state(list)
    calls = ms.side_output({"user": str, "weight": int})

    def on_row(self, row: Row, ctx: Any) -> None:
        assert set(row) <= {"user", "n", "at"}
        ctx.emit("calls", {"user": row["user"], "weight": ctx.weight})
        left = self.held.get(row["n"], 0) + ctx.weight
        if left:
            self.held[row["n"]] = left
        else:
            del self.held[row["n"]]
        if row["at"] is not None:
            ctx.timer(after="5s", name="tell")

    def on_timer(self, time: Any, ctx: Any) -> Any:
        assert ctx.weight == 1
        if self.told is not None:
            ctx.retract({"user": ctx.key, "rows": self.told})
        self.told = sorted(n for n, weight in self.held.items() for _ in range(weight))
        yield {"user": ctx.key, "rows": self.told}


def test_it_keeps_the_contract_of_operators() -> None:
    spec = ProcessSpec(("user",), Bag, schema_for(Bag, None), col("at"), changes=True, retracts=True)
    made = check_operator(spec, SCRIPT)
    assert [row["weight"] for row in made["calls"] if row["user"] == "b"] == [1, 1, 1, -1, -1, -1]
    found: Counter[Any] = Counter()
    for row in made["main"]:
        found[row["user"], tuple(row["rows"])] += row[WEIGHT]
    assert +found == Counter({(user, ()): 1 for user in ("a", "b", "c", None)})


def test_many_equal_rows_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_operator, "MOST_ROWS", 10)
    run = Harness(totals_by("k"), weighted(SCHEMA))
    row = dict.fromkeys(SCHEMA.names) | {"k": 1, "seq": 3}
    batch = pa.RecordBatch.from_pylist(
        [row | {WEIGHT: 1_234}, row | {WEIGHT: 0}, row | {WEIGHT: -34}], weighted(SCHEMA)
    )
    run.feed(batch)
    assert net(run.out.batches["main"]) == Counter({(1, 1_200, 3_600): 1})


def test_a_changelog_may_become_rows_that_stay() -> None:
    """Who is told once, when a total first passes a limit, is not told otherwise when it falls again."""

    def alarm(row: Row, state: Row, ctx: ms.ProcessContext) -> Row | None:
        if ctx.weight < 0 or row["total"] < 10 or state:
            return None
        state["told"] = True
        return {"shop": row["shop"]}

    batches = [
        pa.RecordBatch.from_pylist([{"shop": shop, "amount": amount}])
        for shop, amount in [("a", 9), ("b", 12), ("a", 2), ("a", -8), ("a", 30)]
    ]
    job, out = ms.Job("j"), ms.memory_sink()
    totals = job.read(ms.memory_source(batches)).group_by("shop").agg(total=ms.sum("amount"))
    alarms = totals.group_by("shop").process(alarm, schema={"shop": str}, changes=True)
    assert not alarms.is_changelog
    alarms.write(out)
    job.run()
    assert out.rows() == [{"shop": "b"}, {"shop": "a"}]


def test_rows_that_stay_may_become_a_changelog() -> None:
    class Latest(ms.Process):
        schema: ClassVar = {"user": str, "n": int}
        last = ms.value_state(dict)

        def on_row(self, row: Row, ctx: Any) -> Row:
            if self.last is not None:
                ctx.retract(self.last)
            self.last = {"user": row["user"], "n": row["n"]}
            return self.last

    job, out = ms.Job("j"), ms.memory_sink()
    rows = [{"user": "a", "n": 1}, {"user": "b", "n": 5}, {"user": "a", "n": 7}]
    latest = job.read(ms.memory_source(rows)).group_by("user").process(Latest, retracts=True)
    assert latest.is_changelog
    latest.final("user").write(out)
    job.run()
    assert sorted(row["n"] for row in out.rows()) == [5, 7]


def numbers() -> ms.Stream:
    return ms.Job("j").read(ms.memory_source([{"user": "a", "n": 1, "at": START}]), event_time="at")


def counts() -> ms.Stream:
    return numbers().group_by("user").agg(n=ms.count())


def ignores(row: Row, state: Row, ctx: Any) -> None:
    """Do nothing."""


def takes_back(row: Row, state: Row, ctx: Any) -> None:
    ctx.retract(row)


class Ignores(ms.Process):
    schema: ClassVar = {"n": int}

    def on_row(self, row: Row, ctx: Any) -> Row:
        return {"n": row["n"]}


class TakesBackLater(ms.Process):
    schema: ClassVar = {"n": int}

    def on_row(self, row: Row, ctx: Any) -> None:
        ctx.timer(after="1s")

    def on_timer(self, time: Any, ctx: Any) -> None:
        ctx.retract({"n": 1})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: counts().group_by("user").process(Totals),
            r"write process\(\.\.\., changes=True\) and look at ctx",
        ),
        (
            lambda: counts().group_by("user").process(Ignores, changes=True),
            r"Ignores does not look at ctx.*row, ctx",
        ),
        (
            lambda: counts().group_by("user").process(ignores, schema={"n": int}, changes=True),
            r"ignores does not look at ctx\.weight.*three arguments, row, state, ctx",
        ),
        (
            lambda: counts().group_by("user").process(lambda row, state: None, schema={"n": int}, changes=True),
            r"does not look at ctx\.weight",
        ),
        (lambda: numbers().group_by("user").process(Totals, changes=True, retracts=True), "is for changelogs; no row"),
        (
            lambda: numbers().group_by("user").process(Totals),
            r"Totals says ctx\.retract.*retracts=True",
        ),
        (
            lambda: numbers().group_by("user").process(takes_back, schema={"n": int}),
            r"takes_back says ctx\.retract.*retracts=True",
        ),
        (lambda: numbers().group_by("user").process(TakesBackLater), r"TakesBackLater says ctx\.retract"),
        (
            lambda: counts().group_by("user").process(Totals, changes=True, retracts=True).write(ms.memory_sink()),
            "sink 'memory' does not take a changelog",
        ),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_runs(build: Any, message: str) -> None:
    with pytest.raises(ms.JobError, match=message):
        build()


def test_what_only_shows_when_it_runs() -> None:
    def hidden(row: Row, state: Row, ctx: Any) -> None:
        getattr(ctx, "retract")(row)  # noqa: B009 - so that it is not seen before

    job = ms.Job("j")
    read = job.read(ms.memory_source([{"user": "a", "n": 1}]))
    read.group_by("user").process(hidden, schema={"n": int}).write(ms.memory_sink())
    with pytest.raises(ms.JobError, match=r"ctx\.retract\(\) takes back a row.*retracts=True.*'n': 1"):
        job.run(restarts=0)

    def misfit(row: Row, state: Row, ctx: ms.ProcessContext) -> None:
        ctx.retract({"m": ctx.weight})

    job = ms.Job("k")
    grouped = job.read(ms.memory_source([{"user": "a", "n": 1}])).group_by("user").agg(n=ms.count()).group_by("user")
    grouped.process(misfit, schema={"n": int}, changes=True, retracts=True).final("n").write(ms.memory_sink())
    with pytest.raises(ms.JobFailed, match=r"misfit.* with exactly the keys 'n'.*the row is \{'user': 'a', 'n': 1\}"):
        job.run(restarts=0)


def orders(count: int) -> list[pa.RecordBatch]:
    rows = [{"order": n * 7 % 40, "shop": f"s{n * n % 11}", "amount": n} for n in range(count)]
    return [pa.RecordBatch.from_pylist(rows[at : at + 5]) for at in range(0, count, 5)]


class ByShop(ms.Process):
    schema: ClassVar = {"shop": str, "orders": int, "amount": int}
    held = ms.map_state(int, int)

    def on_row(self, row: Row, ctx: ms.ProcessContext) -> Any:
        if self.held:
            ctx.retract(self.sums(row["shop"]))
        if ctx.weight > 0:
            assert row["order"] not in self.held
            self.held[row["order"]] = row["amount"]
        else:
            assert self.held.pop(row["order"]) == row["amount"], "taken back with another amount than it came with"
        if self.held:
            yield self.sums(row["shop"])

    def sums(self, shop: str) -> Row:
        return {"shop": shop, "orders": len(self.held), "amount": sum(self.held.values())}


def expected(count: int) -> dict[str, tuple[int, int]]:
    last = {row["order"]: row for batch in orders(count) for row in batch.to_pylist()}
    found: dict[str, list[int]] = {}
    for row in last.values():
        found.setdefault(row["shop"], []).append(row["amount"])
    return {shop: (len(amounts), sum(amounts)) for shop, amounts in found.items()}


@pytest.mark.parametrize("seed", range(4))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("orders")
        last = job.read(ms.memory_source(orders(200))).deduplicate("order", keep="last")
        last.group_by("shop").process(ByShop, changes=True, retracts=True).final("shop").write(out)
        return job

    assert simulate(make, tmp_path / "s.duckdb", seed).crashes
    assert {row["shop"]: (row["orders"], row["amount"]) for row in out.rows()} == expected(200), f"seed {seed}"


JOB = """
import millstream as ms
from test_process_changelogs import ByShop, orders

job = ms.Job("orders")
last = job.read(ms.memory_source(orders(200))).deduplicate("order", keep="last")
shops = last.group_by("shop").process(ByShop, changes=True, retracts=True)
shops.changes().write(ms.jsonl("output", hold_bytes=0))
"""


def test_a_process_killed_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    with Nursery() as nursery:
        for point, parallelism in (
            ("store.before_commit=kill@4", 2),
            ("subtask.snapshot=kill@9", 3),
        ):
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=point)).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    found: Counter[Any] = Counter()
    for file in sorted((tmp_path / "output").rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[row["shop"], row["orders"], row["amount"]] += row["weight"]
    assert min(found.values()) >= 0
    assert +found == Counter({(shop, *sums): 1 for shop, sums in expected(200).items()})
