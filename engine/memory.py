"""How much memory things hold: counted from the sizes of their arrays and buffers, never from their rows."""

from __future__ import annotations

import enum
import itertools
import re
import sys
import types
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa
from millstream.engine.errors import JobError

_SAMPLE: Final = 128
_DEEPEST: Final = 16
_MOST: Final = 20_000
_WITHOUT: Final = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    enum.Enum,
    pa.DataType,
    pa.Schema,
    pa.Field,
)
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


def parse_bytes(text: str | int) -> int:
    """Return a size in bytes.

    Raises:
        JobError: it is not a size above zero.

    >>> parse_bytes("2GB"), parse_bytes("1.5 MiB"), parse_bytes(1000)
    (2000000000, 1572864, 1000)
    """
    found = _SIZE.fullmatch(str(text))
    size = 0
    if found is not None:
        power = " kmgt".index(found[2].lower() or " ")
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** power)
    if size <= 0:
        raise JobError(f"{text!r} is not a size: give one such as 500MB, 2GB or 1.5GiB")
    return size


def bytes_held(thing: object) -> int:
    """Return about how many bytes of memory a value holds, what it refers to included.

    Arrays and buffers are counted exactly, each once however many slices of it there are; of a long list or dict a
    sample is looked at. What is shared and never changes (types, functions, sources, sinks, specs) counts nothing.

    >>> bytes_held({"a": np.zeros(1_000), "b": pa.array(range(1_000))}) // 1_000
    16
    """
    return _Walk().size(thing, 0)


def bytes_by_part(thing: object) -> dict[str, int]:
    """Return what each attribute of an object holds, without those that hold next to nothing.

    >>> class Counter:
    ...     def __init__(self) -> None:
    ...         self._keys, self._width = np.zeros(1_000), 3
    >>> bytes_by_part(Counter())
    {'keys': 8000}
    """
    walk = _Walk()
    sizes = {name.strip("_"): walk.size(value, 0) for name, value in _attributes(thing)}
    return {name: size for name, size in sizes.items() if size > _SMALL}


_SMALL: Final = 64


class _Walk:
    """One count; remembers what it has counted."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._buffers: set[int] = set()
        self._nothing = (*_WITHOUT, *_shared_types())

    def size(self, thing: Any, depth: int) -> int:
        if thing is None or isinstance(thing, self._nothing) or depth > _DEEPEST or len(self._seen) > _MOST:
            return 0
        if isinstance(thing, int | float | str | bytes | bytearray):
            return sys.getsizeof(thing)
        arrow = self._arrow(thing)
        if arrow is not None:
            return arrow
        if id(thing) in self._seen:
            return 0
        self._seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            return self._array(thing)
        if isinstance(thing, Mapping):
            # Not by items: the pairs would come and go, and one id stand for many of them.
            parts = (thing.keys(), thing.values())
            return sys.getsizeof(thing) + sum(self._sampled(part, len(thing), depth) for part in parts)
        if isinstance(thing, list | tuple | set | frozenset | deque):
            return sys.getsizeof(thing) + self._sampled(thing, len(thing), depth)
        # What can be called is code, a compiled kernel for example, with all of its compiler behind it.
        return 0 if callable(thing) else sum(self.size(value, depth + 1) for _, value in _attributes(thing))

    def _arrow(self, thing: Any) -> int | None:
        """Count an Arrow value by its buffers; the Python objects around them are made anew each time."""
        if isinstance(thing, pa.Buffer):
            return self._buffer(thing)
        if isinstance(thing, pa.Array):
            return sum(self._buffer(buffer) for buffer in thing.buffers() if buffer is not None)
        if isinstance(thing, pa.ChunkedArray):
            return sum(self._arrow(chunk) or 0 for chunk in thing.chunks)
        if isinstance(thing, pa.RecordBatch | pa.Table):
            return sum(self._arrow(column) or 0 for column in thing.columns)
        return None

    def _sampled(self, values: Any, count: int, depth: int) -> int:
        size = sum(self.size(value, depth + 1) for value in itertools.islice(values, _SAMPLE))
        return size if count <= _SAMPLE else size * count // _SAMPLE

    def _array(self, array: Any) -> int:
        while isinstance(array.base, np.ndarray):
            array = array.base
        at = int(array.__array_interface__["data"][0])
        return self._once(at, array.nbytes)

    def _buffer(self, buffer: Any) -> int:
        while buffer.parent is not None:
            buffer = buffer.parent
        return self._once(buffer.address, buffer.size)

    def _once(self, address: int, size: int) -> int:
        if address in self._buffers:
            return 0
        self._buffers.add(address)
        return int(size)


def _attributes(thing: object) -> list[tuple[str, Any]]:
    found = dict(vars(thing)) if hasattr(thing, "__dict__") else {}
    for cls in type(thing).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in found and not name.startswith("__") and hasattr(thing, name):
                found[name] = getattr(thing, name)
    return list(found.items())


def _shared_types() -> tuple[type, ...]:
    from millstream.engine.operator import OperatorSpec
    from millstream.engine.sink import Sink
    from millstream.engine.source import Source

    return OperatorSpec, Sink, Source
