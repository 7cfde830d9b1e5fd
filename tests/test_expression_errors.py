"""What is known before the first row: types, canonical texts, and what a user is told who wrote something else."""

from __future__ import annotations

import datetime as dt
import functools
import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from expression_kit import batch_of, refusal, values
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.expression import Expr, call, col, evaluate_all, lit, when
from millstream.engine.expression_methods import TextMethods, TimeMethods
from millstream.engine.expression_operators import Operators

a, b = col("a"), col("b")

# -- the type at build time is the type at run time -------------------------------------------------------------

COLUMNS: list[pa.Array] = [
    pa.array([True, None]),
    *(pa.array([3, None], type) for type in (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
    *(pa.array([3, None], type) for type in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
    *(pa.array([2.5, None], type) for type in (pa.float32(), pa.float64())),
    *(pa.array([Decimal("1.5"), None], type) for type in (pa.decimal128(5, 2), pa.decimal256(40, 2))),
    *(pa.array(["2024", None], type) for type in (pa.string(), pa.large_string())),
    pa.array(["2024", None]).dictionary_encode(),
    *(pa.array([b"x", None], type) for type in (pa.binary(), pa.large_binary(), pa.binary(1))),
    *(pa.array([86_400_000, None]).cast(pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
    *(pa.array([0, None]).cast(pa.timestamp("us", zone)) for zone in ("UTC", "Asia/Tokyo")),
    pa.array([dt.date(2024, 1, 1), None], pa.date32()),
    pa.array([dt.date(2024, 1, 1), None], pa.date64()),
    *(pa.array([dt.timedelta(seconds=1), None], pa.duration(unit)) for unit in ("s", "us")),
    pa.array([[1], None], pa.list_(pa.int64())),
    pa.array([{"x": 1}, None], pa.struct({"x": pa.int64()})),
    pa.nulls(2),
]

TEXT: dict[str, Expr] = {
    "lower": a.str.lower(),
    "upper": a.str.upper(),
    "length": a.str.length(),
    "count": a.str.count("x"),
    "contains": a.str.contains("x"),
    "matches": a.str.matches("x"),
    "like": a.str.like("x%"),
    "starts_with": a.str.starts_with("x"),
    "ends_with": a.str.ends_with("x"),
    "replace": a.str.replace("x", "y"),
    "replace_regex": a.str.replace_regex("x", "y"),
    "extract": a.str.extract("x"),
    "split_part": a.str.split_part("x", 1),
    "strip": a.str.strip(),
    "lstrip": a.str.lstrip("x"),
    "rstrip": a.str.rstrip("x"),
    "slice": a.str.slice(1),
    "concat": a.str.concat("x", b),
    "parse_time": a.str.parse_time("%Y"),
}
TIME: dict[str, Expr] = {
    **{name: getattr(a.dt, name)() for name in ("year", "month", "day", "hour", "minute", "second", "weekday")},
    "epoch_us": a.dt.epoch_us(),
    "date": a.dt.date(),
    "truncate": a.dt.truncate("1h"),
    "strftime": a.dt.strftime("%Y"),
}
PLAIN: dict[str, Expr] = {
    "abs": a.abs(),
    "cast": a.cast("string"),
    "is_null": a.is_null(),
    "is_not_null": a.is_not_null(),
    "fill_null": a.fill_null(b),
    "is_in": a.is_in([1, None]),
    "between": a.between(b, b),
}
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")
OTHERS: list[Any] = [b, 2, 2.5, 2**63, "2024", True, Decimal("1.5"), b"x", dt.datetime(2024, 1, 1), dt.date(2024, 1, 1)]
OTHERS += [dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.timedelta(seconds=1), lit(None)]


def every_expression() -> list[Expr]:
    exprs = [*TEXT.values(), *TIME.values(), *PLAIN.values(), -a, ~a, a.dt.truncate("month"), a.dt.truncate("day")]
    for name in BINARY:
        function = getattr(operator, name)
        exprs += [function(a, other) for other in OTHERS]
        # A text before a % is Python's own formatting.
        exprs += [function(other, a) for other in OTHERS if name != "mod" or not isinstance(other, (str, bytes))]
    for type in ("bool", "int8", "int64", "uint64", "float32", "float64", "binary", "date32", "timestamp[us]"):
        exprs += [a.cast(type), when(a.is_null()).then(a.cast(type)).otherwise(a)]
    exprs += [a.cast("decimal(20, 3)"), a.cast("timestamp[us, tz=UTC]"), a.cast("duration[us]")]
    for other in OTHERS:
        exprs += [a.fill_null(other), when(a.is_null()).then(other).otherwise(a), when(a == b).then(a).otherwise(other)]
    exprs += [a.is_in([other, None]) for other in OTHERS[1:-1]]
    return exprs


def failure(expr: Expr, rows: dict[str, pa.Array]) -> str:
    try:
        values(expr, **rows)
    except DataError as error:
        return str(error)
    return ""


def test_every_method_is_looked_at() -> None:
    def methods(of: type) -> set[str]:
        return {name for name, value in vars(of).items() if callable(value) and not name.startswith("_")}

    assert methods(TextMethods) == TEXT.keys()
    assert methods(TimeMethods) == TIME.keys()
    assert methods(Operators) == PLAIN.keys() | {"apply", "after"}


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.type))
def test_the_type_known_when_the_job_is_built_is_the_type_that_comes(column: pa.Array) -> None:
    taken = 0
    for expr in every_expression():
        rows = {"a": column, "b": column}
        schema = batch_of(rows).schema
        try:
            expr.type_in(schema)
        except SchemaError:
            with pytest.raises((SchemaError, DataError)):
                expr.evaluate(batch_of(rows))
            continue
        taken += 1
        problem = failure(expr, rows)
        # A null is never the reason, a value may be.
        assert not problem or ("first where a = " in problem and "first where a = None" not in problem)
    assert taken >= 5


# -- canonical texts --------------------------------------------------------------------------------------------


def test_different_meanings_have_different_texts() -> None:
    utc = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    literals = [1, 1.0, True, "1", b"1", "True", Decimal(1), Decimal("1.0"), None, "None", -0.0, 0.0, 0, float("nan")]
    literals += [utc, utc.replace(tzinfo=None), dt.date(2024, 1, 1), dt.timedelta(1), "a", "col('a')"]
    exprs = [lit(v) for v in literals] + [a, b, col("col('a')"), col("None"), col("a + b"), a + b, b + a, a - (a - b)]
    exprs += [a - a - b, -a, ~a, a.cast("int8"), a.cast("int16"), a.alias("x"), a.alias("y"), a.str.slice(1)]
    exprs += [a.str.slice(1, 1), a.str.extract("(?P<x>1)", 1), a.str.extract("(?P<x>1)", "x"), when(a).then(b)]
    exprs += [when(a).then(b).otherwise(a), a.is_in([1]), a.is_in([1.0]), a.is_in(["1"]), a.is_in([1, None])]
    exprs += [call("round", a), call("round", a, ndigits=1), call("abs", a), abs(a)]
    assert len({str(expr) for expr in exprs}) == len(exprs)
    assert all(expr.same_as(expr) and hash(expr) == hash(str(expr)) for expr in exprs)


def test_numpy_values_and_any_time_zone_are_the_same_literal() -> None:
    np = pytest.importorskip("numpy")
    assert str(a + np.int32(1)) == str(a + 1)
    east = dt.datetime(2024, 1, 1, 9, tzinfo=dt.timezone(dt.timedelta(hours=9)))
    assert str(a > east) == str(a > dt.datetime(2024, 1, 1, tzinfo=dt.UTC))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.none() | st.integers(-50, 50)] * 2), min_size=1))
