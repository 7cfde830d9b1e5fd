"""Loops over rows for ``match``, compiled. Importing this module loads numba.

Rows, slots (one per key) and groups are columns of int64 arrays; the constants below name their lines. The processed
rows of a slot form a chain in event-time order. An *attempt* is the search for a match that begins with one row.
Attempts of a slot that are in the same state, with the same best match so far, will stay so: they share a *group*, and
a row costs one step for each group, however many attempts there are. Groups are merged as in a union-find.
"""

from __future__ import annotations

from typing import Any

from millstream.engine.jit import inlined, kernel

# Lines of ``rows``. SLOT: -1 once the row is dropped. NEXT: the next row of the chain. GROUP: that of the attempt that
# begins here; -1: there is none, or no more.
SLOT, TIME, MASK, NEXT, GROUP = range(5)
ROW_LINES = 5
WAITING = -1  # a mask: the row has not been processed
LOOKED_AT = -2  # a mask: the row is only the one before the next, and begins nothing

# Lines of ``slots``. FIRST: the row where the chain begins, which is that of the oldest attempt, or the only one.
FIRST, LAST, GROUPS = range(3)
SLOT_LINES = 3

# Lines of ``groups``. BEST: the last row of the best match so far, -1: none. COUNT: attempts. FOLLOWING: the next group
# of the slot that still moves. BEGIN: the row of the first attempt.
STATE, BEST, PARENT, COUNT, FOLLOWING, BEGIN = range(6)
GROUP_LINES = 6

# Elements of ``told``, which goes from call to call. OLDEST, NEWEST: where the queue of processed rows begins and ends.
POSITION, GROUPS_USED, OLDEST, NEWEST, MATCHES, DROPPED, LOOKED = range(7)
TOLD = 7

# Columns of ``transitions`` and what they say: see ``pattern_automaton``.
TO, ACTION, HOLDER, OFFSET = range(4)
DEAD, DONE, START = range(3)
KEEP, MARK, CLEAR = range(3)

# Elements of ``rules``. WITHIN: microseconds. PAST_LAST: a match ends the attempts that begin within it. LOOK_BACK: the
# last row of a chain stays, for the next one to look back at.
WITHIN, PAST_LAST, LOOK_BACK = range(3)

# Lines of ``made``, each with a length of its own, which is in ``told``: first and last rows of matches and when they
# were known; rows that are no longer needed; rows that are needed only to be looked back at from now on.
MATCH_BEGIN, MATCH_END, MATCH_KNOWN, DROPPED_ROW, LOOKED_ROW = range(5)
MADE_LINES = 5

# Lines of ``terms``, a column for each comparison with the row that the match begins with. ``codes`` has two lines for
# each, the value of the row and that of the first row, and then, in the same order, two that say whether there is one.
BIT, COMPARISON = range(2)
EQUAL, NOT_EQUAL, LESS, LESS_EQUAL, GREATER, GREATER_EQUAL = range(6)


@kernel
def previous(due: Any, rows: Any, slots: Any, out: Any) -> None:
    """Find the row before each row that is due, in its chain; -1 if there is none."""
    for at in range(due.shape[0]):
        slot = rows[SLOT, due[at]]
        out[at] = slots[LAST, slot]
        slots[LAST, slot] = due[at]
    for at in range(due.shape[0] - 1, -1, -1):
        slots[LAST, rows[SLOT, due[at]]] = out[at]


@inlined
def _compares(comparison: int, left: int, right: int) -> bool:
    if comparison == EQUAL:
        return left == right
    if comparison == NOT_EQUAL:
        return left != right
    if comparison == LESS:
        return left < right
    if comparison == LESS_EQUAL:
        return left <= right
    if comparison == GREATER:
        return left > right
    return left >= right


