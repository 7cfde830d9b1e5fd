"""``process`` in jobs: crashed, killed, resumed at another parallelism, with more keys than fit into one delta."""

from __future__ import annotations

import datetime as dt
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.operator import MAIN
from millstream.engine.plan import make_plan
from millstream.engine.time import END_OF_TIME
from millstream.operators import process_operator, process_tables
from millstream.testing import BARRIER, Watermark, check_operator, simulate
from nursery import Nursery, Start
from process_kit import ROW, START, Everything, micros, rows, spec

Row = dict[str, Any]


def payments(count: int) -> list[Row]:
    draw = random.Random(count)
    return [
        {"user": f"u{draw.randrange(9)}", "n": draw.randrange(1, 30), "at": START + dt.timedelta(seconds=n)}
        for n in range(count)
    ]


class InOrder(Everything):
    """Takes rows by timers only: when one fires, no earlier row can come any more."""

    waiting = ms.list_state(dict)

    def on_row(self, row: Row, ctx: Any) -> Any:
        self.waiting.append({"n": row["n"], "user": row["user"], "at": row["at"]})
        ctx.timer(at=row["at"], name=f"{row['at']:%H%M%S}")
        return []

    def on_timer(self, time: dt.datetime, ctx: Any) -> Any:
        if ctx.name in ("", "quiet"):
            yield from super().on_timer(time, ctx)
            return
        due = [row for row in self.waiting if row["at"] == time]
        for index in reversed([i for i, row in enumerate(self.waiting) if row["at"] == time]):
            del self.waiting[index]
        for row in due:
            yield from super().on_row(row, ctx)


@pytest.mark.parametrize("seed", range(6))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    given = payments(240)
    batches = [pa.RecordBatch.from_pylist(given[at : at + 5]) for at in range(0, len(given), 5)]
    out, odd = ms.memory_sink("out"), ms.memory_sink("odd")

    def make() -> ms.Job:
        job = ms.Job("j")
        source = ms.memory_source(batches, splits=3, name="payments")
        told = job.read(source, event_time="at", max_delay="2m").group_by("user").process(InOrder, name="tell")
        told.write(out)
        told.side("odd").write(odd)
        return job

    assert simulate(make, tmp_path / "j.duckdb", seed).crashes
    assert Counter(row["n"] for row in odd.rows()) == Counter(row["n"] for row in given if row["n"] % 2)
    once = ms.memory_sink("once")
    job = ms.Job("j")
    source = ms.memory_source(batches, splits=1, name="payments")
    job.read(source, event_time="at").group_by("user").process(InOrder, name="tell").write(once)
    job.run()
    assert Counter((row["user"], row["what"]) for row in out.rows()) == Counter(
        (row["user"], row["what"]) for row in once.rows()
    )
    assert len(once.rows()) > 2 * len(given)


def test_more_keys_than_go_into_one_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tables, "WHOLE_STATE_ROWS", 10)
    monkeypatch.setattr(process_operator, "_LEAST", 8)
    draw = random.Random(5)
    steps: list[Any] = []
    for step in range(30):
        # Users come and go, so that slots are given back.
        users = [f"u{draw.randrange(step, step + 8)}" for _ in range(4)]
        steps.append(rows(*((user, draw.randrange(40), step + draw.random()) for user in users)))
        steps += [BARRIER] if step % 2 else [Watermark(micros(step - 1))]
    made = check_operator(spec(Forgetful), steps)[MAIN]
    models: dict[str, list[int]] = defaultdict(list)
    told: Counter[str] = Counter()
    for step in steps:
        if isinstance(step, pa.RecordBatch):
            for row in step.to_pylist():
                models[row["user"]].append(row["n"])
                told[f"{row['user']} {models[row['user']]}"] += 1
                if row["n"] % 3 == 0:
                    del models[row["user"]]
    assert Counter(row["what"] for row in made if "timer" not in row["what"]) == told


class Forgetful(ms.Process):
    schema = ROW
    seen = ms.map_state(int, int)
    order = ms.value_state(list, default=list)
    old = ms.value_state(int, ttl="3s")

    def on_row(self, row: Row, ctx: Any) -> Row:
        self.order.append(row["n"])
        self.seen[len(self.seen)] = row["n"]
        self.old = row["n"]
        ctx.timer(after="5s", name="t")
        assert list(self.seen.values()) == self.order
        what = f"{row['user']} {self.order}"
        if row["n"] % 3 == 0:
            self.order = []
            self.seen.clear()
            ctx.cancel(name="t")
        return {"user": row["user"], "what": what}

    def on_timer(self, time: dt.datetime, ctx: Any) -> Row:
        return {"user": ctx.key, "what": f"timer {self.old}"}


