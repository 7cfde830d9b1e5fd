"""``process``: state and timers of each key, the same however rows are cut into batches, restarted and spread."""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.operator import MAIN
from millstream.engine.time import END_OF_TIME
from millstream.operators import process_operator
from millstream.testing import BARRIER, Tick, Watermark, check_operator
from process_kit import ROW, SECOND, Everything, Model, function_spec, micros, rows, seconds, spec

Row = dict[str, Any]


def whats(made: dict[str, list[Row]], user: str | None = None) -> list[Any]:
    return [row["what"] for row in made.get(MAIN, []) if user is None or row["user"] == user]


def test_a_value_of_each_key_lives_on() -> None:
    def running(row: Row, state: Row) -> Row:
        state["n"] = state.get("n", 0) + row["n"]
        return {"user": row["user"], "total": state["n"]}

    script = [
        rows(("a", 1, 0), ("b", 2, 0), ("a", 3, 0)),
        BARRIER,
        rows((None, 4, 0), ("a", 5, 0), (None, 6, 0)),
        BARRIER,
    ]
    made = check_operator(function_spec(running, {"user": str, "total": int}), script)[MAIN]
    assert [(row["user"], row["total"]) for row in made] == [
        *(("a", 1), ("b", 2), ("a", 4)),
        *((None, 4), ("a", 9), (None, 10)),
    ]


def test_several_columns_make_up_a_key() -> None:
    class Keys(ms.Process):
        schema = pa.schema({"user": pa.string(), "n": pa.int64(), "what": pa.string()})
        count = ms.value_state(int, default=0)

        def on_row(self, row: Row, ctx: Any) -> Row:
            self.count += 1
            ctx.timer(after="1s")
            return {"user": row["user"], "n": row["n"], "what": f"{ctx.key} {self.count}"}

        def on_timer(self, time: dt.datetime, ctx: Any) -> Row:
            user, n = ctx.key
            return {"user": user, "n": n, "what": "timer"}

    script = [rows(("a", 1, 0), ("a", 2, 0), (None, 1, 0)), BARRIER, rows(("a", 1, 3)), BARRIER]
    made = check_operator(spec(Keys, keys=("user", "n")), script)
    assert whats(made)[:4] == ["('a', 1) 1", "('a', 2) 1", "(None, 1) 1", "('a', 1) 2"]
    assert whats(made)[4:] == ["timer"] * 4


ROWS = st.tuples(st.sampled_from(["a", "b", "c", None]), st.integers(0, 40), st.none() | st.integers(0, 60))
STEPS = st.lists(
    st.one_of(
        st.lists(ROWS, min_size=1, max_size=4).map(lambda given: rows(*given)),
        st.integers(0, 70).map(lambda at: Watermark(micros(at))),
        st.just(BARRIER),
    ),
    max_size=12,
)


@settings(max_examples=15, deadline=None)
@given(STEPS)
def test_like_plain_python(steps: list[Any]) -> None:
    steps = [step for n, step in enumerate(steps) if not (isinstance(step, Watermark) and goes_back(step, steps[:n]))]
    made = check_operator(spec(Everything), steps, schemas=[rows().schema])
    expected: dict[str | None, list[str]] = defaultdict(list)
    models: dict[str | None, Model] = defaultdict(Model)
    reached = float("-inf")
    for step in [*steps, Watermark(END_OF_TIME)]:
        if isinstance(step, Watermark):
            reached = max(reached, (step.time - micros(0)) / SECOND)
            for user, model in models.items():
                expected[user] += model.fire(reached)
        elif isinstance(step, pa.RecordBatch):
            for row in step.to_pylist():
                at = None if row["at"] is None else (row["at"] - rows_start()).total_seconds()
                model = models[row["user"]]
                expected[row["user"]].append(model.row(row["n"], at))
                expected[row["user"]] += model.fire(reached)
    for user in models:
        assert whats({MAIN: [row for row in made[MAIN] if row["user"] == user]}) == expected[user]
    odd = [row["n"] for step in steps if isinstance(step, pa.RecordBatch) for row in step.to_pylist() if row["n"] % 2]
    assert [row["n"] for row in made.get("odd", [])] == odd


