"""Keys in the order in which they came, and an open-addressing table that finds them.

A key is a record of the log. Old records leave at the log's head, and one that still counts may be appended anew: that
is all the tidying there is. The checkpoint store holds the same log, cut into epochs: each writes what was appended
since the last one, and a restore reads on from the epoch of the record at the head. So a snapshot costs what has
changed, however many keys there are. Importing this module loads numba.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from millstream.engine import key_log_kernels as kernels
from millstream.engine.codes import Bools, Ints
from millstream.engine.errors import JobError
from millstream.engine.key_words import Packed
from millstream.engine.time import START_OF_TIME

Hashes = npt.NDArray[np.uint64]

FOR_EVER: Final = 0
"""What stands for ``within`` when keys are never forgotten."""

NO_TIMES: Final[Ints] = np.empty(0, np.int64)
"""The times of rows whose keys are never forgotten."""

_MOST_WORDS: Final = 2**32 - 1
"""The table has 32 bits for a record's position."""

_LEAST: Final = 1_024
_FULL: Final = 0.75
_STEP: Final = 16_384


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of keys; ``chosen`` are those meant, in their order.

    Attributes:
        hashes: of every row's words, with the log's seed.
        times: int64 microseconds, one per row; NO_TIMES if keys are never forgotten.
        chosen: int64, numbers of rows.
    """

    packed: Packed
    hashes: Hashes
    times: Ints
    chosen: Ints


class KeyLog:
    """Distinct keys of one shape, with their times if they are to be forgotten.

    Args:
        width: words of a key; 0: its first word says how many follow.
        within: microseconds of event time; FOR_EVER: no key is ever forgotten, and there are no times.
        seed: of the hashes.
        room: words and table entries to begin with. All later sizes are multiples: logs that begin differently never
            grow at the same time.

    Attributes:
        entries: keys held, among them those forgotten but not yet taken out.
        records: of these keys, and older ones of keys that were taken back twice.
    """

    def __init__(self, width: int, within: int, seed: np.uint64, room: int = _LEAST) -> None:
        self._width = width
        self._within = within
        self._timed = within != FOR_EVER
        # A cell of time is 16 to 32 times as long: see ``kernels.add_within``.
        self._shift = (16 * within - 1).bit_length() if self._timed else 0
        self._seed = seed
        self._room = room
        self._longest = 1
        self.forgotten = START_OF_TIME - 1
        self._tail = 0  # positions are words since the beginning, whatever has left since
        self.clear()

    def clear(self) -> None:
        """Drop all keys."""
        self._log: Ints = np.empty(self._room, np.int64)
        self._table: Hashes = np.zeros(self._room, np.uint64)
        self._origin = self._head = self._written = self._tail
        self._epochs: deque[tuple[int, int]] = deque()  # (epoch, where what it wrote ends)
        self.entries = self.records = self._unwritten = 0

    @property
    def bytes_held(self) -> int:
        """Bytes of the log and the table; room to grow counts once it was used."""
        return 8 * (self._tail - self._origin) + int(self._table.nbytes)

    def add(self, rows: Rows, new: Bools) -> int:
        """Append the keys that are new, say in ``new`` (bool, one per row) which rows they are of, return how many.

        A key is new if no row of it less than ``within`` away in time is remembered, before or after, from an earlier
        batch or row.
        """
        self._prepare(rows)
        packed, origin, tail = rows.packed, np.uint64(self._origin), self._tail - self._origin
        if self._timed:
            tail, added = kernels.add_within(
                packed.words,
                packed.starts,
                rows.hashes,
                rows.times,
                rows.chosen,
                self._log,
                origin,
                tail,
                self._table,
                self._within,
                self._shift,
                self.forgotten,
                new,
            )
        else:
            tail, added = kernels.add(
                packed.words, packed.starts, rows.hashes, rows.chosen, self._log, origin, tail, self._table, new
            )
        self._appended(tail, added, added)
        return int(added)

    def put(self, rows: Rows, epoch: int) -> None:
        """Take back rows that an epoch wrote; call it in the order in which they were written."""
        self._prepare(rows)
        tail, added = kernels.put(
            rows.packed.words,
            rows.packed.starts,
            rows.hashes,
            rows.times,
            rows.chosen,
            self._log,
            np.uint64(self._origin),
            self._tail - self._origin,
            self._table,
            self._shift,
        )
        self._appended(tail, len(rows.chosen), added)
        self._close_epoch(epoch)

    def retire(self, records: int, *, renew: bool) -> None:
        """Take forgotten keys out at the log's head, going through about so many records.

        Args:
            renew: append those that still count anew; else the first of them ends it.
        """
        self._retire(1 + records * (self._tail - self._head) // max(1, self.records), renew)

    def _retire(self, words: int, renew: bool) -> None:
        words = min(words, self._tail - self._head)
        if words <= 0:
            return
        if renew:
            self._make_room(words + self._longest)
        head = self._head - self._origin
        head, tail, gone, renewed, removed = kernels.retire(
            self._log,
            np.uint64(self._origin),
            head,
            head + words,
            self._tail - self._origin,
            self._table,
            self._width,
            self._timed,
            self._shift,
            self.forgotten,
            self._seed,
            renew,
        )
        self._head = self._origin + head
        self.records -= gone
        self._appended(tail, renewed, -removed)
        while self._epochs and self._epochs[0][1] <= self._head:
            self._epochs.popleft()

    def take(self, epoch: int) -> tuple[Ints, Ints]:
        """Return what the delta of an epoch must hold, the records appended since the last one.

        Returns:
            (words, int64; where in them the keys begin: the time of each is in the word before). Good until the log
            is next changed.
        """
        first = max(self._head, self._written)
        keys = np.empty(min(self._unwritten, self.records), np.int64)
        count = kernels.keys_between(
            self._log,
            first - self._origin,
            self._tail - self._origin,
            self._width,
            self._timed,
            self.forgotten,
            keys,
        )
        self._close_epoch(epoch)
        return self._log, keys[:count]

    def renew(self, before: int) -> None:
        """Append keys anew that only epochs earlier than ``before`` have written, a part of all at most."""
        end = max((end for epoch, end in self._epochs if epoch < before), default=self._head)
        self._retire(min(end - self._head, max(_STEP, (self._tail - self._head) // 256)), renew=True)

    def full_from(self, epoch: int) -> int:
        """The oldest epoch whose rows a restore of ``epoch`` needs."""
        return min(epoch, self._epochs[0][0]) if self._epochs else epoch

    def _close_epoch(self, epoch: int) -> None:
        if self._tail > max(self._head, self._written):
            # What a failed checkpoint left is written with a later one: no row is older than the row before it.
            epoch = max(epoch, self._epochs[-1][0]) if self._epochs else epoch
            self._epochs.append((epoch, self._tail))
        self._written = self._tail
        self._unwritten = 0

    def _appended(self, tail: int, records: int, entries: int) -> None:
        self._tail = self._origin + int(tail)
        self.records += records
        self._unwritten += records
        self.entries += entries

    def _prepare(self, rows: Rows) -> None:
        """Have room for the rows, all of which may be new."""
        sizes = rows.packed.sizes[rows.chosen] + self._timed
        self._longest = max(self._longest, int(sizes.max(initial=0)))
        self._make_room(int(sizes.sum()))
        wanted, capacity = self.entries + len(sizes), len(self._table)
        if wanted > _FULL * capacity or capacity > max(self._room, 8 * wanted):
            size = self._room
            while wanted > _FULL * size:
                size += size // 2
            # NumPy asks for huge pages for memory that need not be clear, and only then: misses are much cheaper.
            table = np.empty(size, np.uint64)
            table.fill(0)
            kernels.refill(self._table, table)
            self._table = table

    def _make_room(self, words: int) -> None:
        if self._tail - self._origin + words <= len(self._log):
            return
        used = self._tail - self._head
        size = self._room
        while size < used + used // 2 + words:
            size *= 2
        if size > _MOST_WORDS:
            raise JobError(f"{self.entries:,} keys are too many for one subtask: raise the parallelism")
        log = np.empty(size, np.int64)
        log[:used] = self._log[self._head - self._origin : self._tail - self._origin]
        self._log, self._origin = log, self._head