@kernel
def _mask(row: int, begin: int, rows: Any, terms: Any, codes: Any) -> Any:
    """Which conditions hold for a row in an attempt that begins with another."""
    mask, valid = rows[MASK, row], 2 * terms.shape[1]
    for term in range(terms.shape[1]):
        if mask & terms[BIT, term]:
            left, right = 2 * term, 2 * term + 1
            true = codes[valid + left, row] and codes[valid + right, begin]
            if not (true and _compares(terms[COMPARISON, term], codes[left, row], codes[right, begin])):
                mask &= ~terms[BIT, term]
    return mask


@kernel
def _root(group: int, groups: Any) -> int:
    while groups[PARENT, group] != group:
        groups[PARENT, group] = groups[PARENT, groups[PARENT, group]]
        group = groups[PARENT, group]
    return group


@kernel
def _take_out(group: int, slot: int, slots: Any, groups: Any) -> None:
    """Take a group out of those of its slot that move."""
    before, current = -1, slots[GROUPS, slot]
    while current >= 0:
        if current == group:
            if before < 0:
                slots[GROUPS, slot] = groups[FOLLOWING, current]
            else:
                groups[FOLLOWING, before] = groups[FOLLOWING, current]
            return
        before, current = current, groups[FOLLOWING, current]


@kernel
def _release(row: int, slot: int, rows: Any, slots: Any, groups: Any) -> None:
    """End the attempt that begins with a row."""
    group = _root(rows[GROUP, row], groups)
    rows[GROUP, row] = -1
    groups[COUNT, group] -= 1
    if groups[COUNT, group] == 0 and groups[STATE, group] > DONE:
        _take_out(group, slot, slots, groups)


@kernel
def _settle(  # noqa: PLR0913, PLR0917  kernels know no objects
    slot: int,
    expired: int,
    known: int,
    rules: Any,
    rows: Any,
    slots: Any,
    groups: Any,
    told: Any,
    made: Any,
) -> None:
    """Decide on the attempts of a slot, oldest first, up to one that is still open; drop the rows before that.

    Args:
        expired: a row: the time of the attempt that begins with it is over; -1: none.
        known: when this became known, for the matches.
    """
    row, until = slots[FIRST, slot], -1
    while row >= 0:
        if rows[GROUP, row] >= 0 and until < 0:
            group = _root(rows[GROUP, row], groups)
            state = groups[STATE, group]
            if state > DONE and row != expired:
                break
            if state != DEAD and groups[BEST, group] >= 0:
                at = told[MATCHES]
                made[MATCH_BEGIN, at], made[MATCH_END, at], made[MATCH_KNOWN, at] = row, groups[BEST, group], known
                told[MATCHES] += 1
                until = groups[BEST, group] if rules[PAST_LAST] else -1
        if rows[GROUP, row] >= 0:
            _release(row, slot, rows, slots, groups)
        if row == until:
            until = -1
        following = rows[NEXT, row]
        if following < 0 and rules[LOOK_BACK]:
            made[LOOKED_ROW, told[LOOKED]] = row
            told[LOOKED] += 1
            break
        rows[SLOT, row] = -1
        made[DROPPED_ROW, told[DROPPED]] = row
        told[DROPPED] += 1
        row = following
    slots[FIRST, slot] = row
    if row < 0:
        slots[LAST, slot] = -1


@kernel
def _expire(  # noqa: PLR0913, PLR0917  kernels know no objects
    limit: int,
    rules: Any,
    rows: Any,
    slots: Any,
    groups: Any,
    queue: Any,
    told: Any,
    made: Any,
) -> None:
    """End the attempts whose time was over before ``limit``, oldest first, and let go of rows as old."""
    while told[OLDEST] < told[NEWEST]:
        row = queue[told[OLDEST]]
        deadline = rows[TIME, row] + rules[WITHIN]
        if deadline >= limit:
            return
        told[OLDEST] += 1
        slot = rows[SLOT, row]
        if slot < 0:
            continue
        if rows[GROUP, row] >= 0:
            _settle(slot, row, deadline, rules, rows, slots, groups, told, made)
        if rows[SLOT, row] >= 0 and rows[GROUP, row] < 0 and slots[FIRST, slot] == row:
            rows[SLOT, row] = -1
            made[DROPPED_ROW, told[DROPPED]] = row
            told[DROPPED] += 1
            slots[FIRST, slot] = slots[LAST, slot] = -1


