"""What expressions compute: functions over Arrow arrays, by name. Text and time have modules of their own.

A function takes Arrow arrays and scalars, at least one of them an array, and returns an array of that length.
It raises ``pa.ArrowInvalid`` for values it cannot take, ``pa.ArrowTypeError`` or ``pa.ArrowNotImplementedError``
for types it cannot take; the expression turns them into errors that name it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import plain_type, validity


@dataclass(frozen=True, slots=True)
class Function:
    """One function of expressions.

    Attributes:
        run: takes the arguments' values by position and the options by name.
        symbol: how it is written between its two arguments, or before its only one; "": as ``name(...)``.
        costly: whether evaluating it on fewer rows pays for picking those rows out first.
        hint: what to write instead when the types do not fit.
    """

    run: Callable[..., Any]
    symbol: str = ""
    costly: bool = False
    hint: str = ""


def is_number(type: pa.DataType) -> bool:
    """Whether values are integers or floating-point numbers."""
    return bool(pa.types.is_integer(type) or pa.types.is_floating(type))


def as_array(value: Any, length: int) -> pa.Array:
    """Return an array, or a scalar repeated."""
    return pa.repeat(value, length) if isinstance(value, pa.Scalar) else value


def as_float(value: Any) -> Any:
    """Return integers as float64, rounded to the nearest; Arrow's own conversion refuses those beyond 2**53."""
    return pc.cast(value, pa.float64(), safe=False) if pa.types.is_integer(value.type) else value


def meet(left: Any, right: Any) -> tuple[Any, Any]:
    """Bring two values to types that Arrow's kernels combine as SQL would.

    Integers meet floats as float64; a literal that is not negative meets uint64 as uint64; a literal integer meets
    a decimal as one of as many digits as it has; a literal time meets a column with or without a time zone as what
    the column is, both meaning UTC.
    """
    if pa.types.is_floating(left.type) or pa.types.is_floating(right.type):
        return as_float(left), as_float(right)
    left, right = _toward(left, right), _toward(right, left)
    _check_zones(left.type, right.type)
    return left, right


def _check_zones(a: pa.DataType, b: pa.DataType) -> None:
    # Arrow notices only when there are rows.
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b) and (a.tz is None) != (b.tz is None):
        raise pa.ArrowTypeError("one time has a time zone, the other has none: use .cast('timestamp[us, tz=UTC]')")


def same_text(*values: Any) -> list[Any] | None:
    """Return texts without dictionaries or views, large ones if one of them is; None if they are not all texts."""
    types = [plain_type(value.type) for value in values]
    known = [type for type in types if not pa.types.is_null(type)]
    if not known or not all(map(_is_string, known)):
        return None
    target = pa.large_string() if any(map(pa.types.is_large_string, known)) else pa.string()
    return [value if value.type.equals(target) else value.cast(target) for value in values]


def _is_string(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))


def _toward(value: Any, other: Any) -> Any:
    """Return a literal as its counterpart's type, where that is harmless."""
    if not isinstance(value, pa.Scalar) or not value.is_valid:
        return value
    types = pa.types
    if types.is_uint64(other.type) and types.is_signed_integer(value.type) and value.as_py() >= 0:
        return value.cast(pa.uint64())
    if types.is_decimal(other.type) and types.is_integer(value.type):
        digits = len(str(abs(value.as_py())))
        return value.cast(pa.decimal128(19 if digits < 19 else 20)).cast(pa.decimal128(digits))
    if types.is_timestamp(other.type) and types.is_timestamp(value.type):
        zone = other.type.tz
        return value if (zone is None) == (value.type.tz is None) else value.cast(pa.timestamp(value.type.unit, zone))
    return value


def alike(values: list[Any]) -> list[Any]:
    """Return values with each literal as what the first column among them is, where that is harmless."""
    column = next((value for value in values if isinstance(value, pa.Array) and not pa.types.is_null(value.type)), None)
    return values if column is None else [_toward(value, column) for value in values]


