"""Python code that tests of ``process`` run, and a way to make its spec."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import millstream as ms
import pyarrow as pa
from millstream import col
from millstream.operators.process import ProcessSpec, class_of, process_from_function, process_of, schema_for

START = dt.datetime(2026, 1, 1)
SECOND = 1_000_000
SCHEMA = pa.schema({"user": pa.string(), "n": pa.int64(), "at": pa.timestamp("us")})
ROW = {"user": str, "what": str}


def micros(seconds: float) -> int:
    return (START - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1) + round(seconds * SECOND)


def rows(*given: tuple[str | None, int, float | None]) -> pa.RecordBatch:
    """Rows of (user, n, seconds after START)."""
    made = [
        {"user": user, "n": n, "at": None if at is None else START + dt.timedelta(seconds=at)} for user, n, at in given
    ]
    return pa.RecordBatch.from_pylist(made, SCHEMA)


def spec(code: Any, schema: Any = None, *, keys: Sequence[str] = ("user",), timed: bool = True) -> ProcessSpec:
    process_of(code)
    return ProcessSpec(tuple(keys), code, schema_for(class_of(code), schema), col("at") if timed else None)


def function_spec(fn: Any, schema: Any, ttl: Any = None, *, timed: bool = True) -> ProcessSpec:
    return spec(process_from_function(fn, ttl, {}), schema, timed=timed)


def seconds(time: dt.datetime | None) -> str:
    return "-" if time is None else f"{(time.replace(tzinfo=None) - START).total_seconds():g}"


class Everything(ms.Process):
    """Uses every kind of state, timers and a side output; tells what it sees."""

    schema = ROW
    total = ms.value_state(int, default=0)
    history = ms.value_state(list, default=list)
    seen = ms.map_state(int, int)
    notes = ms.map_state(str, dict)
    last = ms.list_state(int)
    odd = ms.side_output({"user": str, "n": int})

    def on_row(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
        n = row["n"]
        self.total += n
        self.history.append(n)
        del self.history[:-3]
        self.seen[n % 5] = self.seen.get(n % 5, 0) + 1
        self.notes.setdefault(str(n % 2), {"of": []})["of"].append(n)
        self.last.append(n)
        if len(self.last) > 4:
            self.last.pop(0)
        if n % 7 == 0:
            self.seen.pop(n % 5)
            self.notes.clear()
            self.total = 0
        if n % 2:
            ctx.emit("odd", {"user": ctx.key, "n": n})
        if ctx.time is not None:
            ctx.timer(after=n, name="quiet")
            ctx.timer(at=ctx.time + dt.timedelta(seconds=10))
        if n % 11 == 0:
            ctx.cancel(name="quiet")
        yield {"user": row["user"], "what": self.tell()}

    def on_timer(self, time: dt.datetime, ctx: Any) -> Iterator[dict[str, Any]]:
        self.total -= 1
        if ctx.name and self.total % 3 == 0:
            ctx.timer(after=2, name="quiet")
        yield {"user": ctx.key, "what": f"{ctx.name} at {seconds(time)}: {self.tell()}"}

    def tell(self) -> str:
        return f"{self.total} {self.history} {dict(self.seen)} {dict(self.notes)} {list(self.last)}"


class Model:
    """The same as ``Everything``, in plain Python, for one key."""

    def __init__(self) -> None:
        self.total = 0
        self.history: list[int] = []
        self.seen: dict[int, int] = {}
        self.notes: dict[str, dict[str, list[int]]] = {}
        self.last: list[int] = []
        self.timers: dict[Any, float] = {}

    def tell(self) -> str:
        seen, notes = (dict(sorted(of.items())) for of in (self.seen, self.notes))  # type: ignore[attr-defined]
        return f"{self.total} {self.history} {seen} {notes} {self.last}"

    def row(self, n: int, at: float | None) -> str:
        self.total += n
        self.history = [*self.history, n][-3:]
        self.seen[n % 5] = self.seen.get(n % 5, 0) + 1
        self.notes.setdefault(str(n % 2), {"of": []})["of"].append(n)
        self.last = [*self.last, n][-4:]
        if n % 7 == 0:
            del self.seen[n % 5]
            self.notes = {}
            self.total = 0
        if at is not None:
            self.timers["quiet"] = at + n
            self.timers[at + 10] = at + 10
        if n % 11 == 0:
            self.timers.pop("quiet", None)
        return self.tell()

    def fire(self, until: float) -> Iterator[str]:
        while due := sorted(
            (at, str(id) if id == "quiet" else "", id) for id, at in self.timers.items() if at <= until
        ):
            at, name, id = due[0]
            del self.timers[id]
            self.total -= 1
            if name and self.total % 3 == 0:
                self.timers["quiet"] = at + 2
            yield f"{name} at {at:g}: {self.tell()}"
