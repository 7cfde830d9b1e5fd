"""Many entries of each key: those of a map by its keys, those of a list by numbers that grow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from millstream.engine.codes import Ints
from millstream.engine.time import START_OF_TIME
from millstream.operators.packing import ATOMS, pack, unpack
from millstream.operators.process_cells import NEVER, At, Cells, Row, class_name
from millstream.operators.process_states import ListState, MapState


class EntryCells(Cells):
    """Many entries by slot: of a map by its keys, of a list by numbers that grow."""

    def __init__(self, name: str, state: MapState[Any, Any] | ListState[Any], at: At, clock: str) -> None:
        super().__init__(name, state, at, clock)
        self._key_type = state.keys if isinstance(state, MapState) else int
        self._live: list[dict[Any, Any] | None] = []
        self._expires: list[dict[Any, int] | None] = []  # of the entries that do not live for ever
        self._dirty: dict[int, dict[Any, bool]] = {}  # by slot, by entry: whether the store may know an older value

    def grow(self, slots: int) -> None:
        """As ``Cells.grow``."""
        more = slots - len(self._live)
        self._live += [None] * more
        self._expires += [None] * more

    # -- what views of the current key use ---------------------------------------------------------------------

    def entries(self) -> dict[Any, Any]:
        """The entries of the current key that have not expired; to be read only."""
        held: dict[Any, Any] | None = self._live[self._at.slot]
        if held is None:
            return {}
        expires = self._expires[self._at.slot]
        if expires is None:
            return held
        now = self._at.time(self._clock)
        return {entry: value for entry, value in held.items() if expires.get(entry, NEVER) > now}

    def find(self, entry: Any, default: Any) -> Any:
        """Return the value of an entry, or ``default`` if there is none."""
        slot = self._at.slot
        held = self._live[slot]
        if held is None or entry not in held:
            return default
        expires = self._expires[slot]
        if expires is not None and expires.get(entry, NEVER) <= self._at.time(self._clock):
            return default
        value = held[entry]
        if value.__class__ not in ATOMS:  # it may be changed in place
            self._mark(slot, entry, known=True)
            if self.ttl is not None:
                self._prolong(slot, entry)
        return value

    def put(self, entry: Any, value: Any, ttl: int | None = None) -> None:
        """Set the value of an entry.

        Args:
            ttl: how long it lives, microseconds; None: as declared, and not shorter than before.
        """
        if self._accepted is not None and value.__class__ not in self._accepted:
            raise TypeError(f"state {self.name!r} is a {self.shown}, it cannot hold {value!r} ({class_name(value)})")
        slot = self._at.slot
        held = self._live[slot]
        if held is None:
            held = self._live[slot] = {}
        self._mark(slot, entry, known=entry in held)
        held[entry] = value
        if ttl is not None:
            self._expires_of(slot)[entry] = self._deadline(ttl)
        elif self.ttl is not None:
            self._prolong(slot, entry)
        elif (expires := self._expires[slot]) is not None:
            expires.pop(entry, None)

    def next_number(self) -> int:
        """A number greater than those of all entries."""
        held = self._live[self._at.slot]
        return next(reversed(held)) + 1 if held else 0

    def delete(self, entry: Any) -> None:
        """Take out an entry that is there."""
        slot = self._at.slot
        held, expires = self._live[slot], self._expires[slot]
        assert held is not None
        del held[entry]
        if expires is not None:
            expires.pop(entry, None)
        marks = self._dirty.setdefault(slot, {})
        if marks.get(entry, True):
            marks[entry] = True
        else:
            del marks[entry]

    def _mark(self, slot: int, entry: Any, *, known: bool) -> None:
        marks = self._dirty.get(slot)
        if marks is None:
            marks = self._dirty[slot] = {}
        marks.setdefault(entry, known)

    def _prolong(self, slot: int, entry: Any) -> None:
        expires = self._expires_of(slot)
        expires[entry] = max(expires.get(entry, START_OF_TIME), self._deadline(self.ttl))

    def _expires_of(self, slot: int) -> dict[Any, int]:
        expires = self._expires[slot]
        if expires is None:
            expires = self._expires[slot] = {}
        return expires

    # -- what checkpoints use ----------------------------------------------------------------------------------

    def changes(self, into: list[Row]) -> set[int]:
        """As ``Cells.changes``; a slot that has a row may have others that are not changed, so none is returned."""
        for slot, marks in self._dirty.items():
            held, expires = self._live[slot] or {}, self._expires[slot] or {}
            for entry, known in marks.items():
                if entry in held:
                    self.count += not known
                    into.append(self._row(slot, entry, held[entry], expires.get(entry)))
                else:
                    self.count -= known
                    into.append((slot, True, self.name, pack(entry), None, None))
            if not held:
                self._live[slot] = self._expires[slot] = None
        self._dirty.clear()
        return set()

    def _row(self, slot: int, entry: Any, value: Any, expires: int | None) -> Row:
        data = self._packed(value, slot, f"state {self.name!r}, entry {entry!r}")
        return slot, False, self.name, pack(entry), data, expires

    def carry(self, slots: Iterable[int], without: set[int], into: list[Row]) -> None:
        """As ``Cells.carry``."""
        passed = self._at.passed(self._clock)
        for slot in slots:
            held, expires = self._live[slot], self._expires[slot]
            if held is None or slot in without:
                continue
            if expires is not None:
                for entry in [entry for entry, time in expires.items() if time <= passed]:
                    del held[entry], expires[entry]
                    self.count -= 1
                if not held:
                    self._live[slot] = self._expires[slot] = None
            of = expires or {}
            into += [self._row(slot, entry, value, of.get(entry)) for entry, value in held.items()]

    def restore(self, slot: int, entry: bytes, value: bytes, expires: int | None) -> None:
        """As ``Cells.restore``."""
        held = self._live[slot]
        if held is None:
            held = self._live[slot] = {}
        key = unpack(entry) if entry else self._mismatch("a value")
        if key.__class__ is not self._key_type:
            self._mismatch(f"keyed by {class_name(key)}")
        self.count += key not in held
        held[key] = self._demand(unpack(value))
        if expires is not None:
            self._expires_of(slot)[key] = expires
        elif (times := self._expires[slot]) is not None:
            times.pop(key, None)

    def remove(self, slot: int, entry: bytes) -> None:
        """As ``Cells.remove``."""
        key, held, expires = unpack(entry), self._live[slot], self._expires[slot]
        if held is not None and key in held:
            del held[key]
            self.count -= 1
        if expires is not None:
            expires.pop(key, None)

    def settle(self) -> None:
        """As ``Cells.settle``: entries stand in order again, so that lists do."""
        for slot, held in enumerate(self._live):
            if held is not None:
                self._live[slot] = dict(sorted(held.items())) or None

    def holds(self, slot: int) -> bool:
        """As ``Cells.holds``."""
        return self._live[slot] is not None

    def compact(self, kept: list[int], moved: Ints) -> None:
        """As ``Cells.compact``."""
        del moved
        self._live = [self._live[slot] for slot in kept]
        self._expires = [self._expires[slot] for slot in kept]
