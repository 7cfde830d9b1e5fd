"""Maps and lists of the current key, as user code sees them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any, TypeVar, overload

from millstream.engine.time import Duration
from millstream.operators.process_cells import ABSENT, lifetime
from millstream.operators.process_entries import EntryCells

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")


class KeyedMap(MutableMapping[K, V]):
    """The map of the current key. It is gone through in the order of its keys, which a restart does not change.

    Args:
        cells: the entries.
        key_type: what keys are.
    """

    def __init__(self, cells: EntryCells, key_type: type) -> None:
        self._cells = cells
        self._key_type = key_type

    def __getitem__(self, key: Any) -> Any:
        value = self._cells.find(key, ABSENT)
        if value is ABSENT:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self._check(key)
        self._cells.put(key, value)

    def put(self, key: K, value: V, *, ttl: Duration) -> None:
        """Set the value of a key, to live exactly so long, as in ``"10m"``."""
        self._check(key)
        self._cells.put(key, value, lifetime(ttl))

    def _check(self, key: Any) -> None:
        if key.__class__ is not self._key_type:
            cells = self._cells
            raise TypeError(f"state {cells.name!r} is a {cells.shown}, {key!r} ({type(key).__name__}) is no key of it")

    def __delitem__(self, key: Any) -> None:
        self[key]
        self._cells.delete(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(self._cells.entries()))

    def __len__(self) -> int:
        return len(self._cells.entries())

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or ``default``."""
        return self._cells.find(key, default)

    def __contains__(self, key: object) -> bool:
        return self._cells.find(key, ABSENT) is not ABSENT

    def clear(self) -> None:
        """Take out everything."""
        for key in list(self._cells.entries()):
            self._cells.delete(key)

    def __repr__(self) -> str:
        return repr(dict(self))


class KeyedList(Sequence[T]):
    """The list of the current key.

    Items are added at the end and taken out anywhere. Finding one by its index takes as long as the list is long.
    """

    def __init__(self, cells: EntryCells) -> None:
        self._cells = cells

    def append(self, item: T, *, ttl: Duration | None = None) -> None:
        """Add an item at the end.

        Args:
            ttl: how long it lives, exactly, as in ``"10m"``; without it as long as the state's items do.
        """
        self._cells.put(self._cells.next_number(), item, None if ttl is None else lifetime(ttl))

    def extend(self, items: Iterable[T], *, ttl: Duration | None = None) -> None:
        """Add items at the end; ``ttl`` as for ``append``."""
        for item in list(items):
            self.append(item, ttl=ttl)

    def pop(self, index: int = -1) -> T:
        """Take out an item and return it. Raises IndexError if there is none."""
        number = self._number(index)
        item: T = self._cells.find(number, None)
        self._cells.delete(number)
        return item

    def clear(self) -> None:
        """Take out everything."""
        del self[:]

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._cells.find(number, None) for number in list(self._cells.entries())[index]]
        return self._cells.find(self._number(index), None)

    def __setitem__(self, index: int, item: T) -> None:
        self._cells.put(self._number(index), item)

    def __delitem__(self, index: int | slice) -> None:
        numbers = list(self._cells.entries())[index] if isinstance(index, slice) else [self._number(index)]
        for number in numbers:
            self._cells.delete(number)

    def __iter__(self) -> Iterator[T]:
        return iter(self[:])

    def __len__(self) -> int:
        return len(self._cells.entries())

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, KeyedList) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def _number(self, index: int) -> int:
        numbers = self._cells.entries()
        if index == -1 and numbers:
            return int(next(reversed(numbers)))
        return int(list(numbers)[index])


def detached(value: Any) -> Any:
    """Return a value in which nothing is state any more: lists and dicts are copied, those of a key as plain ones.

    >>> kept = [1, [2]]
    >>> copy = detached({"a": kept})
    >>> kept[1].append(3)
    >>> copy
    {'a': [1, [2]]}
    """
    if isinstance(value, (list, KeyedList)):
        return [detached(item) for item in value]
    if isinstance(value, (dict, KeyedMap)):
        return {key: detached(item) for key, item in value.items()}
    return value