def common_type(values: list[Any]) -> pa.DataType:
    """Return the type that all values can be given without loss (integers and floats: float64).

    Raises:
        pa.ArrowTypeError: there is none.
    """
    found = pa.null()
    for value in values:
        if pa.types.is_null(found) or found.equals(value.type):
            found = value.type
        elif not pa.types.is_null(value.type):
            found = _wider(found, value.type)
    return found


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    if is_number(a) and is_number(b) and (pa.types.is_floating(a) or pa.types.is_floating(b)):
        return pa.float64()
    _check_zones(a, b)
    # coalesce knows Arrow's own rules, and fails where there is no common type.
    return pc.coalesce(pa.nulls(0, a), pa.nulls(0, b)).type


def convert(value: Any, type: pa.DataType) -> Any:
    """Cast; fails where a value would change, except that integers become the nearest float."""
    if value.type.equals(type):
        return value
    if pa.types.is_integer(value.type) and pa.types.is_decimal(type) and type.precision < 20 + type.scale <= 38:
        # Arrow refuses the narrower type even where every value fits.
        value = pc.cast(value, pa.decimal128(20 + type.scale, type.scale))
    safe = not (pa.types.is_integer(value.type) and pa.types.is_floating(type))
    return pc.cast(value, type, safe=safe)


# -- arithmetic ------------------------------------------------------------------------------------------------


def _kernel(name: str) -> Callable[..., Any]:
    run = getattr(pc, name)

    def apply(left: Any, right: Any) -> Any:
        return run(*meet(left, right))

    return apply


def _compare(name: str) -> Callable[..., Any]:
    run, on_numbers = getattr(pc, name), getattr(np, name)

    def apply(left: Any, right: Any) -> Any:
        texts = same_text(left, right)
        left, right = texts if texts else meet(left, right)
        types = (left.type, right.type)
        if any(map(pa.types.is_uint64, types)) and any(map(pa.types.is_signed_integer, types)):
            # Neither 64-bit type holds all values of the other.
            left, right = (pc.cast(value, pa.decimal128(20)) for value in (left, right))
        if _is_plain(left) and isinstance(right, pa.Scalar) and right.is_valid and right.type.equals(left.type):
            return _bits(on_numbers(numbers(left), right.as_py()))
        return run(left, right)

    return apply


def _is_plain(value: Any) -> bool:
    """Whether it is a column of numbers without a null: NumPy compares those with a literal in half of Arrow's time."""
    return isinstance(value, pa.Array) and is_number(value.type) and value.null_count == 0


def _bits(flags: npt.NDArray[np.bool_]) -> pa.Array:
    packed = pa.py_buffer(np.packbits(flags, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, packed], 0)


def join_texts(texts: list[Any]) -> Any:
    """Return texts one after the other, null where one is; they are of one type."""
    return pc.binary_join_element_wise(*texts, pa.scalar("", texts[0].type))


def _add(left: Any, right: Any) -> Any:
    texts = same_text(left, right)
    if texts:
        return join_texts(texts)
    return pc.add_checked(*meet(left, right))


def _divide(left: Any, right: Any) -> Any:
    if is_number(left.type) and is_number(right.type):
        return pc.divide(as_float(left), as_float(right))
    return pc.divide(*meet(left, right))


def _floor_divide(left: Any, right: Any) -> Any:
    return _divide_whole(left, right, remainder=False)


def _modulo(left: Any, right: Any) -> Any:
    return _divide_whole(left, right, remainder=True)


