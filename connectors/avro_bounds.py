"""Avro messages that decoding would not survive: found before fastavro, which takes them at their word.

A message of a few bytes may say that a list has a thousand million items which take no bytes, or be nested so deep that
the decoder's stack ends, and the process with it. Both need a schema that allows it; all others pay nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any, Final

from millstream.connectors.avro_types import AvroSchema

DEEPEST: Final = 400
"""How many lists, maps, unions and records may stand in each other."""
FREE_ITEMS: Final = 100
"""So many items of lists may take no bytes, and as many more as the message has bytes."""
DECIMAL: Final = "millstream-decimal"
"""The logical type of decimals that are read as ``decimal_of`` has it."""

_LONGEST_DECIMAL: Final = 1024
_EXACT: Final = Context(prec=3 * _LONGEST_DECIMAL)
_BYTES_OF: Final = {"null": 0, "boolean": 1, "float": 4, "double": 8}


class AvroBounds:
    r"""Walks over messages of one schema without decoding them.

    Args:
        schema: as fastavro parses it.
        names: the named types it is made of.

    >>> schema = {"type": "array", "items": "null"}
    >>> AvroBounds(schema, {}).check(b"\x80\x89\x7a\x00")
    Traceback (most recent call last):
    ValueError: it has lists of 1000000 items that take no bytes
    """

    def __init__(self, schema: AvroSchema, names: Mapping[str, AvroSchema]) -> None:
        self._schema = schema
        self._names = names
        self.needed = self._is_boundless(schema, ())

    def check(self, value: bytes) -> None:
        """Raise ValueError if a message says that it has more than can be there."""
        _Walk(value, self._names, self._is_empty).over(self._schema, 0, 0)

    def _is_boundless(self, schema: AvroSchema, within: tuple[str, ...]) -> bool:
        """Whether a type contains itself, or lists whose items take no bytes."""
        kind = _kind(schema)
        if kind == "union":
            return any(self._is_boundless(branch, within) for branch in schema)
        if kind == "array" and self._is_empty(schema["items"], ()):
            return True
        if kind in ("array", "map"):
            return self._is_boundless(schema["items" if kind == "array" else "values"], within)
        if kind in self._names:
            return kind in within or self._is_boundless(self._names[kind], within)
        if kind != "record":
            return False
        within = (*within, schema["name"])
        return any(self._is_boundless(field["type"], within) for field in schema["fields"])

    def _is_empty(self, schema: AvroSchema, within: tuple[str, ...] = ()) -> bool:
        """Whether values take no bytes; one that contains nothing but itself would take none."""
        kind = _kind(schema)
        if kind in self._names:
            return kind in within or self._is_empty(self._names[kind], within)
        if kind == "record":
            within = (*within, schema["name"])
            return all(self._is_empty(field["type"], within) for field in schema["fields"])
        return kind == "null" or (kind == "fixed" and not schema["size"])


class _Walk:
    def __init__(self, value: bytes, names: Mapping[str, AvroSchema], is_empty: Any) -> None:
        self._value = value
        self._names = names
        self._is_empty = is_empty
        self._free = 0

    def over(self, schema: AvroSchema, at: int, depth: int) -> int:
        """Return where a value ends that begins at a place."""
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} levels")
        kind = _kind(schema)
        if kind in self._names:
            return self.over(self._names[kind], at, depth)
        if kind == "union":
            branch, at = self._number(at)
            if not 0 <= branch < len(schema):
                raise ValueError(f"a union of {len(schema)} types has no type {branch}")
            return self.over(schema[branch], at, depth + 1)
        if kind == "record":
            for field in schema["fields"]:
                at = self.over(field["type"], at, depth + 1)
            return at
        if kind in ("array", "map"):
            return self._over_blocks(schema, kind, at, depth + 1)
        if kind in _BYTES_OF:
            return self._on(at, _BYTES_OF[kind])
        if kind == "fixed":
            return self._on(at, schema["size"])
        number, at = self._number(at)
        return self._on(at, number) if kind in ("bytes", "string") else at

    def _over_blocks(self, schema: AvroSchema, kind: str, at: int, depth: int) -> int:
        items = schema["items" if kind == "array" else "values"]
        takes_none = kind == "array" and self._is_empty(items)
        while True:
            count, at = self._number(at)
            if count < 0:
                count, (_, at) = -count, self._number(at)
            if count == 0:
                return at
            if takes_none:
                self._take_free(count)
                continue
            for _ in range(count):
                if kind == "map":
                    at = self.over("string", at, depth)
                at = self.over(items, at, depth)

    def _take_free(self, count: int) -> None:
        self._free += count
        if self._free > FREE_ITEMS + len(self._value):
            raise ValueError(f"it has lists of {self._free} items that take no bytes")

    def _on(self, at: int, count: int) -> int:
        if not 0 <= count <= len(self._value) - at:
            raise ValueError(f"{count} bytes should follow, and {len(self._value) - at} do")
        return at + count

    def _number(self, at: int) -> tuple[int, int]:
        number = 0
        for place, byte in enumerate(self._value[at : at + 10]):
            number |= (byte & 127) << 7 * place
            if byte < 128:
                return number >> 1 ^ -(number & 1), at + place + 1
        raise ValueError("a number does not end")


def _kind(schema: AvroSchema) -> str:
    if isinstance(schema, list):
        return "union"
    if isinstance(schema, str):
        return schema
    kind = schema["type"]
    if not isinstance(kind, str):
        return _kind(kind)
    return "record" if kind == "error" else kind


def read_decimals() -> None:
    """Let fastavro read the logical type ``DECIMAL``."""
    import fastavro.read

    for kind in ("bytes", "fixed"):
        fastavro.read.LOGICAL_READERS[f"{kind}-{DECIMAL}"] = decimal_of


def decimal_of(data: bytes, writer: AvroSchema, reader: AvroSchema = None) -> Decimal:
    """Return a decimal, of which all digits count; a long one would take time in the square of its length.

    >>> decimal_of(b"\\xff\\x83", {"precision": 5, "scale": 2})
    Decimal('-1.25')
    """
    del reader
    if len(data) > _LONGEST_DECIMAL:
        raise ValueError(f"a decimal has {len(data)} bytes, and at most {_LONGEST_DECIMAL} are read")
    return _EXACT.scaleb(Decimal(int.from_bytes(data, "big", signed=True)), -writer.get("scale", 0))
