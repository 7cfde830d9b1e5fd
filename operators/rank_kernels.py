"""Loops over rows for rankings: one list of the best per slot, best to worst. Importing this module loads numba.

An entry is a row by its number; a greater number is a later arrival. The list of a slot is linked both ways. Entries
that are not on it but may be some day wait in a pairing heap (Fredman, Sedgewick, Sleator and Tarjan, 1986), from which
one that is taken back is only removed once it comes out on top.

Everything about an entry stands in one row of a matrix of int64, side by side for the cache: where it is, then what it
is ranked by (``Layout``). -1 is no entry.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from millstream.engine.jit import kernel

BETTER: Final = 0
WORSE: Final = 1
"""Columns of an entry: its neighbours in the list."""

CHILD: Final = 0
SIBLING: Final = 1
"""Of one that waits: its first child in the heap, and the next child of its parent."""

SLOT: Final = 2

SHOWN: Final = 3
"""What readers know of it: its rank, or 1 if they are told of none; 0: nothing."""

PLACE: Final = 4
GONE: Final = 0
LISTED: Final = 1
WAITING: Final = 2
TAKEN_BACK: Final = 3
"""Where it is; the last one means in the heap although its row is gone."""

NOTED: Final = 4
"""Added to the place of an entry that is among the notes: something may have to be told of it."""

NULLS: Final = 5
"""Bit c says that column c of what it is ranked by is null; the columns follow."""

CODES: Final = 6

BEST: Final = 0
WORST: Final = 1
SIZE: Final = 2
ROOT: Final = 3
"""Columns of a slot: the ends and the length of its list, the best of those that wait."""

ENTRIES: Final = 0
NOTES: Final = 1
HEAP_BYTES: Final = 2
"""What is counted: how many entries there are, and so on."""

FIXED: Final = 0
RISING_BYTES: Final = 1
FALLING_BYTES: Final = 2
"""Kinds of columns to rank by. Codes of FIXED ones (the lesser is better) say all, those of byte strings the first
eight bytes; of FALLING ones the greatest string is best."""


class Layout(NamedTuple):
    """What lists hold, and where it stands.

    Attributes:
        n: so many entries make a list.
        ties: and those that equal the n-th in all columns.
        newest: of equal entries the last to arrive is better, not the first.
        returns: entries may be taken back, so that others return to the list: none is forgotten before.
        columns: how many an entry is ranked by. Their codes stand at CODES and after.
        spans: how many of these are byte strings. Where each begins, and how long it is, stands behind the codes.
        rank: where an entry's place in its list stands, as ``rerank`` last found it; -1 if readers are not told.
        equal: where the entry before it of the same content stands; only if ``returns``.
    """

    n: int
    ties: bool
    newest: bool
    returns: bool
    columns: int
    spans: int
    rank: int
    equal: int


@kernel
def _compare_bytes(entries: Any, heap: Any, span: int, a: int, b: int) -> Any:
    first, size = entries[a, span], entries[a, span + 1]
    second, other = entries[b, span], entries[b, span + 1]
    for step in range(min(size, other)):
        x, y = heap[first + step], heap[second + step]
        if x != y:
            return -1 if x < y else 1
    return size - other


@kernel
def compare(entries: Any, kinds: Any, heap: Any, a: int, b: int) -> int:
    """Return less than 0 if entry a is better, more if b is, 0 if they are equal in all columns. Nulls are worst."""
    nulls = entries[a, NULLS] | entries[b, NULLS]
    columns = kinds.shape[0]
    span = CODES + columns
    order = 0
    column = 0
    while column < columns and order == 0:
        if (nulls >> column) & 1:
            order = ((entries[a, NULLS] >> column) & 1) - ((entries[b, NULLS] >> column) & 1)
        else:
            x, y = entries[a, CODES + column], entries[b, CODES + column]
            if x != y:
                order = -1 if x < y else 1
            elif kinds[column] != FIXED:
                order = _compare_bytes(entries, heap, span, a, b)
                if kinds[column] == FALLING_BYTES:
                    order = -order
        if kinds[column] != FIXED:
            span += 2
        column += 1
    return order


@kernel
def _ahead(entries: Any, kinds: Any, heap: Any, layout: Any, a: int, b: int) -> bool:
    order = compare(entries, kinds, heap, a, b)
    return order < 0 or (order == 0 and (a > b) == layout.newest)


@kernel
def _note(entries: Any, counts: Any, notes: Any, entry: int) -> None:
    if entries[entry, PLACE] < NOTED:
        entries[entry, PLACE] += NOTED
        notes[counts[NOTES]] = entry
        counts[NOTES] += 1


@kernel
def _put(entries: Any, entry: int, place: int) -> None:
    entries[entry, PLACE] = (entries[entry, PLACE] & NOTED) | place


# -- the list --------------------------------------------------------------------------------------------------


@kernel
def _link(entries: Any, slots: Any, entry: int, better: int, worse: int) -> None:
    slot = entries[entry, SLOT]
    entries[entry, BETTER], entries[entry, WORSE] = better, worse
    if better < 0:
        slots[slot, BEST] = entry
    else:
        entries[better, WORSE] = entry
    if worse < 0:
        slots[slot, WORST] = entry
    else:
        entries[worse, BETTER] = entry
    slots[slot, SIZE] += 1
    _put(entries, entry, LISTED)


@kernel
def _unlink(entries: Any, slots: Any, entry: int) -> None:
    slot = entries[entry, SLOT]
    better, worse = entries[entry, BETTER], entries[entry, WORSE]
    if better < 0:
        slots[slot, BEST] = worse
    else:
        entries[better, WORSE] = worse
    if worse < 0:
        slots[slot, WORST] = better
    else:
        entries[worse, BETTER] = better
    slots[slot, SIZE] -= 1
    _put(entries, entry, GONE)


@kernel
def _insert(entries: Any, slots: Any, kinds: Any, heap: Any, layout: Any, entry: int) -> None:
    """Find the place from both ends at once: the newest row is often among the best, or among the worst."""
    slot = entries[entry, SLOT]
    low, high = slots[slot, WORST], slots[slot, BEST]
    better, worse = -1, high
    while low >= 0:
        if _ahead(entries, kinds, heap, layout, low, entry):
            better, worse = low, entries[low, WORSE]
            break
        if _ahead(entries, kinds, heap, layout, entry, high):
            better, worse = entries[high, BETTER], high
            break
        low, high = entries[low, BETTER], entries[high, WORSE]
    _link(entries, slots, entry, better, worse)


@kernel
def _surplus(entries: Any, slots: Any, kinds: Any, heap: Any, layout: Any, slot: int) -> int:
    """How many entries are on a list too much; with ties all that are equal, or none."""
    if not layout.ties:
        return 1
    worst = slots[slot, WORST]
    equal = 1
    at = entries[worst, BETTER]
    while at >= 0 and compare(entries, kinds, heap, at, worst) == 0:
        equal += 1
        at = entries[at, BETTER]
    return 0 if slots[slot, SIZE] - equal < layout.n else equal


# -- those that wait -------------------------------------------------------------------------------------------


@kernel
def _meld(entries: Any, kinds: Any, heap: Any, layout: Any, a: int, b: int) -> int:
    if a < 0:
        return b
    if b < 0:
        return a
    if _ahead(entries, kinds, heap, layout, b, a):
        a, b = b, a
    entries[b, SIBLING] = entries[a, CHILD]
    entries[a, CHILD] = b
    return a


@kernel
def _wait(entries: Any, slots: Any, kinds: Any, heap: Any, layout: Any, entry: int) -> None:
    slot = entries[entry, SLOT]
    entries[entry, CHILD], entries[entry, SIBLING] = -1, -1
    _put(entries, entry, WAITING)
    slots[slot, ROOT] = _meld(entries, kinds, heap, layout, slots[slot, ROOT], entry)


@kernel
def _without_root(entries: Any, kinds: Any, heap: Any, layout: Any, root: int) -> int:
    """Return the root of the heap that is left: pairs are melded from left to right, then these from right to left."""
    pairs = -1
    at = entries[root, CHILD]
    while at >= 0:
        second = entries[at, SIBLING]
        following = -1 if second < 0 else entries[second, SIBLING]
        pair = _meld(entries, kinds, heap, layout, at, second)
        entries[pair, SIBLING] = pairs
        pairs = pair
        at = following
    merged = -1
    while pairs >= 0:
        following = entries[pairs, SIBLING]
        entries[pairs, SIBLING] = -1
        merged = _meld(entries, kinds, heap, layout, merged, pairs)
        pairs = following
    return merged


@kernel
def _refill(  # noqa: PLR0913, PLR0917  kernels know no objects
    entries: Any, slots: Any, kinds: Any, heap: Any, layout: Any, slot: int, counts: Any, notes: Any
) -> None:
    """Let those that wait move up while there is room, and those that equal the last of them."""
    while slots[slot, ROOT] >= 0:
        entry = slots[slot, ROOT]
        alive = entries[entry, PLACE] & ~NOTED == WAITING
        worst = slots[slot, WORST]
        if alive and slots[slot, SIZE] >= layout.n:
            equal = layout.ties and compare(entries, kinds, heap, entry, worst) == 0
            if not equal:
                return
        slots[slot, ROOT] = _without_root(entries, kinds, heap, layout, entry)
        if alive:
            _link(entries, slots, entry, worst, -1)
            _note(entries, counts, notes, entry)
        else:
            _put(entries, entry, GONE)


@kernel
def _take_back(  # noqa: PLR0913, PLR0917
    entries: Any, slots: Any, kinds: Any, heap: Any, layout: Any, entry: int, counts: Any, notes: Any
) -> None:
    _note(entries, counts, notes, entry)
    if entries[entry, PLACE] & ~NOTED == WAITING:
        _put(entries, entry, TAKEN_BACK)
        return
    _unlink(entries, slots, entry)
    _refill(entries, slots, kinds, heap, layout, entries[entry, SLOT], counts, notes)


@kernel
def _admit(  # noqa: PLR0913, PLR0917
    entries: Any, slots: Any, kinds: Any, heap: Any, layout: Any, entry: int, counts: Any, notes: Any
) -> bool:
    """Put an entry on its list if it belongs there, and drop what then is there too much."""
    slot = entries[entry, SLOT]
    full = slots[slot, SIZE] >= layout.n
    order = compare(entries, kinds, heap, entry, slots[slot, WORST]) if full else -1
    if order > 0 or (order == 0 and not (layout.ties or layout.newest)):
        return False
    _insert(entries, slots, kinds, heap, layout, entry)
    _note(entries, counts, notes, entry)
    # What equals the n-th pushes nobody out if ties are kept.
    if full and not (layout.ties and order == 0):
        for _ in range(_surplus(entries, slots, kinds, heap, layout, slot)):
            old = slots[slot, WORST]
            _unlink(entries, slots, old)
            _note(entries, counts, notes, old)
            if layout.returns:
                _wait(entries, slots, kinds, heap, layout, old)
    return True


# -- what is called --------------------------------------------------------------------------------------------


@kernel
def _stage(  # noqa: PLR0913, PLR0917
    entries: Any, heap: Any, layout: Any, entry: int, fresh: Any, texts: Any, row: int, used: int
) -> int:
    codes = 1 + layout.columns
    for column in range(codes):
        entries[entry, NULLS + column] = fresh[row, column]
    for column in range(codes, codes + 2 * layout.spans, 2):
        start, size = fresh[row, column], fresh[row, column + 1]
        entries[entry, NULLS + column], entries[entry, NULLS + column + 1] = used, size
        for step in range(size):
            heap[used + step] = texts[start + step]
        used += size
    return used


@kernel
def change(  # noqa: PLR0913, PLR0917  one loop, spelled out for the compiler
    entries: Any,
    slots: Any,
    kinds: Any,
    heap: Any,
    layout: Any,
    fresh: Any,
    texts: Any,
    slot_of_row: Any,
    weights: Any,
    contents: Any,
    newest_of: Any,
    counts: Any,
    taken: Any,
    notes: Any,
) -> int:
    """Take rows in, or back, one after the other.

    Args:
        entries: with room for as many more as there are rows; ``heap`` for their byte strings.
        fresh: int64, shape (rows, ...): what the rows are ranked by, as in an entry from NULLS on.
        texts: the byte strings of the rows.
        slot_of_row: int64, shape (rows,).
        weights: int64, shape (rows,): 1 or -1; empty unless rows can be taken back.
        contents: int64, likewise: rows of equal number are equal; what is taken back is the newest of them.
        newest_of: int64, by content: its newest entry.
        taken: int64, shape (rows,): gets the number of the row behind each new entry.
        notes: int64, with room for all entries: gets those that came to a list or left one.

    Returns:
        The row that is to be taken back and never came; -1 if all is well.
    """
    first = counts[ENTRIES]
    entry = first
    used = counts[HEAP_BYTES]
    for row in range(slot_of_row.shape[0]):
        if layout.returns and weights[row] < 0:
            old = newest_of[contents[row]]
            if old < 0:
                return row
            newest_of[contents[row]] = entries[old, layout.equal]
            _take_back(entries, slots, kinds, heap, layout, old, counts, notes)
            continue
        slot = slot_of_row[row]
        after = _stage(entries, heap, layout, entry, fresh, texts, row, used)
        entries[entry, SLOT], entries[entry, SHOWN], entries[entry, PLACE] = slot, 0, GONE
        if not _admit(entries, slots, kinds, heap, layout, entry, counts, notes):
            if not layout.returns:
                continue
            _wait(entries, slots, kinds, heap, layout, entry)
        if layout.returns:
            entries[entry, layout.equal] = newest_of[contents[row]]
            newest_of[contents[row]] = entry
        taken[entry - first] = row
        entry += 1
        used = after
    counts[ENTRIES] = entry
    counts[HEAP_BYTES] = used
    return -1


@kernel
def squeeze(  # noqa: PLR0913, PLR0917
    entries: Any, slots: Any, heap: Any, layout: Any, counts: Any, before: Any, taken: Any, notes: Any, moved: Any
) -> None:
    """Remove entries that came and went since the counts were ``before``: the newer ones move up. For lists alone.

    Args:
        moved: int64, with room for as many as came: scratch.
    """
    first = before[ENTRIES]
    used = before[HEAP_BYTES]
    spans = CODES + layout.columns
    kept = first
    for entry in range(first, counts[ENTRIES]):
        if entries[entry, PLACE] & ~NOTED == GONE:
            moved[entry - first] = -1
            continue
        moved[entry - first] = kept
        for span in range(spans, spans + 2 * layout.spans, 2):
            start, size = entries[entry, span], entries[entry, span + 1]
            for step in range(size):
                heap[used + step] = heap[start + step]
            entries[entry, span] = used
            used += size
        if kept < entry:
            for column in range(entries.shape[1]):
                entries[kept, column] = entries[entry, column]
            _link(entries, slots, kept, entries[kept, BETTER], entries[kept, WORSE])
            slots[entries[kept, SLOT], SIZE] -= 1  # it was on the list before
            taken[kept - first] = taken[entry - first]
        kept += 1
    count = 0
    for at in range(counts[NOTES]):
        entry = notes[at] if notes[at] < first else moved[notes[at] - first]
        if entry >= 0:
            notes[count] = entry
            count += 1
    counts[ENTRIES], counts[HEAP_BYTES], counts[NOTES] = kept, used, count


@kernel
def rerank(  # noqa: PLR0913, PLR0917
    entries: Any, slots: Any, kinds: Any, heap: Any, layout: Any, touched: Any, counts: Any, notes: Any
) -> None:
    """Number the entries of some slots' lists, equal ones alike if ties are kept, and note those that moved."""
    for at in range(touched.shape[0]):
        entry = slots[touched[at], BEST]
        place, rank, before = 0, 0, -1
        while entry >= 0:
            place += 1
            if not (layout.ties and before >= 0 and compare(entries, kinds, heap, before, entry) == 0):
                rank = place
            entries[entry, layout.rank] = rank
            if entries[entry, SHOWN] != rank:
                _note(entries, counts, notes, entry)
            before, entry = entry, entries[entry, WORSE]


