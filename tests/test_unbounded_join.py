"""Joins of everything with everything, against DuckDB: pairs, and rows taken back when they come to be in one."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from join_kit import PAIR, SCHEMAS, WHERES, Streams, bag, joined, streams, where_of
from millstream.engine.changelog import WEIGHT, weighted
from millstream.operators.join import HOWS
from millstream.testing import On, check_operator


def by_sql(given: Streams, how: str, condition: str, **tables: pa.Table) -> list[tuple[Any, ...]]:
    if how in {"semi", "anti"}:
        negated = "not" if how == "anti" else ""
        query = f"select l.* from l where {negated} exists (from r where l.k = r.k and {condition})"
    else:
        query = f"select {PAIR} from l {how} join r on l.k = r.k and {condition}"
    return given.sql(query, **tables)


def settled(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The rows that a changelog comes to; rows as they are of other streams."""
    assert all(row.get(WEIGHT, 1) > 0 for row in rows), "a row was taken back more often than put out"
    return bag([{n: v for n, v in row.items() if n != WEIGHT} for row in rows for _ in range(row.get(WEIGHT, 1))])


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=6, deadline=None)
@given(given=streams(), where=st.sampled_from(list(WHERES)))
def test_the_join_of_all_rows_is_that_of_sql(how: str, given: Streams, where: str | None) -> None:
    got = check_operator(joined(on="k", how=how, where=where_of(where)), given.steps, schemas=SCHEMAS)
    assert settled(got.get("main", [])) == by_sql(given, how, WHERES[where])


def with_weights(given: Streams, sides: tuple[int, ...], draw: random.Random) -> tuple[Streams, dict[str, pa.Table]]:
    """Make changelogs of some sides: some rows are taken back, even before they come. Also return what they come to."""
    left = {side: given.table(side) for side in (0, 1)}
    back: list[On] = []
    for side in sides:
        table = left[side]
        gone = sorted(draw.sample(range(len(table)), draw.randint(0, len(table))))
        back += [On(side, batch) for batch in table.take(pa.array(gone, pa.int64())).to_batches(max_chunksize=3)]
        left[side] = table.take(pa.array([row for row in range(len(table)) if row not in gone], pa.int64()))
    steps = []
    for step in given.steps:
        steps.append(weigh(step, 1) if isinstance(step, On) and step.input in sides else step)
    for step in back:
        steps.insert(draw.randint(0, len(steps)), weigh(step, -1))
    return Streams(steps), {"l": left[0], "r": left[1]}


def weigh(step: On, weight: int) -> On:
    columns = [*step.batch.columns, pa.array([weight] * step.batch.num_rows, pa.int64())]
    return On(step.input, pa.RecordBatch.from_arrays(columns, schema=weighted(step.batch.schema)))


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=6, deadline=None)
@given(
    given=streams(),
    where=st.sampled_from(list(WHERES)),
    sides=st.sampled_from([(0,), (1,), (0, 1)]),
    seed=st.integers(0),
)
def test_the_join_of_changelogs_is_that_of_what_they_come_to(
    how: str, given: Streams, where: str | None, sides: tuple[int, ...], seed: int
) -> None:
    changes, tables = with_weights(given, sides, random.Random(seed))
    schemas = [weighted(schema) if side in sides else schema for side, schema in enumerate(SCHEMAS)]
    spec = joined(on="k", how=how, where=where_of(where), changelogs=sides)
    got = check_operator(spec, changes.steps, schemas=schemas)
    assert settled(got.get("main", [])) == by_sql(given, how, WHERES[where], **tables)
