"""Windows of processing time: rows are in the windows of the moment, which fire by the clock, also after a restart."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from clock_kit import Bench
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import ClockWindow
from millstream.testing import BARRIER, Tick, Watermark, check_operator, simulate

SECOND = 1_000_000
EPOCH, ONE = dt.datetime(1970, 1, 1), dt.timedelta(seconds=1)
SCHEMA = pa.schema({"k": pa.string(), "v": pa.int64()})
AGGREGATES: dict[str, Any] = {
    "n": ms.count(),
    "total": ms.sum("v"),
    "last": ms.last("v"),
    "all": ms.collect("v"),
    "distinct": ms.count_distinct("v"),
}
WINDOWS = {
    "tumbling": ms.tumbling("10s", time="processing"),
    "days": ms.tumbling("1d", zone="Europe/Paris", time="processing"),
    "sliding": ms.sliding("15s", "6s", time="processing"),
    "cumulating": ms.cumulating("20s", "6s", time="processing"),
    "session": ms.session("5s", time="processing"),
}


def rows(*made: tuple[str | None, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"k": key, "v": value} for key, value in made], SCHEMA)


def spec(window: ClockWindow, keys: tuple[str, ...] = ("k",)) -> WindowAggregate:
    return WindowAggregate(keys, window.window, tuple(AGGREGATES.items()), None)


def tick(seconds: float) -> Tick:
    return Tick(int(seconds * SECOND))


def spans(window: ClockWindow, seconds: list[float]) -> list[tuple[float, float, int]]:
    """Run a row at each time; return where windows begin and end, and their counts."""
    script = [step for second in seconds for step in (tick(second), rows(("a", int(second))))]
    results = check_operator(spec(window), script)["main"]
    return [((r["window_start"] - EPOCH) / ONE, (r["window_end"] - EPOCH) / ONE, r["n"]) for r in results]


def test_a_row_is_in_the_windows_of_the_moment_at_which_it_comes() -> None:
    assert spans(WINDOWS["tumbling"], [1, 9.5, 10, 31]) == [(0, 10, 2), (10, 20, 1), (30, 40, 1)]
    assert spans(ms.sliding("10s", "5s", time="processing"), [3, 7]) == [(-5, 5, 1), (0, 10, 2), (5, 15, 1)]
    assert spans(ms.cumulating("10s", "5s", time="processing"), [3, 7]) == [(0, 5, 1), (0, 10, 2)]
    assert spans(WINDOWS["session"], [1, 5, 9.5, 14.5]) == [(1, 14.5, 3), (14.5, 19.5, 1)]


@st.composite
def scripts(draw: st.DrawFn) -> list[Any]:
    now, steps = 0, []
    for _ in range(draw(st.integers(1, 8))):
        now += draw(st.sampled_from([0, 1, 3, 9, 30]))
        steps.append(tick(now))
        made = draw(st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.integers(0, 3)), max_size=5))
        steps += [rows(*made)] if made else []
        steps += draw(st.sampled_from([[], [BARRIER], [Watermark(now)], [BARRIER, BARRIER]]))
    return [*steps, rows(("a", 1))]


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@settings(max_examples=3, deadline=None)
@given(scripts(), st.sampled_from([(), ("k",)]))
def test_the_kit_finds_nothing(window: ClockWindow, script: list[Any], keys: tuple[str, ...]) -> None:
    results = check_operator(spec(window, keys), script)["main"]
    count = sum(step.num_rows for step in script if isinstance(step, pa.RecordBatch))
    counted = sum(row["n"] for row in results)
    assert counted == count if window is WINDOWS["tumbling"] or window is WINDOWS["session"] else counted >= count


def test_first_and_last_go_by_arrival() -> None:
    script = [rows(("a", 1), ("a", 2)), BARRIER, tick(1), rows(("a", 3))]
    (row,) = check_operator(spec(WINDOWS["tumbling"]), script)["main"]
    assert (row["last"], row["all"]) == (3, [1, 2, 3])


# -- in a job --------------------------------------------------------------------------------------------------


def counts(bench: Bench) -> list[tuple[int, int]]:
    return [((row["window_start"] - EPOCH) // ONE, row["n"]) for row in bench.out.rows()]


def windowed(stream: ms.Stream) -> ms.Stream:
    return stream.window(ms.tumbling("10s", time="processing")).agg(n=ms.count())


def test_windows_fire_by_the_clock_though_no_data_flows(tmp_path: Path) -> None:
    bench = Bench(tmp_path, windowed)
    bench.faucet.numbers = [1, 2, 3]
    assert bench.run(until=8) == "stopped"
    assert counts(bench) == []
    assert bench.run(until=14) == "stopped"
    assert counts(bench) == [(0, 3)]


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "interrupted"])
def test_a_window_that_ended_while_the_job_was_down_fires_at_once(stop: bool, tmp_path: Path) -> None:
    bench = Bench(tmp_path, windowed)
    bench.faucet.numbers = [1, 2, 3]
    bench.run(until=5, stop=stop)
    bench.clock.advance(60)
    bench.faucet.numbers.append(4)
    bench.run(until=67)
    assert counts(bench) == [(0, 3)]
    bench.run(until=72)
    assert counts(bench) == [(0, 3), (60, 1)]


@pytest.mark.parametrize("window", ["tumbling", "sliding", "session"])
def test_a_clock_that_is_found_set_back_loses_no_row(window: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda s: s.window(WINDOWS[window]).agg(n=ms.count(), all=ms.collect("n")))
    bench.clock.advance(100)
    bench.faucet.numbers = [1, 2, 3]
    bench.run(until=109)
    wall = bench.clock.wall
    bench.clock.wall = lambda: wall() - 90 * SECOND  # type: ignore[method-assign]
    bench.faucet.numbers.append(4)
    bench.run(until=112)
    bench.faucet.ended = True
    assert bench.run(until=None) == "finished"
    assert {n for row in bench.out.rows() for n in row["all"]} == {1, 2, 3, 4}


ROWS = [{"k": f"k{n % 5}", "v": n} for n in range(200)]


@pytest.mark.parametrize("seed", range(4))
def test_crashes_do_not_show(seed: int, tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("clock")
        made = job.read(
            ms.memory_source([rows(*((r["k"], r["v"]) for r in ROWS[n : n + 5])) for n in range(0, 200, 5)])
        )
        made.group_by("k").window(ms.tumbling("20ms", time="processing")).agg(all=ms.collect("v")).write(out)
        return job

    done = simulate(make, tmp_path / "s.duckdb", seed)
    assert sorted((row["k"], v) for row in out.rows() for v in row["all"]) == sorted((r["k"], r["v"]) for r in ROWS)
    assert done.crashes > 0


# -- what is refused -------------------------------------------------------------------------------------------


def refused() -> dict[str, tuple[Any, str]]:
    clock = ms.tumbling("1m", time="processing")
    return {
        "another word": (lambda s: ms.tumbling("1m", time="wall"), "time is 'event' or 'processing'"),  # type: ignore[call-overload]
        "lateness": (lambda s: s.window(clock, lateness="1s").agg(n=ms.count()), "leave the lateness out"),
        "late": (lambda s: s.window(clock).agg(n=ms.count()).late, "there is no .late"),
        "top": (lambda s: s.window(clock).top(1, by="v"), "event time only"),
        "join": (lambda s: s.join(s, on="k", window=clock), "windows of event time"),
    }


@pytest.mark.parametrize("what", refused())
def test_what_makes_no_sense_is_refused(what: str) -> None:
    stream = ms.Job("j").read(ms.memory_source([{"k": "a", "v": 1}]))
    call, words = refused()[what]
    with pytest.raises(ms.JobError, match=words):
        call(stream)


def test_the_result_has_no_event_time_and_needs_none() -> None:
    stream = ms.Job("j").read(ms.memory_source([{"k": "a", "v": 1}]))
    result = stream.window(WINDOWS["sliding"]).agg(n=ms.count())
    assert result.columns == ["window_start", "window_end", "n"]
    with pytest.raises(ms.JobError, match="needs event time"):
        result.window(ms.tumbling("1m"))
