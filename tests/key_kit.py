"""Rows with keys of every type that a key may have, their oddest values included, and what DuckDB makes of them."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
from hypothesis import strategies as st
from millstream.engine.element import Watermark
from millstream.engine.operator import OperatorSpec
from millstream.testing import BARRIER, On
from millstream.testing.operators import Step
from operator_kit import canonical

BEFORE_1970 = dt.datetime(1969, 12, 31, 23, 59, 59, 999_999)
KEYS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int64": (pa.int64(), [0, -1, -(2**63), 2**63 - 1]),
    "uint64": (pa.uint64(), [0, 1, 2**63, 2**64 - 1]),
    "int8": (pa.int8(), [0, -128, 127]),
    "double": (pa.float64(), [math.nan, 0.0, -0.0, math.inf, -math.inf, 5e-324, -1.5]),
    "float": (pa.float32(), [math.nan, 0.0, -0.0, math.inf, 1.5]),
    "string": (pa.string(), ["", "\0", "a", "a\0", "é", "eight by", "eight by\0", "x" * 40]),
    "binary": (pa.binary(), [b"", b"\0", b"\xff", b"eight by\xff"]),
    "bool": (pa.bool_(), [True, False]),
    "timestamp": (
        pa.timestamp("us"),
        [dt.datetime(1, 1, 1), BEFORE_1970, dt.datetime(1970, 1, 1), dt.datetime(9999, 12, 31)],
    ),
    "date": (pa.date32(), [dt.date.min, dt.date(1969, 12, 31), dt.date(1970, 1, 1), dt.date.max]),
    "decimal": (pa.decimal128(20, 2), [Decimal("0.00"), Decimal("-0.01"), Decimal(10**17), -Decimal(10**17)]),
}
TIME = pa.timestamp("us")


@dataclass(frozen=True)
class Keyed:
    """Two inputs of the same columns: ``a``, ``b`` (the key), ``v``, ``t`` (the event time), ``seq``."""

    schema: pa.Schema
    steps: Sequence[Step]

    def __repr__(self) -> str:
        rows = [step.batch.to_pylist() if isinstance(step, On) else step for step in self.steps]
        return f"Keyed({self.schema.field('a').type}, {self.schema.field('b').type}, {rows})"

    @property
    def first(self) -> list[Step]:
        """The script of the first input alone."""
        return [step for step in self.steps if not isinstance(step, On) or step.input == 0]

    def table(self, side: int = 0) -> pa.Table:
        """All rows of an input."""
        return pa.Table.from_batches(
            [s.batch for s in self.steps if isinstance(s, On) and s.input == side], self.schema
        )

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Ask DuckDB about ``l`` and ``r``."""
        with duckdb.connect(config={"threads": 1}) as connection:
            connection.execute("set timezone = 'UTC'")
            for side, name in enumerate("lr"):
                # As tables: Arrow, to which conditions of joins are pushed down, sees NaN and zeros differently.
                connection.register("given", self.table(side))
                connection.execute(f"create table {name} as from given")
            return bag(connection.sql(query).to_arrow_table().to_pylist())

    def spec(self, build: Callable[..., ms.Stream]) -> OperatorSpec:
        """The operator that a call adds to streams of the inputs."""
        job = ms.Job("j")
        sources = [ms.memory_source(self.schema.empty_table(), name=name) for name in ("l", "r")]
        count = build.__code__.co_argcount
        node = job.graph.nodes[build(*(job.read(source, event_time="t") for source in sources[:count]))._edge.node]
        assert isinstance(node.body, OperatorSpec)
        return node.body


@st.composite
def keyed(draw: st.DrawFn, sides: int = 1) -> Keyed:
    """Rows in disorder, slices of longer batches among them, none of them late; time begins before 1970."""
    kinds = [draw(st.sampled_from(sorted(KEYS))) for _ in "ab"]
    count = draw(st.integers(1, 12 * sides))
    return keyed_of(random.Random(draw(st.integers(0, 2**32))), kinds, count, sides)


def keyed_of(draw: random.Random, kinds: Sequence[str], count: int, sides: int) -> Keyed:
    types = [KEYS[kind][0] for kind in kinds]
    schema = pa.schema({"a": types[0], "b": types[1], "v": pa.int64(), "t": TIME, "seq": pa.int64()})
    # Few values of each key, so that keys meet again.
    values = [[*draw.sample(KEYS[kind][1], min(3, len(KEYS[kind][1]))), None] for kind in kinds]
    coming = []
    for seq in range(count):
        time = draw.randrange(-20, 20)
        row = (draw.choice(values[0]), draw.choice(values[1]), draw.randrange(-3, 4), time, seq)
        coming.append((time + draw.randrange(8), draw.random(), draw.randrange(sides), row))
    coming.sort(key=lambda item: item[:2])
    numbered = [(side, (*row[:4], at)) for at, (_, _, side, row) in enumerate(coming)]
    steps: list[Step] = []
    while numbered:
        side = numbered[0][0]
        length = draw.randint(1, 6)
        run = [row for _, row in numbered[: next((n for n, (s, _) in enumerate(numbered) if s != side), None)]][:length]
        numbered = numbered[len(run) :]
        steps.append(On(side, batch_of(schema, [*run[: draw.randrange(2)], *run], len(run))))
        if draw.random() < 0.4:
            steps.append(Watermark(min((row[3] for _, row in numbered), default=20)))
        if draw.random() < 0.4:
            steps.append(BARRIER)
    return Keyed(schema, steps)


def batch_of(schema: pa.Schema, rows: Sequence[tuple[Any, ...]], kept: int) -> pa.RecordBatch:
    """The last ``kept`` of the rows, as a slice."""
    columns = [pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)]
    return pa.record_batch(columns, schema=schema).slice(len(rows) - kept)


def bag(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows in an order of their own."""
    return sorted((tuple(canonical(value) for value in row.values()) for row in rows), key=repr)
