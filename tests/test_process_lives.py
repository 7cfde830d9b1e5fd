"""State of ``process`` that says how long it lives when it is written: it is gone exactly then, restarts or not."""

from __future__ import annotations

import math
from typing import Any

import millstream as ms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import JobError, UserCodeError
from millstream.engine.operator import MAIN
from millstream.testing import BARRIER, Tick, Watermark, check_operator
from operator_kit import Harness, Restart
from process_kit import ROW, SCHEMA, SECOND, micros, rows, spec

Row = dict[str, Any]
DECLARED = 20


class Lives(ms.Process):
    """Writes one of its states with every row, most often for some time, and tells what it sees."""

    schema = ROW
    free = ms.value_state(int, default=0)
    short = ms.value_state(int, default=0, ttl=f"{DECLARED}s")
    box = ms.value_state(list, default=list)
    cart = ms.value_state(list, default=list, ttl=f"{DECLARED}s")
    seen = ms.map_state(int, int)
    recent = ms.map_state(int, list, ttl=f"{DECLARED}s")
    last = ms.list_state(int)
    late = ms.list_state(int, ttl=f"{DECLARED}s")

    def on_row(self, row: Row, ctx: Any) -> Row:
        n = row["n"]
        name, ttl, key = NAMES[n % 8], TTLS[n // 8 % 5], n % 3
        of: Any = getattr(self, name)
        if name in ("seen", "recent"):
            value = n if name == "seen" else [n]
            if n // 40 % 4 == 0:
                of.pop(key, None)
            elif ttl is None:
                of[key] = value
            else:
                of.put(key, value, ttl=f"{ttl}s")
        elif name in ("last", "late"):
            of.append(n, ttl=ttl and f"{ttl}s")
        elif name in ("box", "cart") and ttl is None:
            of.append(n)
        elif n // 40 % 4 == 0:
            delattr(self, name)
        elif ttl is None:
            setattr(self, name, n)
        else:
            ctx.put(name, [n] if name in ("box", "cart") else n, ttl=f"{ttl}s")
        told = [self.free, self.short, list(self.box), list(self.cart), dict(self.seen)]
        told += [dict(self.recent), list(self.last), list(self.late)]
        return {"user": row["user"], "what": repr(told)}


NAMES = ["free", "short", "box", "cart", "seen", "recent", "last", "late"]
TTLS = [None, 1, 7, 30, 100]


class Model:
    """The same in plain Python, for one key: of each entry its value and when it is gone."""

    def __init__(self) -> None:
        self.held: dict[str, dict[Any, tuple[Any, float]]] = {name: {} for name in NAMES}

    def row(self, n: int, now: float) -> str:
        name, ttl = NAMES[n % 8], TTLS[n // 8 % 5]
        for held in self.held.values():
            for entry in [entry for entry, (_, until) in held.items() if until <= now]:
                del held[entry]
        held = self.held[name]
        declared = now + DECLARED if name in ("short", "cart", "recent", "late") else math.inf
        entry = n % 3 if name in ("seen", "recent") else n if name in ("last", "late") else None
        value, until = held.get(entry, (None, -math.inf))
        lives = max(until, declared) if ttl is None else now + ttl
        if name in ("box", "cart") and ttl is None:
            if name == "box" and value is not None:
                lives = until  # it was read and changed in place, which does not make it live for ever
            held[entry] = ([*(value or []), n], lives)
        elif n // 40 % 4 == 0 and name not in ("last", "late"):
            held.pop(entry, None)
        else:
            held[entry] = ([n] if name in ("box", "cart", "recent") else n, lives)
        for read in ("cart", "recent"):
            self.held[read] = {key: (v, max(until, now + DECLARED)) for key, (v, until) in self.held[read].items()}
        return self.tell()

    def tell(self) -> str:
        values = [self.held[name].get(None, (0, 0))[0] for name in NAMES[:2]]
        boxes = [self.held[name].get(None, ([], 0))[0] for name in NAMES[2:4]]
        maps = [{key: value for key, (value, _) in sorted(self.held[name].items())} for name in NAMES[4:6]]
        lists = [[value for value, _ in self.held[name].values()] for name in NAMES[6:]]
        return repr([*values, *boxes, *maps, *lists])


STEPS = st.lists(
    st.tuples(
        st.integers(0, 15), st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 319)), min_size=1, max_size=4)
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=15, deadline=None)
@given(STEPS, st.integers(0, 2))
def test_what_is_written_for_some_time_lives_so_long(steps: list[tuple[int, Any]], barriers: int) -> None:
    script: list[Any] = []
    models = {"a": Model(), "b": Model()}
    now, expected = 0, []
    for number, (passed, made) in enumerate(steps):
        now += passed
        # No item of a list is added twice at one time: the model tells them apart by their values.
        unique = {n: user for user, n in made}
        script.append(rows(*((user, n + 320 * number, now) for n, user in unique.items())))
        expected += [(user, models[user].row(n + 320 * number, now)) for n, user in unique.items()]
        script += [Watermark(micros(now))] * (number % 2) + [BARRIER] * (number % 3 <= barriers)
    found = check_operator(spec(Lives), script, schemas=[SCHEMA])[MAIN]
    for user in "ab":
        assert [row["what"] for row in found if row["user"] == user] == [what for of, what in expected if of == user]


