"""Loops over rows for ``match``, compiled. Importing this module loads numba.

Rows, slots (one per key) and groups are lines of int64 arrays; the constants below name their columns. The processed
rows of a slot form a chain in event-time order. An *attempt* is the search for a match that begins with one row.
Attempts of a slot that are in the same state, with the same best match so far, will stay so: they share a *group*, and
a row costs one step for each group, however many attempts there are. Groups are merged as in a union-find.
"""

from __future__ import annotations

from typing import Any

from millstream.engine.jit import inlined, kernel

# Columns of ``rows``. SLOT: -1 once the row is dropped. NEXT: the next row of the chain. GROUP: that of the attempt
# that begins here; -1: there is none, or no more.
SLOT, TIME, MASK, NEXT, GROUP = range(5)
ROW_WIDTH = 5
WAITING = -1  # a mask: the row has not been processed
LOOKED_AT = -2  # a mask: the row is only the one before the next, and begins nothing

# Columns of ``slots``. FIRST: the row where the chain begins, which is that of the oldest attempt, or the only one.
FIRST, LAST, GROUPS = range(3)
SLOT_WIDTH = 3

# Columns of ``groups``. BEST: the last row of the best match so far, -1: none. COUNT: attempts. FOLLOWING: the next
# group of the slot that still moves. BEGIN: the row of the first attempt.
STATE, BEST, PARENT, COUNT, FOLLOWING, BEGIN = range(6)
GROUP_WIDTH = 6

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
        slot = rows[due[at], SLOT]
        out[at] = slots[slot, LAST]
        slots[slot, LAST] = due[at]
    for at in range(due.shape[0] - 1, -1, -1):
        slots[rows[due[at], SLOT], LAST] = out[at]


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


@inlined
def _mask(row: int, begin: int, rows: Any, terms: Any, codes: Any) -> Any:
    """Which conditions hold for a row in an attempt that begins with another."""
    return _narrowed(row, begin, rows[row, MASK], terms, codes) if terms.shape[1] > 0 else rows[row, MASK]


@kernel
def _narrowed(row: int, begin: int, mask: int, terms: Any, codes: Any) -> int:
    valid = 2 * terms.shape[1]
    for term in range(terms.shape[1]):
        if mask & terms[BIT, term]:
            left, right = 2 * term, 2 * term + 1
            true = codes[valid + left, row] and codes[valid + right, begin]
            if not (true and _compares(terms[COMPARISON, term], codes[left, row], codes[right, begin])):
                mask &= ~terms[BIT, term]
    return mask


@kernel
def _root(group: int, groups: Any) -> int:
    while groups[group, PARENT] != group:
        groups[group, PARENT] = groups[groups[group, PARENT], PARENT]
        group = groups[group, PARENT]
    return group


@inlined
def _is_open(row: int, rows: Any, groups: Any) -> bool:
    """Whether an attempt begins with a row and has neither failed nor found its match."""
    return bool(rows[row, GROUP] >= 0 and groups[_root(rows[row, GROUP], groups), STATE] > DONE)


@inlined
def _let_go(row: int, rows: Any, told: Any, made: Any) -> None:
    rows[row, SLOT] = -1
    made[DROPPED_ROW, told[DROPPED]] = row
    told[DROPPED] += 1


@kernel
def _take_out(group: int, slot: int, slots: Any, groups: Any) -> None:
    """Take a group out of those of its slot that move."""
    before, current = -1, slots[slot, GROUPS]
    while current >= 0:
        if current == group:
            if before < 0:
                slots[slot, GROUPS] = groups[current, FOLLOWING]
            else:
                groups[before, FOLLOWING] = groups[current, FOLLOWING]
            return
        before, current = current, groups[current, FOLLOWING]


