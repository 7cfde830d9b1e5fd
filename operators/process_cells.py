"""The states of a running ``Process``: Python objects by key slot, and what of them the next checkpoint must write.

Objects are what user code sees; bytes are made at barriers only, of what was touched.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from millstream.engine.codes import Ints
from millstream.engine.errors import JobError, StateMismatch
from millstream.engine.time import END_OF_TIME, START_OF_TIME, Duration, micros
from millstream.operators.packing import Unpackable, pack
from millstream.operators.process_states import PROCESSING, State, outside

NEVER: Final = END_OF_TIME
"""When state without a time to live expires."""


class _NoKey:
    """Stands for the slot where there is no key."""

    def __index__(self) -> int:
        outside()
        raise AssertionError


class At:
    """Where the calls of user code stand: the key, and the time.

    Attributes:
        slot: of the key.
        moment: the event time of the row or timer, microseconds; None: it has none.
        watermark: of the operator, before its timers have fired.
        now: processing time.
    """

    __slots__ = ("moment", "now", "slot", "watermark")

    def __init__(self) -> None:
        self.slot: Any = _NoKey()
        self.moment: int | None = None
        self.watermark = START_OF_TIME
        self.now = START_OF_TIME

    def leave(self) -> None:
        """No key's turn any more."""
        self.slot = _NoKey()

    def time(self, clock: str) -> int:
        """What a clock shows: the event time of the row, but never less than the watermark; or processing time."""
        if clock == PROCESSING:
            return self.now
        return self.watermark if self.moment is None else max(self.moment, self.watermark)

    def passed(self, clock: str) -> int:
        """What expires up to this time can be seen by no row any more."""
        return self.now if clock == PROCESSING else self.watermark


class Unkept(Exception):
    """A value cannot be kept.

    Attributes:
        slot: of its key.
    """

    def __init__(self, slot: int, what: str) -> None:
        super().__init__(what)
        self.slot = slot


Row = tuple[int, bool, str, bytes, bytes | None, int | None]
"""A row of the state table: slot, whether it says that the entry is gone, state, entry, value, when it expires."""


class Cells(ABC):
    """One state of all keys.

    Attributes:
        count: how many entries there were at the last barrier.
    """

    def __init__(self, name: str, state: State, at: At, clock: str) -> None:
        self.name = name
        self.shown = state.shown
        self.ttl = state.ttl
        self._accepted = state.accepted
        self._clock = clock
        self._at = at
        self.count = 0

    @abstractmethod
    def grow(self, slots: int) -> None:
        """Have room for slots 0..slots-1."""

    @abstractmethod
    def changes(self, into: list[Row]) -> set[int]:
        """Add a row for each entry that changed since the last call; return the slots that have one."""

    @abstractmethod
    def carry(self, slots: Iterable[int], without: set[int], into: list[Row]) -> None:
        """Add a row for each entry of these slots, but not of those ``without``; forget those that have expired."""

    @abstractmethod
    def restore(self, slot: int, entry: bytes, value: bytes, expires: int | None) -> None:
        """Take an entry back."""

    @abstractmethod
    def remove(self, slot: int, entry: bytes) -> None:
        """Take back that an entry is gone."""

    @abstractmethod
    def holds(self, slot: int) -> bool:
        """Whether a key has anything here."""

    @abstractmethod
    def compact(self, kept: list[int], moved: Ints) -> None:
        """Keep the slots ``kept`` (ascending), which become 0..n-1; nothing is unwritten."""

    def settle(self) -> None:
        """Everything has been restored."""

    def _deadline(self, ttl: int | None) -> int:
        """When something written now expires that lives so long."""
        return NEVER if ttl is None else min(self._at.time(self._clock) + ttl, NEVER)

    def _demand(self, value: Any) -> Any:
        """Return what was restored, if it is what the state now holds."""
        if self._accepted is not None and value.__class__ not in self._accepted:
            self._mismatch(f"{value!r} ({class_name(value)})")
        return value

    def _mismatch(self, found: str) -> NoReturn:
        raise StateMismatch(
            f"state {self.name!r} is now a {self.shown}, but in the checkpoint it is {found}: declare it as it was, or "
            "give the new state another name"
        )

    def _packed(self, value: Any, slot: int, what: str) -> bytes:
        try:
            return pack(value)
        except Unpackable as error:
            raise Unkept(slot, f"{what}: {error}") from None


@functools.lru_cache(64)
def lifetime(ttl: Duration) -> int:
    """Return how long something lives that is written with ``ttl=``, microseconds. Raises JobError if it is no time."""
    length = micros(ttl)
    if length == 0:
        raise JobError("ttl=0 would forget at once what is written: give a time such as ttl='1h'")
    return length


class _Absent:
    """Stands for a value that was never set."""


ABSENT: Final = _Absent()
"""What is there where no value is."""


def class_name(value: Any) -> str:
    """The name of a value's class, for errors."""
    return type(value).__name__
