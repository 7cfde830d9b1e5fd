"""Remembers which keys it has seen, for ever or within a stretch of event time. Importing this module loads numba."""

from __future__ import annotations

import heapq
import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from millstream.engine import key_log_kernels
from millstream.engine.codes import Bools, Ints, validity
from millstream.engine.kernels import counting_sort
from millstream.engine.key_log import FOR_EVER, NO_TIMES, KeyLog, Rows
from millstream.engine.key_words import AnyWords, KeyWords, PlainWords, frozen
from millstream.engine.time import START_OF_TIME

_LEAST: Final = 1_024
_STEP: Final = 1_024
_MOST_EPOCHS: Final = 1_024


@dataclass(frozen=True, slots=True)
class Written:
    """What an epoch writes: key columns, times (none if keys are never forgotten), and how far back a restore reads."""

    columns: list[pa.ChunkedArray]
    times: Ints
    full_from: int


class SeenKeys:
    """The keys seen so far.

    A row's key is new if no row of it is remembered whose time is less than ``within`` away, earlier or later. Rows of
    new keys are remembered until the watermark has reached their time plus ``within``. Nulls are a key of their own;
    NaN equals NaN and -0.0 equals 0.0.

    Args:
        types: the types of the key columns, at least one.
        within: microseconds of event time, at least 1; FOR_EVER: keys are never forgotten, and rows need no times.
        logs: keys are dealt out to so many logs: each grows by itself, so that none makes a row wait for long.
        room: words and table entries of a log to begin with.
        seed: of the hashes; None: another one in each process, since keys may come from strangers who choose some that
            collide.

    Raises:
        SchemaError: a type cannot be a key.

    >>> seen = SeenKeys([pa.string()], within=10)
    >>> seen.add([pa.array(["a", "b", "a", "a"])], np.array([5, 5, 14, 15])).tolist()
    [True, True, False, True]
    """

    def __init__(
        self,
        types: Sequence[pa.DataType],
        within: int = FOR_EVER,
        *,
        logs: int = 16,
        room: int = 1_024,
        seed: int | None = None,
    ) -> None:
        self._types = tuple(types)
        self._within = within
        self._seed = np.uint64(int.from_bytes(os.urandom(8)) if seed is None else seed)
        self._rooms = [int(room * 2 ** (number / logs)) for number in range(logs)]
        self._plain = self._family(PlainWords(types)) if PlainWords.fits(types) else None
        self._any = self._family(AnyWords(types)) if self._plain is None else None
        self._alive = _Ages(max(0, within.bit_length() - 3))
        self._epochs: deque[tuple[int, int]] = deque()  # (epoch, rows it wrote): what a restore has to read
        self._untidied = 0
        self.forgotten = START_OF_TIME - 1

    def _family(self, key_words: KeyWords) -> _Family:
        return _Family(key_words, self._within, self._seed, self._rooms)

    @property
    def _families(self) -> list[_Family]:
        return [family for family in (self._plain, self._any) if family is not None]

    @property
    def _logs(self) -> list[KeyLog]:
        return [log for family in self._families for log in family.logs]

    def __len__(self) -> int:
        """How many keys are held, among them those forgotten but not yet taken out."""
        return sum(log.entries for log in self._logs)

    @property
    def bytes_held(self) -> int:
        """Bytes of memory."""
        return sum(log.bytes_held for log in self._logs)

    def add(self, arrays: Sequence[pa.Array], times: Ints = NO_TIMES) -> Bools:
        """Return of each row whether its key is new, and remember those that are.

        Args:
            arrays: the key columns.
            times: int64 microseconds, one per row; none if keys are never forgotten.
        """
        new = np.empty(len(arrays[0]), np.bool_)
        for family, columns, chosen in self._parted(arrays):
            if chosen is None:
                family.add(columns, times, new)
            else:
                part = np.empty(len(chosen), np.bool_)
                family.add(columns, times[chosen] if len(times) else times, part)
                new[chosen] = part
        if len(times):
            self._alive.add(times[new])
        self._untidied += len(new)
        return new

    def put(self, arrays: Sequence[pa.Array], times: Ints, epochs: Ints) -> None:
        """Take back rows in the order in which they were written, and the epochs that wrote them (int64)."""
        edges = [0, *(np.flatnonzero(np.diff(epochs)) + 1).tolist(), len(epochs)]
        for start, end in itertools.pairwise(edges):
            if end == start:
                continue
            part = [array.slice(start, end - start) for array in arrays]
            own_times = times[start:end]
            for family, columns, chosen in self._parted(part):
                family.put(columns, own_times if chosen is None or not len(times) else own_times[chosen], epochs[start])
            self._note(int(epochs[start]), end - start)
        self._alive.add(times)

    def forget(self, watermark: int) -> None:
        """Event time has reached ``watermark``: rows older than it by ``within`` or more are forgotten."""
        self.forgotten = max(self.forgotten, watermark - self._within)
        self._alive.expire(self.forgotten)
        for family in self._families:
            family.forget(self.forgotten)
        self._tidy()

    def take(self, epoch: int) -> Written:
        """Return what the delta of an epoch must hold: the keys added since the last one, and some old ones anew."""
        self._tidy()
        before = self._due(epoch)
        if before is not None:
            for log in self._logs:
                log.renew(before)
        taken = [piece for family in self._families for piece in family.take(epoch)]
        full_from = min(log.full_from(epoch) for log in self._logs)
        while self._epochs and self._epochs[0][0] < full_from:
            self._epochs.popleft()
        columns = [pa.chunked_array([piece[i] for piece, _ in taken], type) for i, type in enumerate(self._types)]
        times = np.concatenate([times for _, times in taken]) if self._within != FOR_EVER else NO_TIMES
        self._note(epoch, len(columns[0]))
        return Written(columns, times, full_from)

    def _note(self, epoch: int, rows: int) -> None:
        if self._epochs and self._epochs[-1][0] >= epoch:
            epoch, before = self._epochs.pop()
            rows += before
        if rows:
            self._epochs.append((epoch, rows))

    def _due(self, before: int) -> int | None:
        """What earlier epochs wrote is to be written anew, lest a restore reads too many epochs, or forgotten keys."""
        room = 2 * self._count_alive() + _LEAST
        for number, (epoch, rows) in enumerate(reversed(self._epochs)):
            room -= rows
            if room < 0 or number == _MOST_EPOCHS:
                return before
            before = epoch
        return None

    def _count_alive(self) -> int:
        return min(len(self), self._alive.count) if self._within != FOR_EVER else len(self)

    def _parted(self, arrays: Sequence[pa.Array]) -> Iterator[tuple[_Family, Sequence[pa.Array], Ints | None]]:
        """Yield each family that rows belong to, with their key columns and numbers (None: all)."""
        if self._plain is None:
            assert self._any is not None
            yield self._any, arrays, None
            return
        masks = [mask for mask in map(validity, arrays) if len(mask)]
        if not masks:
            yield self._plain, arrays, None
            return
        if self._any is None:
            self._any = self._family(AnyWords(self._types))
            self._any.forget(self.forgotten)
        valid = np.logical_and.reduce(masks)
        for family, mask in ((self._plain, valid), (self._any, ~valid)):
            chosen = np.flatnonzero(mask)
            if len(chosen):
                yield family, [array.take(pa.array(chosen)) for array in arrays], chosen

    def _tidy(self) -> None:
        """Take forgotten keys out, a few at a time; once they are the most, those between them are appended anew."""
        records = sum(log.records for log in self._logs)
        alive = self._count_alive()
        # More than what has come since, so that what is left to do gets less and less.
        step = _STEP + 2 * self._untidied // len(self._rooms)
        self._untidied = 0
        if records == alive:
            return
        for log in self._logs:
            if alive == 0:
                log.clear()
            else:
                log.retire(step, renew=records - alive > alive + _LEAST)


