"""What expressions compute: numbers, comparisons, booleans, nulls and choices, against Python and DuckDB."""

from __future__ import annotations

import datetime as dt
import math
import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from expression_kit import duck, plain, python, same, values
from hypothesis import example, given, settings
from hypothesis import strategies as st
from millstream.engine.errors import DataError
from millstream.engine.expression import Expr, call, col, lit, when

few = settings(max_examples=25, deadline=None)

a, b, c = col("a"), col("b"), col("c")
MIN, MAX = -(2**63), 2**63 - 1

edges = st.sampled_from([0, 1, -1, 2, -2, 7, -7, MIN, MIN + 1, MAX, MAX - 1, 2**53 + 1, 2**31])
ints = st.one_of(edges, st.integers(-1000, 1000), st.integers(MIN, MAX))
floats = st.one_of(st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1.5, -1.5, 5e-324]), st.floats())
texts = st.text(alphabet="aAbß/ %_éÄ日😀\u0301", max_size=6)
times = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999))


def pairs(left: Any, right: Any) -> Any:
    """Columns a and b, with nulls."""
    return st.lists(st.tuples(st.none() | left, st.none() | right), min_size=1, max_size=12).map(
        lambda rows: tuple(map(list, zip(*rows, strict=True)))
    )


WIDTHS = {
    pa.int8(): (-(2**7), 2**7 - 1),
    pa.int16(): (-(2**15), 2**15 - 1),
    pa.int32(): (-(2**31), 2**31 - 1),
    pa.int64(): (MIN, MAX),
    pa.uint8(): (0, 2**8 - 1),
    pa.uint16(): (0, 2**16 - 1),
    pa.uint32(): (0, 2**32 - 1),
    pa.uint64(): (0, 2**64 - 1),
}

# -- arithmetic ------------------------------------------------------------------------------------------------

EXACT = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]


@pytest.mark.parametrize("op", EXACT, ids=lambda op: op.__name__)
@few
@given(rows=pairs(ints, ints))
@example(rows=([MIN], [-1]))
@example(rows=([None, MIN, 5], [0, None, -3]))
def test_integers_are_exact_or_an_error(op: Callable[[Any, Any], Any], rows: tuple[list[Any], list[Any]]) -> None:
    left, right = (pa.array(column, pa.int64()) for column in rows)
    check_integers(op(a, b), op, rows, {"a": left, "b": right}, MIN, MAX)


@pytest.mark.parametrize("type", WIDTHS, ids=str)
@pytest.mark.parametrize("op", EXACT, ids=lambda op: op.__name__)
@few
@given(data=st.data())
def test_integers_of_every_width(op: Callable[[Any, Any], Any], type: pa.DataType, data: st.DataObject) -> None:
    low, high = WIDTHS[type]
    inside = st.sampled_from([low, high, 0, 1, 3]) | st.integers(low, high)
    rows = data.draw(pairs(inside, inside))
    left, right = (pa.array(column, type) for column in rows)
    check_integers(op(a, b), op, rows, {"a": left, "b": right}, low, high)


@pytest.mark.parametrize("op", EXACT, ids=lambda op: op.__name__)
@few
@given(column=st.lists(st.none() | ints, min_size=1, max_size=12), number=ints)
@example(column=[MIN, None], number=-1)
@example(column=[7, MAX, 0], number=3)
@example(column=[None], number=0)
def test_integers_with_a_literal(op: Callable[[Any, Any], Any], column: list[Any], number: int) -> None:
    arrays = {"a": pa.array(column, pa.int64())}
    check_integers(op(a, number), op, (column, [number] * len(column)), arrays, MIN, MAX)
    check_integers(op(number, a), op, ([number] * len(column), column), arrays, MIN, MAX)


def check_integers(expr: Expr, op: Any, rows: Any, arrays: dict[str, pa.Array], low: int, high: int) -> None:
    """Python's own result, or an error if a row has none that fits."""
    try:
        expected = python(op, *rows)
        fits = all(v is None or low <= v <= high for v in expected)
    except ZeroDivisionError:
        fits = False
    if fits:
        assert values(expr, **arrays) == expected
    else:
        with pytest.raises(DataError, match=r"overflow|division by zero|divide by zero"):
            values(expr, **arrays)


