"""``map_async``: order, watermarks, back-pressure, timeouts and retries, and functions that never come back."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream import col
from millstream.engine.element import Barrier, Epoch
from millstream.engine.errors import JobError, JobFailed, SchemaError, UserCodeError
from millstream.engine.operator import MAIN, Operator, OperatorContext
from millstream.engine.runtime.calls import SimulatedCalls
from millstream.engine.runtime.chain import OperatorTarget, Ports, Snapshot
from millstream.engine.runtime.coordinator import CheckpointSettings
from millstream.engine.runtime.run import Control, RunSettings, run_job
from millstream.engine.runtime.scheduler import SimulatedScheduler
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators.async_map import AsyncMap
from millstream.testing import BARRIER, ManualClock, Watermark, check_operator, simulate

Function = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

DOUBLED = {"n": "int64", "twice": "int64"}


async def doubled(row: dict[str, Any]) -> dict[str, Any]:
    """Takes a while, another one for each row."""
    await asyncio.sleep(row["n"] * 7919 % 13 / 100)
    return {"n": row["n"], "twice": 2 * row["n"]}


def rows(*numbers: int) -> pa.RecordBatch:
    words = pa.array([f"w{n % 3}" for n in numbers]).dictionary_encode()
    return pa.record_batch({"n": pa.array(numbers, pa.int64()), "Epoch": words, "xs": [[n] for n in numbers]})


# -- the contract ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
def test_the_kit(ordered: bool) -> None:
    script = [
        rows(*range(8)),
        Watermark(5),
        rows(8, 9),
        BARRIER,
        rows(10),
        Watermark(9),
        BARRIER,
        rows(11, 12),
        BARRIER,
    ]
    spec = AsyncMap(doubled, DOUBLED, concurrency=3, ordered=ordered, retry=ms.retry(2))
    got = check_operator(spec, script)[MAIN]
    assert sorted(row["n"] for row in got) == list(range(13))


def test_the_kit_with_rows_put_aside() -> None:
    async def picky(row: dict[str, Any]) -> dict[str, Any]:
        if row["n"] % 3 == 0:
            raise ValueError(f"{row['n']} of three")
        return {"n": "five"} if row["n"] == 5 else {"n": row["n"]}

    script = [rows(*range(8)), Watermark(5), rows(8, 9), BARRIER, rows(10)]
    got = check_operator(AsyncMap(picky, {"n": "int64"}, on_error="dead_letter", concurrency=2), script)
    assert [row["n"] for row in got[MAIN]] == [1, 2, 4, 7, 8, 10]
    assert sorted(letter["row"]["n"] for letter in got["dead_letters"]) == [0, 3, 5, 6, 9]
    assert {letter["error_type"] for letter in got["dead_letters"]} == {"ValueError", "UserCodeError"}


class Downstream:
    """Notes everything that comes."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def batch(self, batch: pa.RecordBatch) -> None:
        self.seen += batch["n"].to_pylist()

    def watermark(self, time: int) -> None:
        self.seen.append(("watermark", time))

    def idle(self) -> None:
        self.seen.append("idle")


class Hand:
    """One operator within a subtask, with functions that return when told to."""

    def __init__(self, *, ordered: bool, concurrency: int = 10) -> None:
        self.calls = SimulatedCalls(random.Random(1), ManualClock())
        self.down, self.may_return = Downstream(), set[int]()
        self.called: list[int] = []

        async def when_told(row: dict[str, Any]) -> dict[str, Any]:
            self.called.append(row["n"])
            while row["n"] not in self.may_return:
                await asyncio.sleep(0)
            return {"n": row["n"]}

        spec = AsyncMap(when_told, {"n": "int64"}, ordered=ordered, concurrency=concurrency)
        self.operator: Operator = spec.build([rows(1).schema])
        self.operator.open(OperatorContext("job", "hand", 0, 1, calls=self.calls))
        self.target = OperatorTarget("id", "hand", "hand", self.operator, Ports({MAIN: [self.down]}), 0)  # type: ignore[list-item]
        self.target.clock = ManualClock()

    def let(self, *numbers: int) -> list[Any]:
        """Let functions return; return what has come out since the last time."""
        self.may_return.update(numbers)
        for _ in range(60):
            self.calls.step()
            while self.target.wake_if_due():
                pass
        seen, self.down.seen = self.down.seen, []
        return seen


