"""Which row groups of a Parquet file hold no row that a filter lets through, by their statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from millstream.engine.expression_tree import Alias, Column, Expr, Literal, Operation

# Per comparison: whether no value between the lowest and the highest can satisfy it.
_NEVER: Final[Mapping[str, Callable[[Any, Any, Any], bool]]] = {
    "equal": lambda low, high, value: bool(value < low or value > high),
    "less": lambda low, _, value: bool(low >= value),
    "less_equal": lambda low, _, value: bool(low > value),
    "greater": lambda _, high, value: bool(high <= value),
    "greater_equal": lambda _, high, value: bool(high < value),
}
# Types whose statistics are bounds in the order that comparisons have. Those of floats leave NaN out, which comes
# after all numbers here; those of texts may be cut off, and are bounds nevertheless.
_ORDERED: Final = (pa.types.is_integer, pa.types.is_timestamp, pa.types.is_string, pa.types.is_large_string)
_TURNED: Final = {
    "equal": "equal",
    "less": "greater",
    "less_equal": "greater_equal",
    "greater": "less",
    "greater_equal": "less_equal",
}


class RowGroups:
    """The row groups of one file, as its footer describes them.

    Args:
        metadata: the footer.
        schema: the file's columns, as Arrow types.
    """

    def __init__(self, metadata: pq.FileMetaData, schema: pa.Schema) -> None:
        self._metadata = metadata
        self._types = {field.name: field.type for field in schema}
        self._index = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}

    def rows(self, group: int) -> int:
        """Return how many rows a group has."""
        return int(self._metadata.row_group(group).num_rows)

    def none_pass(self, group: int, predicate: Expr) -> bool:
        """Whether no row of the group can make the predicate true. No says nothing."""
        return any(self._never(group, part) for part in _conjuncts(predicate))

    def latest(self, group: int, column: str) -> int | None:
        """Return the highest value of a timestamp column in microseconds, rounded down; None if it is not known."""
        bounds = self._bounds(group, column)
        if bounds is None or not isinstance(self._types.get(column), pa.TimestampType):
            return None
        type_ = self._types[column]
        return int(pa.scalar(bounds[1], type_).cast(pa.timestamp("us", type_.tz), safe=False).value)

    def _never(self, group: int, part: Expr) -> bool:
        comparison = _comparison(part)
        if comparison is None:
            return False
        column, function, value = comparison
        bounds = self._bounds(group, column)
        if bounds is None:
            return False
        low, high = bounds
        return _comparable(low, value) and _comparable(high, value) and _NEVER[function](low, high, value)

    def _bounds(self, group: int, column: str) -> tuple[Any, Any] | None:
        index = self._index.get(column)
        type_ = self._types.get(column)
        if index is None or type_ is None or not any(is_ordered(type_) for is_ordered in _ORDERED):
            return None
        statistics = self._metadata.row_group(group).column(index).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        try:
            return statistics.min, statistics.max
        except (ValueError, OverflowError):  # a text cut off inside a character; a time that Python has no value for
            return None


def _conjuncts(predicate: Expr) -> Iterator[Expr]:
    if isinstance(predicate, Operation) and predicate.function == "and":
        for arg in predicate.args:
            yield from _conjuncts(arg)
    elif isinstance(predicate, Alias):
        yield from _conjuncts(predicate.expr)
    else:
        yield predicate


def _comparison(part: Expr) -> tuple[str, str, Any] | None:
    """Return column, function and value of ``column < value`` or ``value > column``."""
    if not isinstance(part, Operation) or part.function not in _NEVER or len(part.args) != 2:
        return None
    left, right = part.args
    if isinstance(left, Column) and isinstance(right, Literal):
        return left.name, part.function, right.value
    if isinstance(left, Literal) and isinstance(right, Column):
        return right.name, _TURNED[part.function], left.value
    return None


def _comparable(bound: Any, value: Any) -> bool:
    """Whether Python orders both as Arrow does: equal types, and both with a time zone or neither."""
    if isinstance(bound, bool) or isinstance(value, bool):
        return False
    if isinstance(bound, int):
        return isinstance(value, int)
    return type(bound) is type(value) and (getattr(bound, "tzinfo", None) is None) == (
        getattr(value, "tzinfo", None) is None
    )
