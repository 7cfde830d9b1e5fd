"""Items: any number of rows per slot, in a state table of their own. Importing this module loads numba."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Self, TypeAlias

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.key_index import KeyIndex
from millstream.engine.state import StateDelta, StateTable
from millstream.operators import top_kernels
from millstream.operators.accumulators import Accumulator
from millstream.operators.cells import resized
from millstream.operators.changes import Changes

_FIRST_CAPACITY: Final = 1_024
_MIN_GARBAGE: Final = 4_096
_NONE: Final = np.empty(0, np.int64)

KeysOf: TypeAlias = Callable[[Ints], list[pa.Array]]
"""The columns that name the groups of some slots: keys and window_start."""


class Items:
    """Which items there are, whose they are, and what the store knows of them. An item is named by its id.

    Ids are 0..n-1 in the order of arrival, indices into plain arrays of the owner's. ``resize`` comes before a
    slot's first use.

    Args:
        table: the columns that name a group, then the items' own, of which the first names an item in its group.
    """

    def __init__(self, table: StateTable) -> None:
        self._table = table
        self._changes = Changes(table)
        self._live = 0
        self._head: Ints = np.empty(0, np.int64)  # by slot: the last item of its list
        self._previous: Ints = np.empty(0, np.int64)  # by id: the item before it in the list
        self._slot_of: Ints = np.empty(0, np.int64)  # by id; -1: the item is gone
        self._leaving: Bools = np.empty(0, np.bool_)  # by id: it is gone once the store has been told
        self.count = 0

    def resize(self, slots: int) -> None:
        """Have room for slots 0..slots-1."""
        self._head = resized(self._head, slots, fill=-1)

    def add(self, slots: Ints) -> None:
        """Add an item to each of these slots (which may be named repeatedly), in this order."""
        first = self._append(slots)
        self._changes.begin(first, len(slots))

    def add_stored(self, slots: Ints) -> None:
        """As ``add``, for items that come from the store."""
        first = self._append(slots)
        self._changes.begin_restored(first, np.arange(first, self.count))

    def _append(self, slots: Ints) -> int:
        first, self.count = self.count, self.count + len(slots)
        if self.count > len(self._slot_of):
            capacity = max(_FIRST_CAPACITY, 2 * len(self._slot_of), self.count)
            self._slot_of = resized(self._slot_of, capacity)
            self._previous = resized(self._previous, capacity)
            self._leaving = resized(self._leaving, capacity, fill=False)
            self._changes.resize(capacity)
        self._slot_of[first : self.count] = slots
        top_kernels.link(slots, np.arange(first, self.count), self._head, self._previous)
        self._live += len(slots)
        return first

    def touch(self, ids: Ints) -> None:
        """What the owner keeps of these items has changed."""
        self._changes.changed[ids] = True

    def take_out(self, ids: Ints) -> None:
        """Forget these items, all there and all different; until they are garbage ``of`` may still return them."""
        known = self._changes.known(ids)
        self._leaving[ids[known]] = True
        self._slot_of[ids[~known]] = -1
        self._live -= len(ids)

    def put_back(self, ids: Ints, slots: Ints) -> None:
        """Have items, all different, that were taken out and are not garbage yet in their slots again."""
        self._leaving[ids] = False
        self._slot_of[ids] = slots
        self._changes.changed[ids] = True
        self._live += len(ids)

    def of(self, slots: Ints) -> tuple[Ints, Ints]:
        """Return the items of some slots, slot by slot in the order asked for, and of each where its slot stands."""
        # Lists begin with the last item: they are walked from the last slot to the first, and then turned round.
        backwards = slots[::-1].copy()
        count = top_kernels.collect(backwards, self._head, self._previous, _NONE, _NONE)
        ids, groups = np.empty(count, np.int64), np.empty(count, np.int64)
        top_kernels.collect(backwards, self._head, self._previous, ids, groups)
        return ids[::-1].copy(), len(slots) - 1 - groups[::-1]

    def drop(self, slots: Ints, keys_of: KeysOf, names_of: KeysOf) -> None:
        """Forget the items of some slots.

        Args:
            names_of: gives the column that names some items in their groups.
        """
        ids, _ = self.of(slots)
        self._live -= int(((self._slot_of[ids] >= 0) & ~self._leaving[ids]).sum())
        self._bury(ids, keys_of, names_of)
        self._head[slots] = -1

    def _bury(self, ids: Ints, keys_of: KeysOf, names_of: KeysOf) -> None:
        known = self._changes.leaving(ids)
        if len(known):
            self._changes.bury([*keys_of(self._slot_of[known]), *names_of(known)])
        self._slot_of[ids] = -1
        self._leaving[ids] = False

    def delta(self, epoch: int, keys_of: KeysOf, names_of: KeysOf, columns_of: KeysOf) -> StateDelta | None:
        """Return what has changed since the last delta; None if nothing has.

        Args:
            names_of: as for ``drop``.
            columns_of: gives the items' own columns.
        """
        self._bury(np.flatnonzero(self._leaving[: self.count]), keys_of, names_of)
        chosen = self._changes.choose(epoch, np.flatnonzero(self._slot_of[: self.count] >= 0))
        if chosen is None:
            return None
        ids, full_from = chosen
        columns = [*keys_of(self._slot_of[ids]), *columns_of(ids)]
        return self._changes.delta(dict(zip(self._table.schema.names, columns, strict=True)), full_from)

    def restored(self, full_from: int) -> None:
        """The table was restored; its rows are in deltas from ``full_from`` on."""
        self._changes.restored(full_from)

    def move(self, kept: Ints) -> None:
        """Of the slots only ``kept`` (ascending) stay, and become 0..n-1; the others have no items."""
        moved = np.full(len(self._head), -1)
        moved[kept] = np.arange(len(kept))
        self._head = self._head[kept]
        held = np.flatnonzero(self._slot_of[: self.count] >= 0)
        self._slot_of[held] = moved[self._slot_of[held]]

    def collect_garbage(self) -> Ints | None:
        """Renumber the items once more are gone than there.

        Returns:
            The old ids of the items 0..n-1, ascending, if they have new ids; None otherwise.
        """
        if self.count <= max(_MIN_GARBAGE, 2 * self._live):
            return None
        kept = np.flatnonzero(self._slot_of[: self.count] >= 0)
        self._slot_of, self._leaving = self._slot_of[kept], self._leaving[kept]
        self._changes.compact(kept)
        self._previous = np.empty(len(kept), np.int64)
        self._head[:] = -1
        top_kernels.link(self._slot_of, np.arange(len(kept)), self._head, self._previous)
        self.count = len(kept)
        return kept


class ItemAccumulator(Accumulator):
    """An accumulator that keeps items and nothing else. ``bind`` comes first."""

    items: Items

    def bind(self, table: StateTable) -> None:
        """Take the state table of the items: the columns that name a group, then the items' own."""
        self.items = Items(table)

    @abstractmethod
    def columns(self, ids: Ints) -> list[pa.Array]:
        """Return the items' own columns."""

    def names(self, ids: Ints) -> list[pa.Array]:
        """Return the first of the items' own columns."""
        return self.columns(ids)[:1]

    @abstractmethod
    def take_back(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """Add items to slots that ``columns`` once returned, in any order."""

    @abstractmethod
    def keep(self, ids: Ints) -> None:
        """Of what is kept by item, keep these ids (ascending), which become 0..n-1."""

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        self.items.resize(slots)

    def drop(self, slots: Ints, keys_of: KeysOf) -> None:
        """Forget the items of slots that are about to go."""
        self.items.drop(slots, keys_of, self.names)
        self.collect_garbage()

    def collect_garbage(self) -> None:
        """Have room for other items once most are gone."""
        kept = self.items.collect_garbage()
        if kept is not None:
            self.keep(kept)

    def delta(self, epoch: int, keys_of: KeysOf) -> StateDelta | None:
        """Return what has changed in the items since the last delta; None if nothing has."""
        return self.items.delta(epoch, keys_of, self.names, self.columns)

    def absorb(self, other: Self, slots: Ints, into: Ints) -> None:
        """As ``Accumulator.absorb``."""
        ids, places = other.items.of(slots)
        self.merge(into[places], other.columns(ids))

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``: nothing, the items are all."""
        del slots
        return []

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        del slots, columns

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        self.items.move(kept)


class ItemIndex:
    """Finds the item of a slot by its name: a value, or several.

    Args:
        types: of the values.
    """

    def __init__(self, *types: pa.DataType) -> None:
        # Slots get other numbers in time, groups do not.
        self._index = KeyIndex([pa.int64(), *types])
        self._group: Ints = np.empty(0, np.int64)  # by slot; -1: none yet
        self._groups = 0

    def resize(self, slots: int) -> None:
        """Have room for slots 0..slots-1."""
        self._group = resized(self._group, slots, fill=-1)

    def find(self, slots: Ints, names: Sequence[pa.Array]) -> tuple[Ints, Ints]:
        """Return the id of each (slot, name), and the slots of those that are new, in the order of their ids."""
        groups = self._group[slots]
        if bool((groups < 0).any()):
            without = np.unique(slots[groups < 0])
            self._group[without] = np.arange(self._groups, self._groups + len(without))
            self._groups += len(without)
            groups = self._group[slots]
        known = len(self._index)
        ids = self._index.slots([pa.array(groups), *names])
        new = ids >= known
        slots_of_new = np.empty(len(self._index) - known, np.int64)
        slots_of_new[ids[new] - known] = slots[new]
        return ids, slots_of_new

    def names(self, ids: Ints) -> list[pa.Array]:
        """Return the names of some items, a column per value."""
        return self._index.keys(ids)[1:]

    def leave(self, slots: Ints) -> None:
        """Slots have lost their items; those that they may get are others."""
        self._group[slots] = -1

    def move(self, kept: Ints) -> None:
        """As ``Items.move``."""
        self._group = self._group[kept]

    def keep(self, ids: Ints) -> None:
        """Forget all other ids; these (ascending) become 0..n-1."""
        mask = np.zeros(len(self._index), np.bool_)
        mask[ids] = True
        self._index.compact(mask)