@pytest.fixture(params=[True, False], ids=["ordered", "unordered"])
def hand(request: pytest.FixtureRequest) -> Iterator[Hand]:
    made = Hand(ordered=request.param)
    yield made
    made.calls.close()


def test_a_watermark_waits_for_the_rows_before_it(hand: Hand) -> None:
    hand.target.watermark(1)
    hand.target.batch(rows(1, 2))
    hand.target.watermark(10)
    hand.target.watermark(11)
    assert hand.let() == [("watermark", 1)]
    assert hand.let(1) == [1]
    assert hand.let(2) == [2, ("watermark", 11)]
    hand.target.watermark(12)
    assert hand.let() == [("watermark", 12)]


def test_idleness_and_the_end_wait_for_the_rows_before_them(hand: Hand) -> None:
    hand.target.batch(rows(1))
    hand.target.idle()
    assert hand.let() == []
    assert hand.let(1) == [1, "idle"]
    hand.target.batch(rows(2))
    hand.target.idle()
    hand.target.batch(rows(3))
    assert hand.let(2, 3) in ([2, 3], [3, 2])
    hand.target.batch(rows(4))
    hand.target.watermark(END_OF_TIME)
    assert hand.let() == []
    assert not hand.target.drained
    assert hand.let(4) == [4, ("watermark", END_OF_TIME)]
    assert hand.target.drained


def test_results_in_order_come_before_and_after_the_watermarks_that_their_rows_did() -> None:
    hand = Hand(ordered=True)
    for number in (1, 2, 3):
        hand.target.batch(rows(number))
        hand.target.watermark(10 * number)
    assert hand.let(2, 3) == []
    assert hand.let(1) == [1, ("watermark", 10), 2, ("watermark", 20), 3, ("watermark", 30)]
    hand.calls.close()


def test_results_without_order_come_as_soon_as_they_are_there() -> None:
    hand = Hand(ordered=False)
    for number in (1, 2, 3):
        hand.target.batch(rows(number))
        hand.target.watermark(10 * number)
    assert hand.let(3) == [3]
    assert hand.let(1) == [1, ("watermark", 10)]
    assert hand.let(2) == [2, ("watermark", 30)]
    hand.calls.close()


def test_no_more_rows_are_called_for_than_may_be(hand: Hand) -> None:
    hand.calls.close()
    hand = Hand(ordered=False, concurrency=3)
    hand.target.batch(rows(*range(5)))
    hand.let()
    assert sorted(hand.called) == [0, 1, 2]
    assert hand.target.full
    hand.let(1)
    assert sorted(hand.called) == [0, 1, 2, 3]
    hand.let(0, 2)
    assert hand.called[3:] == [3, 4]
    assert not hand.target.full
    hand.calls.close()


def test_where_rows_are_restored_no_watermark_goes_before_them() -> None:
    hand = Hand(ordered=True)
    hand.target.watermark(10)
    hand.target.batch(rows(1))
    hand.target.watermark(20)
    hand.target.batch(rows(2))
    hand.target.watermark(30)
    delta = hand.operator.snapshot(1)["in_hand"]
    assert delta.rows["after"].to_pylist() == [10, 20]
    hand.calls.close()
    for restored, first in ((30, ("watermark", 10)), (5, ("watermark", 5))):
        again = Hand(ordered=True)
        again.operator.restore("in_hand", delta.rows.to_batches(), 1)
        again.target.watermark(restored)
        assert again.let() == [first]
        again.target.watermark(40)
        assert again.let(2) == []
        seen = again.let(1)
        assert [n for n in seen if isinstance(n, int)] == [1, 2]
        assert seen[-1] == ("watermark", 40)
        again.calls.close()
    assert again.target.passed > START_OF_TIME


def test_what_stands_behind_rows_in_hand_says_that_its_watermark_is_its_own() -> None:
    first, second = Hand(ordered=True), Hand(ordered=True)
    second.target.id = "behind"
    first.target.ports = Ports({MAIN: [second.target]})
    second.target.ports = Ports({})
    first.target.watermark(10)
    first.target.batch(rows(1))
    first.target.watermark(20)
    snapshot = Snapshot()
    first.target.barrier(Barrier(Epoch(1)), snapshot)
    assert snapshot.watermarks == {"id": 20, "behind": 10}
    assert snapshot.behind_held == {"behind"}
    first.calls.close()
    second.calls.close()


# -- in a job --------------------------------------------------------------------------------------------------

DAY = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)