@kernel
def settle(entries: Any, layout: Any, notes: Any, left: Any, came: Any, gone: Any) -> Any:
    """Compare what readers know of the entries noted with what is so now, and take that as known.

    Args:
        left: int64, shape (2, notes): gets entries to take back, and the rank they were shown with.
        came: likewise: entries to show, and their rank.
        gone: int64, shape (notes,): gets entries whose rows are gone.

    Returns:
        How many of each of the three there are.
    """
    leaving = coming = going = 0
    for at in range(notes.shape[0]):
        entry = notes[at]
        place = entries[entry, PLACE] & ~NOTED
        entries[entry, PLACE] = place
        now = 0
        if place == LISTED:
            now = entries[entry, layout.rank] if layout.rank >= 0 else 1
        was = entries[entry, SHOWN]
        if was != now:
            if was != 0:
                left[0, leaving], left[1, leaving] = entry, was
                leaving += 1
            if now != 0:
                came[0, coming], came[1, coming] = entry, now
                coming += 1
            entries[entry, SHOWN] = now
        if place in (GONE, TAKEN_BACK):
            gone[going] = entry
            going += 1
    return leaving, coming, going


@kernel
def restack(entries: Any, slots: Any, kinds: Any, heap: Any, layout: Any, count: int) -> None:
    """Build the heaps anew of the entries 0..count-1 that wait."""
    for entry in range(count):
        if entries[entry, PLACE] == WAITING:
            _wait(entries, slots, kinds, heap, layout, entry)
