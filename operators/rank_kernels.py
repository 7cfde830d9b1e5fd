"""Loops over rows for rankings: one list of the best per slot, best to worst. Importing this module loads numba.

An entry is a row by its number; a greater number is a later arrival. The list of a slot is linked both ways. Entries
that are not on it but may be some day wait in a pairing heap (Fredman, Sedgewick, Sleator and Tarjan, 1986), from which
one that is taken back is only removed once it comes out on top.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from millstream.engine.codes import Bools, Bytes, Ints
from millstream.engine.jit import kernel

GONE: Final = 0
LISTED: Final = 1
WAITING: Final = 2
TAKEN_BACK: Final = 3
"""Where an entry can be; the last one means in the heap although its row is gone."""

ENTRIES: Final = 0
NOTES: Final = 1
HEAP_BYTES: Final = 2
"""What ``Lists.counts`` counts."""


class Keys(NamedTuple):
    """What entries (or the rows of a batch) are ranked by.

    Attributes:
        nulls: (entries,): bit c says that column c is null.
        codes: (entries, columns): the lesser is better; of byte strings it covers the first eight bytes.
        falling: (columns,): whether the greatest value is the best.
        text: (columns,): the place of a column among those of byte strings, -1 for others.
        starts: (entries, columns of byte strings): where one begins in ``heap``.
        sizes: likewise: how long it is.
        heap: the byte strings.
    """

    nulls: Ints
    codes: Ints
    falling: Bools
    text: Ints
    starts: Ints
    sizes: Ints
    heap: Bytes


class Rule(NamedTuple):
    """What a list holds.

    Attributes:
        n: so many entries.
        ties: and those that equal the n-th in all columns.
        newest: of equal entries the last to arrive is better, not the first.
        returns: entries may be taken back, so that others return to the list: none is forgotten before.
    """

    n: int
    ties: bool
    newest: bool
    returns: bool


class Lists(NamedTuple):
    """The lists and heaps of all slots; -1 is none.

    Attributes:
        place: by entry: one of GONE ... TAKEN_BACK.
        slot_of: by entry.
        better, worse: by entry: its neighbours in the list.
        noted: by entry: whether it is among the notes.
        rank: by entry: its place in the list, from 1, as ``rerank`` last found it.
        shown: by entry: the place that readers know of, 0 if none.
        best, worst, size: by slot: the ends and the length of its list.
        root: by slot: the best of those that wait. Empty, like what follows, unless entries can be taken back.
        child, sibling: by entry: the heap.
        equal: by entry: the entry before it of the same content.
        newest_of: by content: its newest entry.
        counts: how many entries there are, and so on: ENTRIES ... HEAP_BYTES.
    """

    place: Any
    slot_of: Ints
    better: Ints
    worse: Ints
    noted: Bools
    rank: Ints
    shown: Ints
    best: Ints
    worst: Ints
    size: Ints
    root: Ints
    child: Ints
    sibling: Ints
    equal: Ints
    newest_of: Ints
    counts: Ints


@kernel
def _compare_bytes(keys: Any, column: int, a: int, b: int) -> int:
    first, second = keys.starts[a, column], keys.starts[b, column]
    size, other = keys.sizes[a, column], keys.sizes[b, column]
    for step in range(min(size, other)):
        x, y = keys.heap[first + step], keys.heap[second + step]
        if x != y:
            return -1 if x < y else 1
    return size - other


@kernel
def compare(keys: Any, a: int, b: int) -> int:
    """Return less than 0 if entry a is better, more if b is, 0 if they are equal in all columns. Nulls are worst."""
    nulls = keys.nulls[a] | keys.nulls[b]
    for column in range(keys.codes.shape[1]):
        if (nulls >> column) & 1:
            null, other = (keys.nulls[a] >> column) & 1, (keys.nulls[b] >> column) & 1
            if null != other:
                return null - other
            continue
        x, y = keys.codes[a, column], keys.codes[b, column]
        if x != y:
            return -1 if x < y else 1
        if keys.text[column] >= 0:
            order = _compare_bytes(keys, keys.text[column], a, b)
            if order != 0:
                return -order if keys.falling[column] else order
    return 0


@kernel
def _ahead(keys: Any, rule: Any, a: int, b: int) -> bool:
    order = compare(keys, a, b)
    if order != 0:
        return order < 0
    return a > b if rule.newest else a < b


# -- notes: the entries of which something may have to be told -------------------------------------------------


@kernel
def _note(lists: Any, notes: Any, entry: int) -> None:
    if not lists.noted[entry]:
        lists.noted[entry] = True
        notes[lists.counts[NOTES]] = entry
        lists.counts[NOTES] += 1


# -- the list --------------------------------------------------------------------------------------------------


@kernel
def _link(lists: Any, entry: int, better: int, worse: int) -> None:
    slot = lists.slot_of[entry]
    lists.better[entry], lists.worse[entry] = better, worse
    if better < 0:
        lists.best[slot] = entry
    else:
        lists.worse[better] = entry
    if worse < 0:
        lists.worst[slot] = entry
    else:
        lists.better[worse] = entry
    lists.size[slot] += 1
    lists.place[entry] = LISTED


@kernel
def _unlink(lists: Any, entry: int) -> None:
    slot = lists.slot_of[entry]
    better, worse = lists.better[entry], lists.worse[entry]
    if better < 0:
        lists.best[slot] = worse
    else:
        lists.worse[better] = worse
    if worse < 0:
        lists.worst[slot] = better
    else:
        lists.better[worse] = better
    lists.size[slot] -= 1


@kernel
def _insert(lists: Any, keys: Any, rule: Any, entry: int) -> None:
    """Find the place from both ends at once: the newest row is often among the best, or among the worst."""
    slot = lists.slot_of[entry]
    low, high = lists.worst[slot], lists.best[slot]
    while low >= 0:
        if _ahead(keys, rule, low, entry):
            _link(lists, entry, low, lists.worse[low])
            return
        if _ahead(keys, rule, entry, high):
            _link(lists, entry, lists.better[high], high)
            return
        low, high = lists.better[low], lists.worse[high]
    _link(lists, entry, -1, lists.best[slot])


@kernel
def _cut(lists: Any, keys: Any, rule: Any, slot: int, notes: Any) -> None:
    """Drop from a list what is there too much; with ties only together with all that are equal."""
    surplus = 1
    if rule.ties:
        worst = lists.worst[slot]
        at = lists.better[worst]
        while at >= 0 and compare(keys, at, worst) == 0:
            surplus += 1
            at = lists.better[at]
        if lists.size[slot] - surplus < rule.n:
            return
    for _ in range(surplus):
        entry = lists.worst[slot]
        _unlink(lists, entry)
        _note(lists, notes, entry)
        lists.place[entry] = GONE
        if rule.returns:
            _wait(lists, keys, rule, entry)


@kernel
def _admit(lists: Any, keys: Any, rule: Any, entry: int, notes: Any) -> bool:
    """Put an entry on its list if it belongs there."""
    slot = lists.slot_of[entry]
    order = -1
    if lists.size[slot] >= rule.n:
        order = compare(keys, entry, lists.worst[slot])
        if order > 0 or (order == 0 and not (rule.ties or rule.newest)):
            return False
    _insert(lists, keys, rule, entry)
    _note(lists, notes, entry)
    if lists.size[slot] > rule.n and not (rule.ties and order == 0):
        _cut(lists, keys, rule, slot, notes)
    return True


# -- those that wait -------------------------------------------------------------------------------------------


@kernel
def _meld(lists: Any, keys: Any, rule: Any, a: int, b: int) -> int:
    if a < 0:
        return b
    if b < 0:
        return a
    if _ahead(keys, rule, b, a):
        a, b = b, a
    lists.sibling[b] = lists.child[a]
    lists.child[a] = b
    return a


@kernel
def _wait(lists: Any, keys: Any, rule: Any, entry: int) -> None:
    slot = lists.slot_of[entry]
    lists.child[entry] = lists.sibling[entry] = -1
    lists.place[entry] = WAITING
    lists.root[slot] = _meld(lists, keys, rule, lists.root[slot], entry)


@kernel
def _without_root(lists: Any, keys: Any, rule: Any, root: int) -> int:
    """Return the root of the heap that is left: pairs are melded from left to right, then these from right to left."""
    pairs = -1
    at = lists.child[root]
    while at >= 0:
        second = lists.sibling[at]
        following = -1 if second < 0 else lists.sibling[second]
        pair = _meld(lists, keys, rule, at, second)
        lists.sibling[pair] = pairs
        pairs = pair
        at = following
    merged = -1
    while pairs >= 0:
        following = lists.sibling[pairs]
        lists.sibling[pairs] = -1
        merged = _meld(lists, keys, rule, merged, pairs)
        pairs = following
    return merged


@kernel
def _refill(lists: Any, keys: Any, rule: Any, slot: int, notes: Any) -> None:
    """Let those that wait move up while there is room, and those that equal the last of them."""
    while lists.root[slot] >= 0:
        entry = lists.root[slot]
        alive = lists.place[entry] == WAITING
        worst = lists.worst[slot]
        equal = rule.ties and worst >= 0 and compare(keys, entry, worst) == 0
        if alive and lists.size[slot] >= rule.n and not equal:
            return
        lists.root[slot] = _without_root(lists, keys, rule, entry)
        if alive:
            _link(lists, entry, worst, -1)
            _note(lists, notes, entry)
        else:
            lists.place[entry] = GONE


@kernel
def _take_back(lists: Any, keys: Any, rule: Any, entry: int, notes: Any) -> None:
    _note(lists, notes, entry)
    if lists.place[entry] == WAITING:
        lists.place[entry] = TAKEN_BACK
        return
    _unlink(lists, entry)
    lists.place[entry] = GONE
    _refill(lists, keys, rule, lists.slot_of[entry], notes)


# -- what is called --------------------------------------------------------------------------------------------


@kernel
def _stage(lists: Any, keys: Any, entry: int, fresh: Any, row: int) -> int:
    keys.nulls[entry] = fresh.nulls[row]
    for column in range(fresh.codes.shape[1]):
        keys.codes[entry, column] = fresh.codes[row, column]
    used = lists.counts[HEAP_BYTES]
    for column in range(fresh.starts.shape[1]):
        start, size = fresh.starts[row, column], fresh.sizes[row, column]
        keys.starts[entry, column], keys.sizes[entry, column] = used, size
        for step in range(size):
            keys.heap[used + step] = fresh.heap[start + step]
        used += size
    return used


@kernel
def change(  # noqa: PLR0913, PLR0917  kernels know no objects
    lists: Any, keys: Any, rule: Any, fresh: Any, slots: Any, weights: Any, contents: Any, taken: Any, notes: Any
) -> int:
    """Take rows in, or back, one after the other.

    Args:
        lists: with room for as many entries more as there are rows.
        keys: of the entries; likewise.
        fresh: of the rows.
        slots: int64, shape (rows,).
        weights: int64, shape (rows,): 1 or -1; empty unless rows can be taken back.
        contents: int64, likewise: rows of equal number are equal; what is taken back is the newest of them.
        taken: int64, shape (rows,): gets the number of the row behind each new entry.
        notes: int64, with room for all entries: gets those that came to a list or left one.

    Returns:
        The row that is to be taken back and never came; -1 if all is well.
    """
    first = lists.counts[ENTRIES]
    for row in range(slots.shape[0]):
        if rule.returns and weights[row] < 0:
            entry = lists.newest_of[contents[row]]
            if entry < 0:
                return row
            lists.newest_of[contents[row]] = lists.equal[entry]
            _take_back(lists, keys, rule, entry, notes)
            continue
        entry = lists.counts[ENTRIES]
        used = _stage(lists, keys, entry, fresh, row)
        lists.slot_of[entry] = slots[row]
        lists.shown[entry] = 0
        lists.noted[entry] = False
        if not _admit(lists, keys, rule, entry, notes):
            if not rule.returns:
                continue
            _wait(lists, keys, rule, entry)
        if rule.returns:
            lists.equal[entry] = lists.newest_of[contents[row]]
            lists.newest_of[contents[row]] = entry
        lists.counts[ENTRIES] = entry + 1
        lists.counts[HEAP_BYTES] = used
        taken[entry - first] = row
    return -1


@kernel
def rerank(lists: Any, keys: Any, rule: Any, slots: Any, notes: Any) -> None:
    """Number the entries of some slots' lists, equal ones alike if ties are kept, and note those that moved."""
    for at in range(slots.shape[0]):
        entry = lists.best[slots[at]]
        place, rank, before = 0, 0, -1
        while entry >= 0:
            place += 1
            if not (rule.ties and before >= 0 and compare(keys, before, entry) == 0):
                rank = place
            lists.rank[entry] = rank
            if lists.shown[entry] != rank:
                _note(lists, notes, entry)
            before, entry = entry, lists.worse[entry]


