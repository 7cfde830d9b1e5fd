"""Aggregates in functions of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError, SchemaError, UserCodeError
from millstream.engine.expression import col
from millstream.operators.aggregate_spec import AggregateSpec
from millstream.operators.window_aggregate import WindowAggregate
from millstream.operators.windows import TumblingWindow
from millstream.testing import BARRIER, Watermark, check_operator
from operator_kit import Harness, Step, bag, rows_of
from window_kit import SCHEMA, SIZE, by_sql, split_by_lateness, streams

State = Mapping[str, pa.Array]


def spec_of(*aggregates: AggregateSpec, keys: tuple[str, ...] = ("k",)) -> WindowAggregate:
    named = tuple((f"x{number}", aggregate) for number, aggregate in enumerate(aggregates))
    return WindowAggregate(keys, TumblingWindow(SIZE), named, col("t"))


def weigh(state: State, groups: np.ndarray, values: pa.Array, weights: pa.Array) -> dict[str, Any]:
    products = pc.multiply(values, weights)
    valid = np.asarray(products.is_valid())
    rows, size = groups[valid], len(state["total"])
    return {
        "total": np.asarray(state["total"]) + np.bincount(rows, products.drop_null(), size),
        "weight": np.asarray(state["weight"]) + np.bincount(rows, weights.filter(products.is_valid()), size),
    }


def add(left: State, right: State) -> dict[str, pa.Array]:
    return {name: pc.add(left[name], right[name]) for name in left}


def divide(state: State) -> pa.Array:
    weight = state["weight"]
    return pc.divide(state["total"], pc.if_else(pc.equal(weight, 0), None, weight))


def weighted_mean(merge: Callable[..., Any] | None = None, **options: Any) -> AggregateSpec:
    return ms.aggregate(
        "seq",
        col("seq") % 7,
        state={"total": float, "weight": float},
        init={"total": 0.0, "weight": 0.0},
        update=weigh,
        result=divide,
        type=float,
        merge=merge,
        **options,
    )


def keep_texts(state: State, groups: np.ndarray, texts: pa.Array) -> dict[str, list[Any]]:
    kept = [list(texts) for texts in state["texts"].to_pylist()]
    longest = state["longest"].to_pylist()
    for group, text in zip(groups.tolist(), texts.to_pylist(), strict=True):
        kept[group].append(text)
        if text is not None and (longest[group] is None or len(text) > len(longest[group])):
            longest[group] = text
    return {"longest": longest, "texts": kept}


def join_texts(left: State, right: State) -> dict[str, list[Any]]:
    pairs = zip(left["longest"].to_pylist(), right["longest"].to_pylist(), strict=True)
    return {
        "texts": [a + b for a, b in zip(left["texts"].to_pylist(), right["texts"].to_pylist(), strict=True)],
        "longest": [max((x for x in pair if x is not None), key=len, default=None) for pair in pairs],
    }


def texts(merge: Callable[..., Any] | None = None) -> AggregateSpec:
    """States of any type: a text that may be null, and a list."""
    return ms.aggregate(
        "s",
        state=pa.schema({"longest": pa.string(), "texts": pa.list_(pa.string())}),
        init={"longest": None, "texts": []},
        update=keep_texts,
        merge=merge,
        result=lambda state: pa.StructArray.from_arrays(list(state.values()), names=list(state)),
        type=pa.struct({"longest": pa.string(), "texts": pa.list_(pa.string())}),
    )


WEIGHTED = "sum(seq * (seq % 7)) {0} / nullif(sum(seq % 7) {0}, 0)"
TEXTS = "{'longest': first(s order by length(s) desc, seq) filter (s is not null), 'texts': list(s order by seq)}"


@settings(max_examples=40, deadline=None)
@given(streams(), st.sampled_from([(), ("k",)]), st.integers(1, 2))
def test_they_give_what_sql_gives_merged_or_not(steps: list[Step], keys: tuple[str, ...], parallelism: int) -> None:
    aggregates = [weighted_mean(), weighted_mean(add), weighted_mean(add, where="b"), texts(), texts(join_texts)]
    plain = WEIGHTED.format("")
    made = [plain, plain, WEIGHTED.format("filter (where b)"), TEXTS, TEXTS]
    run = Harness(spec_of(*aggregates, keys=keys), SCHEMA, parallelism).run(steps).finish()
    rows, _, _ = split_by_lateness(steps, 0)
    assert bag(rows_of(run.results())) == bag(by_sql(rows, keys, made))


SMALL = pa.schema({"k": pa.string(), "seq": pa.int64(), "s": pa.string(), "t": pa.int64()})
BATCH = pa.RecordBatch.from_pylist(
    [
        {"k": "ab"[n % 2], "seq": n, "s": "x" * (n % 4) if n % 3 else None, "t": n % 2 * 3 + n // 9 * SIZE}
        for n in range(18)
    ],
    schema=SMALL,
)


def test_they_keep_the_contract_of_operators() -> None:
    script = [BATCH, BARRIER, BATCH.slice(4), BARRIER, Watermark(SIZE), BARRIER, BATCH.slice(7)]
    found = check_operator(spec_of(weighted_mean(), weighted_mean(add), texts(), texts(join_texts)), script)["main"]
    assert len(found) == 4
    assert all(row["x0"] == row["x1"] and row["x2"] == row["x3"] for row in found)


def test_a_group_without_a_row_gives_the_result_of_the_beginning() -> None:
    counted = ms.aggregate(
        state={"n": int},
        init={"n": 100},
        update=lambda state, groups: {"n": np.asarray(state["n"]) + np.bincount(groups)},
        result=lambda state: state["n"],
        type=int,
        where=col("seq") < 0,
    )
    assert {row["x0"] for row in check_operator(spec_of(counted), [BATCH, BARRIER, BATCH])["main"]} == {100}


def made_of(**changes: Any) -> AggregateSpec:
    plain: dict[str, Any] = {
        "state": {"n": int},
        "init": {"n": 0},
        "update": lambda state, groups, values: {"n": np.asarray(state["n"]) + np.bincount(groups)},
        "result": lambda state: state["n"],
        "type": int,
    }
    return ms.aggregate("seq", **{**plain, **changes})


def fail(*arguments: Any) -> Any:
    raise ZeroDivisionError("of no use")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"update": fail},
            r"fail \(.*_user.py:\d+\) raised ZeroDivisionError: of no use, for 18 rows; .*0",
        ),
        ({"result": fail}, r"fail \(.*\) raised ZeroDivisionError: of no use$"),
        (
            {"update": lambda *_: None},
            r"must return a state, a dict of arrays with .* columns n: int64; got None",
        ),
        ({"update": lambda *_: {"m": [1]}}, r"exactly the columns n: int64; got \{'m': \[1\]\}"),
        (
            {"update": lambda *_: {"n": [1]}},
            r"as many values as there are groups, 4, as column 'n' .*, got 1",
        ),
        (
            {"update": lambda *_: {"n": ["x"] * 4}},
            r"an array of int64 as column 'n' of the state, got \['x'",
        ),
        ({"update": lambda *_: {"n": np.full(4, 1.5)}}, r"an array of int64 as column 'n' of the state.*1.5"),
        ({"result": lambda state: 7}, r"must return an array of int64 as a result, got 7 \(int\)"),
    ],
)
def test_faults_of_functions_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserCodeError, match=message):
        Harness(spec_of(made_of(**changes)), SMALL).run([BATCH]).finish()


def test_faults_of_merge_too_and_errors_raised_on_purpose_pass() -> None:
    with pytest.raises(UserCodeError, match=r"fail .* raised ZeroDivisionError: of no use$"):
        Harness(spec_of(made_of(merge=fail)), SMALL).run([BATCH, BATCH])

    def refuse(*arguments: Any) -> Any:
        raise DataError("not this row")

    with pytest.raises(DataError, match="not this row"):
        Harness(spec_of(made_of(update=refuse)), SMALL).run([BATCH])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": {}}, r"init=...\) takes a dict of where a group begins, with exactly the columns of the state, 'n'"),
        ({"init": {"n": "x"}}, r"init=...\): 'n' is int64 and cannot begin with 'x'"),
        ({"init": {"n": 1.5}}, r"init=...\): 'n' is int64 and cannot begin with 1.5: it would become 1"),
        ({"state": {}}, "the schema has no columns"),
        ({"state": {"n": "integer"}}, "'integer' is not a type"),
        (
            {"state": {"n": pa.decimal256(50)}, "init": {"n": 0}},
            r"state=...\), column 'n': state cannot hold values of type decimal256",
        ),
        ({"update": 3}, r"update=...\) takes a function, got 3"),
        (
            {"update": lambda state: state},
            r"with 3 arguments, the state, the groups .*; .* takes \(state\)",
        ),
        ({"merge": lambda: None}, r"merge=...\) calls its function with two arguments, states; .* takes \(\)"),
        ({"result": lambda: None}, r"result=...\) calls its function with one argument, the state; .* takes \(\)"),
        ({"type": "nothing"}, "'nothing' is not a type"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_written(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        made_of(**changes)


def test_arguments_are_checked_when_the_job_is_built() -> None:
    with pytest.raises(SchemaError, match="no column 'seq'"):
        made_of().type_in(pa.schema({"a": pa.int64()}))


def test_what_is_written_otherwise_is_another_aggregate() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"init": {"n": 1}},
        {"type": float},
        {"update": fail},
        {"merge": fail},
        {"result": fail},
        {"state": {"n": "int32"}},
    ]
    identities = [made_of(**change).identity() for change in changes]
    assert len(set(identities)) == len(changes)
    assert identities == [made_of(**change).identity() for change in changes]