class _Family:
    """The logs of keys that are words in one way."""

    def __init__(self, key_words: KeyWords, within: int, seed: np.uint64, rooms: Sequence[int]) -> None:
        self._key_words = key_words
        self._timed = within != FOR_EVER
        self._seed = seed
        self.logs = [KeyLog(key_words.width, within, seed, room) for room in rooms]

    def add(self, arrays: Sequence[pa.Array], times: Ints, new: Bools) -> None:
        for log, rows in self._dealt(arrays, times):
            log.add(rows, new)

    def put(self, arrays: Sequence[pa.Array], times: Ints, epoch: int) -> None:
        for log, rows in self._dealt(arrays, times):
            log.put(rows, int(epoch))

    def forget(self, time: int) -> None:
        for log in self.logs:
            log.forgotten = time

    def take(self, epoch: int) -> Iterator[tuple[list[pa.Array], Ints]]:
        for log in self.logs:
            words, at = log.take(epoch)
            yield self._key_words.unpack(words, at), words[at - 1] if self._timed else NO_TIMES

    def _dealt(self, arrays: Sequence[pa.Array], times: Ints) -> Iterator[tuple[KeyLog, Rows]]:
        packed = self._key_words.pack(arrays)
        hashes = np.empty(len(packed.sizes), np.uint64)
        key_log_kernels.hash_rows(packed.words, packed.starts, self._seed, hashes)
        order = np.empty(len(hashes), np.int64)
        ends = np.empty(len(self.logs), np.int64)
        counting_sort(hashes, len(self.logs), order, ends)
        for log, chosen in zip(self.logs, np.split(order, ends[:-1]), strict=True):
            if len(chosen):
                yield log, Rows(packed, hashes, frozen(times), chosen)


class _Ages:
    """Counts times by cell of ``2**grain`` microseconds, and drops cells that are past."""

    def __init__(self, grain: int) -> None:
        self._grain = grain
        self._counts: dict[int, int] = {}
        self._cells: list[int] = []  # a heap: the earliest first
        self.count = 0

    def add(self, times: Ints) -> None:
        """Count some more."""
        if not len(times):
            return
        cells = times >> self._grain
        first = int(cells.min())
        if int(cells.max()) - first < 4 * len(cells) + 64:
            counts = np.bincount(cells - first)
            found = np.flatnonzero(counts)
            counts, found = counts[found], found + first
        else:
            found, counts = np.unique(cells, return_counts=True)
        for cell, count in zip(found.tolist(), counts.tolist(), strict=True):
            if cell not in self._counts:
                heapq.heappush(self._cells, cell)
            self._counts[cell] = self._counts.get(cell, 0) + count
        self.count += len(times)

    def expire(self, time: int) -> None:
        """Drop the cells in which every time is this one or older."""
        while self._cells and ((self._cells[0] + 1) << self._grain) - 1 <= time:
            self.count -= self._counts.pop(heapq.heappop(self._cells))
