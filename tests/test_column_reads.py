"""Which columns a function reads: never one too few, whatever it does with its row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from millstream.operators.column_reads import columns_read
from millstream.operators.python import FlatMap, Map
from millstream.testing import check_operator

Row = dict[str, Any]


def twice(row: Row) -> Any:
    yield {"a": row["a"]}
    for _ in range(3):
        yield {"b": row["b"]}


def with_state(row: Row, state: Row) -> Any:
    state["n"] = state.get("n", 0) + row["n"]
    return {"k": row["k"], "n": state["n"]}


def gets(row: Row) -> Any:
    return row.get("a", 0) + row.get("b", None) + row.get("c")


def nested(row: Row) -> Any:
    return row["a"]["b"], row["c"].get("d"), "a" if row["e"] else "b"


def tried(row: Row) -> Any:
    try:
        return row["a"]
    except KeyError:
        raise ValueError("b") from None


def beside_others(row: Row, x: Any, y: Any) -> Any:
    z = y
    return y + row["a"], (x, row["b"]), z


class Method:
    def on_row(self, row: Row, ctx: Any) -> Iterator[Row]:
        self.total = row["amount"]
        yield {"user": row["user"], "ctx": ctx}


TOLD: list[tuple[Callable[..., Any], str, int]] = [
    (lambda row: row["x"] + 1, "x", 0),
    (twice, "a b", 0),
    (with_state, "k n", 0),
    (gets, "a b c", 0),
    (nested, "a c e", 0),
    (tried, "a", 0),
    (beside_others, "a b", 0),
    (lambda row: 1, "", 0),
    (Method.on_row, "amount user", 1),
    (Method().on_row, "amount user", 0),
    (functools.partial(with_state, state={}), "k n", 0),
    (functools.partial(lambda rate, row: row["q"] * rate, 1), "q", 0),
]


@pytest.mark.parametrize(("fn", "names", "argument"), TOLD, ids=range(len(TOLD)))
def test_functions_whose_code_tells(fn: Callable[..., Any], names: str, argument: int) -> None:
    assert columns_read([fn], argument) == frozenset(names.split())


def another_name(row: Row) -> Any:
    other = row
    return other["x"]


def changes(row: Row) -> Any:
    row["x"] += 1
    return row["x"]


def deletes(row: Row) -> Any:
    del row["a"]


def assigns(row: Row) -> Any:
    row = {"b": row["a"]}
    return row["b"]


def variable(row: Row) -> Any:
    name = "x"
    return row[name]


def method_kept(row: Row) -> Any:
    get = row.get
    return get("a")


def closure(row: Row) -> Any:
    def inner() -> Any:
        return row["a"]

    return inner()


def all_of_it(*row: Any) -> Any:
    return row[0]["x"]


def loop(row: Any) -> Any:
    for row in [row]:  # noqa: B020
        row["a"]


def matches(row: Row) -> Any:
    match row:
        case {"a": found}:
            return found


def sees(row: Row) -> Any:
    return locals()["row"]["a"], row["b"]


HIDDEN: list[Callable[..., Any]] = [
    lambda row: row,
    lambda row: {**row, "a": 1},
    dict,
    lambda row: row | {"a": 1},
    lambda row: "a" in row and row["a"],
    lambda row: row.pop("a"),
    lambda row: row.setdefault("a", 1),
    lambda row: row["a":"b"],
    lambda row: row[1],
    lambda row: f"{row}",
    len,
    lambda row: (row, row["a"]),
    lambda row: row.get("a" + suffix()),
    lambda row: row["a" + suffix()],
    lambda row: row.get(suffix(), "a"),
    lambda row: row.get(*["a"]),
    lambda row: max(row["a"], row["b"], key=row.get),
    lambda row: [row[name] for name in ("a", "b")],
    *(another_name, changes, deletes, assigns, variable, method_kept, closure, all_of_it, loop, matches, sees),
    str,
    functools.partial(int, base=10),
]


def suffix() -> str:
    return "x"


@pytest.mark.parametrize("fn", HIDDEN, ids=range(len(HIDDEN)))
def test_functions_whose_code_does_not(fn: Callable[..., Any]) -> None:
    assert columns_read([fn]) is None


def test_a_second_function_may_read_more() -> None:
    assert columns_read([lambda row: row["a"], lambda row: row["b"]]) == {"a", "b"}
    assert columns_read([lambda row: row["a"], lambda row: row]) is None


BATCH = pa.RecordBatch.from_pylist([{"a": n, "b": str(n), "c": [n]} for n in range(5)])


@pytest.mark.parametrize(
    ("fn", "needed"),
    [
        (lambda row: {"x": row["a"]}, {"a"}),
        (lambda row: {"x": row["a"] + len(row.get("b")) + row.get("nope", 0)}, {"a", "b"}),
        (lambda row: {"x": 1}, set()),
        (lambda row: {"x": len(row)}, {"a", "b", "c"}),
    ],
)
def test_only_these_columns_are_asked_for(fn: Callable[[Row], Any], needed: set[str]) -> None:
    for spec in (Map(fn, {"x": int}), FlatMap(lambda row: [fn(row)], {"x": int})):
        assert check_operator(spec, [BATCH])["main"] == [fn(row) for row in BATCH.to_pylist()]
    assert Map(fn, {"x": int}).columns_needed({}, [BATCH.schema]) == [needed]
