"""What a ``Process`` declares: state of each key (a value, a map, a list) and side outputs."""

from __future__ import annotations

import datetime as dt
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeAlias, TypeVar, overload

from millstream.engine.errors import JobError
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.time import Duration, micros
from millstream.operators.packing import ATOMS, Unpackable, pack

if TYPE_CHECKING:
    from millstream.operators.process_views import KeyedList, KeyedMap

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

Clock: TypeAlias = Literal["event", "processing"]

EVENT: Final = "event"
PROCESSING: Final = "processing"
CLOCKS: Final = (EVENT, PROCESSING)

_CLASS: Final = type
_KEY_TYPES: Final = (str, int, bytes, bool, dt.date)
_CONTAINERS: Final = frozenset([list, dict])


class State(ABC):
    """A declared state.

    Attributes:
        ttl: microseconds it lives after a write; None: for ever.
        clock: what ``ttl`` is measured by; None: event time where the stream has it.
        accepted: the classes of its values; None: all that can be kept.
    """

    accepted: frozenset[type] | None

    def __init__(self, ttl: Duration | None, clock: Clock | None) -> None:
        self.ttl = None if ttl is None else micros(ttl)
        self.clock = clock
        if self.ttl == 0:
            raise JobError("ttl=0 would forget a state at once: give it a time such as ttl='1h', or leave it out")
        if clock not in (None, *CLOCKS):
            raise JobError(f"clock={clock!r}: a time to live is measured by 'event' or by 'processing' time")

    @property
    @abstractmethod
    def shown(self) -> str:
        """How it was declared, for errors."""


class ValueState(State, Generic[T]):
    """One value of each key; as an attribute of ``self`` it is that value."""

    def __init__(
        self, type: Any, default: Any, ttl: Duration | None, clock: Clock | None, *, called: str = "value_state"
    ) -> None:
        super().__init__(ttl, clock)
        self._called = called
        self.type = type
        self.make_default: Callable[[], Any] | None = None
        self.default = default
        made = default
        if callable(default):
            self.make_default = default
            made = default()
        elif default.__class__ not in ATOMS:
            raise JobError(
                f"{self.shown}: all keys would share one {default.__class__.__name__}: write default=list or "
                "default=dict, which makes a new one for each key"
            )
        self.accepted = accepted_classes(type, self.shown)
        if self.accepted is not None and made is None:
            self.accepted |= {types.NoneType}
        if self.accepted is not None and made.__class__ not in self.accepted:
            raise JobError(f"{self.shown}: the default is {made!r}, which is no {_name(type)}")
        self.packed_default = _packed(made, self.shown)

    @property
    def shown(self) -> str:
        """As declared."""
        default = "" if self.default is None else f", default={getattr(self.default, '__name__', repr(self.default))}"
        return f"{self._called}({_name(self.type)}{default})"

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: Any = None) -> T: ...

    def __get__(self, instance: object, owner: Any = None) -> Any:
        """The value of the current key; only inside a job."""
        return self if instance is None else outside()

    def __set__(self, instance: object, value: T) -> None:
        """Set the value of the current key; only inside a job."""
        outside()


class MapState(State, Generic[K, V]):
    """A map of each key; as an attribute of ``self`` it is used like a dict."""

    def __init__(self, keys: Any, values: Any, ttl: Duration | None, clock: Clock | None) -> None:
        super().__init__(ttl, clock)
        self.keys, self.values = keys, values
        if keys not in _KEY_TYPES:
            allowed = ", ".join(type.__name__ for type in _KEY_TYPES)
            raise JobError(f"{self.shown}: the keys of a map are of one type, one of {allowed}")
        self.accepted = accepted_classes(values, self.shown)

    @property
    def shown(self) -> str:
        """As declared."""
        return f"map_state({_name(self.keys)}, {_name(self.values)})"

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: Any = None) -> KeyedMap[K, V]: ...

    def __get__(self, instance: object, owner: Any = None) -> Any:
        """The map of the current key; only inside a job."""
        return self if instance is None else outside()


class ListState(State, Generic[T]):
    """A list of each key; as an attribute of ``self`` it is used like a list."""

    def __init__(self, items: Any, ttl: Duration | None, clock: Clock | None) -> None:
        super().__init__(ttl, clock)
        self.items = items
        self.accepted = accepted_classes(items, self.shown)

    @property
    def shown(self) -> str:
        """As declared."""
        return f"list_state({_name(self.items)})"

    @overload
    def __get__(self, instance: None, owner: Any = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: Any = None) -> KeyedList[T]: ...

    def __get__(self, instance: object, owner: Any = None) -> Any:
        """The list of the current key; only inside a job."""
        return self if instance is None else outside()


