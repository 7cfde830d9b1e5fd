"""Expressions: what a user writes as ``col("price") * 2``, computed batch by batch with ``pyarrow.compute``.

An expression is an immutable tree. It has a type once it is given a schema, and a canonical text: two expressions
mean the same exactly if their texts are equal. Null behaves as in SQL: what is computed from null is null, save
for ``&`` and ``|`` (false & null is false), ``is_null`` and ``fill_null``.
"""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc
from millstream.engine.errors import JobError
from millstream.engine.expression_case import Case, When
from millstream.engine.expression_tree import Column, Expr, Kernel, Literal, as_expr, evaluate_all
from millstream.engine.expression_types import did_you_mean

__all__ = ["Case", "Expr", "Literal", "When", "call", "col", "evaluate_all", "lit", "when"]


def col(name: str) -> Expr:
    """Return the values of a column.

    >>> (col("price") * 0.908 > 1_000_000) & col("channel").is_not_null()
    (((price * 0.908) > 1000000) & is_not_null(channel))
    """
    if not isinstance(name, str) or not name:
        raise JobError(f"col() takes the name of a column, got {name!r}")
    return Column(name)


def lit(value: Any) -> Expr:
    """Return the same value for every row: a str, int, float, bool, bytes, None, datetime, date, timedelta or Decimal.

    A datetime with a time zone is stored as UTC; one without is taken as UTC where a column has a zone.

    >>> lit("a"), lit(1)
    ('a', 1)
    """
    return as_expr(value)


def when(condition: Any) -> When:
    """Begin a choice, as SQL's CASE: the first condition that is true decides; null counts as false.

    >>> when(col("price") < 100).then("low").when(col("price") < 1000).then("middle").otherwise("high")
    when((price < 100)).then('low').when((price < 1000)).then('middle').otherwise('high')
    """
    return When(as_expr(condition))


def call(kernel_name: str, *args: Any, **options: Any) -> Expr:
    """Call any function of ``pyarrow.compute`` that works row by row.

    Args:
        kernel_name: as in ``pyarrow.compute``.
        args: expressions or literals.
        options: the function's own.

    Raises:
        JobError: there is no such function, or its result would depend on how rows are cut into batches.

    >>> call("round", col("price"), ndigits=2)
    pc.round(price, ndigits=2)
    """
    known = [name for name in pc.list_functions() if hasattr(pc, name)]
    if kernel_name not in known:
        hint = did_you_mean(str(kernel_name), known)
        raise JobError(f"pyarrow.compute has no function {kernel_name!r}{hint}; call() takes the name of one")
    if kernel_name == "cast":
        raise JobError("call('cast', x, ...) is written x.cast('int64')")
    if kernel_name == "random":
        raise JobError("call('random') would give other values after a restart: compute them from a column instead")
    if pc.get_function(kernel_name).kind != "scalar":
        raise JobError(f"{kernel_name!r} looks at more than one row, so its result would depend on the batches")
    if not args:
        raise JobError(f"call({kernel_name!r}) needs at least one expression, as in call({kernel_name!r}, col('x'))")
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return Kernel(kernel_name, tuple(map(as_expr, args)), tuple(sorted(plain.items())))
