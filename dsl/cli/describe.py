"""Operators and exchanges in a few words."""

from __future__ import annotations

from millstream.engine.expression import Expr
from millstream.engine.graph import Node
from millstream.engine.operator import Exchange, ExchangeKind, OperatorSpec


def label(node: Node) -> str:
    """What a node is, and what it is called or does."""
    if not isinstance(node.body, OperatorSpec):
        return f"{node.kind} {node.name}"
    named = f"{node.name}: " if node.name != node.kind else ""
    return f"{node.kind} {named}{doing(node.body)}"


def doing(spec: OperatorSpec) -> str:
    """What an operator does, without its kind."""
    predicate, projection = spec.as_filter(), spec.as_projection()
    if predicate is not None:
        return bare(predicate)
    if projection is not None:
        return ", ".join(
            name if expr.is_column() == name else f"{name}={bare(expr)}" for name, expr in projection.items()
        )
    text = spec.describe()
    return text[len(spec.kind) + 1 : -1] if text.startswith(f"{spec.kind}(") and text.endswith(")") else text


def bare(expr: Expr) -> str:
    """An expression without brackets around the whole of it.

    >>> from millstream.engine.expression import col
    >>> bare(col("a") > 1), bare((col("a") + 1) * (col("b") + 1))
    ('a > 1', '(a + 1) * (b + 1)')
    """
    text = str(expr)
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1]


def exchange_text(exchange: Exchange) -> str:
    """How rows are spread over subtasks."""
    match exchange.kind:
        case ExchangeKind.HASH:
            return f"by hash of {', '.join(exchange.keys)}"
        case ExchangeKind.SINGLE:
            return "all to one"
        case ExchangeKind.BROADCAST:
            return "all to each, before the others"
        case ExchangeKind.FORWARD:
            return "as they come"


def shortened(text: str, most: int) -> str:
    """Cut a text that has more characters.

    >>> shortened("revenue", 5)
    'reve…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"
