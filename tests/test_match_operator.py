"""What ``match`` promises beside the matches: when they are known, what is kept, that restarts do not show."""

from __future__ import annotations

import datetime as dt
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from match_kit import SCHEMA, Case, cases, streams
from millstream.engine.element import Watermark
from millstream.engine.expression import col
from millstream.engine.operator import MAIN
from millstream.engine.state import WHOLE_STATE_ROWS
from millstream.operators.match import Match
from millstream.operators.row_pattern import parse
from millstream.testing import BARRIER, check_operator
from operator_kit import Advance, Harness, Restart, Step
from test_match import spec_of


def scripted(steps: list[Step]) -> list[Any]:
    """The same steps for ``check_operator``."""
    script, watermark = [], -(2**62)
    for step in steps:
        match step:
            case Advance(time):
                watermark = max(watermark, time)
                script.append(Watermark(watermark))
            case Restart():
                script.append(BARRIER)
            case _:
                script.append(step)
    return script


@settings(max_examples=5, deadline=None)
@given(streams(), cases(), st.booleans(), st.booleans())
def test_neither_batches_nor_restarts_show(steps: list[Step], case: Case, relaxed: bool, past_last: bool) -> None:
    check_operator(spec_of(case, 9, relaxed=relaxed, past_last=past_last), scripted(steps), schemas=[SCHEMA])


@settings(max_examples=30, deadline=None)
@given(streams(), cases(), st.booleans(), st.booleans())
def test_a_match_is_known_when_its_time_is_over_and_never_before_the_watermark(
    steps: list[Step], case: Case, relaxed: bool, past_last: bool
) -> None:
    run = Harness(spec_of(case, 9, relaxed=relaxed, past_last=past_last), SCHEMA)
    for step in [*steps, Advance(10**6)]:
        before, seen = run.watermark, run.results().num_rows
        run.run([step])
        for row in run.results().slice(seen).to_pylist():
            start, end, known = (micros(row[name]) for name in ("match_start", "match_end", "known_at"))
            assert start <= end <= known <= start + 9
            assert before <= known < run.watermark
    assert run.finish().counters["late_rows"] + run.counters["null_time_rows"] == run.results("late").num_rows
    assert kept_rows(run) == 0


def micros(time: dt.datetime) -> int:
    return (time - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1)


def kept_rows(run: Harness) -> int:
    return sum(subtask._live for subtask in run.subtasks)


# -- by hand ---------------------------------------------------------------------------------------------------

PRICES = pa.schema({"k": pa.string(), "p": pa.float64(), "t": pa.timestamp("us")})


def rows(*prices: float | None, start: int = 0, key: str = "a") -> pa.RecordBatch:
    times = pa.array(range(start, start + len(prices)), pa.timestamp("us"))
    return pa.record_batch([pa.array([key] * len(prices)), pa.array(prices, pa.float64()), times], schema=PRICES)


def prices(text: str, within: int = 100, **changes: Any) -> Match:
    define = {
        "down": col("p") < ms.prev("p"),
        "up": col("p") > ms.prev("p"),
        "small": col("p") < 5,
        "large": col("p") >= 5,
        "twice": col("p") >= 2 * col("begin.p"),
        "nan": col("p") != col("begin.p"),
    }
    pattern = parse(text)
    known = Match(("k",), pattern, (), (), col("t"), within).names
    made = {
        "keys": ("k",),
        "select": (("n", ms.count()),),
        "define": tuple((name, define[name]) for name in known if name in define),
        **changes,
    }
    return Match(pattern=pattern, time=col("t"), within=within, **made)


def spans(run: Harness) -> list[tuple[int, int, int]]:
    names = ("match_start", "match_end", "known_at")
    return list(zip(*(run.results().column(name).cast(pa.int64()).to_pylist() for name in names), strict=True))


def test_a_match_comes_out_as_soon_as_no_row_can_change_it() -> None:
    run = Harness(prices("small large"), PRICES).run([rows(1, 9), Advance(2)])
    assert spans(run) == [(0, 1, 1)]


def test_a_greedy_end_waits_for_the_first_row_that_it_cannot_take_or_for_the_time_to_be_over() -> None:
    run = Harness(prices("small large+", within=10), PRICES).run([rows(1, 9, 8), Advance(10)])
    assert spans(run) == []
    assert spans(run.run([rows(1, start=10), Advance(11)])) == [(0, 2, 10)]
    run = Harness(prices("small large+", within=10), PRICES).run([rows(1, 9, 8), Advance(11)])
    assert spans(run) == [(0, 2, 10)]


def test_absence_is_known_when_the_watermark_has_passed_the_time() -> None:
    run = Harness(prices("small !large", within=10), PRICES).run([rows(1, 2), Advance(10)])
    assert spans(run) == []
    assert spans(run.run([Advance(11)])) == [(0, 0, 10)]
    run.run([rows(9, start=11), Advance(50)])
    assert spans(run) == [(0, 0, 10)], "the row at 11 is 10 after the second one: in time"