def test_substituting_columns_is_computing_them_first(rows: list[tuple[Any, Any]]) -> None:
    columns = dict(zip("xy", (pa.array(column, pa.int64()) for column in zip(*rows, strict=True)), strict=True))
    x, y = col("x"), col("y")
    inner = {"a": x * 2, "b": when(y > 0).then(y)}
    outer = when(a.is_in([2, 4]) | (b < 3)).then(a - b).otherwise(call("max_element_wise", a, b)).alias("c")
    first = batch_of({name: expr.evaluate(batch_of(columns)) for name, expr in inner.items()})
    assert values(outer.substitute(inner), **columns) == outer.evaluate(first).to_pylist()
    assert outer.columns() == {"a", "b"}
    assert outer.substitute(inner).columns() == {"x", "y"}


def test_what_expressions_have_in_common_is_computed_once() -> None:
    batch = batch_of({"a": ["x", "yy"]})
    lower = a.str.lower()
    one, other = evaluate_all([lower, lower.alias("again")], batch)
    assert one is other


# -- what a user is told ----------------------------------------------------------------------------------------

SCHEMA = {"price": pa.int64(), "name": pa.string(), "paid": pa.bool_(), "at": pa.timestamp("us"), "day": pa.date32()}
SCHEMA["zoned"] = pa.timestamp("us", "UTC")
price, name, paid, at, day, zoned = map(col, SCHEMA)

