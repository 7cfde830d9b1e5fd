"""The best entries of every slot, kept in order. Importing this module loads numba."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from millstream.engine.codes import Ints
from millstream.operators import rank_kernels as kernels
from millstream.operators import top_kernels
from millstream.operators.cells import resized
from millstream.operators.rank_kernels import ENTRIES, GONE, HEAP_BYTES, LISTED, NOTES, WAITING, Keys, Lists, Rule
from millstream.operators.rank_keys import RankKeys

_FIRST_CAPACITY: Final = 1_024
_NO_INTS: Final[Ints] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Moves:
    """What a batch has changed.

    Attributes:
        taken: the row of the batch behind each new entry; the entries have the next numbers.
        left: entries to take back, and the rank each was shown with, int64, shape (2, n).
        came: entries to show, and the rank of each, likewise.
        gone: entries whose rows are gone.
    """

    taken: Ints
    left: Ints
    came: Ints
    gone: Ints


class NeverCame(Exception):
    """A row is to be taken back that is not there; ``row`` is its number in the batch."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


class RankedLists:
    """Keeps the list of every slot. Entries are numbered in the order of arrival.

    Args:
        keys: what entries are ranked by.
        ranked: readers are told the rank of each row, and of its changes.
    """

    def __init__(self, keys: RankKeys, rule: Rule, *, ranked: bool) -> None:
        self.keys = keys
        self._rule = rule
        self._ranked = ranked
        none = dict.fromkeys(Lists._fields, _NO_INTS)
        self._lists = Lists(
            **{
                **none,
                "place": np.empty(0, np.int8),
                "noted": np.empty(0, np.bool_),
                "counts": np.zeros(3, np.int64),
            }
        )

    def __len__(self) -> int:
        """How many entries there are, those that are gone too."""
        return int(self._lists.counts[ENTRIES])

    @property
    def slot_of(self) -> Ints:
        """By entry: its slot."""
        return self._lists.slot_of

    def live(self) -> Ints:
        """Return the entries whose rows are there, listed or waiting, ascending."""
        place = self._lists.place[: len(self)]
        return np.flatnonzero((place == LISTED) | (place == WAITING))

    def resize(self, slots: int, contents: int) -> None:
        """Have room for so many slots and contents."""
        lists = self._lists
        if slots > len(lists.best):
            capacity = max(_FIRST_CAPACITY, 2 * len(lists.best), slots)
            grown = {"best": -1, "worst": -1, "size": 0} | ({"root": -1} if self._rule.returns else {})
            lists = _grown(lists, grown, capacity)
        if contents > len(lists.newest_of):
            lists = _grown(lists, {"newest_of": -1}, max(_FIRST_CAPACITY, 2 * len(lists.newest_of), contents))
        self._lists = lists

    def change(self, fresh: Keys, slots: Ints, weights: Ints = _NO_INTS, contents: Ints = _NO_INTS) -> Moves:
        """Take rows in and back, one after the other, and say what has changed when all are done.

        Args:
            fresh: what the rows are ranked by.
            slots: of each row.
            weights: 1 or -1; without any all rows come.
            contents: rows of equal number are equal; may be left out likewise.

        Raises:
            NeverCame: a row is to be taken back that is not there.
        """
        first = len(self)
        self._make_room(fresh, len(slots))
        lists, keys = self._lists, self.keys.entries
        taken = np.empty(len(slots), np.int64)
        # Only the part that is written to costs memory.
        notes = np.empty(first + len(slots), np.int64)
        lists.counts[NOTES] = 0
        failed = kernels.change(lists, keys, self._rule, fresh, slots, weights, contents, taken, notes)
        if failed >= 0:
            raise NeverCame(failed)
        if self._ranked:
            touched = np.unique(lists.slot_of[notes[: lists.counts[NOTES]]])
            kernels.rerank(lists, keys, self._rule, touched, notes)
        notes = notes[: lists.counts[NOTES]]
        left, came, gone = (np.empty((2, len(notes)), np.int64) for _ in range(3))
        leaving, coming, going = kernels.settle(lists, self._ranked, notes, left, came, gone[0])
        return Moves(taken[: len(self) - first], left[:, :leaving], came[:, :coming], gone[0, :going])

    def _make_room(self, fresh: Keys, rows: int) -> None:
        needed = len(self) + rows
        if needed > len(self._lists.place):
            capacity = max(_FIRST_CAPACITY, 2 * len(self), needed)
            names = ["place", "slot_of", "better", "worse", "noted", "shown"]
            names += ["rank"] if self._ranked else []
            names += ["child", "sibling", "equal"] if self._rule.returns else []
            self._lists = _grown(self._lists, dict.fromkeys(names, 0), capacity)
            self.keys.resize(capacity)
        self.keys.make_room(int(self._lists.counts[HEAP_BYTES]), fresh)

    @property
    def capacity(self) -> int:
        """How many entries there is room for."""
        return len(self._lists.place)

    def used(self, slots: int) -> Ints:
        """Return which of the slots 0..slots-1 have entries."""
        alive = np.zeros(slots, np.bool_)
        alive[self._lists.slot_of[self.live()]] = True
        return np.flatnonzero(alive)

    def compact(self, kept: Ints, slots: Ints, contents: Ints) -> None:
        """Forget entries, slots and contents; the others move up.

        Args:
            kept: the entries that stay: ``live()``.
            slots: the slots that stay, ascending.
            contents: the new number of the content of each entry that stays.
        """
        lists, rule = self._lists, self._rule
        moved = np.full(len(self) + 1, -1)  # the last one is -1 itself: none stays none
        moved[kept] = np.arange(len(kept))
        new_slot = np.full(len(lists.best), -1)
        new_slot[slots] = np.arange(len(slots))
        names = ["place", "noted", "shown", *(["rank"] if self._ranked else [])]
        fields = {name: getattr(lists, name)[kept] for name in names}
        fields |= {name: moved[getattr(lists, name)[kept]] for name in ("better", "worse")}
        fields |= {name: moved[getattr(lists, name)[slots]] for name in ("best", "worst")}
        self._lists = lists._replace(**fields, slot_of=new_slot[lists.slot_of[kept]], size=lists.size[slots])
        lists.counts[ENTRIES] = len(kept)
        self.keys.compact(kept, lists.counts)
        if rule.returns:
            count = int(contents.max(initial=-1)) + 1
            self._lists = self._lists._replace(
                root=np.full(len(slots), -1),
                child=np.empty(len(kept), np.int64),
                sibling=np.empty(len(kept), np.int64),
                equal=np.empty(len(kept), np.int64),
                newest_of=np.full(count, -1),
            )
            top_kernels.link(contents, np.arange(len(kept)), self._lists.newest_of, self._lists.equal)
            kernels.restack(self._lists, self.keys.entries, rule, len(kept))


def _grown(lists: Lists, fills: dict[str, int], size: int) -> Lists:
    return lists._replace(**{name: resized(getattr(lists, name), size, fill) for name, fill in fills.items()})


assert GONE == 0, "new room is filled with 0"
