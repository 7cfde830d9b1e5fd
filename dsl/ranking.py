"""``top`` and ``deduplicate(keep="last")``: streams that take rows back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr, col
from millstream.engine.graph import Edge, Graph
from millstream.stream import Stream

Ranks: TypeAlias = str | Expr | Sequence[str | Expr]
Directions: TypeAlias = bool | Sequence[bool]


def ranks_of(n: int, by: Ranks, descending: Directions) -> tuple[tuple[Expr, bool], ...]:
    """Return what ``top(n, by=..., descending=...)`` ranks by: each expression, and whether the greatest comes first.

    >>> ranks_of(1, ["price", "date_time"], [True, False])
    ((price, True), (date_time, False))
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise JobError(f"top({n!r}, by=...): the number of rows must be a whole number, at least 1")
    columns = [by] if isinstance(by, (str, Expr)) else by
    valid = isinstance(columns, (list, tuple)) and all(isinstance(column, (str, Expr)) for column in columns)
    if not valid or not columns:
        raise JobError(
            f"top({n}, by={by!r}): by is a column's name, an expression such as col('price') * 2, or a list of these"
        )
    falling = [descending] * len(columns) if isinstance(descending, bool) else descending
    if not isinstance(falling, (list, tuple)) or not all(isinstance(down, bool) for down in falling):
        raise JobError(f"top({n}, descending={descending!r}): descending is True, False, or a list of these")
    if len(falling) != len(columns):
        raise JobError(
            f"top({n}): by= has {len(columns)} columns and descending= {len(falling)} values; give one value for each "
            "column, as in by=['price', 'date_time'], descending=[True, False], or one for all"
        )
    exprs = [col(column) if isinstance(column, str) else column for column in columns]
    return tuple(zip(exprs, falling, strict=True))


def changing_top(  # noqa: PLR0913  where both streams' methods end
    graph: Graph,
    edge: Edge,
    keys: tuple[str, ...],
    by: tuple[tuple[Expr, bool], ...],
    n: int,
    *,
    ties: bool = False,
    newest: bool = False,
    row_number: str | None = None,
    name: str | None = None,
    call: str = "top",
) -> Stream:
    """Return the changelog of the top rows of each key. A row taken back has its old time: there is no event time."""
    from millstream.operators.top import Top

    if row_number is not None and (not isinstance(row_number, str) or not row_number):
        raise JobError(f"{call}(row_number={row_number!r}): row_number is the name of the column to add")
    try:
        node = graph.operator(Top(keys, by, n, ties, newest, row_number), [edge], name)
    except SchemaError as error:
        raise SchemaError(f"{call}(): {error}") from None
    return Stream(graph, Edge(node.id), None)