class SideOutput:
    """A stream beside the result, with columns of its own."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema_of(schema)


@overload
def value_state(
    type: type[T], *, default: T | Callable[[], T], ttl: Duration | None = None, clock: Clock | None = None
) -> ValueState[T]: ...


@overload
def value_state(
    type: type[T], *, default: None = None, ttl: Duration | None = None, clock: Clock | None = None
) -> ValueState[T | None]: ...


@overload
def value_state(type: Any, *, default: Any = None, ttl: Duration | None = None, clock: Clock | None = None) -> Any: ...


def value_state(type: Any, *, default: Any = None, ttl: Duration | None = None, clock: Clock | None = None) -> Any:
    """Declare one value of each key, in the body of a ``Process``: ``self.total`` is then that of the row's key.

    Args:
        type: of the value: bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, list, dict, a union
            of such, or Any. Lists and dicts hold values of these types; what cannot be kept is refused, never changed.
        default: what a key has that was never given a value; a value, or a function that makes one, such as list. A
            value that equals it takes no room.
        ttl: how long a value lives after it was last written, as in ``"1h"``. Reading a list or dict counts as a write,
            since it may be changed in place. ``ctx.put("its name", value, ttl=...)`` writes one that lives otherwise.
        clock: measures each ``ttl``: ``"event"`` (the default where the stream has event time) or ``"processing"``.

    Raises:
        JobError: values of the type cannot be kept, or the default is not one of them.

    >>> value_state(float, default=0.0).shown
    'value_state(float, default=0.0)'
    """
    return ValueState(type, default, ttl, clock)


def map_state(
    keys: type[K], values: type[V], *, ttl: Duration | None = None, clock: Clock | None = None
) -> MapState[K, V]:
    """Declare a map of each key, in the body of a ``Process``: ``self.seen`` is then used like a dict.

    A checkpoint writes only the entries that changed. It is gone through in the order of its keys.

    Args:
        keys: str, int, bytes, bool or datetime.date.
        values: as for ``value_state``.
        ttl: how long an entry lives after it was last written; ``put(key, value, ttl=...)`` writes one that lives
            otherwise.
        clock: as for ``value_state``.

    >>> map_state(str, int, ttl="1h").ttl
    3600000000
    """
    return MapState(keys, values, ttl, clock)


def list_state(items: type[T], *, ttl: Duration | None = None, clock: Clock | None = None) -> ListState[T]:
    """Declare a list of each key, in the body of a ``Process``: ``self.last`` is then used like a list.

    A checkpoint writes only the items that were added or changed. Items are added at the end, taken out anywhere.

    Args:
        items: as the types for ``value_state``.
        ttl: how long an item lives after it was added; ``append(item, ttl=...)`` adds one that lives otherwise.
        clock: as for ``value_state``.

    >>> list_state(int).shown
    'list_state(int)'
    """
    return ListState(items, ttl, clock)


def side_output(schema: Schema) -> SideOutput:
    """Declare a stream beside the result, in the body of a ``Process``; ``ctx.emit("its name", {...})`` fills it.

    Args:
        schema: its columns, as in ``{"user": str, "amount": float}``.

    >>> side_output({"user": str}).schema.names
    ['user']
    """
    return SideOutput(schema)


def accepted_classes(type: Any, shown: str) -> frozenset[type] | None:
    """Return the classes of the values that fit a declared type; None: all that can be kept.

    Raises:
        JobError: values of the type cannot be kept.

    >>> sorted(c.__name__ for c in accepted_classes(float | None, "it"))
    ['NoneType', 'float', 'int']
    """
    if type is Any or type is object:
        return None
    if type is None:
        return frozenset([types.NoneType])
    origin = typing.get_origin(type)
    if origin in (typing.Union, types.UnionType):
        parts = [accepted_classes(part, shown) for part in typing.get_args(type)]
        return None if None in parts else frozenset().union(*(part for part in parts if part is not None))
    plain = origin or type
    if plain is float:
        return frozenset([float, int])
    if plain not in ATOMS | _CONTAINERS:
        raise JobError(
            f"{shown}: values of type {_name(type)} cannot be kept; use bool, int, float, str, bytes, datetime, date, "
            "time, timedelta, Decimal, list or dict"
        )
    return frozenset([plain])


def outside() -> Any:
    """Raise JobError: state belongs to a key."""
    raise JobError("state belongs to a key: it is there only in on_row() and on_timer(), while a job runs")


def _packed(value: Any, shown: str) -> bytes:
    try:
        return pack(value)
    except Unpackable as error:
        raise JobError(f"{shown}: the default: {error}") from None


def _name(type: Any) -> str:
    return type.__name__ if isinstance(type, _CLASS) and not typing.get_origin(type) else str(type)