class ByTheClock(ms.Process):
    """A token that lives as long as the row says, by the clock."""

    schema = ROW
    token = ms.value_state(int, clock="processing")
    used = ms.map_state(str, int, clock="processing")

    def on_row(self, row: Row, ctx: Any) -> Row:
        if row["n"]:
            ctx.put("token", row["n"], ttl=f"{row['n']}s")
            self.used.put("token", row["n"], ttl=f"{row['n']}s")
        return {"user": row["user"], "what": f"{self.token} {dict(self.used)}"}


def test_what_lives_by_the_clock() -> None:
    script = [Tick(SECOND), rows(("a", 5, 0)), BARRIER, Tick(6 * SECOND - 1), rows(("a", 0, 99)), BARRIER]
    script += [Tick(6 * SECOND), rows(("a", 0, 0), ("a", 9, 0), ("a", 0, 0))]
    expected = ["5 {'token': 5}", "5 {'token': 5}", "None {}", "9 {'token': 9}", "9 {'token': 9}"]
    assert [row["what"] for row in check_operator(spec(ByTheClock), script)[MAIN]] == expected
    untimed = check_operator(spec(ByTheClock, timed=False), script)[MAIN]
    assert [row["what"] for row in untimed] == expected


class Tokens(ms.Process):
    schema = ROW
    token = ms.value_state(int)

    def on_row(self, row: Row, ctx: Any) -> Row:
        seen = self.token
        if row["n"] < 0:
            self.token = -row["n"]
        elif row["n"]:
            ctx.put("token", row["n"], ttl=f"{row['n']}s")
        return {"user": row["user"], "what": str(seen)}


def test_the_store_has_when_a_value_is_gone_and_forgets_it_then() -> None:
    run = Harness(spec(Tokens), SCHEMA).run([rows(("a", 5, 0), ("b", -3, 0), ("c", 60, 0))])
    run.checkpoint()
    (_, written) = run.store.rows["state"][-1]
    expires = {row["user"]: row["expires"] for row in written.to_pylist()}
    assert expires == {"a": micros(5), "b": None, "c": micros(60)}
    run.run([Restart(2), rows(("b", 4, 1)), Restart(1)])
    run.advance(micros(30))
    run.feed(rows(("c", 0, 30)))
    run.feed(rows(("c", 2, 30)))
    run.checkpoint()
    (_, written) = run.store.rows["state"][-1]
    assert [row["user"] for row in written.to_pylist()] == ["c"]
    assert [row[1] for row in zip(*run.results().to_pydict().values(), strict=True)][-2:] == ["60", "60"]


class DeclaredLater(Tokens):
    token = ms.value_state(int, ttl="10s")


def test_what_was_written_for_ever_lives_as_declared_now_once_it_is_written() -> None:
    run = Harness(spec(Tokens), SCHEMA).run([rows(("a", -1, 0), ("b", -2, 0))])
    run.checkpoint()
    run.spec = spec(DeclaredLater)
    run._start(1)
    run.store.restore(run.subtasks)
    run.run([rows(("a", -3, 50), ("a", 0, 59), ("a", 0, 60), ("b", 0, 99))])
    assert run.results()["what"].to_pylist() == ["None", "None", "1", "3", "None", "2"]


class Wrong(Tokens):
    seen = ms.map_state(str, int)

    def on_row(self, row: Row, ctx: Any) -> Row:
        does = [
            lambda: ctx.put("nothing", 1, ttl="1s"),
            lambda: ctx.put("seen", {}, ttl="1s"),
            lambda: ctx.put("token", "a", ttl="1s"),
            lambda: ctx.put("token", 1, ttl=0),
            lambda: self.seen.put(1, 1, ttl="1s"),  # type: ignore[arg-type]
            lambda: self.seen.put("a", 1, ttl="soon"),
        ]
        does[row["n"]]()
        return {}


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, r"ctx.put\('nothing'.*no such value state \(there are: 'token'\)"),
        (1, r"ctx.put\('seen'.*self.seen.put\(key, value, ttl='1h'\)"),
        (2, "state 'token' is a value_state.int., it cannot hold 'a'"),
        (3, "ttl=0 would forget at once"),
        (4, "1 .int. is no key of it"),
        (5, "soon"),
    ],
)
def test_mistakes(number: int, message: str) -> None:
    with pytest.raises((UserCodeError, JobError), match=message):
        check_operator(spec(Wrong), [rows(("a", number, 0))])


def test_a_clock_that_the_stream_does_not_have() -> None:
    class ByEvents(Tokens):
        token = ms.value_state(int, clock="event")

    with pytest.raises(JobError, match=r"ByEvents.token goes by event time, which the stream does not have"):
        spec(ByEvents, timed=False)