@kernel
def settle(lists: Any, ranked: bool, notes: Any, left: Any, came: Any, gone: Any) -> Any:
    """Compare what readers know of the entries noted with what is so now, and take that as known.

    Args:
        ranked: readers are told of the rank; otherwise each entry listed counts as 1.
        left: int64, shape (2, notes): gets entries to take back, and the rank they were shown with.
        came: likewise: entries to show, and their rank.
        gone: int64, shape (notes,): gets entries whose rows are gone.

    Returns:
        How many of each of the three there are.
    """
    leaving = coming = going = 0
    for at in range(notes.shape[0]):
        entry = notes[at]
        lists.noted[entry] = False
        place = lists.place[entry]
        now = 0
        if place == LISTED:
            now = lists.rank[entry] if ranked else 1
        was = lists.shown[entry]
        if was != now:
            if was != 0:
                left[0, leaving], left[1, leaving] = entry, was
                leaving += 1
            if now != 0:
                came[0, coming], came[1, coming] = entry, now
                coming += 1
            lists.shown[entry] = now
        if place in (GONE, TAKEN_BACK):
            gone[going] = entry
            going += 1
    return leaving, coming, going


@kernel
def restack(lists: Any, keys: Any, rule: Any, entries: int) -> None:
    """Build the heaps anew of the entries that wait."""
    for entry in range(entries):
        if lists.place[entry] == WAITING:
            _wait(lists, keys, rule, entry)
