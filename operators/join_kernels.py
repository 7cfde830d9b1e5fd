"""Loops over rows for joins, compiled: chains of buffered rows, and the queue of their deadlines.

Importing this module loads numba.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from millstream.engine.jit import kernel

START: Final = -2
"""Where the search for a row's matches stands before it has begun."""

# What stands before a row in its chain as far as a search knows, if that is no row.
_HEAD = -1
_UNKNOWN = -2

_SIGN = np.uint64(1 << 63)
_ONE = np.uint64(1)


class Chains(NamedTuple):
    """The chains of rows of each slot, newest first.

    Attributes:
        origin: the id whose place in arrays by row is 0.
        oldest: rows with lower ids are gone: a chain ends before the first of them.
        head: int64, by slot: the newest row; -1 if there is none.
        previous: int64, by row: the next older row of the chain.
        alive: bool, by row: false for dropped ones.
    """

    origin: int
    oldest: int
    head: Any
    previous: Any
    alive: Any


class Leaps(NamedTuple):
    """Spans of time by row, and pointers that leap over many rows of a chain; all int64, by row.

    The pointers are those of E. W. Myers, "An applicative random-access stack" (1983): a row that is n rows down its
    chain is reached in O(log n) steps, and a new row costs the same however many there are.

    Attributes:
        low, high: the row's own span, both ends included.
        jump: where its pointer leads.
        depth, jump_depth: how long the chain is from the row, and from where its pointer leads.
        jump_low, jump_high: the span of the row and of those between it and where its pointer leads.
    """

    low: Any
    high: Any
    jump: Any
    depth: Any
    jump_depth: Any
    jump_low: Any
    jump_high: Any


class Pairs(NamedTuple):
    """Takes what is found: numbers of rows that ask, and the ids they match; int64, equally long."""

    rows: Any
    ids: Any


@kernel
def chain(slots: Any, first_id: int, chains: Any) -> None:
    """Put rows ``first_id``, ``first_id + 1`` ... at the heads of the chains of their slots (int64, shape (n,))."""
    for row in range(slots.shape[0]):
        slot = slots[row]
        chains.previous[first_id + row - chains.origin] = chains.head[slot]
        chains.head[slot] = first_id + row


@kernel
def chain_spans(slots: Any, first_id: int, chains: Any, leaps: Any) -> None:
    """As ``chain``, of rows whose spans are in ``leaps`` already."""
    origin, oldest = chains.origin, chains.oldest
    depth, jump_depth = leaps.depth, leaps.jump_depth
    for row in range(slots.shape[0]):
        slot = slots[row]
        at = first_id + row - origin
        below = chains.head[slot]
        chains.head[slot] = first_id + row
        chains.previous[at] = below
        low, high = leaps.low[at], leaps.high[at]
        if below < oldest:
            depth[at], leaps.jump[at], jump_depth[at] = 1, -1, 0
        else:
            near = below - origin
            depth[at], leaps.jump[at], jump_depth[at] = depth[near] + 1, below, depth[near]
            far = leaps.jump[near] - origin
            if leaps.jump[near] >= oldest and depth[near] - jump_depth[near] == jump_depth[near] - jump_depth[far]:
                leaps.jump[at], jump_depth[at] = leaps.jump[far], jump_depth[far]
                low = min(low, leaps.jump_low[near], leaps.jump_low[far])
                high = max(high, leaps.jump_high[near], leaps.jump_high[far])
        leaps.jump_low[at], leaps.jump_high[at] = low, high


@kernel
def probe(slots: Any, once: bool, row: int, at: int, chains: Any, pairs: Any) -> Any:
    """Find the buffered rows of the slots of some rows; unlinks those that are dropped on its way.

    Args:
        slots: int64, shape (n,); -1: the row matches nothing.
        once: one match of each row is enough.
        row, at: where to go on: (0, START) at first.
        pairs: takes the pairs, until it is full.

    Returns:
        (row, at, pairs found). The last one was found when ``row`` is n.
    """
    count = 0
    while row < slots.shape[0]:
        slot = slots[row]
        link = _UNKNOWN
        if at == START:
            at = -1 if slot < 0 else chains.head[slot]
            link = _HEAD
        while at >= chains.oldest:
            place = at - chains.origin
            if chains.alive[place]:
                if count == pairs.rows.shape[0]:
                    return row, at, count
                pairs.rows[count], pairs.ids[count] = row, at
                count += 1
                if once:
                    break
                link = place
            elif link == _HEAD:
                chains.head[slot] = chains.previous[place]
            elif link >= 0:
                chains.previous[link] = chains.previous[place]
            at = chains.previous[place]
        row += 1
        at = START
    return row, at, count


@kernel
def probe_spans(  # noqa: PLR0913, PLR0917  one loop, spelled out for the compiler
    slots: Any, low: Any, high: Any, once: bool, row: int, at: int, chains: Any, leaps: Any, pairs: Any
) -> Any:
    """As ``probe``, of chains made by ``chain_spans``: finds the rows whose span overlaps from ``low`` to ``high``."""
    count = 0
    while row < slots.shape[0]:
        slot = slots[row]
        link = _UNKNOWN
        if at == START:
            at = -1 if slot < 0 else chains.head[slot]
            link = _HEAD
        while at >= chains.oldest:
            place = at - chains.origin
            if leaps.jump_high[place] < low[row] or leaps.jump_low[place] > high[row]:
                at, link = leaps.jump[place], _UNKNOWN
                continue
            if chains.alive[place]:
                if leaps.high[place] >= low[row] and leaps.low[place] <= high[row]:
                    if count == pairs.rows.shape[0]:
                        return row, at, count
                    pairs.rows[count], pairs.ids[count] = row, at
                    count += 1
                    if once:
                        break
                link = place
            elif link == _HEAD:
                chains.head[slot] = chains.previous[place]
            elif link >= 0:
                chains.previous[link] = chains.previous[place]
            at = chains.previous[place]
        row += 1
        at = START
    return row, at, count


@kernel
def levels(times: Any, now: int, out: Any) -> None:
    """Write of each time, int64, the number of its highest bit that differs from ``now``, plus one; 0: it is earlier.

    A time equal to ``now`` has level 1, as has one that differs in the last bit.
    """
    base = np.uint64(now) ^ _SIGN
    for row in range(times.shape[0]):
        if times[row] < now:
            out[row] = 0
            continue
        rest = (np.uint64(times[row]) ^ _SIGN) ^ base
        level = 1
        while rest > _ONE:
            rest >>= _ONE
            level += 1
        out[row] = level
