"""What ``process`` says to those who use it wrongly."""

from __future__ import annotations

import datetime as dt
import functools
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import millstream as ms
import pytest
from millstream.engine.errors import JobError, SchemaError, StateMismatch, UserCodeError
from millstream.operators import packing
from millstream.testing import BARRIER, check_operator
from process_kit import ROW, START, function_spec, rows, spec

Row = dict[str, Any]


def a_class(**body: Any) -> type[ms.Process]:
    def on_row(self: Any, row: Row, ctx: Any) -> None:
        """Do nothing."""

    return type("Mine", (ms.Process,), {"schema": ROW, "on_row": on_row, **body})


def stream(*, timed: bool = True) -> ms.Stream:
    return ms.Job("j").read(ms.memory_source([{"user": "a", "n": 1, "at": START}]), event_time="at" if timed else None)


def noop(row: Row, state: Row) -> None:
    """Do nothing."""


async def waits(row: Row, state: Row) -> None:
    """Do nothing, later."""


def one_name_twice() -> type[ms.Process]:
    state = ms.value_state(int)
    return a_class(a=state, b=state)


BUILT: list[tuple[Callable[[], Any], str]] = [
    (lambda: stream().group_by("user").process(noop), r"needs to know the columns that noop .*schema=\{\.\.\.\}"),
    (lambda: stream().group_by("user").process(a_class(schema=None)), r"write schema = \{\.\.\.\} in Mine"),
    (lambda: stream().group_by("user").process(noop, schema={"x": "intt"}), "intt"),
    (lambda: stream().group_by("user").process(lambda row: None, schema=ROW), r"a row and a state.*takes \(row\)"),
    (lambda: stream().group_by("user").process(waits, schema=ROW), "is async"),
    (lambda: stream().group_by("user").process(3, schema=ROW), "a function, or a class derived from ms.Process; got 3"),
    (
        lambda: stream().group_by("user").process(dict, schema=ROW),
        "a class derived from ms.Process; got <class 'dict'>",
    ),
    (lambda: stream().group_by("user").process(a_class()()), r"the class itself.*process\(Mine\).*functools.partial\("),
    (lambda: stream().group_by("user").process(a_class(on_row=ms.Process.on_row)), r"has no on_row\(self, row, ctx\)"),
    (
        lambda: stream().group_by("user").process(a_class(on_row=lambda self, row: 1)),
        r"def on_row\(self, row, ctx\).*tak",
    ),
    (
        lambda: stream().group_by("user").process(a_class(on_timer=lambda self, ctx: 1)),
        r"def on_timer\(self, time, ctx",
    ),
    (
        lambda: stream().group_by("user").process(a_class(on_row=lambda self, row, ctx: ctx.timer(after="1h"))),
        r"Mine.on_row\(\) sets a timer.*write def on_timer\(self, time, ctx\)",
    ),
    (
        lambda: stream().group_by("user").process(lambda row, state, ctx: ctx.timer(at=row["at"]), schema=ROW),
        r"sets a timer, and a function has no on_timer\(\): write a class",
    ),
    (lambda: stream().group_by("user").process(a_class(on_row=ms.value_state(int))), "on_row is taken"),
    (lambda: stream().group_by("user").process(a_class(open=ms.value_state(int))), "open is taken"),
    (lambda: stream().group_by("user").process(a_class(main=ms.side_output(ROW))), "'main' is the name of the result"),
    (lambda: stream().group_by("user").process(one_name_twice()), "b is the same as 'a'"),
    (lambda: stream().group_by("user").process(a_class(), ttl="1h"), r"are for functions.*ms.value_state\(float, ttl"),
    (lambda: stream().group_by("user").process(noop, schema=ROW, side_outputs={"main": ROW}), "'main' is the name"),
    (lambda: stream().group_by("user").process(a_class()).side("late"), "there are: none"),
    (
        lambda: (
            stream(timed=False).group_by("user").process(a_class(a=ms.map_state(str, int, ttl="1h", clock="event")))
        ),
        r"Mine.a goes by event time, which.*event_time='sent_at'.*clock='processing'",
    ),
    (lambda: ms.value_state(list, default=[]), r"all keys would share one list: write default=list"),
    (
        lambda: ms.value_state(float, default="0"),
        r"value_state\(float, default='0'\): the default is '0', which is no flo",
    ),
    (lambda: ms.value_state(set), "values of type set cannot be kept"),
    (lambda: ms.value_state(tuple[int, int]), "cannot be kept"),
    (lambda: ms.value_state(int, ttl=0), "forget a state at once"),
    (lambda: ms.value_state(int, ttl="1h", clock="wall"), "'event' or by 'processing'"),  # type: ignore[call-overload]
    (lambda: ms.map_state(float, int), "one of str, int, bytes, bool, date"),
    (lambda: ms.list_state(object).shown and ms.list_state(set), "cannot be kept"),
    (lambda: a_class(a=ms.value_state(int))().a, r"only in on_row\(\) and on_timer\(\)"),  # type: ignore[attr-defined]
]


