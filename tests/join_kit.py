"""Two streams for joins, cut and interleaved in any way, and what DuckDB says of their join."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
from hypothesis import strategies as st
from millstream import Expr, col
from millstream.engine.element import Watermark
from millstream.engine.operator import OperatorSpec
from millstream.testing import BARRIER, On
from millstream.testing.operators import Step
from operator_kit import canonical

TIME = pa.timestamp("us")
TAGS = pa.list_(pa.string())
POINT = pa.struct({"x": pa.int64(), "y": pa.string()})
LEFT = pa.schema({"k": pa.int64(), "f": pa.float64(), "n": pa.int64(), "at": TIME, "hi": TIME, "tags": TAGS})
RIGHT = pa.schema(
    {"k": pa.int64(), "g": pa.float64(), "n": pa.int64(), "at": TIME, "point": POINT, "text": pa.string()}
)
SCHEMAS = (LEFT, RIGHT)
SECOND = 1_000_000
FLOATS = (0.5, -0.0, 0.0, float("nan"), None)


@dataclass(frozen=True)
class Streams:
    """What the two inputs bring, in the order in which it comes."""

    steps: Sequence[Step]

    def table(self, side: int) -> pa.Table:
        batches = [step.batch for step in self.steps if isinstance(step, On) and step.input == side]
        return pa.Table.from_batches(batches, SCHEMAS[side])

    def sql(self, query: str, **tables: pa.Table) -> list[tuple[Any, ...]]:
        """Ask DuckDB, with the whole streams as l and r, or other tables."""
        with duckdb.connect() as connection:
            connection.execute("set timezone = 'UTC'")
            for name, table in {"l": self.table(0), "r": self.table(1), **tables}.items():
                connection.register(name, table)
            return bag(connection.sql(query).to_arrow_table().to_pylist())


def bag(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows in an order of their own."""
    found = [tuple(canonical(value) for value in row.values()) for row in rows]
    return sorted(found, key=repr)


def left_row(draw: random.Random, time: int, number: int) -> dict[str, Any]:
    return {
        "k": draw.choice([1, 2, 3, None]),
        "f": draw.choice(FLOATS),
        "n": number,
        "at": time,
        "hi": draw.choice([time + draw.randrange(-5, 30) * SECOND, None]),
        "tags": draw.choice([None, [], ["a", None], ["", "é"]]),
    }


def right_row(draw: random.Random, time: int, number: int) -> dict[str, Any]:
    return {
        "k": draw.choice([1, 2, 3, None]),
        "g": draw.choice(FLOATS),
        "n": number,
        "at": time,
        "point": draw.choice([None, {"x": None, "y": ""}, {"x": 1, "y": "é"}]),
        "text": draw.choice([None, "", "text"]),
    }


@st.composite
def streams(draw: st.DrawFn, most: int = 14) -> Streams:
    """Rows around 1970, up to twelve seconds out of order, none of them late."""
    seed, left, right = draw(st.integers(0, 2**32)), draw(st.integers(0, most)), draw(st.integers(0, most))
    return streams_of(random.Random(seed), left, right)


def streams_of(draw: random.Random, left: int, right: int, span: int = 60) -> Streams:
    coming = []
    for side, count in ((0, left), (1, right)):
        for number in range(count):
            time = draw.randrange(-span // 2, span // 2) * SECOND + draw.choice([0, 0, 1, -1])
            row = (left_row, right_row)[side](draw, time, number)
            coming.append((time + draw.randrange(12) * SECOND, number, side, row))
    coming.sort(key=lambda item: (item[0], draw.random()))
    steps: list[Step] = []
    waiting: list[dict[str, Any]] = []
    for at, (_, _, side, row) in enumerate(coming):
        waiting.append(row)
        turns = at + 1 == len(coming) or coming[at + 1][2] != side
        if not turns and draw.random() < 0.6:
            continue
        steps.append(On(side, pa.RecordBatch.from_pylist(waiting, SCHEMAS[side])))
        waiting = []
        if draw.random() < 0.4:
            steps.append(Watermark(min((later[3]["at"] for later in coming[at + 1 :]), default=span * SECOND)))
        if draw.random() < 0.3:
            steps.append(BARRIER)
    return Streams(steps)


PAIR = "coalesce(l.k, r.k) as k, l.f, l.n, l.at, l.hi, l.tags, r.g, r.n as n_right, r.at as at_right, r.point, r.text"
WHERES = {None: "true", "n": "l.n > r.n", "text": "text = ''"}


def where_of(name: str | None) -> Expr | None:
    return {None: None, "n": col("n") > col("n_right"), "text": col("text") == ""}[name]


def joined(changelogs: Sequence[int] = (), **options: Any) -> OperatorSpec:
    """The operator that ``join`` makes of such streams."""
    job = ms.Job("j")
    left, right = (
        job.read(ms.memory_source(schema.empty_table(), name=name), event_time="at")
        for name, schema in zip(("l", "r"), SCHEMAS, strict=True)
    )
    left, right = (
        stream._as_changelog() if side in changelogs else stream for side, stream in enumerate((left, right))
    )
    node = job.graph.nodes[left.join(right, **options)._edge.node]
    assert isinstance(node.body, OperatorSpec)
    return node.body
