"""Patterns find what plain backtracking finds, however rows come and however often the job starts anew."""

from __future__ import annotations

import random
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from match_kit import SCHEMA, Case, cases, expected, on_time, random_case, random_steps, streams
from millstream.engine.expression import col
from millstream.operators.match import Match
from millstream.operators.row_pattern import names_in, parse
from operator_kit import Harness, Step, bag


def spec_of(case: Case, within: int, *, relaxed: bool, past_last: bool, keys: tuple[str, ...] = ("k",)) -> Match:
    names = names_in(parse(case.text))
    select = (("rows", ms.collect("seq")), *((f"of_{name}", ms.collect(f"{name}.seq")) for name in names))
    return Match(keys, parse(case.text), case.define, select, col("t"), within, relaxed=relaxed, past_last=past_last)


def found(run: Harness) -> list[tuple[Any, ...]]:
    table = run.results()
    times = [table.column(name).cast(pa.int64()) for name in ("match_start", "match_end")]
    lists = [column for column, name in zip(table.columns, table.column_names, strict=True) if "match" not in name]
    key, _, *results = lists
    return [
        (k, *t, *r)
        for k, t, r in zip(
            key.to_pylist(),
            zip(*(time.to_pylist() for time in times), strict=True),
            zip(*([value or [] for value in column.to_pylist()] for column in results), strict=True),
            strict=True,
        )
    ]


@settings(max_examples=60, deadline=None)
@given(streams(), cases(), st.sampled_from([3, 9, 19]), st.booleans(), st.booleans(), st.integers(1, 3))
def test_any_pattern_finds_what_backtracking_finds_in_the_rows_on_time(
    steps: list[Step], case: Case, more: int, relaxed: bool, past_last: bool, parallelism: int
) -> None:
    spec = spec_of(case, 1 + more, relaxed=relaxed, past_last=past_last)
    run = Harness(spec, SCHEMA, parallelism).run(steps).finish()
    wanted = expected(case, on_time(steps), 1 + more, relaxed=relaxed, past_last=past_last)
    assert bag(found(run)) == bag(wanted)


def check_seed(seed: int) -> list[tuple[Any, ...]]:
    draw = random.Random(seed)
    steps, case, within = random_steps(draw), random_case(draw), draw.choice([2, 5, 9, 20])
    how = {"relaxed": draw.random() < 0.5, "past_last": draw.random() < 0.5}
    run = Harness(spec_of(case, within, **how), SCHEMA, draw.randint(1, 3)).run(steps).finish()
    wanted = expected(case, on_time(steps), within, **how)
    assert bag(found(run)) == bag(wanted), f"seed {seed}: {case}, {within=}, {how}"
    return wanted


def test_many_seeds() -> None:
    matches = [check_seed(seed) for seed in range(150)]
    assert sum(map(bool, matches)) > 60
    assert sum(len(match[3]) > 3 for found in matches for match in found) > 30


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 20_000, 2_000))
def test_very_many_seeds(first: int) -> None:
    for seed in range(first, first + 2_000):
        check_seed(seed)