def goes_back(mark: Watermark, before: list[Any]) -> bool:
    return any(isinstance(step, Watermark) and step.time >= mark.time for step in before)


def rows_start() -> dt.datetime:
    return dt.datetime(2026, 1, 1)


class Kinds(ms.Process):
    """Keeps one value of every kind, which must come back as it was."""

    schema = ROW
    kept = ms.value_state(dict, default=dict)
    any = ms.value_state(Any)

    def on_row(self, row: Row, ctx: Any) -> Row:
        values = [
            None,
            True,
            -1,
            2**63,
            1.5,
            float("inf"),
            -0.0,
            "é",
            b"\xff",
            [],
            {},
            [[1], {"a": None}],
            {1: 2, None: b""},
        ]
        values += [dt.datetime(2026, 1, 1, 2, 3, 4, 5), dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.date(2026, 1, 1)]
        values += [dt.time(1, 2, 3, 4), dt.timedelta(days=-2, microseconds=1), Decimal("1.50"), Decimal("-0")]
        shown = f"{self.kept.get('v')!r} {self.any!r}"
        self.kept = {"v": values[row["n"]]}
        self.any = values[row["n"]]
        return {"user": row["user"], "what": shown}


def test_what_is_kept_comes_back_as_it_was() -> None:
    steps = [step for n in range(20) for step in (rows(("a", n, 0), ("b", 19 - n, 0)), BARRIER)]
    assert len(set(whats(check_operator(spec(Kinds), steps), "a"))) == 19  # the first has two Nones before it


class Lists(ms.Process):
    schema = ROW
    items = ms.list_state(list[int] | int)

    def on_row(self, row: Row, ctx: Any) -> Row:
        match row["n"]:
            case 0:
                self.items.extend([1, [2], 3, 4])
            case 1:
                del self.items[1:3]
            case 2:
                self.items[0] = [7]
            case 3:
                self.items[0].append(8)  # type: ignore[union-attr]
            case 4:
                self.items.pop()
            case 5:
                self.items.clear()
            case 6:
                self.items.append(self.items[-1] if self.items else 0)
        found = [9] in self.items, self.items[1:], len(self.items), bool(self.items), self.items == [[7, 8]]
        return {"user": row["user"], "what": f"{self.items!r} {found}"}


@settings(max_examples=10, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 1, 2, 4, 5, 6, 6]), max_size=14))
def test_lists_are_used_like_lists(actions: list[int]) -> None:
    items: list[Any] = []
    expected = []
    done = []
    for action in actions:
        if action in (2, 4) and not items:
            continue
        done.append(action)
        match action:
            case 0:
                items.extend([1, [2], 3, 4])
            case 1:
                del items[1:3]
            case 2:
                items[0] = [7]
            case 4:
                items.pop()
            case 5:
                items.clear()
            case 6:
                items.append(items[-1] if items else 0)
        expected.append(f"{items!r} {([9] in items, items[1:], len(items), bool(items), items == [[7, 8]])}")
    steps: list[Any] = [step for action in done for step in (rows(("a", action, 0)), BARRIER)]
    assert whats(check_operator(spec(Lists), steps, schemas=[rows().schema])) == expected


def test_an_item_changed_in_place_is_kept() -> None:
    steps = [step for n in (0, 2, 3, 9) for step in (rows(("a", n, 0)), BARRIER)]
    assert whats(check_operator(spec(Lists), steps))[-1].startswith("[[7, 8], [2], 3, 4]")


