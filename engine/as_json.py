"""Values as JSON, for people and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON: times and decimals as text, bytes in hexadecimal, NaN and infinities as null.

    >>> as_json({"sum": Decimal(7), "price": Decimal("1.50"), "raw": b"\x01", "rate": float("nan")})
    '{"sum": 7, "price": "1.50", "raw": "01", "rate": null}'
    """
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False)


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal() if value.as_tuple().exponent == 0:
            return int(value)  # DuckDB's sums of integers come as decimals
        case bytes():
            return value.hex()
        case Mapping():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return str(value)