FLOATS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


@pytest.mark.parametrize("name", FLOATS)
@few
@given(rows=pairs(floats, floats))
def test_floats_follow_ieee(name: str, rows: tuple[list[Any], list[Any]]) -> None:
    left, right = (pa.array(column, pa.float64()) for column in rows)
    same(values(FLOATS[name](a, b), a=left, b=right), python(FLOATS[name], *rows))


def ieee_divide(left: float, right: float) -> float:
    if right:
        return left / right
    return math.nan if math.isnan(left) or not left else math.copysign(math.inf, left) * math.copysign(1, right)


@few
@given(rows=pairs(floats | st.integers(-(2**53), 2**53).map(float), floats))
def test_division_is_ieees(rows: tuple[list[Any], list[Any]]) -> None:
    left, right = (pa.array(column, pa.float64()) for column in rows)
    same(values(a / b, a=left, b=right), python(ieee_divide, *rows))


@few
@given(rows=pairs(ints, ints))
def test_dividing_integers_gives_floats_as_in_duckdb(rows: tuple[list[Any], list[Any]]) -> None:
    left, right = (pa.array(column, pa.int64()) for column in rows)
    expected = python(lambda x, y: ieee_divide(float(x), float(y)), *rows)
    same(values(a / b, a=left, b=right), expected)
    valid = [y != 0 for y in rows[1]]
    in_sql = duck("a / b", a=left, b=right)
    assert [plain(v) for v, ok in zip(in_sql, valid, strict=True) if ok] == [
        plain(v) for v, ok in zip(expected, valid, strict=True) if ok
    ]


@pytest.mark.parametrize("op", [operator.floordiv, operator.mod], ids=lambda op: op.__name__)
@few
@given(rows=pairs(floats, floats.filter(bool)))
def test_floor_division_and_modulo_of_floats_are_pythons(op: Any, rows: tuple[list[Any], list[Any]]) -> None:
    left, right = (pa.array(column, pa.float64()) for column in rows)
    same(values(op(a, b), a=left, b=right), python(op, *rows))
    for divisor in filter(None, rows[1]):
        same(values(op(a, divisor), a=left), python(lambda x, d=divisor: op(x, d), rows[0]))


