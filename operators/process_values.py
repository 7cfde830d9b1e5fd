"""One value of each key.

A list or dict that was not touched in an epoch is kept as bytes until it is needed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from millstream.engine.codes import Ints
from millstream.engine.time import START_OF_TIME
from millstream.operators.packing import ATOMS, pack, unpack
from millstream.operators.process_cells import ABSENT, NEVER, At, Cells, Row, class_name
from millstream.operators.process_states import ValueState


class _Packed:
    """A list or dict as bytes."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class ValueCells(Cells):
    """One value by slot."""

    def __init__(self, name: str, state: ValueState[Any], at: At, clock: str) -> None:
        super().__init__(name, state, at, clock)
        self._state = state
        self._live: list[Any] = []
        self._timed = state.ttl is not None  # whether any value has a time to live
        self._expires: list[int] = []  # by slot, if so
        self._owner: type | None = None
        self._dirty: dict[int, bool] = {}  # whether the store may know an older value
        self._data: dict[int, bytes] = {}  # lists and dicts that are not _Packed, as they were written last

    def grow(self, slots: int) -> None:
        """As ``Cells.grow``."""
        more = slots - len(self._live)
        self._live += [ABSENT] * more
        if self._timed:
            self._expires += [START_OF_TIME] * more

    def stand_in(self, owner: type) -> None:
        """Take the place of the declaration in a class."""
        self._owner = owner
        read = self._timed_get() if self._timed else self._get()
        setattr(owner, self.name, property(read, self._set(), self._delete))

    def put_for(self, value: Any, ttl: int) -> None:
        """Set the value of the current key, to live so long."""
        self._begin_timing()
        assert self._owner is not None
        vars(self._owner)[self.name].fset(None, value)
        self._expires[self._at.slot] = self._deadline(ttl)

    def _begin_timing(self) -> None:
        """From now on look at times; as long as nobody asks for that, they cost nothing."""
        if not self._timed:
            self._timed = True
            self._expires = [START_OF_TIME if value is ABSENT else NEVER for value in self._live]
            assert self._owner is not None
            self.stand_in(self._owner)

    # These are closures since they are called for every row: attributes of self would cost a third of their time.

    def _get(self) -> Callable[[Any], Any]:
        at, live, dirty, atoms, touch = self._at, self._live, self._dirty, ATOMS, self._touch
        constant = self._state.default
        containers = frozenset() if self.ttl is not None else frozenset([list, dict])

        def get_atom(_: Any) -> Any:
            value = live[at.slot]
            return constant if value is ABSENT else value

        def get(_: Any) -> Any:
            slot = at.slot
            value = live[slot]
            kind = value.__class__
            if kind in atoms or (kind in containers and slot in dirty):
                return value
            if value is ABSENT and not makes:
                return constant
            return touch(slot, value)

        makes = self._state.make_default is not None
        only_atoms = self._accepted is not None and self._accepted <= atoms
        return get_atom if only_atoms and not makes else get

    def _timed_get(self) -> Callable[[Any], Any]:
        at, live, plain = self._at, self._live, self._get()

        def get(owner: Any) -> Any:
            slot = at.slot
            if live[slot] is not ABSENT and self._expires[slot] <= at.time(self._clock):
                self._delete(owner)
            return plain(owner)

        return get

    def _touch(self, slot: int, value: Any) -> Any:
        """Hand out what may be changed in place."""
        known = value is not ABSENT
        if not known:
            assert self._state.make_default is not None
            value = self._state.make_default()
            self._live[slot] = value
        elif value.__class__ is _Packed:
            self._data[slot] = value.data
            value = unpack(value.data)
            self._live[slot] = value
        if value.__class__ not in ATOMS:
            self._dirty.setdefault(slot, known)
            # Reading prolongs what lives as declared; what was written to live so long would then live for ever.
            if self._timed and (self.ttl is not None or not known):
                self._prolong(slot)
        return value

    def _set(self) -> Callable[[Any, Any], None]:
        at, live, dirty, accepted = self._at, self._live, self._dirty, self._accepted
        usual = self._state.type

        def put(_: Any, value: Any) -> None:
            slot = at.slot
            if value.__class__ is not usual and accepted is not None and value.__class__ not in accepted:
                self._refuse(value)
            if slot not in dirty:
                dirty[slot] = live[slot] is not ABSENT
            live[slot] = value

        def put_timed(owner: Any, value: Any) -> None:
            put(owner, value)
            self._prolong(at.slot)

        return put_timed if self._timed else put

    def _prolong(self, slot: int) -> None:
        expires = self._expires[slot]
        # A value of a time when the state was declared to live for ever lives as declared now once it is written.
        self._expires[slot] = self._deadline(self.ttl) if expires == NEVER else max(expires, self._deadline(self.ttl))

    def _refuse(self, value: Any) -> NoReturn:
        raise TypeError(f"state {self.name!r} is a {self.shown}, it cannot hold {value!r} ({class_name(value)})")

    def _delete(self, _: Any) -> None:
        slot = self._at.slot
        self._dirty.setdefault(slot, self._live[slot] is not ABSENT)
        self._forget(slot)

    def _forget(self, slot: int) -> None:
        self._live[slot] = ABSENT
        if self._timed:
            self._expires[slot] = START_OF_TIME

    def changes(self, into: list[Row]) -> set[int]:
        """As ``Cells.changes``."""
        written: set[int] = set()
        resting = [slot for slot in self._data if slot not in self._dirty]
        for slot, known in self._dirty.items():
            row = self._change(slot, known)
            if row is not None:
                into.append(row)
                written.add(slot)
        for slot in resting:
            self._live[slot] = _Packed(self._data.pop(slot))
        self._dirty.clear()
        return written

    def _change(self, slot: int, known: bool) -> Row | None:
        value = self._live[slot]
        data = None if value is ABSENT else self._packed(value, slot, f"state {self.name!r}")
        before = self._data.pop(slot, None)
        if data is None or data == self._state.packed_default:
            self._forget(slot)
            self.count -= known
            return (slot, True, self.name, b"", None, None) if known else None
        self.count += not known
        if value.__class__ not in ATOMS:
            self._data[slot] = data
            if known and data == before and not self._timed:
                return None
        return slot, False, self.name, b"", data, self._kept_until(slot)

    def _kept_until(self, slot: int) -> int | None:
        return self._expires[slot] if self._timed and self._expires[slot] != NEVER else None

    def carry(self, slots: Iterable[int], without: set[int], into: list[Row]) -> None:
        """As ``Cells.carry``."""
        live, passed = self._live, self._at.passed(self._clock)
        for slot in slots:
            value = live[slot]
            if value is ABSENT or slot in without:
                continue
            if self._timed and self._expires[slot] <= passed:
                self._forget(slot)
                self._data.pop(slot, None)
                self.count -= 1
                continue
            data = value.data if value.__class__ is _Packed else self._data.get(slot) or pack(value)
            into.append((slot, False, self.name, b"", data, self._kept_until(slot)))

    def restore(self, slot: int, entry: bytes, value: bytes, expires: int | None) -> None:
        """As ``Cells.restore``."""
        plain = unpack(value)
        if entry:
            self._mismatch("a map or a list")
        self._demand(plain)
        self.count += self._live[slot] is ABSENT
        self._live[slot] = plain if plain.__class__ in ATOMS else _Packed(value)
        if expires is not None:
            self._begin_timing()
        if self._timed:
            self._expires[slot] = NEVER if expires is None else expires

    def remove(self, slot: int, entry: bytes) -> None:
        """As ``Cells.remove``."""
        del entry
        self.count -= self._live[slot] is not ABSENT
        self._forget(slot)

    def holds(self, slot: int) -> bool:
        """As ``Cells.holds``."""
        return self._live[slot] is not ABSENT

    def compact(self, kept: list[int], moved: Ints) -> None:
        """As ``Cells.compact``."""
        # In place: the closures hold these lists.
        self._live[:] = [self._live[slot] for slot in kept]
        if self._timed:
            self._expires[:] = [self._expires[slot] for slot in kept]
        self._data = {int(moved[slot]): data for slot, data in self._data.items()}
