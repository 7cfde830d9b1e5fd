"""Evaluates expressions in every way the engine may, and asks DuckDB or Python what should come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import duckdb
import pyarrow as pa
from millstream.engine.errors import SchemaError
from millstream.engine.expression import Expr

_DUCKDB = duckdb.connect(config={"threads": 1})


def batch_of(columns: Mapping[str, Any]) -> pa.RecordBatch:
    arrays = {name: c if isinstance(c, pa.Array) else pa.array(c) for name, c in columns.items()}
    return pa.RecordBatch.from_pydict(arrays)


def values(expr: Expr, **columns: Any) -> list[Any]:
    """Return the values; the batch whole, in slices and empty must agree, and with the type known beforehand."""
    batch = batch_of(columns)
    type = expr.type_in(batch.schema)
    whole = expr.evaluate(batch)
    assert whole.type.equals(type), f"{expr}: {whole.type} came out where {type} was promised"
    whole.validate(full=True)
    rows: list[Any] = whole.to_pylist()
    assert len(rows) == batch.num_rows
    assert expr.evaluate(batch.slice(0, 0)).type.equals(type)
    middle = batch.num_rows // 2
    sliced = [expr.evaluate(part) for part in (batch.slice(0, middle), batch.slice(middle)) if part.num_rows]
    assert [plain(v) for part in sliced for v in part.to_pylist()] == [plain(v) for v in rows], f"{expr}, in slices"
    assert all(part.type.equals(type) for part in sliced)
    return rows


def duck(sql: str, **columns: Any) -> list[Any]:
    """Return the values of a SQL expression over the same columns."""
    rows = pa.Table.from_batches([batch_of(columns)])
    _DUCKDB.register("rows", rows)
    found = _DUCKDB.sql(f"SELECT ({sql}) FROM rows").fetchall()
    return [row[0] for row in found]


def python(function: Callable[..., Any], *columns: list[Any]) -> list[Any]:
    """Return the values of a Python function, null where an argument is."""
    return [None if any(v is None for v in row) else function(*row) for row in zip(*columns, strict=True)]


def plain(value: Any) -> Any:
    """Make floats comparable: NaN equals NaN, and 0.0 is not -0.0."""
    if isinstance(value, float):
        return ("float", "nan" if math.isnan(value) else repr(value))
    return value


def same(got: list[Any], expected: list[Any]) -> None:
    """Demand equal values of equal Python types."""
    assert [plain(v) for v in got] == [plain(v) for v in expected]
    assert [type(v) for v in got] == [type(v) for v in expected]


def refusal(expr: Expr, schema: Mapping[str, pa.DataType]) -> str:
    """Return what the user is told when the job is built."""
    try:
        found = expr.type_in(pa.schema(schema))
    except SchemaError as error:
        return str(error)
    raise AssertionError(f"{expr} was taken as {found}")