def test_rows_that_are_state_come_out_as_they_were_when_they_were_yielded() -> None:
    def itself(row: Row, state: Row) -> Row:
        state["n"] = state.get("n", 0) + row["n"]
        return state

    made = check_operator(function_spec(itself, {"n": int}), [rows(("a", 1, 0), ("a", 2, 0)), rows(("a", 3, 0))])[MAIN]
    assert [row["n"] for row in made] == [1, 3, 6]

    class Nested(ms.Process):
        schema = pa.schema(
            {
                "kept": pa.list_(pa.int64()),
                "last": pa.list_(pa.int64()),
                "seen": pa.map_(pa.int64(), pa.int64()),
                "both": pa.struct({"kept": pa.list_(pa.int64())}),
            }
        )
        kept = ms.value_state(list, default=list)
        last = ms.list_state(int)
        seen = ms.map_state(int, int)

        def on_row(self, row: Row, ctx: Any) -> Row:
            self.kept.append(row["n"])
            self.last.append(row["n"])
            self.seen[row["n"]] = len(self.last)
            return {"kept": self.kept, "last": self.last, "seen": self.seen, "both": {"kept": self.kept}}

    made = check_operator(spec(Nested), [rows(("a", 1, 0), ("a", 2, 0)), BARRIER, rows(("a", 3, 0))])[MAIN]
    for count, row in enumerate(made, 1):
        numbers = list(range(1, count + 1))
        assert row == {
            "kept": numbers,
            "last": numbers,
            "seen": [(number, number) for number in numbers],
            "both": {"kept": numbers},
        }


# -- time to live ----------------------------------------------------------------------------------------------


class Forgets(ms.Process):
    schema = ROW
    total = ms.value_state(int, default=0, ttl="10s")
    kept = ms.value_state(list, default=list, ttl="10s")
    seen = ms.map_state(int, int, ttl="10s")
    last = ms.list_state(int, ttl="10s")

    def on_row(self, row: Row, ctx: Any) -> Row:
        if row["n"]:
            self.total += row["n"]
            self.kept.append(row["n"])
            self.seen[row["n"]] = self.total
            self.last.append(row["n"])
            return {"user": row["user"], "what": ""}
        return {"user": row["user"], "what": f"{self.total} {dict(self.seen)} {list(self.last)} {len(self.last)}"}


class ForgetsByTheClock(Forgets):
    total = ms.value_state(int, default=0, ttl="10s", clock="processing")
    kept = ms.value_state(list, default=list, ttl="10s", clock="processing")
    seen = ms.map_state(int, int, ttl="10s", clock="processing")
    last = ms.list_state(int, ttl="10s", clock="processing")


def test_state_is_forgotten_by_event_time() -> None:
    script = [
        rows(("a", 1, 0), ("b", 1, 0)),
        BARRIER,
        rows(("a", 2, 6), ("a", 0, 9.9)),
        BARRIER,
        rows(("a", 0, 10)),  # 1 is forgotten in the map and the list; the value was written at 6
        Watermark(micros(12)),
        BARRIER,
        rows(("a", 0, 15.9), ("b", 0, 3)),  # late, and nothing that is past is seen again
        BARRIER,
        rows(("a", 0, 16), ("a", 0, 15)),
        BARRIER,
        rows(("a", 3, 17), ("a", 0, 18)),
    ]
    made = [what for what in whats(check_operator(spec(Forgets), script)) if what]
    assert made == [
        "3 {1: 1, 2: 3} [1, 2] 2",
        "3 {2: 3} [2] 1",
        "3 {2: 3} [2] 1",
        "0 {} [] 0",
        "0 {} [] 0",
        "0 {2: 3} [2] 1",  # 15 is before the end of what was written at 6; the value was forgotten by the row before
        "3 {3: 3} [3] 1",
    ]


def test_state_is_forgotten_by_the_clock() -> None:
    script = [
        rows(("a", 1, 0)),
        Tick(6 * SECOND),
        BARRIER,
        rows(("a", 2, 100), ("a", 0, 0)),
        Tick(10 * SECOND),
        rows(("a", 0, 0)),
        BARRIER,
        Tick(16 * SECOND - 1),
        rows(("a", 0, 0)),
        Tick(16 * SECOND),
        BARRIER,
        rows(("a", 0, 0)),
    ]
    made = [what for what in whats(check_operator(spec(ForgetsByTheClock), script)) if what]
    assert made == ["3 {1: 1, 2: 3} [1, 2] 2", "3 {2: 3} [2] 1", "3 {2: 3} [2] 1", "0 {} [] 0"]
    untimed = spec(Forgets, timed=False)
    assert [what for what in whats(check_operator(untimed, script)) if what] == made