def _divide_whole(left: Any, right: Any, remainder: bool) -> Any:
    """Floor division and what it leaves, as in Python: NumPy does both faster than Arrow, by a literal 3 x."""
    left, right = meet(left, right)
    for value in (left, right):
        if not is_number(value.type) and not pa.types.is_null(value.type):
            raise pa.ArrowTypeError(f"{value.type} cannot be divided into whole parts")
    type = common_type([left, right])
    left, right = convert(left, type), convert(right, type)
    length = len(right) if isinstance(left, pa.Scalar) else len(left)
    if pa.types.is_null(type) or not _valid_scalar(left) or not _valid_scalar(right):
        return pa.nulls(length, type)
    dividend = as_array(left, length)
    if pa.types.is_floating(type):
        with np.errstate(all="ignore"):
            divide = np.remainder if remainder else np.floor_divide
            divisors = numbers(as_array(right, length))
            return with_nulls(divide(numbers(dividend), divisors), left, right, type)
    if isinstance(right, pa.Scalar):
        return _divide_by_literal(dividend, right.as_py(), remainder)
    return with_nulls(_divide_columns(dividend, right, remainder), left, right, type)


def _valid_scalar(value: Any) -> bool:
    return not isinstance(value, pa.Scalar) or value.is_valid


def _divide_by_literal(dividend: pa.Array, divisor: int, remainder: bool) -> pa.Array:
    if divisor == 0:
        if dividend.null_count < len(dividend):
            raise pa.ArrowInvalid("division by zero")
        return dividend
    values = numbers(dividend)
    if divisor == -1:
        zeros = np.zeros(len(values), values.dtype)
        return with_nulls(zeros, dividend, None, dividend.type) if remainder else pc.negate_checked(dividend)
    if divisor > 0 and len(values) and values.min() >= 0:
        # Without a sign there is nothing to round down, which is most of the work.
        values = values.view(f"u{values.dtype.itemsize}")
    by = values.dtype.type(divisor)
    result = np.floor_divide(values, by)
    if remainder:
        # In place: new memory costs more than the arithmetic.
        result *= by
        np.subtract(values, result, out=result)
    return with_nulls(result.view(dividend.type.to_pandas_dtype()), dividend, None, dividend.type)


def _divide_columns(dividend: pa.Array, divisor: pa.Array, remainder: bool) -> npt.NDArray[Any]:
    values, by = numbers(dividend), numbers(divisor)
    unknown = nulls_of(dividend, divisor)
    # What stands under a null is arbitrary and must not fail.
    by = by if unknown is None else np.where(unknown, by.dtype.type(1), by)
    if (by == 0).any():
        raise pa.ArrowInvalid("division by zero")
    if not remainder and np.issubdtype(by.dtype, np.signedinteger):
        overflows = (by == -1) & (values == np.iinfo(by.dtype).min)
        if (overflows if unknown is None else overflows & ~unknown).any():
            raise pa.ArrowInvalid("overflow")
    with np.errstate(all="ignore"):
        return np.asarray((np.remainder if remainder else np.floor_divide)(values, by))


def numbers(array: pa.Array) -> npt.NDArray[Any]:
    """Return numbers, or times as integers, without copying, shape (n,); what stands under nulls is arbitrary."""
    if not is_number(array.type):
        array = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    own = np.dtype(array.type.to_pandas_dtype())
    data = array.buffers()[1]
    if data is None or len(array) == 0:
        return np.zeros(len(array), own)
    return np.frombuffer(data, own, count=len(array), offset=array.offset * own.itemsize)


def nulls_of(*arrays: Any) -> npt.NDArray[np.bool_] | None:
    """Return which rows are null in any of the arrays; None: no row is."""
    valid = [validity(array) for array in arrays if isinstance(array, pa.Array) and array.null_count]
    return ~np.logical_and.reduce(valid) if valid else None


def with_nulls(values: npt.NDArray[Any], left: Any, right: Any, type: pa.DataType) -> pa.Array:
    """Return values as an array, null where one of the arguments is."""
    return pa.array(values, type, mask=nulls_of(left, right))


def _power(left: Any, right: Any) -> Any:
    return pc.power_checked(*meet(left, right))


# -- booleans and nulls ----------------------------------------------------------------------------------------


def _boolean(value: Any) -> Any:
    return value.cast(pa.bool_()) if pa.types.is_null(value.type) else value


def _and(left: Any, right: Any) -> Any:
    return pc.and_kleene(_boolean(left), _boolean(right))