@kernel
def _release(row: int, slot: int, rows: Any, slots: Any, groups: Any) -> None:
    """End the attempt that begins with a row."""
    group = _root(rows[row, GROUP], groups)
    rows[row, GROUP] = -1
    groups[group, COUNT] -= 1
    if groups[group, COUNT] == 0 and groups[group, STATE] > DONE:
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
    row, until = slots[slot, FIRST], -1
    while row >= 0:
        if rows[row, GROUP] >= 0 and until < 0:
            group = _root(rows[row, GROUP], groups)
            state = groups[group, STATE]
            if state > DONE and row != expired:
                break
            if state != DEAD and groups[group, BEST] >= 0:
                at = told[MATCHES]
                made[MATCH_BEGIN, at], made[MATCH_END, at], made[MATCH_KNOWN, at] = row, groups[group, BEST], known
                told[MATCHES] += 1
                until = groups[group, BEST] if rules[PAST_LAST] else -1
        if rows[row, GROUP] >= 0:
            _release(row, slot, rows, slots, groups)
        if row == until:
            until = -1
        following = rows[row, NEXT]
        if following < 0 and rules[LOOK_BACK]:
            made[LOOKED_ROW, told[LOOKED]] = row
            told[LOOKED] += 1
            break
        _let_go(row, rows, told, made)
        row = following
    slots[slot, FIRST] = row
    if row < 0:
        slots[slot, LAST] = -1


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
        deadline = rows[row, TIME] + rules[WITHIN]
        if deadline >= limit:
            return
        told[OLDEST] += 1
        slot = rows[row, SLOT]
        if slot < 0:
            continue
        if rows[row, GROUP] >= 0:
            _settle(slot, row, deadline, rules, rows, slots, groups, told, made)
        if rows[row, SLOT] >= 0 and rows[row, GROUP] < 0 and slots[slot, FIRST] == row:
            _let_go(row, rows, told, made)
            slots[slot, FIRST] = slots[slot, LAST] = -1


@kernel
def _unknown(  # noqa: PLR0913, PLR0917  kernels know no objects
    row: int, slot: int, rows: Any, slots: Any, groups: Any, table: Any, terms: Any, codes: Any
) -> tuple[int, int]:
    """Find a transition that a group needs and that is not in the table: its state and mask; (-1, -1) if none is."""
    group = slots[slot, GROUPS]
    while group >= 0:
        mask = _mask(row, groups[group, BEGIN], rows, terms, codes)
        if table[groups[group, STATE], mask] < 0:
            return groups[group, STATE], mask
        group = groups[group, FOLLOWING]
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
    group = slots[slot, GROUPS]
    slots[slot, GROUPS] = -1
    while group >= 0:
        following = groups[group, FOLLOWING]
        mask = _mask(row, groups[group, BEGIN], rows, terms, codes)
        transition = table[groups[group, STATE], mask]
        groups[group, STATE] = transitions[transition, TO]
        if transitions[transition, ACTION] == MARK:
            groups[group, BEST] = row
        elif transitions[transition, ACTION] == CLEAR:
            groups[group, BEST] = -1
        if groups[group, STATE] > DONE:
            equal = _equal(groups[group, STATE], groups[group, BEST], slot, slots, groups, terms)
            if equal >= 0:
                groups[group, PARENT] = equal
                groups[equal, COUNT] += groups[group, COUNT]
            else:
                groups[group, FOLLOWING] = slots[slot, GROUPS]
                slots[slot, GROUPS] = group
        group = following


@kernel
def _equal(state: int, best: int, slot: int, slots: Any, groups: Any, terms: Any) -> Any:
    """Find a group of a slot that moves, in this state and with this best match; -1 if there is none."""
    if terms.shape[1] > 0:
        return -1  # what becomes of an attempt depends on the row it begins with
    group = slots[slot, GROUPS]
    while group >= 0:
        if groups[group, STATE] == state and groups[group, BEST] == best:
            return group
        group = groups[group, FOLLOWING]
    return -1