@kernel
def _unknown(  # noqa: PLR0913, PLR0917  kernels know no objects
    row: int, slot: int, rows: Any, slots: Any, groups: Any, table: Any, terms: Any, codes: Any
) -> tuple[int, int]:
    """Find a transition that the row needs and which is not in the table: its state and mask; (-1, -1) if none is."""
    group = slots[GROUPS, slot]
    while group >= 0:
        mask = _mask(row, groups[BEGIN, group], rows, terms, codes)
        if table[groups[STATE, group], mask] < 0:
            return groups[STATE, group], mask
        group = groups[FOLLOWING, group]
    mask = _mask(row, row, rows, terms, codes)
    if table[START, mask] < 0:
        return START, mask
    return -1, -1


@kernel
def _step(  # noqa: PLR0913, PLR0917  kernels know no objects
    row: int,
    slot: int,
    rows: Any,
    slots: Any,
    groups: Any,
    table: Any,
    transitions: Any,
    terms: Any,
    codes: Any,
) -> None:
    """Move every group of a slot by a row, and put those together that have become equal."""
    group = slots[GROUPS, slot]
    slots[GROUPS, slot] = -1
    while group >= 0:
        following = groups[FOLLOWING, group]
        mask = _mask(row, groups[BEGIN, group], rows, terms, codes)
        transition = table[groups[STATE, group], mask]
        groups[STATE, group] = transitions[transition, TO]
        if transitions[transition, ACTION] == MARK:
            groups[BEST, group] = row
        elif transitions[transition, ACTION] == CLEAR:
            groups[BEST, group] = -1
        if groups[STATE, group] > DONE:
            equal = _equal(groups[STATE, group], groups[BEST, group], slot, slots, groups, terms)
            if equal >= 0:
                groups[PARENT, group] = equal
                groups[COUNT, equal] += groups[COUNT, group]
            else:
                groups[FOLLOWING, group] = slots[GROUPS, slot]
                slots[GROUPS, slot] = group
        group = following


@kernel
def _equal(state: int, best: int, slot: int, slots: Any, groups: Any, terms: Any) -> Any:
    """Find a group of a slot that moves, in this state and with this best match; -1 if there is none."""
    if terms.shape[1] > 0:
        return -1  # what becomes of an attempt depends on the row it begins with
    group = slots[GROUPS, slot]
    while group >= 0:
        if groups[STATE, group] == state and groups[BEST, group] == best:
            return group
        group = groups[FOLLOWING, group]
    return -1


@kernel
def _begin(  # noqa: PLR0913, PLR0917  kernels know no objects
    row: int,
    slot: int,
    rows: Any,
    slots: Any,
    groups: Any,
    told: Any,
    table: Any,
    transitions: Any,
    terms: Any,
    codes: Any,
) -> None:
    """Begin an attempt with a row, if that may be taken first."""
    transition = table[START, _mask(row, row, rows, terms, codes)]
    state = transitions[transition, TO]
    rows[GROUP, row] = -1
    if state == DEAD:
        return
    best = row if transitions[transition, ACTION] == MARK else -1
    group = _equal(state, best, slot, slots, groups, terms) if state > DONE else -1
    if group < 0:
        group = told[GROUPS_USED]
        told[GROUPS_USED] += 1
        groups[STATE, group], groups[BEST, group], groups[PARENT, group] = state, best, group
        groups[COUNT, group], groups[BEGIN, group] = 0, row
        if state > DONE:
            groups[FOLLOWING, group] = slots[GROUPS, slot]
            slots[GROUPS, slot] = group
    groups[COUNT, group] += 1
    rows[GROUP, row] = group


