"""The best entries of every slot, kept in order. Importing this module loads numba."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bytes, Ints
from millstream.operators import aggregate_kernels, top_kernels
from millstream.operators import rank_kernels as kernels
from millstream.operators.cells import resized
from millstream.operators.rank_kernels import (
    BEST,
    BETTER,
    CODES,
    ENTRIES,
    HEAP_BYTES,
    LISTED,
    NOTES,
    PLACE,
    ROOT,
    SIZE,
    SLOT,
    WAITING,
    WORSE,
    WORST,
    Layout,
)
from millstream.operators.rank_keys import RankKeys

_FIRST_CAPACITY: Final = 1_024
_FIRST_HEAP: Final = 4_096
_NONE: Final[Ints] = np.empty(0, np.int64)


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
        n, ties, newest, returns: as in ``Layout``.
        ranked: readers are told the rank of each row, and of its changes.
    """

    def __init__(self, keys: RankKeys, n: int, *, ties: bool, newest: bool, returns: bool, ranked: bool) -> None:
        self._keys = keys
        columns = len(keys.kinds)
        after = CODES + columns + 2 * keys.spans
        rank, equal = (after if ranked else -1), (after + ranked if returns else -1)
        self._layout = Layout(n, ties, newest, returns, columns, keys.spans, rank, equal)
        self._entries: Ints = np.empty((0, after + ranked + returns), np.int64)
        self._heap: Bytes = np.empty(_FIRST_HEAP, np.uint8)
        self._slots: Ints = np.empty((0, 4 if returns else 3), np.int64)
        self._newest_of: Ints = np.empty(0, np.int64)
        self._counts = np.zeros(3, np.int64)

    def __len__(self) -> int:
        """How many entries there are, those that are gone too."""
        return int(self._counts[ENTRIES])

    @property
    def capacity(self) -> int:
        """How many entries there is room for."""
        return len(self._entries)

    def slots_of(self, entries: Ints) -> Ints:
        """Return the slots of some entries."""
        slots: Ints = self._entries[entries, SLOT]
        return slots

    def live(self) -> Ints:
        """Return the entries whose rows are there, listed or waiting, ascending."""
        place = self._entries[: len(self), PLACE]
        return np.flatnonzero((place == LISTED) | (place == WAITING))

    def resize(self, slots: int, contents: int) -> None:
        """Have room for so many slots and contents."""
        known = len(self._slots)
        if slots > known:
            self._slots = _taller(self._slots, max(_FIRST_CAPACITY, 2 * known, slots))
            self._slots[known:] = -1
            self._slots[known:, SIZE] = 0
        if contents > len(self._newest_of):
            capacity = max(_FIRST_CAPACITY, 2 * len(self._newest_of), contents)
            self._newest_of = resized(self._newest_of, capacity, fill=-1)

    def change(self, batch: pa.RecordBatch, slots: Ints, weights: Ints = _NONE, contents: Ints = _NONE) -> Moves:
        """Take rows in and back, one after the other, and say what has changed when all are done.

        Args:
            slots: of each row.
            weights: 1 or -1; left out, all rows come.
            contents: rows of equal number are equal; may be left out likewise.

        Raises:
            NeverCame: a row is to be taken back that is not there.
        """
        first, (fresh, texts) = len(self), self._keys.of(batch)
        self._make_room(len(slots), len(texts))
        taken = np.empty(len(slots), np.int64)
        # Only the part that is written to costs memory.
        notes = np.empty(first + len(slots), np.int64)
        self._counts[NOTES] = 0
        before = self._counts.copy()
        lists = (self._entries, self._slots, self._keys.kinds, self._heap, self._layout)
        failed = kernels.change(
            *lists, fresh, texts, slots, weights, contents, self._newest_of, self._counts, taken, notes
        )
        if failed >= 0:
            raise NeverCame(failed)
        if not self._layout.returns:
            moved = np.empty(len(self) - first, np.int64)
            kernels.squeeze(
                self._entries, self._slots, self._heap, self._layout, self._counts, before, taken, notes, moved
            )
        if self._layout.rank >= 0:
            touched = np.unique(self.slots_of(notes[: self._counts[NOTES]]))
            kernels.rerank(*lists, touched, self._counts, notes)
        notes = notes[: self._counts[NOTES]]
        left, came, gone = (np.empty((2, len(notes)), np.int64) for _ in range(3))
        leaving, coming, going = kernels.settle(self._entries, self._layout, notes, left, came, gone[0])
        return Moves(taken[: len(self) - first], left[:, :leaving], came[:, :coming], gone[0, :going])

    def _make_room(self, rows: int, text_bytes: int) -> None:
        needed = len(self) + rows
        if needed > self.capacity:
            self._entries = _taller(self._entries, max(_FIRST_CAPACITY, 2 * len(self), needed))
        used = int(self._counts[HEAP_BYTES])
        if used + text_bytes > len(self._heap):
            self._heap = resized(self._heap, max(2 * used, used + text_bytes))

    def compact(self, kept: Ints, slots: Ints, contents: Ints) -> None:
        """Forget entries, slots and contents; the others move up.

        Args:
            kept: the entries that stay: ``live()``.
            slots: the slots that stay, ascending.
            contents: the new number of the content of each entry that stays; left out if there are none.
        """
        moved = np.full(len(self) + 1, -1)  # the last one is what -1, no entry, becomes
        moved[kept] = np.arange(len(kept))
        new_slot = np.full(len(self._slots), -1)
        new_slot[slots] = np.arange(len(slots))
        entries, held = self._entries[kept], self._slots[slots]
        for column in (BETTER, WORSE):
            entries[:, column] = moved[entries[:, column]]
        entries[:, SLOT] = new_slot[entries[:, SLOT]]
        for column in (BEST, WORST):
            held[:, column] = moved[held[:, column]]
        self._entries, self._slots = entries, held
        self._counts[ENTRIES] = len(kept)
        self._compact_heap()
        if self._layout.returns:
            held[:, ROOT] = -1
            self._newest_of = np.full(int(contents.max(initial=-1)) + 1, -1)
            equal = np.empty(len(kept), np.int64)
            top_kernels.link(contents, np.arange(len(kept)), self._newest_of, equal)
            entries[:, self._layout.equal] = equal
            kernels.restack(entries, held, self._keys.kinds, self._heap, self._layout, len(kept))

    def _compact_heap(self) -> None:
        if not self._layout.spans:
            return
        first = CODES + self._layout.columns
        spans = self._entries[:, first : first + 2 * self._layout.spans].reshape(-1, 2)
        ends = np.zeros(len(spans) + 1, np.int64)
        np.cumsum(spans[:, 1], out=ends[1:])
        heap = np.empty(max(_FIRST_HEAP, 2 * int(ends[-1])), np.uint8)
        aggregate_kernels.gather_strings(spans[:, 0].copy(), ends, self._heap, heap)
        self._entries[:, first : first + 2 * self._layout.spans : 2] = ends[:-1].reshape(-1, self._layout.spans)
        self._heap, self._counts[HEAP_BYTES] = heap, ends[-1]


def _taller(matrix: Ints, rows: int) -> Ints:
    out = np.empty((rows, matrix.shape[1]), matrix.dtype)
    out[: len(matrix)] = matrix
    return out
