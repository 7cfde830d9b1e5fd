"""``rate_limit``: how many rows go through in any time, and that nobody waits for those that wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from clock_kit import Bench, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.operator import MAIN, OperatorContext
from millstream.operators.rate_limit import RateLimit
from millstream.testing import BARRIER, Tick, Watermark, check_operator, simulate
from operator_kit import Collected


def test_the_kit() -> None:
    words = pa.array(["a", "b", "a", None]).dictionary_encode()
    batch = pa.record_batch({"n": [1, 2, 3, 4], "w": words, "xs": [[1], [], None, [2, 3]]})
    script = [batch, Watermark(5), batch, BARRIER, Tick(300_000), batch, BARRIER, Tick(2_000_000), Watermark(9), batch]
    got = check_operator(RateLimit(7), script)[MAIN]
    assert got == 4 * batch.to_pylist()


def test_a_changelog_keeps_its_order() -> None:
    batches = [pa.record_batch({"k": ["a"], "n": [n]}) for n in range(30)]
    out = ms.memory_sink()
    job = ms.Job("totals")
    totals = job.read(ms.memory_source(batches)).group_by("k").agg(n=ms.sum("n")).rate_limit(5_000)
    totals.changes().write(out)
    job.run()
    shown = 0
    for row in out.rows():
        shown += row["weight"]
        assert shown in {0, 1}, "a row came before the one that it replaces was taken back"
    assert out.rows()[-1] == {"k": "a", "n": sum(range(30)), "weight": 1}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([0.5, 3, 100, 1_000, 1_000_000]),
    st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 150)), min_size=1, max_size=12),
)
def test_in_no_time_do_more_go_than_its_share_and_none_waits_longer_than_it_must(
    rate: float, steps: list[tuple[int, int]]
) -> None:
    """Against the sentence itself, at every moment at which anything may happen."""
    operator = RateLimit(rate).build([rows(1).schema])
    operator.open(OperatorContext("job", "slow", 0, 1))
    now, gone, came = 1_700_000_000_000_000, list[tuple[int, int]](), 0

    def wake() -> None:
        operator.on_clock(now, out)
        while operator.is_ready():
            before = out.count()
            operator.on_ready(out)
            gone.append((now, out.count() - before))

    class Counted(Collected):
        def count(self) -> int:
            return sum(batch.num_rows for batch in self.batches.get(MAIN, ()))

    out = Counted()
    for pause, count in steps:
        until = now + pause
        while (due := operator.next_due()) is not None and due <= until:
            assert due > now, "due and not ready"
            now = due
            wake()
        now = until
        wake()
        if count:
            operator.process(rows(*range(came, came + count)), out)
            came += count
            wake()
    while (due := operator.next_due()) is not None:
        now = due
        wake()
    assert [n for batch in out.batches.get(MAIN, ()) for n in batch["n"].to_pylist()] == list(range(came))
    least, total = float("inf"), 0
    for at, count in gone:
        owed = (at - gone[0][0]) * rate / 1e6
        least = min(least, total - owed)  # of all moments up to now: how few had gone, beside what was due
        total += count
        assert total - owed - least <= 1 + rate * 0.1 + 1e-3, "too many since that moment"
    if came and gone[0][0] == gone[-1][0]:
        assert came <= 1 + 0.11 * rate


@pytest.mark.parametrize("stop", [True, False])
def test_a_stop_does_not_wait_for_rows_nor_are_any_lost(stop: bool, tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda numbers: numbers.rate_limit(10))
    bench.faucet.numbers = list(range(60))
    bench.run(2.5, stop=stop)
    assert bench.clock.monotonic() < 3.0, "it waited"
    first = [row["n"] for row in bench.out.rows()]
    assert first == list(range(len(first)))
    assert 15 <= len(first) <= 27
    bench.faucet.ended = True
    assert bench.run(None) == "finished"
    assert [row["n"] for row in bench.out.rows()] == list(range(60))
    assert bench.clock.monotonic() > 5.0, "the end let rows go sooner"


@pytest.mark.parametrize("seed", range(4))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    """Rows and watermarks keep their order: no window behind it sees a late row, whatever crashes."""
    out, late = ms.memory_sink("out"), ms.memory_sink("late")
    table = pa.table({"n": range(90), "at": pa.array([n * 1_000_000 for n in range(90)]).cast("timestamp[us]")})

    def make() -> ms.Job:
        job = ms.Job("slowly")
        source = ms.memory_source(table.to_batches(max_chunksize=7), name="numbers")
        slow = job.read(source, event_time="at").deduplicate("n").rate_limit(100)
        windows = slow.window(ms.tumbling("10s")).agg(ns=ms.collect("n"))
        windows.write(out)
        windows.late.select("n").write(late)
        return job

    assert simulate(make, tmp_path / "store", seed).crashes > 0
    assert sorted(n for row in out.rows() for n in row["ns"]) == list(range(90))
    assert late.rows() == []


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), "fast", True])
def test_mistakes(rate: Any) -> None:
    with pytest.raises(JobError, match="say how many rows a second, more than 0"):
        ms.Job("j").read(ms.memory_source([{"n": 1}])).rate_limit(rate)


def test_what_cannot_be_kept_is_refused() -> None:
    unstorable = pa.record_batch([pa.array([None], pa.month_day_nano_interval())], names=["i"])
    with pytest.raises(SchemaError, match=r"rate_limit\(\) keeps the rows .* column 'i' cannot be"):
        ms.Job("k").read(ms.memory_source([unstorable])).rate_limit(5)
