"""Batches as rows for Python functions, and the dicts that functions return as batches again, column by column."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import numpy as np
import pyarrow as pa
from millstream.engine.errors import DataError
from millstream.engine.expression_types import shown_scalar
from millstream.operators.python_values import typed_array

MOST_ROWS: Final = 65_536
"""No batch of results is longer."""

_SHOWN: Final = 400
_MISFITS: Final = (pa.ArrowException, TypeError, ValueError, OverflowError)
_OFFSET: Final = re.compile(r"([+-])(\d\d):?(\d\d)")
_UNITS: Final = frozenset(["s", "ms", "us"])
_FIRST, _LAST = np.datetime64("0001-01-01T00:00:00", "us"), np.datetime64("9999-12-31T23:59:59.999999", "us")

Row = dict[str, Any]


def rows_as_dicts(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a batch, with these columns only.

    Raises:
        DataError: Python has no such value: a time after the year 9999, or one with nanoseconds.

    >>> list(rows_as_dicts(pa.record_batch({"a": [1, 2], "b": ["x", None]}), ["b"]))
    [{'b': 'x'}, {'b': None}]
    """
    columns = [values_of(batch.column(name), name) for name in names]
    # A dict display takes half as long as dict(zip(...)).
    match names:
        case []:
            return ({} for _ in range(batch.num_rows))
        case [a]:
            return ({a: x} for x in columns[0])
        case [a, b]:
            return ({a: x, b: y} for x, y in zip(*columns, strict=True))
        case [a, b, c]:
            return ({a: x, b: y, c: z} for x, y, z in zip(*columns, strict=True))
        case [a, b, c, d]:
            return ({a: w, b: x, c: y, d: z} for w, x, y, z in zip(*columns, strict=True))
    return (dict(zip(names, values, strict=False)) for values in zip(*columns, strict=True))


def values_of(array: pa.Array, name: str) -> list[Any]:
    """Return a column as Python values.

    Args:
        name: of the column, for the error.

    Raises:
        DataError: Python has no such value.
    """
    try:
        times = _times(array)
        values: list[Any] = array.to_pylist() if times is None else times
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"column {name!r} ({array.type}) has a value that Python cannot hold ({error}): leave the column out "
            "with drop(), or .cast(...) it, before a function sees it"
        ) from error
    return values


def _times(array: pa.Array) -> list[Any] | None:
    """Datetimes by way of NumPy, thirty times as fast as pyarrow's; None if the array has none, or unusual ones."""
    type = array.type
    if not pa.types.is_timestamp(type) or type.unit not in _UNITS or not len(array):
        return None
    values = array.cast(pa.timestamp("us", type.tz), safe=True).to_numpy(zero_copy_only=False)
    known = values[~np.isnat(values)] if array.null_count else values
    if len(known) and (known.min() < _FIRST or known.max() > _LAST):
        return None
    moments: list[dt.datetime | None] = values.tolist()
    if type.tz is None:
        return moments
    zone = zone_of(type.tz)
    if type.tz == "UTC":
        return [None if moment is None else moment.replace(tzinfo=zone) for moment in moments]
    return [None if moment is None else moment.replace(tzinfo=dt.UTC).astimezone(zone) for moment in moments]


def zone_of(name: str) -> dt.tzinfo:
    """Return the time zone of a timestamp type: a name, or an offset such as ``+02:00``.

    >>> zone_of("+02:00"), zone_of("Europe/Paris")
    (datetime.timezone(datetime.timedelta(seconds=7200)), zoneinfo.ZoneInfo(key='Europe/Paris'))
    """
    offset = _OFFSET.fullmatch(name)
    if offset is None:
        return zoneinfo.ZoneInfo(name)
    sign = -1 if offset[1] == "-" else 1
    return dt.timezone(sign * dt.timedelta(hours=int(offset[2]), minutes=int(offset[3])))


class BadRow(Exception):
    """What a function gave is no row of the schema; the text goes on from its name: "must return ...".

    Attributes:
        index: which of the results it is.
    """

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index


class RowCollector:
    """Makes batches of dicts.

    Args:
        schema: of the batches; the dicts have exactly these keys.
        verb: what functions do with their rows, for errors: ``"return"``, ``"yield"``.

    >>> collector = RowCollector(pa.schema({"a": pa.int64()}), "return")
    >>> collector.batch([{"a": 1}, {"a": None}]).column("a").to_pylist()
    [1, None]
    """

    def __init__(self, schema: pa.Schema, verb: str) -> None:
        self.schema = schema
        self._verb = verb
        self._names = frozenset(schema.names)
        self._columns = [(itemgetter(field.name), field.type) for field in schema]
        self._never_null = [index for index, field in enumerate(schema) if not field.nullable]

    def batch(self, results: Sequence[Any]) -> pa.RecordBatch:
        """Turn dicts into columns; what is wrong with them is looked for only once something is.

        Raises:
            BadRow: one of them does not fit; the first that does not.
        """
        arrays = self._arrays(results)
        if arrays is None or any(arrays[index].null_count for index in self._never_null):
            for index, result in enumerate(results):
                problem = self.problem(result)
                if problem:
                    raise BadRow(index, problem)
            arrays = [typed_array([result[field.name] for result in results], field.type) for field in self.schema]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _arrays(self, results: Sequence[Any]) -> list[pa.Array] | None:
        if set(map(type, results)) != {dict} or set(map(len, results)) != {len(self._columns)}:
            return None
        try:
            return [typed_array(list(map(get, results)), type) for get, type in self._columns]
        except (KeyError, *_MISFITS):
            return None

    def problem(self, result: Any) -> str:
        """Say what is wrong with a result; "" if nothing is."""
        if not isinstance(result, Mapping):
            hint = "; to leave rows out, use filter() or flat_map()" if result is None else ""
            return f"must {self._verb} a dict, got {shown(result)}{hint}"
        missing, extra = sorted(self._names - result.keys()), sorted(map(str, result.keys() - self._names))
        if missing or extra:
            lacks = f" lacks {', '.join(map(repr, missing))}" if missing else ""
            has = f" also has {', '.join(map(repr, extra))}" if extra else ""
            return (
                f"must {self._verb} a dict with exactly the keys {', '.join(map(repr, self.schema.names))}; "
                f"it{lacks}{' and' if lacks and has else ''}{has}: {shown(dict(result))}"
            )
        for field in self.schema:
            value = result[field.name]
            if value is None and not field.nullable:
                return f"must not {self._verb} None for {field.name!r}, which the schema says is never null"
            try:
                typed_array([value], field.type)
            except _MISFITS as error:
                why = short(str(error))
                return f"must {self._verb} {field.type} for {field.name!r}, got {shown(value)} ({why})"
        return ""


def shown_row(batch: pa.RecordBatch, index: int) -> str:
    """Return a row for an error, shortened."""
    values = (f"{name!r}: {shown_scalar(batch.column(name)[index])}" for name in batch.schema.names)
    return short(f"{{{', '.join(values)}}}")


def shown(value: Any) -> str:
    """Return a value for an error, shortened, with its type."""
    return short(f"{value!r} ({type(value).__name__})")


def short(text: str) -> str:
    """Return a text for an error, cut off where it gets long."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