@inlined
def _chain(row: int, slot: int, rows: Any, slots: Any, queue: Any, told: Any) -> None:
    """Put a row at the end of its slot's chain and of the queue."""
    last = slots[LAST, slot]
    if last >= 0:
        rows[NEXT, last] = row
    else:
        slots[FIRST, slot] = row
    slots[LAST, slot] = row
    rows[NEXT, row] = -1
    queue[told[NEWEST]] = row
    told[NEWEST] += 1


@kernel
def run(  # noqa: PLR0913, PLR0917  kernels know no objects
    due: Any,
    limit: int,
    rules: Any,
    rows: Any,
    slots: Any,
    groups: Any,
    queue: Any,
    told: Any,
    table: Any,
    transitions: Any,
    terms: Any,
    codes: Any,
    made: Any,
) -> tuple[int, int]:
    """Process rows, and then let time pass up to ``limit``.

    Args:
        due: int64: rows in event-time order, with their masks.

    Returns:
        (-1, -1) at the end; otherwise the state and mask of a transition to add before calling again.
    """
    while told[POSITION] < due.shape[0]:
        row = due[told[POSITION]]
        time, slot = rows[TIME, row], rows[SLOT, row]
        _expire(time, rules, rows, slots, groups, queue, told, made)
        if rows[MASK, row] == LOOKED_AT:
            _chain(row, slot, rows, slots, queue, told)
        else:
            state, mask = _unknown(row, slot, rows, slots, groups, table, terms, codes)
            if state >= 0:
                return state, mask
            _step(row, slot, rows, slots, groups, table, transitions, terms, codes)
            _begin(row, slot, rows, slots, groups, told, table, transitions, terms, codes)
            _chain(row, slot, rows, slots, queue, told)
            _settle(slot, -1, time, rules, rows, slots, groups, told, made)
        told[POSITION] += 1
    _expire(limit, rules, rows, slots, groups, queue, told, made)
    return -1, -1


@kernel
def lengths(matches: Any, rows: Any, out: Any) -> None:
    """Count the rows of each match, those passed over included."""
    for at in range(out.shape[0]):
        row, count = matches[0, at], 1
        while row != matches[1, at]:
            row = rows[NEXT, row]
            count += 1
        out[at] = count


@kernel
def label(  # noqa: PLR0913, PLR0917  kernels know no objects
    matches: Any, rows: Any, table: Any, transitions: Any, trail: Any, terms: Any, codes: Any, path: Any, out: Any
) -> tuple[int, int, int]:
    """Find out which name takes each row of each match.

    Args:
        path: int64, shape (3, longest match): room to work in.
        out: int64, shape (3, all rows of all matches): takes row, name and number of the match.

    Returns:
        (how many rows are taken, -1, -1); or (0, state, mask) of a transition to add before calling again.
    """
    count = 0
    for at in range(matches.shape[1]):
        begin = matches[MATCH_BEGIN, at]
        row, state, size = begin, START, 0
        while True:
            mask = _mask(row, begin, rows, terms, codes)
            transition = table[state, mask]
            if transition < 0:
                return 0, state, mask
            path[0, size], path[1, size] = row, transition
            state = transitions[transition, TO]
            size += 1
            if row == matches[MATCH_END, at]:
                break
            row = rows[NEXT, row]
        thread = transitions[path[1, size - 1], HOLDER]
        for step in range(size - 1, -1, -1):
            place = transitions[path[1, step], OFFSET] + thread
            thread, path[2, step] = trail[place, 0], trail[place, 1]
        for step in range(size):
            if path[2, step] >= 0:
                out[0, count], out[1, count], out[2, count] = path[0, step], path[2, step], at
                count += 1
    return count, -1, -1