@kernel
def _begin(  # noqa: PLR0913, PLR0917  kernels know no objects
    row: int, slot: int, transition: int, rows: Any, slots: Any, groups: Any, told: Any, transitions: Any, terms: Any
) -> None:
    """Begin an attempt with a row."""
    state = transitions[transition, TO]
    best = row if transitions[transition, ACTION] == MARK else -1
    group = _equal(state, best, slot, slots, groups, terms) if state > DONE else -1
    if group < 0:
        group = told[GROUPS_USED]
        told[GROUPS_USED] += 1
        groups[group, STATE], groups[group, BEST], groups[group, PARENT] = state, best, group
        groups[group, COUNT], groups[group, BEGIN] = 0, row
        if state > DONE:
            groups[group, FOLLOWING] = slots[slot, GROUPS]
            slots[slot, GROUPS] = group
    groups[group, COUNT] += 1
    rows[row, GROUP] = group


@inlined
def _chain(row: int, slot: int, rows: Any, slots: Any, queue: Any, told: Any) -> None:
    """Put a row at the end of its slot's chain and of the queue."""
    last = slots[slot, LAST]
    if last >= 0:
        rows[last, NEXT] = row
    else:
        slots[slot, FIRST] = row
    slots[slot, LAST] = row
    rows[row, NEXT] = -1
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
        time, slot = rows[row, TIME], rows[row, SLOT]
        if told[OLDEST] < told[NEWEST] and rows[queue[told[OLDEST]], TIME] + rules[WITHIN] < time:
            _expire(time, rules, rows, slots, groups, queue, told, made)
        if rows[row, MASK] == LOOKED_AT:
            _chain(row, slot, rows, slots, queue, told)
            told[POSITION] += 1
            continue
        if slots[slot, GROUPS] >= 0:
            state, mask = _unknown(row, slot, rows, slots, groups, table, terms, codes)
            if state >= 0:
                return state, mask
        mask = _mask(row, row, rows, terms, codes)
        begun = table[START, mask]
        if begun < 0:
            return START, mask
        told[POSITION] += 1
        if slots[slot, GROUPS] >= 0:
            _step(row, slot, rows, slots, groups, table, transitions, terms, codes)
        if transitions[begun, TO] != DEAD:
            _begin(row, slot, begun, rows, slots, groups, told, transitions, terms)
        elif slots[slot, FIRST] < 0 and not rules[LOOK_BACK]:
            _let_go(row, rows, told, made)  # nothing has begun that it might belong to
            continue
        _chain(row, slot, rows, slots, queue, told)
        if not _is_open(slots[slot, FIRST], rows, groups):
            _settle(slot, -1, time, rules, rows, slots, groups, told, made)
    _expire(limit, rules, rows, slots, groups, queue, told, made)
    return -1, -1


@kernel
def list_groups(slot_of: Any, slots: Any, groups: Any) -> None:
    """List the groups that move by their slots, which are given, anew."""
    slots[:, GROUPS] = -1
    for group in range(slot_of.shape[0]):
        if groups[group, STATE] > DONE:
            groups[group, FOLLOWING] = slots[slot_of[group], GROUPS]
            slots[slot_of[group], GROUPS] = group


@kernel
def lengths(matches: Any, rows: Any, out: Any) -> None:
    """Count the rows of each match, those passed over included."""
    for at in range(out.shape[0]):
        row, count = matches[0, at], 1
        while row != matches[1, at]:
            row = rows[row, NEXT]
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
            row = rows[row, NEXT]
        thread = transitions[path[1, size - 1], HOLDER]
        for step in range(size - 1, -1, -1):
            place = transitions[path[1, step], OFFSET] + thread
            thread, path[2, step] = trail[place, 0], trail[place, 1]
        for step in range(size):
            if path[2, step] >= 0:
                out[0, count], out[1, count], out[2, count] = path[0, step], path[2, step], at
                count += 1
    return count, -1, -1