TYPE_MISTAKES: list[tuple[Expr, list[str]]] = [
    (col("prise"), ["no column 'prise' (did you mean 'price'?)", "columns are: price, name, paid"]),
    (col("x") + price, ["no column 'x' (in (x + price))"]),
    (price + name, ["price is int64, name is string", ".cast('int64')"]),
    (price + "1", ["'1' is string"]),
    (at + 1, ["at is timestamp[us], 1 is int64", "timedelta(...)"]),
    (-name, ["(-name) does not fit its types: name is string", "only signed numbers"]),
    (at > "2024-01-01", ["'2024-01-01' is string", "datetime(...)"]),
    (price == "x", ["compare values of one kind"]),
    (paid == 1, ["paid is bool, 1 is int64"]),
    (zoned > at, ["zoned is timestamp[us, tz=UTC], at is timestamp[us]", "use .cast('timestamp[us, tz=UTC]')"]),
    (zoned - at, ["one time has a time zone, the other has none"]),
    (zoned.fill_null(at), ["one time has a time zone, the other has none", "column's own type"]),
    (when(paid).then(zoned).otherwise(at), ["one time has a time zone", "with .cast(...)"]),
    (price & paid, ["price is int64", "parentheses, as in (a > 1) & (b < 2)"]),
    (~price, ["& | and ~ take true/false"]),
    ((paid & price) == 1, ["in ((paid & price) == 1)"]),
    (name.fill_null(0), ["fill with a value of the column's own type"]),
    (price.is_in(["a"]), ["list values of the column's own type"]),
    (paid.cast("timestamp[us]"), ["there is no conversion between these types"]),
    (price.str.lower(), ["str.lower(price)", "price is int64", ".cast('string')"]),
    (name.dt.hour(), ["name is string", "use .cast('timestamp[us]')"]),
    (day.dt.hour(), ["day is date32", "use .cast('timestamp[us]') on dates"]),
    (day.dt.truncate("10s"), ["day is date32", "expected a timestamp"]),
    (at.dt.strftime("%H %Z"), ["timestamp[us] has no time zone to show"]),
    (at.cast("timestamp[s]").dt.truncate("1ms"), ["timestamp[s] cannot be cut to 1ms"]),
    (when(price).then(1), ["the condition is not a boolean", "when() takes what is true or false"]),
    (when(paid).then(1).otherwise("x"), ["1 is int64, 'x' is string", "values of one type"]),
    (call("round", price, digits=1), ["unexpected keyword argument 'digits'", "pyarrow.compute.round"]),
    (call("round", price, round_mode="sideways"), ["sideways", "pyarrow.compute.round"]),
    (call("utf8_length", price), ["pc.utf8_length(price)", "price is int64"]),
    (call("abs", price, price), ["takes 1 positional argument"]),
]


@pytest.mark.parametrize(("expr", "parts"), TYPE_MISTAKES, ids=lambda v: str(v)[:40] if isinstance(v, Expr) else "")
def test_mistakes_found_when_the_types_are_known(expr: Expr, parts: list[str]) -> None:
    message = refusal(expr, SCHEMA)
    for part in parts:
        assert part in message
    assert len(message) < 1000


