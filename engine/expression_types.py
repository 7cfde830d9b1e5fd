"""Types and literals as users write them: ``int``, ``"int64"``, ``datetime(...)`` and their Arrow counterparts."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
from millstream.engine.errors import JobError

Schema: TypeAlias = pa.Schema | Mapping[str, Any]
"""Columns and their types as users write them: ``{"id": "int64", "name": str}``, or a ``pa.Schema``."""

_PYTHON_TYPES: Final[dict[type, pa.DataType]] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    datetime: pa.timestamp("us"),
    date: pa.date32(),
    timedelta: pa.duration("us"),
}

_NAMES: Final = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64"),
    *("string", "large_string", "binary", "date32"),
    *(f"{kind}[{unit}]" for kind in ("timestamp", "duration") for unit in ("s", "ms", "us", "ns")),
)
# Not Arrow's aliases, by which "float" has 32 bits.
_PYTHON_NAMES: Final = {python.__name__: arrow for python, arrow in _PYTHON_TYPES.items()}
_SHOWN: Final = 200
_TIMESTAMP: Final = re.compile(r"timestamp\[(s|ms|us|ns),\s*tz=([^\]]+)\]")
_DECIMAL: Final = re.compile(r"decimal(?:128)?\((\d+),\s*(\d+)\)")


def data_type(spec: Any) -> pa.DataType:
    """Return the Arrow type of a type as users write it.

    Args:
        spec: a ``pyarrow.DataType``, a name (``"int64"``, ``"timestamp[us]"``, ``"timestamp[us, tz=UTC]"``,
            ``"decimal(10, 2)"``), or one of the Python types bool, int, float, str, bytes, datetime, date, timedelta
            or its name: ``float`` and ``"float"`` have 64 bits.

    Raises:
        JobError: there is no such type.

    >>> data_type(int), data_type("timestamp[us]"), data_type("decimal(10, 2)")
    (DataType(int64), TimestampType(timestamp[us]), Decimal128Type(decimal128(10, 2)))
    """
    if isinstance(spec, pa.DataType):
        return spec
    if isinstance(spec, type) and spec in _PYTHON_TYPES:
        return _PYTHON_TYPES[spec]
    if isinstance(spec, str):
        if zoned := _TIMESTAMP.fullmatch(spec):
            return pa.timestamp(zoned[1], zoned[2])
        if decimal := _DECIMAL.fullmatch(spec):
            return pa.decimal128(int(decimal[1]), int(decimal[2]))
        if spec in _PYTHON_NAMES:
            return _PYTHON_NAMES[spec]
        if spec in _NAMES:
            return pa.type_for_alias(spec)
        raise JobError(f"{spec!r} is not a type{did_you_mean(spec, _NAMES)}; types are {', '.join(_NAMES)}")
    raise JobError(
        f"{spec!r} is not a type: write a name such as 'int64', a pyarrow type such as pa.int64(), or one of the "
        f"Python types {', '.join(known.__name__ for known in _PYTHON_TYPES)}"
    )


def schema_of(schema: Schema) -> pa.Schema:
    """Return a schema as users write it as a ``pa.Schema``.

    Raises:
        JobError: it has no columns, or one of the types is none.

    >>> schema_of({"id": int, "at": "timestamp[us]"}).types
    [DataType(int64), TimestampType(timestamp[us])]
    """
    if isinstance(schema, Mapping):
        schema = pa.schema([(name, data_type(type)) for name, type in schema.items()])
    if not isinstance(schema, pa.Schema):
        raise JobError(f"expected a schema such as {{'id': 'int64', 'name': str}} or a pa.Schema, got {schema!r}")
    if not schema.names:
        raise JobError("the schema has no columns; write one such as {'id': 'int64', 'name': str}")
    return schema


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question to append to an error, or nothing when no known name is close.

    >>> did_you_mean("prise", ["price", "auction"])
    " (did you mean 'price'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=2)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def plain_value(value: Any) -> Any:
    """Return a literal as a plain Python value: NumPy scalars unpacked, aware datetimes in UTC.

    Raises:
        JobError: the value cannot stand in an expression.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str, bytes, datetime, date, timedelta, Decimal)):
        if isinstance(value, datetime) and value.tzinfo is not None:
            value = value.astimezone(UTC)
        try:
            literal_scalar(value)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise JobError(f"{value!r} cannot stand in an expression: {error}") from error
        return value
    if hasattr(value, "then"):
        raise JobError(f"{value!r} has no value yet: go on with .then(...), as in {value!r}.then(1).otherwise(0)")
    raise JobError(
        f"{value!r} ({type(value).__name__}) cannot stand in an expression: use a str, int, float, bool, bytes, None, "
        "datetime, date, timedelta or Decimal, or compute the column in map_batches"
    )


def literal_scalar(value: Any) -> pa.Scalar:
    """Return a plain value as an Arrow scalar: int64 (uint64 when it must), float64, string, timestamp[us] ..."""
    if isinstance(value, datetime):
        return pa.scalar(value, pa.timestamp("us", "UTC" if value.tzinfo is not None else None))
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**64:
            raise OverflowError("it does not fit into 64 bits: write a Decimal")
        return pa.scalar(value, pa.int64() if value < 2**63 else pa.uint64())
    return pa.scalar(value)


def literal_text(value: Any) -> str:
    """Return the canonical text of a plain value; values that mean different things have different texts.

    >>> literal_text("it's"), literal_text(1), literal_text(1.0), literal_text(date(2024, 1, 31))
    ('"it\\'s"', '1', '1.0', "date('2024-01-31')")
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, datetime):
        return f"datetime('{value.isoformat()}')"
    if isinstance(value, date):
        return f"date('{value.isoformat()}')"
    if isinstance(value, timedelta):
        return f"timedelta(microseconds={value // timedelta(microseconds=1)})"
    return repr(value)


def shown_scalar(scalar: pa.Scalar) -> str:
    """Return a value for an error: shortened, and also when Python has no such value (times after the year 9999).

    >>> shown_scalar(pa.scalar(2**62, pa.timestamp("us")))
    '4611686018427387904 (timestamp[us])'
    """
    try:
        text = repr(scalar.as_py())
    except (ValueError, OverflowError):
        text = f"{scalar.value} ({scalar.type})"
    return shortened(text)


def shortened(text: str) -> str:
    """Return a text for an error: its beginning if it is long."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def option_text(value: Any) -> str:
    """Return the canonical text of an option of a function: a plain value, a type, or several of them."""
    if isinstance(value, pa.DataType):
        return str(value)
    if isinstance(value, pa.Array):
        return f"[{', '.join(literal_text(item) for item in value.to_pylist())}]"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(option_text(item) for item in value)}]"
    return literal_text(value)


def literal_array(values: list[Any]) -> pa.Array:
    """Return literals of one type as an array.

    Raises:
        JobError: one of them cannot stand in an expression, or their types differ.
    """
    plain = [plain_value(value) for value in values]
    scalars = [literal_scalar(value) for value in plain]
    types = {scalar.type for scalar in scalars if scalar.is_valid}
    if types == {pa.int64(), pa.float64()}:
        types = {pa.float64()}
    if len(types) > 1:
        raise JobError(f"expected values of one type, got {', '.join(sorted(map(str, types)))}: {plain!r}")
    return pa.array([scalar.as_py() for scalar in scalars], next(iter(types), pa.null()))
