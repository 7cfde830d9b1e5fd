"""What becomes of columns in ``select`` and the like: their names, event time, and the key of a changelog."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from millstream.engine.errors import SchemaError
from millstream.engine.expression import Expr, col
from millstream.engine.expression_tree import Alias


def renamed_key(key: tuple[str, ...] | None, exprs: Sequence[tuple[str, Expr]]) -> tuple[str, ...] | None:
    """Return a key under its new names; none if one of its columns is left out or computed anew.

    >>> renamed_key(("shop",), [("store", col("shop")), ("n", col("n") + 1)])
    ('store',)
    """
    moved = {expr.is_column(): name for name, expr in reversed(exprs)}
    if key is None or not set(key) <= moved.keys():
        return None
    return tuple(moved[column] for column in key)


def renamed_time(time: Expr | None, exprs: Sequence[tuple[str, Expr]]) -> Expr | None:
    """Return event time under its new names; none if one of its columns is left out or computed anew."""
    if time is None:
        return None
    moved = {expr.is_column(): col(name) for name, expr in reversed(exprs) if expr.is_column() is not None}
    if not time.columns() <= moved.keys():
        return None
    return time.substitute({name: to for name, to in moved.items() if name is not None})


def named_column(value: Any, where: str) -> tuple[str, Expr]:
    """Return a column with its name: a name by itself, a column, or an expression with an alias."""
    if isinstance(value, str):
        return value, col(value)
    if not isinstance(value, Expr):
        raise SchemaError(
            f"{where}() takes names of columns and expressions, separated by commas, such as 'id', col('price') * 2; "
            f"got {value!r}"
        )
    name = value.name if isinstance(value, Alias) else value.is_column()
    if name is None:
        raise SchemaError(f"{value} has no name: write {where}(name={value}) or add .alias('name')")
    return name, value