WRITTEN_MISTAKES: list[tuple[Callable[[], Any], list[str]]] = [
    (lambda: (price > 1) and paid, ["(price > 1) has one value per row", "write & for and"]),
    (lambda: paid or price, ["| for or"]),
    (lambda: not paid, ["~ for not"]),
    (lambda: 1 < price < 3, ["(price > 1)", ".between(1, 9) for 1 <= x <= 9"]),
    (lambda: price > 1 & price < 3, ["(price > (1 & price))", "with parentheses around comparisons"]),
    (lambda: 1 if price > 1 else 2, ["when(...) for if"]),
    (lambda: max(price, at), ["neither true nor false"]),
    (lambda: price == None, ["price compared with None is null for every row", ".is_null()"]),  # noqa: E711
    (lambda: price != None, [".is_not_null()"]),  # noqa: E711
    (lambda: "x" in name, ["write .str.contains('x')", ".is_in([...])"]),
    (lambda: col(""), ["col() takes the name of a column, got ''"]),
    (lambda: col(price), ["col() takes the name of a column, got price"]),
    (lambda: lit([1]), ["[1] (list) cannot stand in an expression", "map_batches"]),
    (lambda: price + object, ["(type) cannot stand in an expression"]),
    (lambda: lit(when(paid)), ["when(paid) has no value yet", ".then(...)"]),
    (lambda: price * 2**70, ["1180591620717411303424 cannot stand in an expression", "64 bits: write a Decimal"]),
    (lambda: price * Decimal("1e99"), ["Decimal('1E+99') cannot stand in an expression"]),
    (lambda: at + dt.timedelta.max, ["cannot stand in an expression"]),
    (lambda: name == "\ud800", ["cannot stand in an expression"]),
    (lambda: price.is_in("abc"), ["is_in() takes a list of values, got 'abc'"]),
    (lambda: price.is_in(name), ["is_in() takes a list of values, got name"]),
    (lambda: price.is_in([1, "a"]), ["expected values of one type, got int64, string"]),
    (lambda: price.cast("intt"), ["'intt' is not a type (did you mean 'int8' or 'uint8'?)", "timestamp[us]"]),
    (lambda: price.cast(dict), ["is not a type", "Python types bool, int, float, str"]),
    (lambda: name.str.split_part("", 1), ["split_part() needs at least one character"]),
    (lambda: name.str.split_part("/", 0), ["split_part() counts parts from 1, got 0"]),
    (lambda: name.str.matches("("), ["'(' is not a regular expression (RE2", "missing )"]),
    (lambda: name.str.matches("(?=x)"), ["no look-around"]),
    (lambda: name.str.extract("(a)", 2), ["'(a)' has no group 2; its groups are 0 (everything) 1"]),
    (lambda: name.str.extract("(?P<x>a)", "y"), ["has no group 'y'", "0 (everything) x"]),
    (lambda: name.str.contains(price), ["contains() takes a str here, got price", "cannot come from a column"]),
    (lambda: name.str.count(""), ["count() needs at least one character"]),
    (lambda: at.dt.truncate("fortnight"), ["truncate() takes second, minute, hour", "got 'fortnight'"]),
    (lambda: at.dt.truncate("0s"), ["or a duration such as '10s', got '0s'"]),
    (lambda: at.dt.strftime("%Q"), ["%Q is not supported; known are %% %A"]),
    (lambda: call("roud", price), ["pyarrow.compute has no function 'roud' (did you mean 'round'"]),
    (lambda: call(1), ["has no function 1; call() takes the name of one"]),
    (lambda: call("sum", price), ["'sum' looks at more than one row"]),
    (lambda: call("cumulative_sum", price), ["would depend on the batches"]),
    (lambda: call("cast", price), ["is written x.cast('int64')"]),
    (lambda: call("random", price), ["other values after a restart"]),
    (lambda: call("abs"), ["call('abs') needs at least one expression"]),
]


@pytest.mark.parametrize(("write", "parts"), WRITTEN_MISTAKES, ids=lambda v: "" if isinstance(v, list) else None)
def test_mistakes_found_when_they_are_written(write: Callable[[], Any], parts: list[str]) -> None:
    with pytest.raises(JobError) as error:
        write()
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("attribute", "advice"),
    [
        ("upper", r"write \.str\.upper\(\.\.\.\)"),
        ("hour", r"write \.dt\.hour"),
        ("fil_null", "did you mean 'fill_null'"),
    ],
)
def test_methods_in_the_wrong_place(attribute: str, advice: str) -> None:
    with pytest.raises(AttributeError, match=advice):
        getattr(price, attribute)


def test_the_first_row_that_fails_is_shown_with_the_whole_expression() -> None:
    rows = {"a": list(range(10_000, 0, -1)), "b": ["x" * 500] * 10_000}
    expr = when(b == "x").then(0).otherwise(7 // (a - 17)) + 1
    with pytest.raises(DataError) as error:
        expr.evaluate(batch_of(rows))
    assert "(7 // (a - 17)): division by zero (in (when(" in str(error.value)
    assert f"first where a = 17, b = '{'x' * 100}" in str(error.value)
    assert len(str(error.value)) < 500


def test_an_expression_that_is_too_deep_is_told_so() -> None:
    expr = functools.reduce(operator.or_, [price == n for n in range(2000)])
    message = refusal(expr, SCHEMA)
    assert "nested too deeply" in message
    assert ".is_in([...])" in message


def test_a_batch_without_the_column_is_an_error_of_its_own() -> None:
    with pytest.raises(SchemaError, match=r"no column 'a'; the columns are: \['b'\]"):
        a.evaluate(batch_of({"b": [1]}))
