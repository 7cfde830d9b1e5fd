"""What accumulators keep of parts of the rows merges into what they would keep of all."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.state import StateTable
from millstream.operators.accumulators import Accumulator
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.items import ItemAccumulator
from operator_kit import canonical

HUGE = 10**37


def accumulator(aggregate: AggregateSpec, schema: pa.Schema, slots: int) -> Accumulator:
    made = aggregate.accumulator(schema)
    if isinstance(made, ItemAccumulator):
        items = aggregate.item_fields(schema)
        made.bind(StateTable("items", pa.schema([pa.field("k", pa.int64()), *items]), ("k", items[0].name)))
    made.resize(slots)
    return made


def merged(aggregate: AggregateSpec, values: pa.Array, parts: int) -> list[Any]:
    """Results of all values at once, and of parts merged into one group of three."""
    schema = pa.schema({"x": values.type})
    whole, pieces, into = (accumulator(aggregate, schema, slots) for slots in (1, parts, 3))
    place = np.arange(len(values)) * parts // max(len(values), 1)
    whole.update(np.zeros(len(values), np.int64), [values], np.arange(len(values)))
    pieces.update(place, [values], np.arange(len(values)))
    into.absorb(pieces, np.arange(parts), np.ones(parts, np.int64))
    empty = accumulator(aggregate, schema, 1).result(np.array([0])).to_pylist()[0]
    results = into.result(np.array([0, 1, 2])).to_pylist()
    assert results[0] == results[2] == empty
    return [canonical(whole.result(np.array([0])).to_pylist()[0]), canonical(results[1])]


@pytest.mark.parametrize("count", [3, 40, 5_000])
@pytest.mark.parametrize("parts", [1, 2, 9])
def test_sketches_do_not_show_the_parts(count: int, parts: int) -> None:
    values = pa.array([*(n * n % 7_919 / 8 for n in range(count)), None])
    for aggregate in (ms.approx_count_distinct("x"), ms.quantile("x", [0.1, 0.5, 0.99]), ms.count_distinct("x")):
        once, together = merged(aggregate, values, parts)
        assert once == together


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.integers(-(2**62), 2**62), max_size=20), st.integers(1, 5))
def test_the_mean_of_integers_passes_beyond_int64(values: list[int | None], parts: int) -> None:
    once, together = merged(ms.mean("x"), pa.array(values, pa.int64()), parts)
    assert once == together


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.integers(-9 * HUGE, 9 * HUGE), max_size=20), st.integers(1, 5))
def test_decimals_pass_beyond_38_digits(values: list[int | None], parts: int) -> None:
    once, together = merged(ms.mean("x"), pa.array(values, pa.decimal128(38, 0)), parts)
    assert once == together


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=True, width=32), max_size=20), st.integers(1, 5))
def test_floats_that_are_no_numbers_stay_so(values: list[float], parts: int) -> None:
    for aggregate in (ms.sum("x"), ms.max("x"), ms.variance("x")):
        once, together = merged(aggregate, pa.array(values, pa.float64()), parts)
        assert once == together or math.isclose(once, together, rel_tol=1e-12)


@pytest.mark.parametrize("offset", [0, 10**6, 10**14])
def test_a_variance_keeps_its_digits(offset: int) -> None:
    draw = random.Random(offset)
    values = [offset + draw.randrange(-10_000, 10_000) / 8 for _ in range(1_000)]
    mean = sum(map(Fraction, values)) / len(values)
    exact = float(sum((Fraction(value) - mean) ** 2 for value in values) / (len(values) - 1))
    for found in merged(ms.variance("x"), pa.array(values), 17):
        assert math.isclose(found, exact, rel_tol=1e-14)
