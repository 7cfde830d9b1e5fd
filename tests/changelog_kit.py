"""What changelogs come to, beside what DuckDB makes of the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import pyarrow as pa
from hypothesis import strategies as st
from millstream.engine.changelog import WEIGHT, weighted
from operator_kit import Step, canonical, rows_of
from window_kit import streams

Net = Counter[tuple[Any, ...]]


def net(batches: Iterable[pa.RecordBatch]) -> Net:
    """Each row with the sum of its weights, unless that is 0."""
    found: Net = Counter()
    for batch in batches:
        assert batch.schema.names[-1] == WEIGHT
        for *values, weight in rows_of(pa.Table.from_batches([batch])):
            found[hashable(values)] += weight
    return Counter({row: weight for row, weight in found.items() if weight})


def hashable(value: Any) -> Any:
    """Lists and dicts as tuples; NaN equals NaN."""
    if isinstance(value, (list, tuple)):
        return tuple(hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, hashable(item)) for name, item in value.items())
    return canonical(value)


def aggregated(rows: pa.Table, keys: Sequence[str], made: Sequence[str]) -> Net:
    """The results of SQL aggregates over rows, per key; none without a row."""
    # 0.0 and -0.0 are one key; DuckDB shows one of them, we show 0.0.
    shown = [f"{key} + 0.0" if key == "h" else key for key in keys]
    group = f"group by {', '.join(keys)}" if keys else "having count(*) > 0"
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        result = connection.sql(f"select {', '.join([*shown, *made])} from rows {group}").to_arrow_table()
    return Counter(hashable(row) for row in rows_of(result))


@st.composite
def changelogs(draw: st.DrawFn) -> list[Step]:
    """As ``streams``, of rows with weights: rows come once or twice, and some of those there are taken back."""
    steps, random = draw(streams()), draw(st.randoms(use_true_random=False))
    rows = pa.Table.from_batches([step for step in steps if isinstance(step, pa.RecordBatch)])
    held: Counter[int] = Counter()
    first = 0
    for number, step in enumerate(steps):
        if not isinstance(step, pa.RecordBatch):
            continue
        taken = []
        for row in range(first, first + step.num_rows):
            taken.append((row, random.choice([1, 1, 2])))
        first += step.num_rows
        held.update(dict(taken))
        for row in random.sample(sorted(held), random.randint(0, len(held))):
            weight = random.randint(1, held[row])
            taken.append((row, -weight))
            held[row] -= weight
        held = +held
        batch = rows.take([row for row, _ in taken]).combine_chunks().to_batches()[0]
        weights = pa.array([weight for _, weight in taken], pa.int64())
        steps[number] = pa.RecordBatch.from_arrays([*batch.columns, weights], schema=weighted(batch.schema))
    return steps


def held_by(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """The rows of a changelog that are there, each as often as its weights sum to; ``seq`` tells rows apart."""
    every = pa.Table.from_batches(batches)
    weights: Counter[int] = Counter()
    place: dict[int, int] = {}
    for at, (seq, weight) in enumerate(zip(every["seq"].to_pylist(), every[WEIGHT].to_pylist(), strict=True)):
        weights[seq] += weight
        place[seq] = at
    held = [place[seq] for seq, weight in weights.items() for _ in range(weight)]
    return every.drop_columns([WEIGHT]).take(pa.array(held, pa.int64()))