def test_the_dict_of_a_function_is_forgotten_after_the_last_row() -> None:
    def count(row: Row, state: Row) -> Row:
        state["n"] = state.get("n", 0) + 1
        return {"n": state["n"]}

    script = [rows(("a", 1, 0), ("a", 1, 9)), BARRIER, rows(("a", 1, 18), ("a", 1, 29)), BARRIER, rows(("a", 1, 38))]
    made = check_operator(function_spec(count, {"n": int}, "10s"), script)[MAIN]
    assert [row["n"] for row in made] == [1, 2, 3, 1, 2]


# -- timers ----------------------------------------------------------------------------------------------------


class Alarm(ms.Process):
    """Sets a timer as each row says, and tells when it fires."""

    schema = ROW

    def on_row(self, row: Row, ctx: Any) -> Row:
        ctx.timer(after=row["n"])
        return {"user": row["user"], "what": f"row at {seconds(ctx.time)}, watermark {seconds(ctx.watermark)}"}

    def on_timer(self, time: dt.datetime, ctx: Any) -> Row:
        assert time == ctx.time
        return {"user": ctx.key, "what": f"timer at {seconds(time)}"}


def test_timers_fire_in_order_before_the_watermark_goes_on() -> None:
    script = [
        rows(("a", 5, 0), ("a", 2, 1), ("b", 1, 0)),
        BARRIER,
        Watermark(micros(2.9)),
        rows(("a", 3, 0)),
        Watermark(micros(3)),
        rows(("a", 1, 1), ("a", 9, 1)),  # the first is due already
        BARRIER,
        Watermark(micros(7)),
    ]
    assert whats(check_operator(spec(Alarm), script)) == [
        *("row at 0, watermark -", "row at 1, watermark -", "row at 0, watermark -"),
        "timer at 1",
        "row at 0, watermark 2.9",
        "timer at 3",  # set twice, fires once
        *("row at 1, watermark 3", "timer at 2", "row at 1, watermark 3"),
        "timer at 5",
        "timer at 10",
    ]


def test_times_have_the_zone_of_their_column() -> None:
    class Zoned(ms.Process):
        schema = pa.schema({"what": pa.string()})
        at = ms.value_state(dt.datetime)

        def on_row(self, row: Row, ctx: Any) -> Row:
            assert row["at"] == ctx.time
            before, self.at = self.at, row["at"]
            ctx.timer(at=ctx.time + dt.timedelta(hours=1))
            return {"what": f"{before} {row['at']}"}

        def on_timer(self, time: dt.datetime, ctx: Any) -> Row:
            return {"what": f"timer {time}"}

    for zone, shown in (("Europe/Paris", "+02:00"), ("UTC", "+00:00"), ("-03:30", "-03:30")):
        schema = pa.schema({"user": pa.string(), "at": pa.timestamp("ms", zone)})
        given = [{"user": "a", "at": dt.datetime(2026, 7, 1, hour, tzinfo=dt.UTC)} for hour in (9, 12)]
        batch = pa.RecordBatch.from_pylist(given, schema)
        first, second, *timers = [row["what"] for row in check_operator(spec(Zoned), [batch, BARRIER])[MAIN]]
        assert first.startswith("None ")
        assert second == f"{first.removeprefix('None ')} {batch.column('at')[1].as_py()}"
        assert [timer[-6:] for timer in timers] == [shown, shown]