def events(count: int) -> list[pa.RecordBatch]:
    """Rows whose times jump back further than they may: some are late."""
    draw = random.Random(count)
    times = [DAY + timedelta(seconds=n - (draw.random() < 0.2) * draw.randrange(30)) for n in range(count)]
    batch = pa.record_batch({"n": range(count), "at": pa.array(times, pa.timestamp("us"))})
    return [batch.slice(first, 3) for first in range(0, count, 3)]


async def passed_on(row: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(row["n"] * 7919 % 13 / 500)
    return row


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ordered", [True, False])
def test_windows_behind_it_see_what_they_would_have_seen(ordered: bool, seed: int, tmp_path: Path) -> None:
    def results(store: Path, apply: Callable[[ms.Stream], ms.Stream], crashes: int) -> list[list[int]]:
        out, late = ms.memory_sink(name="out"), ms.memory_sink(name="late")

        def make() -> ms.Job:
            job = ms.Job("windows")
            stream = job.read(ms.memory_source(events(60), name="events"), event_time="at", max_delay="2s")
            windows = apply(stream).window(ms.tumbling("10s")).agg(ns=ms.collect("n"))
            windows.write(out)
            windows.late.select("n").write(late)
            return job

        # With one subtask and one split it is settled which rows are late.
        simulate(make, store, seed, crashes=crashes, parallelism=1)
        return [sorted(n for row in out.rows() for n in row["ns"]), sorted(row["n"] for row in late.rows())]

    schema = pa.schema({"n": pa.int64(), "at": pa.timestamp("us")})
    plain = results(tmp_path / "plain", lambda s: s.map(lambda row: row, schema=schema), 0)
    got = results(tmp_path / "async", lambda s: s.map_async(passed_on, schema=schema, ordered=ordered), 3)
    assert plain[1], "a test without late rows"
    assert sorted(got[0] + got[1]) == list(range(60))
    if ordered:
        assert got == plain
    else:
        assert set(got[1]) <= set(plain[1]), "a row is late that was not"


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_seed(ordered: bool, seed: int, tmp_path: Path) -> None:
    """Crashed and started again with other numbers of subtasks: every row has its result once, none is late."""
    out, late = ms.memory_sink(name="out"), ms.memory_sink(name="late")
    steps = [pa.record_batch({"n": [n], "at": pa.array([DAY + timedelta(seconds=n)])}) for n in range(60)]

    def make() -> ms.Job:
        job = ms.Job("windows")
        stream = job.read(ms.memory_source(steps, splits=3, name="events"), event_time="at")
        schema = pa.schema({"n": pa.int64(), "at": pa.timestamp("us")})
        if seed % 2:  # in a stage behind an exchange, where all but what is behind rows in hand have one watermark
            stream = stream.deduplicate("n")
        twice = stream.map_async(passed_on, schema=schema, ordered=ordered, concurrency=4)
        twice = twice.map_async(passed_on, schema=schema, ordered=ordered, name="again")
        windows = twice.with_columns(k=col("n") % 2).group_by("k").window(ms.tumbling("10s")).agg(ns=ms.collect("n"))
        windows.write(out)
        windows.late.select("n").write(late)
        return job

    assert simulate(make, tmp_path / "store", seed).crashes > 0
    assert sorted(n for row in out.rows() for n in row["ns"]) == list(range(60)), f"seed {seed} reproduces it"
    assert late.rows() == [], f"seed {seed} reproduces it"


def simulated(fn: Function, clock: ManualClock, **options: Any) -> list[dict[str, Any]]:
    job, out = ms.Job("calls"), ms.memory_sink()
    source = ms.memory_source([{"n": n} for n in range(20)])
    job.read(source).map_async(fn, schema={"n": "int64"}, **options).write(out)
    scheduler = SimulatedScheduler(3, clock, tick=0.01)
    run_job(job.plan(1), RunSettings(restarts=0), clock=clock, scheduler=lambda _: scheduler, sleep=clock.advance)
    return out.rows()


def test_a_call_that_takes_too_long_fails_with_its_row() -> None:
    async def hangs(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(1_000 if row["n"] == 7 else 1)
        return row

    clock = ManualClock()
    with pytest.raises(JobFailed, match=r"hangs.*TimeoutError: no result within 20s; the row is .'n': 7.") as failed:
        simulated(hangs, clock, timeout="20s")
    assert isinstance(failed.value.__cause__, UserCodeError)
    assert 20 <= clock.monotonic() < 25
    assert len(simulated(hangs, clock, timeout=None)) == 20


def test_a_call_is_tried_again_after_a_growing_pause() -> None:
    clock, at = ManualClock(), dict[int, list[float]]()

    async def fails_at_first(row: dict[str, Any]) -> dict[str, Any]:
        at.setdefault(row["n"], []).append(clock.monotonic())
        row["spoilt"] = True
        if len(at[row["n"]]) < 4:
            raise ConnectionError("no")
        return {"n": row["n"]}

    rule = ms.retry(4, wait="10s", factor=3, on=OSError)
    assert [row["n"] for row in simulated(fails_at_first, clock, retry=rule)] == list(range(20))
    for times in at.values():
        pauses = [after - before for before, after in pairwise(times)]
        for pause, due in zip(pauses, (10, 30, 30), strict=True):
            assert due / 2 <= pause < due + 1
    assert len({round(times[1], 2) for times in at.values()}) > 10, "no jitter"


def test_what_is_not_to_be_tried_again_is_not() -> None:
    calls = []

    async def fails(row: dict[str, Any]) -> dict[str, Any]:
        calls.append(row["n"])
        raise KeyError("shop")

    with pytest.raises(JobFailed, match=r"fails.*raised KeyError: 'shop' \(attempt 1 of 3\); the row is .'n': 0."):
        simulated(fails, ManualClock(), concurrency=1, retry=ms.retry(on=OSError))
    assert calls == [0]
    with pytest.raises(JobFailed, match=r"raised KeyError: 'shop' \(attempt 3 of 3\)"):
        simulated(fails, ManualClock(), concurrency=1, retry=ms.retry(3))
    assert calls == [0] * 4


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
def test_what_would_end_the_event_loop_ends_only_the_job(error: BaseException) -> None:
    async def ends(row: dict[str, Any]) -> dict[str, Any]:
        raise error

    job = ms.Job("ends")
    job.read(ms.memory_source([{"n": 1}])).map_async(ends, schema={"n": "int64"}).write(ms.memory_sink())
    with pytest.raises(JobFailed, match=r"ends.*; the row is .'n': 1."):
        run_job(job.plan(1), RunSettings(restarts=0))
    assert threaded(doubled, range(5)) == [2 * n for n in range(5)]


def threaded(fn: Function, numbers: range, **settings: Any) -> list[int]:
    job, out = ms.Job("threads"), ms.memory_sink()
    source = ms.memory_source([{"n": n} for n in numbers])
    job.read(source).map_async(fn, schema=DOUBLED).write(out)
    assert run_job(job.plan(2), RunSettings(**settings)).outcome == "finished"
    return [row["twice"] for row in out.rows()]


def test_a_wrong_result_names_the_row() -> None:
    async def wrong(row: dict[str, Any]) -> Any:
        return {"n": "one"} if row["n"] == 3 else row

    with pytest.raises(JobFailed, match=r"wrong.*must return int64 for 'n', got 'one'.*the row is .'n': 3."):
        simulated(wrong, ManualClock())


def test_a_source_is_not_read_on_while_hands_are_full(tmp_path: Path) -> None:
    async def never(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.Event().wait()
        return row

    control, read, store = Control(), list[int](), tmp_path / "job.duckdb"
    numbers = [pa.record_batch({"n": [n, n, n]}) for n in range(1_000)]
    job = ms.Job("never")
    stream = job.read(ms.memory_source(numbers, name="numbers"))
    stream.map_async(never, schema={"n": "int64"}, concurrency=10, timeout=None).write(ms.memory_sink())

    def enough(status: Any) -> bool:
        read.append(status.rows_read["numbers"])
        return bool(status.checkpoints.committed >= 5)

    assert run_until(control, job, store, enough) == "stopped"
    assert max(read) == 12


@pytest.mark.parametrize("seed", range(3))
def test_paths_that_part_and_meet_again_do_not_wait_for_each_other(seed: int, tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("meet")
        source = ms.memory_source([pa.record_batch({"n": [n]}) for n in range(80)], splits=2, name="numbers")
        numbers = job.read(source)
        slow = numbers.map_async(passed_on, schema={"n": "int64"}, concurrency=1)
        merged = slow.union(numbers).with_columns(k=col("n") % 5).deduplicate("k", "n")
        merged.duplicates.select("n").map_async(passed_on, schema={"n": "int64"}, concurrency=2).write(out)
        return job

    simulate(make, tmp_path / "store", seed)
    assert sorted(row["n"] for row in out.rows()) == list(range(80))


def run_until(control: Control, job: ms.Job, store: Path, until: Callable[[Any], bool]) -> str:
    def look(status: Any) -> None:
        if until(status):
            control.stop()

    settings = RunSettings(store, CheckpointSettings(every=0.01), restarts=0, on_status=look, status_every=0.0)
    return run_job(job.plan(2), settings, control=control).outcome


@pytest.mark.parametrize("blocks", [False, True], ids=["waits for ever", "blocks the event loop"])
def test_functions_that_never_come_back_hold_up_neither_checkpoints_nor_the_end(blocks: bool, tmp_path: Path) -> None:
    out, release, cancelled = ms.memory_sink(), threading.Event(), list[int]()

    async def never(row: dict[str, Any]) -> dict[str, Any]:
        try:
            if blocks:
                release.wait()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(row["n"])
            raise
        return row

    async def at_once(row: dict[str, Any]) -> dict[str, Any]:
        return row

    def make(fn: Function) -> ms.Job:
        job = ms.Job("never")
        fn.__qualname__ = "look_up"
        stream = job.read(ms.memory_source([{"n": n} for n in range(500)], splits=2, name="numbers"))
        stream.map_async(fn, schema={"n": "int64"}, timeout=None).write(out)
        return job

    store = tmp_path / "job.duckdb"
    began = time.monotonic()
    assert run_until(Control(), make(never), store, lambda status: status.checkpoints.committed >= 3) == "stopped"
    assert time.monotonic() - began < 25, "it waited for a function"
    assert out.rows() == []
    assert blocks or len(cancelled) == 200
    assert run_until(Control(), make(at_once), store, lambda _: False) == "finished"
    assert sorted(row["n"] for row in out.rows()) == list(range(500))
    release.set()


def test_a_failure_cancels_the_other_calls(tmp_path: Path) -> None:
    cancelled = []

    async def one_fails(row: dict[str, Any]) -> dict[str, Any]:
        if row["n"] == 0:
            raise ValueError("no")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(row["n"])
            raise
        return row

    with pytest.raises(JobFailed, match="raised ValueError: no"):
        threaded(one_fails, range(5), restarts=0)
    assert sorted(cancelled) == [1, 2, 3, 4]


# -- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fn", "options", "message"),
    [
        (lambda row: row, {}, "function written with async def.*use map"),
        ("name", {}, "takes an async function, got 'name'"),
        (doubled, {"schema": None}, "needs schema"),
        (doubled, {"concurrency": 0}, "concurrency must be a whole number from 1"),
        (doubled, {"timeout": 0}, "timeout must be longer than 0"),
        (doubled, {"timeout": "soon"}, "not a duration"),
        (doubled, {"on_error": "ignore"}, "on_error is 'fail' or 'dead_letter'"),
        (doubled, {"retry": 3}, r"retry= takes ms.retry\(...\)"),
    ],
)
def test_mistakes_are_found_before_the_job_runs(fn: Any, options: dict[str, Any], message: str) -> None:
    stream = ms.Job("j").read(ms.memory_source([{"n": 1}]))
    with pytest.raises(JobError, match=message):
        stream.map_async(fn, **{"schema": DOUBLED, **options})


def test_more_mistakes() -> None:
    async def two(a: Any, b: Any) -> Any: ...

    stream = ms.Job("j").read(ms.memory_source([{"n": 1}]))
    with pytest.raises(JobError, match="calls its function with one argument, a row as a dict"):
        stream.map_async(two, schema=DOUBLED)  # type: ignore[arg-type]
    with pytest.raises(JobError, match="attempts must be"):
        ms.retry(0)
    with pytest.raises(JobError, match="factor must be"):
        ms.retry(factor=0.5)
    with pytest.raises(JobError, match="on= takes exceptions"):
        ms.retry(on=[1])  # type: ignore[list-item]
    with pytest.raises(JobError, match="changelog"):
        stream.group_by("n").agg(m=ms.count()).map_async(doubled, schema=DOUBLED)
    unstorable = pa.record_batch([pa.array([None], pa.month_day_nano_interval())], names=["i"])
    with pytest.raises(SchemaError, match="column 'i' cannot be"):
        ms.Job("k").read(ms.memory_source([unstorable])).map_async(doubled, schema=DOUBLED)