def _or(left: Any, right: Any) -> Any:
    return pc.or_kleene(_boolean(left), _boolean(right))


def _not(value: Any) -> Any:
    return pc.invert(_boolean(value))


def _fill_null(value: Any, other: Any) -> Any:
    other = _toward(other, value)
    if isinstance(other, pa.Scalar) and is_number(value.type) and is_number(other.type):
        try:
            return pc.coalesce(value, other.cast(value.type))
        except pa.ArrowInvalid:
            pass  # the literal does not fit: the column becomes wider
    type = common_type([value, other])
    return pc.coalesce(convert(value, type), convert(other, type))


def _is_null(value: Any) -> Any:
    return pc.is_null(value)


def _is_in(value: Any, *, values: pa.Array) -> Any:
    """As SQL's IN: null when the value is null, or when it is not found and null is among the values."""
    known = values.drop_null()
    if pa.types.is_floating(value.type) or pa.types.is_floating(known.type):
        # Arrow looks for bits: -0.0 must be found as 0.0, and NaN, which equals nothing, must not.
        value, known = (pc.add(pc.cast(as_float(part), pa.float64()), 0.0) for part in (value, known))
        known = known.filter(pc.invert(pc.is_nan(known)))
    elif pa.types.is_timestamp(value.type) and pa.types.is_timestamp(known.type):
        known = known.cast(pa.timestamp(known.type.unit, value.type.tz))
    elif pa.types.is_null(known.type):
        known = known.cast(value.type)
    found = pc.is_in(value, value_set=known)
    if values.null_count:
        found = pc.if_else(found, found, pa.scalar(None, pa.bool_()))
    return pc.if_else(pc.is_valid(value), found, pa.scalar(None, pa.bool_())) if value.null_count else found


def _cast(value: Any, *, to: pa.DataType) -> Any:
    return convert(value, to)


_NUMBERS = "use .cast('int64') or .cast('float64') to make numbers of other columns; to times, add a timedelta(...)"
_COMPARE = "compare values of one kind: .cast(...) one side, or use datetime(...) for times"
_BOOLEANS = "& | and ~ take true/false on both sides; comparisons need parentheses, as in (a > 1) & (b < 2)"

FUNCTIONS: Final[dict[str, Function]] = {
    "add": Function(_add, "+", hint=_NUMBERS),
    "subtract": Function(_kernel("subtract_checked"), "-", hint=_NUMBERS),
    "multiply": Function(_kernel("multiply_checked"), "*", hint=_NUMBERS),
    "divide": Function(_divide, "/", hint=_NUMBERS),
    "floor_divide": Function(_floor_divide, "//", hint=_NUMBERS),
    "modulo": Function(_modulo, "%", hint=_NUMBERS),
    "power": Function(_power, "**", hint=_NUMBERS),
    "negate": Function(pc.negate_checked, "-", hint="only signed numbers have a negative: .cast('int64') it first"),
    "abs": Function(pc.abs_checked, hint=_NUMBERS),
    "equal": Function(_compare("equal"), "==", hint=_COMPARE),
    "not_equal": Function(_compare("not_equal"), "!=", hint=_COMPARE),
    "less": Function(_compare("less"), "<", hint=_COMPARE),
    "less_equal": Function(_compare("less_equal"), "<=", hint=_COMPARE),
    "greater": Function(_compare("greater"), ">", hint=_COMPARE),
    "greater_equal": Function(_compare("greater_equal"), ">=", hint=_COMPARE),
    "and": Function(_and, "&", hint=_BOOLEANS),
    "or": Function(_or, "|", hint=_BOOLEANS),
    "not": Function(_not, "~", hint=_BOOLEANS),
    "is_null": Function(_is_null),
    "is_not_null": Function(pc.is_valid),
    "fill_null": Function(_fill_null, hint="fill with a value of the column's own type"),
    "is_in": Function(_is_in, hint="list values of the column's own type"),
    "cast": Function(_cast, hint="there is no conversion between these types"),
}