class Cart(ms.Process):
    """A timer that every row moves on; n = 0 takes it back."""

    schema = ROW
    items = ms.value_state(int, default=0)

    def on_row(self, row: Row, ctx: Any) -> None:
        self.items += row["n"]
        if row["n"]:
            ctx.timer(after="10s", name="silence")
        else:
            ctx.cancel(name="silence")

    def on_timer(self, time: dt.datetime, ctx: Any) -> Row:
        items, self.items = self.items, 0
        return {"user": ctx.key, "what": f"{items} at {seconds(time)}"}


class CartByTheClock(Cart):
    def on_row(self, row: Row, ctx: Any) -> None:
        self.items += row["n"]
        if row["n"]:
            ctx.timer(after="10s", name="silence", clock="processing")
        else:
            ctx.cancel(name="silence", clock="processing")

    def on_timer(self, time: dt.datetime, ctx: Any) -> Row:
        items, self.items = self.items, 0
        return {"user": ctx.key, "what": f"{items} at {time.timestamp():g}"}


def test_a_timer_with_a_name_moves_when_it_is_set_again() -> None:
    script = [
        rows(("a", 1, 0), ("a", 1, 5), ("b", 3, 6), ("c", 1, 0)),
        BARRIER,
        Watermark(micros(8)),
        rows(("a", 1, 9), ("c", 0, 9)),
        BARRIER,
        Watermark(micros(16)),
        rows(("a", 2, 8), ("b", 7, 20)),  # back to 18
        BARRIER,
        Watermark(micros(18)),
        BARRIER,
    ]
    assert whats(check_operator(spec(Cart), script)) == ["3 at 16", "5 at 18", "7 at 30"]


def test_timers_by_the_clock_survive_a_restart() -> None:
    script = [
        rows(("a", 1, None), ("b", 1, None)),
        BARRIER,
        Tick(5 * SECOND),
        rows(("a", 1, None)),
        BARRIER,
        Tick(14 * SECOND),
        BARRIER,
        rows(("b", 1, None), ("b", 0, None)),
        Tick(15 * SECOND),
        rows(("c", 4, None)),
        BARRIER,
    ]
    # b at 10; a, moved, at 15; c when the input has ended.
    assert whats(check_operator(spec(CartByTheClock, timed=False), script)) == ["1 at 10", "2 at 15", "4 at 25"]


class Chain(ms.Process):
    """Timers that set timers, of both clocks, over state that is forgotten."""

    schema = ROW
    fired = ms.value_state(int, default=0, ttl="90s")

    def on_row(self, row: Row, ctx: Any) -> None:
        self.fired = 0
        ctx.timer(after="1m", name="event")
        ctx.timer(after="1m", name="processing", clock="processing")

    def on_timer(self, time: dt.datetime, ctx: Any) -> Iterator[Row]:
        self.fired += 1
        yield {"user": ctx.key, "what": f"{ctx.name} {time:%M:%S} {ctx.now:%M:%S} {self.fired} {ctx.ended}"}
        if self.fired < 4:
            ctx.timer(after="1m", name=ctx.name, clock=ctx.name)


def test_when_the_input_has_ended_all_timers_fire_also_those_they_set() -> None:
    script = [Tick(SECOND), rows(("a", 0, 0)), BARRIER, Watermark(micros(1)), Watermark(micros(60)), BARRIER]
    assert whats(check_operator(spec(Chain), script)) == [
        "event 01:00 00:01 1 False",
        "event 02:00 00:01 2 True",
        "event 03:00 00:01 3 True",
        "event 04:00 00:01 4 True",
        "processing 01:01 01:01 5 True",
    ]


def test_timers_that_never_end_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Heartbeat(ms.Process):
        schema = ROW

        def on_row(self, row: Row, ctx: Any) -> None:
            ctx.timer(after="1s")

        def on_timer(self, time: dt.datetime, ctx: Any) -> None:
            ctx.timer(after="1s")

    monkeypatch.setattr(process_operator, "_SPARE_TIMERS", 50)
    with pytest.raises(ms.UserCodeError, match=r"Heartbeat.on_timer .*goes on setting timers .*when ctx.ended is true"):
        check_operator(spec(Heartbeat), [rows(("a", 0, 0))])