def test_a_delta_holds_what_changed_and_a_slice() -> None:
    class Count(ms.Process):
        schema = ROW
        n = ms.value_state(int, default=0)
        seen = ms.map_state(int, int)

        def on_row(self, row: Row, ctx: Any) -> None:
            self.n += row["n"]
            if row["n"]:
                self.seen[row["n"]] = 1

    class Nowhere:
        def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
            raise AssertionError

    operator = spec(Count).build([rows().schema])
    operator.process(rows(*((f"u{n}", 1 + n % 2, 0) for n in range(15_000))), Nowhere())
    assert operator.snapshot(1)["state"].rows.num_rows == 30_000 + 1_500 - 750  # values are not written twice
    assert operator.snapshot(2) == {}
    memory = operator.memory()
    assert memory.keys() == {"keys", "n", "seen"}
    assert memory["seen"] > 15_000 * 100 > memory["n"] > 15_000 * 8
    operator.process(rows(("u3", 0, 0), ("u4", 0, 0)), Nowhere())
    assert operator.snapshot(3)["state"].rows.num_rows <= 2 + 1_500
    operator.process(rows(("u3", 9, 0)), Nowhere())
    delta = operator.snapshot(4)["state"]
    assert 2 <= delta.rows.num_rows <= 2 + 1_500
    assert delta.full_from == 0
    operator.on_watermark(END_OF_TIME, Nowhere())


def test_only_what_is_read_is_asked_of_the_source() -> None:
    def total(row: Row, state: Row) -> Row:
        state["n"] = state.get("n", 0) + row["amount"]
        return {"total": state["n"]}

    job = ms.Job("j")
    source = ms.memory_source([{"user": "a", "amount": 1, "note": "x", "at": START}])
    made = job.read(source, event_time="at").group_by("user").process(total, schema={"total": int})
    made.write(ms.blackhole())
    plan = make_plan("j", job.graph, 1)
    (read,) = plan.graph.sources()
    assert set(read.schemas[MAIN].names) >= {"user", "amount", "at"}
    spec_ = next(node.body for node in plan.graph.nodes.values() if getattr(node.body, "kind", "") == "process")
    assert spec_.columns_needed({}, [job.graph.sources()[0].schemas[MAIN]]) == [{"user", "amount", "at"}]  # type: ignore[union-attr]


def test_event_time_goes_on_with_its_column() -> None:
    def same(row: Row, state: Row) -> Row:
        return {"at": row["at"]}

    job = ms.Job("j")
    grouped = job.read(ms.memory_source([{"user": "a", "at": START}]), event_time="at").group_by("user")
    out = ms.memory_sink()
    kept = grouped.process(same, schema={"at": "timestamp[us]"})
    kept.window(ms.tumbling("1m")).agg(rows=ms.count()).write(out)
    job.run()
    for schema in ({"at": "timestamp[ms]"}, {"when": "timestamp[us]"}):
        with pytest.raises(ms.JobError, match="needs event time"):
            grouped.process(same, schema=schema, name=str(schema)).window(ms.tumbling("1m"))
    assert [row["rows"] for row in out.rows()] == [1]


JOB = """
import millstream as ms
import numpy as np
import pyarrow as pa

PAYMENTS = pa.schema({"user": pa.int64(), "n": pa.int64(), "at": pa.timestamp("us")})

def payments(start, stop):
    n = np.arange(start, stop)
    return pa.record_batch([n * 7 % 50, n, pa.array(n * 10_000).cast(pa.timestamp("us"))], schema=PAYMENTS)

class Tell(ms.Process):
    schema = {"user": int, "count": int, "of": int}
    count = ms.value_state(int, default=0)
    seen = ms.map_state(int, int)
    last = ms.list_state(int)

    def on_row(self, row, ctx):
        self.count += 1
        self.seen[row["n"] % 3] = self.seen.get(row["n"] % 3, 0) + 1
        self.last.append(row["n"])
        ctx.timer(after="20s", name="close")
        assert sum(self.seen.values()) == self.count == len(self.last)
        yield {"user": row["user"], "count": self.count, "of": row["n"]}

    def on_timer(self, time, ctx):
        yield {"user": ctx.key, "count": -self.count, "of": sum(self.last)}

job = ms.Job("payments")
source = ms.generator(payments, schema=PAYMENTS, rows=8_000, batch_rows=50, splits=2, name="payments")
job.read(source, event_time="at", max_delay="1m").group_by("user").process(Tell).write(
    ms.jsonl("output", hold_bytes=0))
"""


def told(folder: Path) -> list[Row]:
    return [json.loads(line) for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()]


def test_a_process_killed_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    starts = (
        ("store.before_commit=kill@3", 2),
        ("store.after_commit=kill@2", 1),
        ("subtask.snapshot=kill@7", 3),
    )
    with Nursery() as nursery:
        for points, parallelism in starts:
            assert nursery.run(Start(str(tmp_path), parallelism=parallelism, failpoint=points)).killed
        end = nursery.run(Start(str(tmp_path)))
    assert end.outcome == "finished", end.log
    assert end.restored_from > 0
    of_user = {user: [n for n in range(8_000) if n * 7 % 50 == user] for user in range(50)}
    made = told(tmp_path / "output")
    for user, numbers in of_user.items():
        mine = [row for row in made if row["user"] == user]
        assert sorted(row["of"] for row in mine if row["count"] > 0) == numbers
        assert sorted(row["count"] for row in mine if row["count"] > 0) == list(range(1, len(numbers) + 1))
        assert [(row["count"], row["of"]) for row in mine if row["count"] < 0] == [(-len(numbers), sum(numbers))]