def test_signs_of_division_and_modulo() -> None:
    assert values(a // 2, a=[7, -7]) == [3, -4]
    assert values(a % 2, a=[7, -7]) == [1, 1]
    assert values(a // -2, a=[7, -7]) == [-4, 3]
    assert values(a % -2, a=[7, -7]) == [-1, -1]
    same(values(a / 0, a=[1, -1, 0, None]), [math.inf, -math.inf, math.nan, None])
    same(values(a % 0, a=[1.0]), [math.nan])


def test_what_stands_under_a_null_never_fails() -> None:
    hidden = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\x02"), pa.array([0, 3]).buffers()[1]])
    assert hidden.to_pylist() == [None, 3]
    assert values(7 // a, a=hidden) == [None, 2]
    assert values(7 % a, a=hidden) == [None, 1]
    assert values(b // a, a=hidden, b=[MIN, MIN]) == [None, MIN // 3]


@few
@given(st.lists(st.none() | ints, min_size=1))
def test_negate_and_abs(column: list[Any]) -> None:
    array = pa.array(column, pa.int64())
    for expr, op in ((-a, operator.neg), (abs(a), abs), (a.abs(), abs)):
        if MIN in column:
            with pytest.raises(DataError, match="overflow"):
                values(expr, a=array)
        else:
            assert values(expr, a=array) == python(op, column)


def test_powers() -> None:
    assert values(a**2, a=[3, -3, None]) == [9, 9, None]
    assert values(2**a, a=[0, 10]) == [1, 1024]
    same(values(a**0.5, a=[4, -1]), [2.0, math.nan])
    with pytest.raises(DataError, match="overflow; first where a = 4000000000"):
        values(a**3, a=[1, 4_000_000_000])


MIXED = [
    (pa.int8(), 100, pa.int64()),  # a literal has 64 bits
    (pa.int32(), 2**31, pa.int64()),
    (pa.uint64(), 1, pa.uint64()),
    (pa.int64(), 0.5, pa.float64()),
    (pa.float32(), 0.5, pa.float64()),
    (pa.decimal128(20, 2), 2, pa.decimal128(22, 2)),  # not 20 + 19 digits, which is more than there are
]


@pytest.mark.parametrize(("type", "literal", "expected"), MIXED, ids=str)
def test_types_of_a_column_and_a_literal(type: pa.DataType, literal: Any, expected: pa.DataType) -> None:
    assert (a * literal).type_in(pa.schema({"a": type})) == expected


def test_decimals_stay_exact() -> None:
    price = pa.array([Decimal("1.10"), Decimal("-2.25"), None], pa.decimal128(18, 2))
    assert values(a * 3, a=price) == [Decimal("3.30"), Decimal("-6.75"), None]
    assert values(a + 1, a=price) == [Decimal("2.10"), Decimal("-1.25"), None]
    assert values(a - a, a=price) == [Decimal(0), Decimal(0), None]
    assert values(a > 1, a=price) == [True, False, None]
    assert values(a.fill_null(0), a=price) == [Decimal("1.10"), Decimal("-2.25"), Decimal(0)]
    assert values(a.is_in([Decimal("1.1")]), a=price) == [True, False, None]
    assert values(a / 2, a=price) == [Decimal("0.55"), Decimal("-1.125"), None]
    with pytest.raises(DataError, match="Divide by zero; first where a = Decimal"):
        values(a / 0, a=price)


def test_times_and_durations() -> None:
    at = [dt.datetime(1969, 12, 31, 23, 59, 59, 1), dt.datetime(2024, 2, 29), None]
    second = dt.timedelta(seconds=1)
    assert values(a + second, a=at) == python(lambda t: t + second, at)
    assert values(a - second, a=at) == python(lambda t: t - second, at)
    assert values(a - dt.datetime(1970, 1, 1), a=at) == python(lambda t: t - dt.datetime(1970, 1, 1), at)
    assert values((a - b) / second, a=[at[1]], b=[at[0]]) == [(at[1] - at[0]) / second]
    days = [dt.date(1969, 12, 31), None]
    assert values(a - b, a=days, b=[dt.date(1970, 1, 2), None]) == [dt.timedelta(days=-2), None]


# -- comparisons -----------------------------------------------------------------------------------------------

COMPARISONS = [operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]
KINDS = {
    "int64": (ints, pa.int64(), ints, pa.int64()),
    "uint64 and int64": (st.integers(0, 2**64 - 1) | st.just(0), pa.uint64(), ints, pa.int64()),
    "int8 and uint64": (st.integers(-128, 127), pa.int8(), st.integers(0, 2**64 - 1), pa.uint64()),
    "floats": (floats, pa.float64(), floats, pa.float64()),
    "text": (texts, pa.string(), texts, pa.large_string()),
    "text in dictionaries": (texts, pa.dictionary(pa.int32(), pa.string()), texts, pa.string_view()),
    "bytes": (st.binary(max_size=3), pa.binary(), st.binary(max_size=3), pa.binary()),
    "booleans": (st.booleans(), pa.bool_(), st.booleans(), pa.bool_()),
    "times": (times, pa.timestamp("us"), times, pa.timestamp("us")),
    "days": (st.dates(), pa.date32(), st.dates(), pa.date32()),
}


@pytest.mark.parametrize("kind", KINDS)
@few
@given(data=st.data())
def test_comparisons_are_pythons_and_null_where_a_side_is(kind: str, data: st.DataObject) -> None:
    left, left_type, right, right_type = KINDS[kind]
    rows = data.draw(pairs(left, right))
    arrays = {"a": array_of(rows[0], left_type), "b": array_of(rows[1], right_type)}
    for op in COMPARISONS:
        assert values(op(a, b), **arrays) == python(op, *rows)
    literal = next((v for v in rows[1] if v is not None), None)
    if literal is not None:
        for op in COMPARISONS:
            assert values(op(a, literal), a=arrays["a"]) == python(lambda v, op=op: op(v, literal), rows[0])
            assert values(op(literal, a), a=arrays["a"]) == python(lambda v, op=op: op(literal, v), rows[0])


def array_of(column: list[Any], type: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(type):
        return pa.array(column, type.value_type).dictionary_encode()
    return pa.array(column, type)


def test_a_literal_time_means_utc_with_and_without_a_zone() -> None:
    at = [dt.datetime(2024, 1, 1, 12), dt.datetime(2024, 1, 1, 13)]
    for zone in (None, "UTC", "Asia/Tokyo"):
        column = pa.array(at, pa.timestamp("us", zone)) if zone else pa.array(at)
        utc = dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC)
        for moment in (dt.datetime(2024, 1, 1, 12), utc, utc.astimezone(dt.timezone(dt.timedelta(hours=5)))):
            assert values(a > moment, a=column) == [False, True]
            assert values(a.is_in([moment]), a=column) == [True, False]
            filled = values(when(a > moment).then(a).otherwise(moment), a=column)
            assert [t.replace(tzinfo=None) if zone is None else t for t in filled] == column.to_pylist()


@few
@given(
    column=st.lists(st.none() | st.integers(-3, 3), min_size=1),
    known=st.lists(st.none() | st.integers(-3, 3), min_size=1),
)
def test_is_in_is_sqls(column: list[Any], known: list[Any]) -> None:
    array = pa.array(column, pa.int32())
    sql = ", ".join("NULL" if v is None else str(v) for v in known)
    assert values(a.is_in(known), a=array) == duck(f"a IN ({sql})", a=array)


@few
@given(pairs(floats, floats))
def test_is_in_finds_what_equals(rows: tuple[list[Any], list[Any]]) -> None:
    array = pa.array(rows[0], pa.float64())
    known = [v for v in rows[1] if v is not None]
    expected = python(lambda v: any(v == k for k in known), rows[0])
    assert values(a.is_in(known), a=array) == expected
    assert values(a.is_in([]), a=array) == python(lambda v: False, rows[0])


@few
@given(st.lists(st.tuples(*[st.none() | st.integers(-3, 3)] * 3), min_size=1))
def test_between_is_sqls(rows: list[tuple[Any, ...]]) -> None:
    columns = dict(zip("abc", (pa.array(column, pa.int64()) for column in zip(*rows, strict=True)), strict=True))
    assert values(a.between(b, c), **columns) == duck("a BETWEEN b AND c", **columns)


# -- booleans and nulls ----------------------------------------------------------------------------------------

LOGIC = [(x, y, z) for x in (True, False, None) for y in (True, False, None) for z in (True, False, None)]

formulas = st.recursive(
    st.sampled_from([(a, "a"), (b, "b"), (c, "c"), (lit(True), "true"), (lit(False), "false")]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: (p[0][0] & p[1][0], f"({p[0][1]} AND {p[1][1]})")),
        st.tuples(inner, inner).map(lambda p: (p[0][0] | p[1][0], f"({p[0][1]} OR {p[1][1]})")),
        st.tuples(inner, inner).map(lambda p: (p[0][0] == p[1][0], f"({p[0][1]} = {p[1][1]})")),
        inner.map(lambda p: (~p[0], f"(NOT {p[1]})")),
        inner.map(lambda p: (p[0].is_null(), f"({p[1]} IS NULL)")),
        inner.map(lambda p: (p[0].is_not_null(), f"({p[1]} IS NOT NULL)")),
        st.tuples(inner, inner).map(lambda p: (p[0][0].fill_null(p[1][0]), f"coalesce({p[0][1]}, {p[1][1]})")),
        st.tuples(inner, inner, inner).map(
            lambda p: (
                when(p[0][0]).then(p[1][0]).otherwise(p[2][0]),
                f"(CASE WHEN {p[0][1]} THEN {p[1][1]} ELSE {p[2][1]} END)",
            )
        ),
    ),
    max_leaves=8,
)


@few
@given(formulas)
def test_logic_with_three_values_is_sqls(formula: tuple[Expr, str]) -> None:
    expr, sql = formula
    columns = dict(zip("abc", (pa.array(column, pa.bool_()) for column in zip(*LOGIC, strict=True)), strict=True))
    assert values(expr, **columns) == duck(sql, **columns)


@pytest.mark.parametrize(
    ("column", "filled", "expected"),
    [
        (pa.array([1, None], pa.int8()), 2, (pa.int8(), [1, 2])),
        (pa.array([1, None], pa.int8()), 300, (pa.int64(), [1, 300])),
        (pa.array([1, None], pa.int8()), 1.5, (pa.float64(), [1.0, 1.5])),
        (pa.array([1.5, None], pa.float32()), 2, (pa.float32(), [1.5, 2.0])),
        (pa.array([2**64 - 1, None], pa.uint64()), 0, (pa.uint64(), [2**64 - 1, 0])),
        (pa.array(["x", None]), "", (pa.string(), ["x", ""])),
        (pa.array(["x", None]).dictionary_encode(), "y", (pa.string(), ["x", "y"])),
        (pa.array([None, None], pa.null()), 1, (pa.int64(), [1, 1])),
        (pa.array([dt.datetime(1960, 1, 1), None]), dt.datetime(1970, 1, 1), (pa.timestamp("us"), None)),
    ],
)
def test_fill_null(column: pa.Array, filled: Any, expected: tuple[pa.DataType, list[Any] | None]) -> None:
    assert a.fill_null(filled).type_in(pa.schema({"a": column.type})) == expected[0]
    got = values(a.fill_null(filled), a=column)
    assert got == (expected[1] or [column[0].as_py(), filled])


# -- choices ---------------------------------------------------------------------------------------------------


@few
@given(st.lists(st.tuples(st.none() | st.integers(-3, 3), st.none() | st.integers(-3, 3)), min_size=1))
def test_the_first_condition_that_is_true_decides(rows: list[tuple[Any, Any]]) -> None:
    columns = dict(zip("ab", (pa.array(column, pa.int64()) for column in zip(*rows, strict=True)), strict=True))
    expr = when(a > b).then("more").when(a == b).then("same").when(a.is_null() & b.is_null()).then("neither")
    sql = "CASE WHEN a > b THEN 'more' WHEN a = b THEN 'same' WHEN a IS NULL AND b IS NULL THEN 'neither'"
    assert values(expr, **columns) == duck(f"{sql} END", **columns)
    assert values(expr.otherwise("else"), **columns) == duck(f"{sql} ELSE 'else' END", **columns)
    guarded = when(b != 0).then(a // b).otherwise(-1)
    assert values(guarded, **columns) == [-1 if y is None or y == 0 else None if x is None else x // y for x, y in rows]


def test_a_guard_protects_what_stands_behind_it() -> None:
    columns = {"a": [4, 1, None, 9], "b": [2, 0, 0, None]}
    assert values((b != 0) & (a // b > 1), **columns) == [True, False, False, None]
    assert values((b == 0) | (a // b > 1), **columns) == [True, True, True, None]
    assert values(when(b == 0).then(None).otherwise(a // b), **columns) == [2, None, None, None]
    text = {"a": ["1", "x", None, "22"]}
    digits = a.str.matches("^[0-9]+$")
    assert values(when(digits).then(a.cast("int64")), **text) == [1, None, None, 22]
    assert values(digits & (a.cast("int64") > 1), **text) == [False, False, None, True]
    with pytest.raises(DataError, match="first where a = 1, b = 0"):
        values((a // b > 1) & (b != 0), **columns)


def test_branches_meet_in_one_type() -> None:
    assert values(when(a > 1).then(1).otherwise(2.5), a=[1, 2]) == [2.5, 1.0]
    narrow = {"a": pa.array([1, 2], pa.int32()), "b": pa.array([7, 8], pa.uint8())}
    assert when(a > 1).then(a).otherwise(b).type_in(pa.schema({"a": pa.int32(), "b": pa.uint8()})) == pa.int32()
    assert values(when(a > 1).then(a).otherwise(b), **narrow) == [7, 2]
    assert values(when(a > 1).then(None).otherwise(None).cast("string"), a=[1, 2]) == [None, None]
    assert values(when(True).then("x"), a=[1, 2]) == ["x", "x"]


# -- casts and kernels -----------------------------------------------------------------------------------------

CASTS: list[tuple[Any, Any, Any]] = [
    ([1, -1, None], "float64", [1.0, -1.0, None]),
    ([MAX], "float64", [float(MAX)]),
    ([1, 0, None], bool, [True, False, None]),
    ([1, None], str, ["1", None]),
    ([1.0, -2.0, None], "int64", [1, -2, None]),
    (["1", "-7", None], int, [1, -7, None]),
    (["1.5", "nan", "-0"], float, [1.5, math.nan, -0.0]),
    (["true", "0"], bool, [True, False]),
    (
        ["2024-01-31", "1960-01-01T00:00:00.5"],
        "timestamp[us]",
        [dt.datetime(2024, 1, 31), dt.datetime(1960, 1, 1, 0, 0, 0, 500000)],
    ),
    (["2024-01-31T12:00:00+02:00"], "timestamp[us, tz=UTC]", [dt.datetime(2024, 1, 31, 10, tzinfo=dt.UTC)]),
    (["1969-12-31"], dt.date, [dt.date(1969, 12, 31)]),
    ([-1], "timestamp[us]", [dt.datetime(1969, 12, 31, 23, 59, 59, 999999)]),
    ([dt.datetime(1969, 12, 31, 23, 59, 59, 999999)], int, [-1]),
    ([dt.date(1969, 12, 31)], "timestamp[us]", [dt.datetime(1969, 12, 31)]),
    ([dt.datetime(1969, 12, 31, 23)], "date32", [dt.date(1969, 12, 31)]),
    ([5, None], "decimal(10, 2)", [Decimal("5.00"), None]),
    ([1.25], "decimal(10, 2)", [Decimal("1.25")]),
    ([Decimal("1.50")], str, ["1.50"]),
    ([Decimal("2.00")], int, [2]),
    (["x", None], "binary", [b"x", None]),
    (["x", None], pa.large_string(), ["x", None]),
]


@pytest.mark.parametrize(("column", "type", "expected"), CASTS, ids=lambda v: str(v)[:30])
def test_casts(column: list[Any], type: Any, expected: list[Any]) -> None:
    same(values(a.cast(type), a=column), expected)


@pytest.mark.parametrize(
    ("column", "type", "why"),
    [
        ([1, 300], "int8", "300 not in range"),
        ([1.5], "int64", "truncated"),
        ([math.nan], "int64", "truncated"),
        (["1", "x"], "int64", "Failed to parse string: 'x'"),
        (["1", "1.5", "x"], "int64", "'1.5' as a scalar"),
        ([10**9], "decimal(10, 2)", "does not fit in precision 10"),
        ([dt.datetime(2024, 1, 1, 0, 0, 0, 1)], "timestamp[s]", "would lose data"),
        ([b"\xff"], "string", "Invalid UTF8"),
    ],
)
def test_a_cast_that_would_change_a_value_fails_and_shows_it(column: list[Any], type: Any, why: str) -> None:
    with pytest.raises(DataError) as error:
        values(a.cast(type), a=column)
    assert why in str(error.value)
    assert f"first where a = {next(v for v in column if v not in ('1', 1))!r}" in str(error.value)


@pytest.mark.parametrize(
    ("expr", "direct"),
    [
        (call("round", a, ndigits=1), lambda x: pc.round(x, ndigits=1)),
        (call("is_nan", a), pc.is_nan),
        (call("coalesce", a, 1.0), lambda x: pc.coalesce(x, 1.0)),
        (
            call("max_element_wise", a, lit(0.0), skip_nulls=False),
            lambda x: pc.max_element_wise(x, 0.0, skip_nulls=False),
        ),
        (call("if_else", a > 1, a, -a), lambda x: pc.if_else(pc.greater(x, 1), x, pc.negate(x))),
        (call("is_in", a, value_set=pa.array([1.25])), lambda x: pc.is_in(x, pa.array([1.25]))),
        (call("sqrt", call("abs", a)) + 1, lambda x: pc.add(pc.sqrt(pc.abs(x)), 1)),
    ],
    ids=lambda value: str(value) if isinstance(value, Expr) else "",
)
def test_kernels_by_name(expr: Expr, direct: Callable[[pa.Array], pa.Array]) -> None:
    column = pa.array([1.25, -2.55, None, 0.0])
    assert values(expr, a=column) == direct(column).to_pylist()