def test_rows_are_kept_no_longer_than_they_can_be_in_a_match() -> None:
    run = Harness(prices("small small large", within=1000), PRICES).run([rows(*[9.0] * 500), Advance(500)])
    assert kept_rows(run) == 0
    run.run([rows(1, 1, start=500), Advance(502)])
    assert kept_rows(run) == 2
    looking = Harness(prices("down up", within=10), PRICES).run([rows(*[9.0] * 500), Advance(500)])
    assert kept_rows(looking) == 1, "the last row, for the next one to look back at"
    assert kept_rows(looking.run([Advance(510)])) == 0


def test_a_pattern_that_may_come_back_to_its_beginning_passes_over_rows_there_too() -> None:
    run = Harness(prices("small* large", relaxed=True), PRICES).run([rows(1, None, None, 2, None, 9)]).finish()
    assert spans(run) == [(0, 5, 5)]


def test_an_alternative_behind_one_that_always_succeeds_plays_no_part() -> None:
    run = Harness(prices("begin (large? | any)", relaxed=True, within=3), PRICES).run([rows(1, 2, 9)]).finish()
    assert spans(run) == [(0, 2, 2)]


def test_prev_is_null_without_a_row_within_the_time() -> None:
    run = Harness(prices("up", within=10), PRICES)
    run.run([rows(1), Advance(5), rows(2, start=10), Advance(11), rows(3, start=21), Advance(40)])
    assert spans(run) == [(10, 10, 10)]


def test_what_is_compared_with_null_or_nan_in_the_first_row_is_not_true() -> None:
    nan = float("nan")
    steps = [rows(nan, 7, key="a"), rows(None, 7, key="b"), rows(3, None, nan, key="c"), rows(3, 6, key="d")]
    run = Harness(prices("begin (twice | nan)"), PRICES).run(steps).finish()
    assert [row["k"] for row in run.results().to_pylist()] == ["d"]


def test_conditions_on_the_first_row_compare_whole_numbers_with_fractions_and_texts_by_value() -> None:
    schema = pa.schema({"k": pa.int64(), "i": pa.int32(), "s": pa.string(), "t": pa.int64()})
    define = (("b", (col("i") > col("a.i") * 1.5) & (col("s") == col("a.s"))),)
    spec = Match(("k",), parse("a b"), define, (("n", ms.count("b")),), col("t"), 100, relaxed=True)
    batch = pa.RecordBatch.from_pydict(
        {"k": [1] * 5, "i": [2, 3, 4, 5, 4], "s": ["x", "x", "y", "y", "x"], "t": list(range(5))}, schema=schema
    )
    assert spans(Harness(spec, schema).run([batch]).finish()) == [(0, 4, 4)]
    check_operator(spec, [batch.slice(0, 2), BARRIER, batch.slice(2), Watermark(3), BARRIER])


def test_many_rows_and_keys_survive_tidying_and_restarts() -> None:
    """Enough rows for a delta to be only a part of the state, and for rows, keys and groups to be renumbered."""
    count = 3 * WHOLE_STATE_ROWS
    keys = np.arange(count) * 7919 % (count // 4)
    prices_ = (np.arange(count) * 31 % 10).astype(np.float64)
    whole = pa.record_batch(
        [pa.array(keys).cast(pa.string()), pa.array(prices_), pa.array(np.arange(count), pa.timestamp("us"))],
        schema=PRICES,
    )
    spec = prices("begin !twice", within=count // 2, relaxed=True, past_last=False)
    steps: list[Step] = []
    for first in range(0, count, count // 12):
        steps += [whole.slice(first, count // 12), Advance(first), Restart(1 + first % 3)]
    plain = Harness(spec, PRICES).run([whole]).finish().results()
    assert plain.num_rows > 1_000
    order = [("match_start", "ascending")]
    assert Harness(spec, PRICES, 2).run(steps).finish().results().sort_by(order).equals(plain.sort_by(order))


def test_without_keys_all_rows_are_one() -> None:
    spec = prices("small large", keys=())
    run = Harness(spec, PRICES).run([rows(1, key="a"), rows(9, start=1, key="b")]).finish()
    assert spans(run) == [(0, 1, 1)]
    check_operator(spec, [rows(1, 2, key="a"), BARRIER, rows(9, start=3, key="b")])


def test_nothing_more_is_kept_than_is_read() -> None:
    spec = prices("small large", select=(("n", ms.count()), ("p", ms.max("p"))), define=())
    assert spec.pruned({MAIN: frozenset({"n"})}).kept(PRICES).names == ["k"]
    assert spec.pruned({MAIN: frozenset({"n"})}).output_schemas([PRICES])[MAIN].names == ["n"]
    assert Match((), parse("a"), (), (), col("t"), 5).kept(PRICES).names == ["t"]


def test_the_automaton_forgets_what_is_not_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import millstream.operators.match_operator as operator

    monkeypatch.setattr(operator, "_MOST_ENTRIES", 20)
    values = [1.0 if (n * n + n // 7) % 3 else 9.0 for n in range(600)]
    spec = prices("(small | large)* small any{5} large+ small", within=40, past_last=False)
    steps: list[Step] = []
    for first in range(0, 600, 20):
        steps += [rows(*values[first : first + 20], start=first), Advance(first + 10)]
    pruned = Harness(spec, PRICES).run(steps).finish()
    monkeypatch.undo()
    assert spans(pruned) == spans(Harness(spec, PRICES).run(steps).finish()) != []