@pytest.mark.parametrize(("build", "message"), BUILT, ids=range(len(BUILT)))
def test_before_anything_runs(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(JobError, match=rf"(?s){message}"):
        build()


def test_columns_that_are_not_there() -> None:
    with pytest.raises(SchemaError, match="'shop'"):
        stream().group_by("shop")


Point = namedtuple("Point", ["x", "y"])


class Runs(ms.Process):
    """Does in ``on_row`` what it is given."""

    schema = ROW
    total = ms.value_state(float, default=0.0)
    any = ms.value_state(Any)
    seen = ms.map_state(str, int)
    last = ms.list_state(int)
    late = ms.side_output({"n": int})

    def __init__(self, does: Callable[[Any, Row, Any], Any]) -> None:
        self.does = does

    def on_row(self, row: Row, ctx: Any) -> Any:
        return self.does(self, row, ctx)


class Fires(Runs):
    """Does it in ``on_timer``."""

    def on_row(self, row: Row, ctx: Any) -> None:
        ctx.timer(after="1s")

    def on_timer(self, time: dt.datetime, ctx: Any) -> Any:
        return self.does(self, {}, ctx)


def put(name: str, value: Any) -> Callable[[Any, Row, Any], Any]:
    return lambda self, row, ctx: setattr(self, name, value)


RUN: list[tuple[Callable[[Any, Row, Any], Any], str]] = [
    (
        lambda self, row, ctx: 1 / 0,
        r"Runs.on_row \(.*\.py:\d+\) raised ZeroDivisionError: .*user='a', the row is \{'us",
    ),
    (
        lambda self, row, ctx: row["usr"],
        r"raised KeyError: 'usr'; the key is user='a', the row is \{'user': 'a', 'n': 7",
    ),
    (lambda self, row, ctx: 5, r"must yield dicts, or return one, a list of them or None, got 5"),
    (lambda self, row, ctx: "row", "must yield dicts"),
    (lambda self, row, ctx: [1], r"must yield a dict, got 1 \(int\); the key is user='a', the row is"),
    (lambda self, row, ctx: {"user": "a"}, r"exactly the keys 'user', 'what'; it lacks 'what'.*user='a'"),
    (lambda self, row, ctx: {"user": "a", "what": 1}, r"must yield string for 'what', got 1 \(int\)"),
    (
        lambda self, row, ctx: ctx.emit("early", {}),
        r"ctx.emit\('early', ...\): there is no such side output .*'late'.*'a'",
    ),
    (lambda self, row, ctx: ctx.emit("main", {}), "yield what belongs to the result"),
    (lambda self, row, ctx: ctx.emit("late", {"m": 1}), r"it lacks 'n' and also has 'm'.* for ctx.emit\('late', ...\)"),
    (put("total", "x"), r"state 'total' is a value_state\(float, default=0.0\), it cannot hold 'x' \(str\)"),
    (put("total", None), r"it cannot hold None"),
    (put("any", {1}), r"state 'any': \{1\} is of type set, which cannot be kept.*user='a'"),
    (
        put("any", (1, 2)),
        r"state 'any': \(1, 2\) is of type tuple, which would come back as a list: use a list; user='a'",
    ),
    (put("any", [[Point(1, 2)]]), "of type Point, which would come back as a list"),
    (put("any", {"x": 2**64}), r"18446744073709551616 has more than 64 bits"),
    (put("any", [bytearray(b"x")]), "would come back as bytes"),
    (put("any", "\ud800"), "surrogates not allowed"),
    (
        put("seen", {}),
        r"state 'seen' cannot be replaced, only changed: write self.seen.clear\(\), then self.seen.update",
    ),
    (put("last", []), r"self.last.extend\(\[\]\)"),
    (put("count", 1), r"Runs has set self.count, which is no state.*count = ms.value_state\(...\), or set it in open"),
    (
        lambda self, row, ctx: self.seen.update({1: 1}),
        r"state 'seen' is a map_state\(str, int\), 1 \(int\) is no key of it",
    ),
    (lambda self, row, ctx: self.seen.update(a="b"), r"map_state\(str, int\), it cannot hold 'b'"),
    (lambda self, row, ctx: self.last.append(1.5), r"list_state\(int\), it cannot hold 1.5"),
    (lambda self, row, ctx: self.last.pop(), "IndexError"),
    (lambda self, row, ctx: self.seen["b"], "KeyError: 'b'"),
]


@pytest.mark.parametrize(("does", "message"), RUN, ids=range(len(RUN)))
def test_while_it_runs(does: Callable[[Any, Row, Any], Any], message: str) -> None:
    with pytest.raises((UserCodeError, JobError), match=rf"(?s){message}"):
        check_operator(spec(functools.partial(Runs, does)), [rows(("a", 7, 0)), BARRIER])


TIMERS: list[tuple[type[ms.Process], Callable[[Any, Row, Any], Any], str]] = [
    (Runs, lambda self, row, ctx: ctx.timer(after="1s"), r"write def on_timer\(self, time, ctx\).*user='a'"),
    (
        Fires,
        lambda self, row, ctx: 1 / 0,
        r"Fires.on_timer .*ZeroDivisionError.*timer is that of user='a' at 2026-01-01",
    ),
    (Fires, lambda self, row, ctx: [{}], r"Fires.on_timer .*exactly the keys .*the timer is that of user='a'"),
    (
        Fires,
        lambda self, row, ctx: ctx.timer(at=ctx.time),
        "not after its own .by 0s.: it would fire at once, and so for",
    ),
    (Fires, lambda self, row, ctx: ctx.timer(), r"one of at=.* and after="),
    (Fires, lambda self, row, ctx: ctx.timer(at=3), r"ctx.timer\(\) takes a datetime as at=.*got 3"),
    (Fires, lambda self, row, ctx: ctx.timer(after="soon"), "'soon' is not a duration"),
    (Fires, lambda self, row, ctx: ctx.timer(after="1s", name=3), "takes a string as name="),
    (Fires, lambda self, row, ctx: ctx.timer(after="1s", clock="wall"), "there are two, 'event' and 'processing'"),
    (Fires, lambda self, row, ctx: ctx.timer(at=START, clock="processing"), "takes a datetime with a time zone as at="),
    (Fires, lambda self, row, ctx: ctx.cancel(), r"ctx.cancel\(\) takes one of"),
]


@pytest.mark.parametrize(("code", "does", "message"), TIMERS, ids=range(len(TIMERS)))
def test_with_timers(code: Any, does: Callable[[Any, Row, Any], Any], message: str) -> None:
    with pytest.raises((UserCodeError, JobError), match=rf"(?s){message}"):
        check_operator(spec(functools.partial(code, does)), [rows(("a", 7, 0)), BARRIER])


@pytest.mark.parametrize("method", ["__init__", "open", "close"])
def test_outside_of_rows(method: str) -> None:
    def fail(self: Any) -> None:
        raise OSError("no model")

    with pytest.raises(UserCodeError, match=rf"Mine.{method} raised OSError: no model"):
        check_operator(spec(a_class(**{method: fail})), [rows(("a", 7, 0))])
    with pytest.raises(JobError, match=r"only in on_row\(\) and on_timer\(\)"):
        check_operator(spec(a_class(n=ms.value_state(int), **{method: lambda self: self.n})), [rows(("a", 7, 0))])


def test_timers_without_event_time() -> None:
    with pytest.raises(JobError, match=r"needs event time.*event_time='sent_at'.*clock='processing'.*user='a'"):
        check_operator(spec(functools.partial(Fires, put("any", 1)), timed=False), [rows(("a", 7, 0))])


def test_state_that_has_become_another() -> None:
    class Before(ms.Process):
        schema = ROW
        total = ms.value_state(int, default=0)

        def on_row(self, row: Row, ctx: Any) -> None:
            self.total += 1

    script = [rows(("a", 1, 0)), BARRIER]
    declared = {
        r"has state 'total', which the class does not declare \(it has: sum\)": {"sum": ms.value_state(int)},
        r"state 'total' is now a value_state\(str\), but in the checkpoint it is 1 \(int\)": {
            "total": ms.value_state(str)
        },
        r"state 'total' is now a map_state\(str, int\), but in the checkpoint it is a value": {
            "total": ms.map_state(str, int)
        },
    }
    for message, states in declared.items():
        operators = [spec(Before).build([rows().schema]), spec(a_class(**states)).build([rows().schema])]
        operators[0].process(script[0], None)  # type: ignore[arg-type]
        written = operators[0].snapshot(1)["state"].rows
        with pytest.raises(StateMismatch, match=message):
            operators[1].restore("state", written.to_batches(), 1)


def test_a_function_is_named_itself() -> None:
    def odd(row: Row, state: Row) -> None:
        state["seen"] = {row["n"]}

    with pytest.raises(
        UserCodeError, match=r"odd \(.*test_process_mistakes.py:\d+\): state 'state': \{7\} is of type set"
    ):
        check_operator(function_spec(odd, ROW), [rows(("a", 7, 0)), BARRIER])


def test_what_cannot_be_kept_says_so() -> None:
    zone = dt.timezone(dt.timedelta(hours=5), "X")
    with pytest.raises(packing.Unpackable, match=r"the time zone .*'X'\) cannot be kept: use zoneinfo"):
        packing.pack(dt.datetime(2026, 1, 1, tzinfo=zone))
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(packing.Unpackable, match="recursion"):
        packing.pack(nested)
