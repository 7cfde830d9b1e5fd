"""Loops over rows for sketches: HyperLogLog registers and histograms, compiled. Importing this module loads numba."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from millstream.engine.jit import inlined, kernel

REGISTER_BITS: Final = 12
REGISTERS: Final = 1 << REGISTER_BITS
FEW: Final = 32
"""So many registers that are not 0 are kept one by one, more of them as an array of all."""

_MOST: Final = 64 - REGISTER_BITS + 1  # the greatest rank: all the other bits of a hash are 0
_SHIFT = np.uint64(64 - REGISTER_BITS)
_DROP = np.uint64(REGISTER_BITS)
_TOP = np.uint64(63)
_ONE = np.uint64(1)
_ALPHA = 0.5 / np.log(2.0)


@kernel
def _rank(hashed: Any) -> int:
    """Return where the first 1 stands among the bits of a hash that do not say its register, from 1."""
    rest = hashed << _DROP
    rank = 1
    while rank < _MOST and (rest >> _TOP) == 0:
        rest <<= _ONE
        rank += 1
    return rank


@kernel
def add_hashes(  # noqa: PLR0913, PLR0917  kernels know no objects
    slots: Any,
    hashes: Any,
    valid: Any,
    row: int,
    few: Any,
    sizes: Any,
    page_of: Any,
    pages: Any,
    count: int,
) -> Any:
    """Raise registers to the ranks of hashes.

    Args:
        valid: bool, shape (n,), or empty if every row is valid.
        row: the row to begin with.
        few: int32, shape (slots, FEW): of slots without a page, register << 6 | rank of those that are not 0.
        sizes: int64, by slot: how many these are.
        page_of: int64, by slot: its page, -1 if it has none.
        pages: uint8, shape (capacity, REGISTERS).
        count: how many pages are taken.

    Returns:
        (the row reached, the new count). A row below the last means that ``pages`` is full: grow and go on.
    """
    masked = valid.shape[0] > 0
    while row < slots.shape[0]:
        if masked and not valid[row]:
            row += 1
            continue
        slot = slots[row]
        register = np.int64(hashes[row] >> _SHIFT)
        rank = _rank(hashes[row])
        if page_of[slot] < 0:
            at = 0
            while at < sizes[slot] and few[slot, at] >> 6 != register:
                at += 1
            if at < FEW:
                if at == sizes[slot]:
                    sizes[slot] += 1
                    few[slot, at] = register << 6 | rank
                elif rank > few[slot, at] & 63:
                    few[slot, at] = register << 6 | rank
                row += 1
                continue
            if count == pages.shape[0]:
                return row, count
            pages[count] = 0
            for entry in few[slot]:
                pages[count, entry >> 6] = entry & 63
            page_of[slot] = count
            count += 1
        page = page_of[slot]
        pages[page, register] = max(pages[page, register], rank)
        row += 1
    return row, count


@kernel
def _sigma(share: Any) -> Any:
    """Ertl's correction for registers that are 0, of which ``share`` < 1 is the share."""
    total = share
    weight = 1.0
    while True:
        share *= share
        before = total
        total += share * weight
        weight += weight
        if total == before:
            return total


@kernel
def _tau(share: Any) -> Any:
    """Ertl's correction for registers at their greatest; ``share`` is that of all others."""
    if share == 0.0 or share == 1.0:  # noqa: PLR1714  the compiler knows no sets of floats
        return 0.0
    total = 1.0 - share
    weight = 1.0
    while True:
        share = np.sqrt(share)
        before = total
        weight *= 0.5
        total -= (1.0 - share) ** 2 * weight
        if total == before:
            return total / 3.0


@kernel
def estimate(slots: Any, few: Any, sizes: Any, page_of: Any, pages: Any, out: Any) -> None:
    """Estimate how many different hashes each slot has had, into ``out`` (float64, shape (n,))."""
    ranks = np.empty(_MOST + 1, np.int64)
    for row in range(slots.shape[0]):
        slot = slots[row]
        page = page_of[slot]
        ranks[:] = 0
        if page >= 0:
            for register in range(REGISTERS):
                ranks[pages[page, register]] += 1
        else:
            for at in range(sizes[slot]):
                ranks[few[slot, at] & 63] += 1
            ranks[0] = REGISTERS - sizes[slot]
        if ranks[0] == REGISTERS:
            out[row] = 0.0
            continue
        total = REGISTERS * _tau(1.0 - ranks[_MOST] / REGISTERS)
        for rank in range(_MOST - 1, 0, -1):
            total = 0.5 * (total + ranks[rank])
        total += REGISTERS * _sigma(ranks[0] / REGISTERS)
        out[row] = _ALPHA * REGISTERS * REGISTERS / total


@kernel
def write_registers(slots: Any, few: Any, sizes: Any, page_of: Any, pages: Any, ends: Any, out: Any) -> None:
    """Write the sketches of some slots as bytes: a whole page, or the ``few`` entries of four bytes each."""
    for row in range(slots.shape[0]):
        slot = slots[row]
        start = ends[row]
        page = page_of[slot]
        if page >= 0:
            for register in range(REGISTERS):
                out[start + register] = pages[page, register]
        else:
            for at in range(sizes[slot]):
                entry = few[slot, at]
                for byte in range(4):
                    out[start + 4 * at + byte] = entry >> (8 * byte) & 255


@kernel
def read_registers(  # noqa: PLR0913, PLR0917  kernels know no objects
    slots: Any, offsets: Any, data: Any, few: Any, sizes: Any, page_of: Any, pages: Any, count: int
) -> int:
    """Undo ``write_registers``; new pages are taken from ``count`` on. Returns how many are taken then."""
    for row in range(slots.shape[0]):
        slot = slots[row]
        start = offsets[row]
        size = offsets[row + 1] - start
        if size == REGISTERS:
            if page_of[slot] < 0:
                page_of[slot] = count
                count += 1
            for register in range(REGISTERS):
                pages[page_of[slot], register] = data[start + register]
            continue
        sizes[slot] = size // 4
        for at in range(size // 4):
            few[slot, at] = 0
            for byte in range(4):
                few[slot, at] |= np.int32(data[start + 4 * at + byte]) << (8 * byte)
    return count


@inlined
def _raise_one(few: Any, sizes: Any, slot: int, register: Any, rank: Any) -> None:
    """Raise a register of a slot without a page; there must be room for one more."""
    at = 0
    while at < sizes[slot] and few[slot, at] >> 6 != register:
        at += 1
    if at == sizes[slot]:
        sizes[slot] += 1
        few[slot, at] = register << 6 | rank
    elif rank > few[slot, at] & 63:
        few[slot, at] = register << 6 | rank


@inlined
def _to_page(few: Any, sizes: Any, pages: Any, slot: int, page: int) -> None:
    """Write the registers of a slot to a page of its own."""
    pages[page] = 0
    for at in range(sizes[slot]):
        pages[page, few[slot, at] >> 6] = few[slot, at] & 63


@kernel
def merge_registers(  # noqa: PLR0913, PLR0917  kernels know no objects
    slots: Any, offsets: Any, data: Any, row: int, few: Any, sizes: Any, page_of: Any, pages: Any, count: int
) -> Any:
    """Raise registers to what ``write_registers`` wrote of other slots; the answer is as in ``add_hashes``."""
    while row < slots.shape[0]:
        slot = slots[row]
        start = offsets[row]
        size = offsets[row + 1] - start
        entries = 0 if size == REGISTERS else size // 4
        if page_of[slot] < 0 and (size == REGISTERS or sizes[slot] + entries > FEW):
            if count == pages.shape[0]:
                return row, count
            _to_page(few, sizes, pages, slot, count)
            page_of[slot] = count
            count += 1
        page = page_of[slot]
        if size == REGISTERS:
            for register in range(REGISTERS):
                pages[page, register] = max(pages[page, register], data[start + register])
        for number in range(entries):
            entry = np.int64(0)
            for byte in range(4):
                entry |= np.int64(data[start + 4 * number + byte]) << (8 * byte)
            if page >= 0:
                pages[page, entry >> 6] = max(pages[page, entry >> 6], entry & 63)
            else:
                _raise_one(few, sizes, slot, entry >> 6, entry & 63)
        row += 1
    return row, count


@kernel
def fill_buckets(ids: Any, codes: Any, counts: Any, lows: Any, highs: Any) -> None:
    """Add values (codes that order as they do) to the buckets with these ids."""
    for row in range(ids.shape[0]):
        bucket = ids[row]
        code = codes[row]
        if counts[bucket] == 0 or code < lows[bucket]:
            lows[bucket] = code
        if counts[bucket] == 0 or code > highs[bucket]:
            highs[bucket] = code
        counts[bucket] += 1


@kernel
def merge_buckets(
    ids: Any, other_counts: Any, other_lows: Any, other_highs: Any, counts: Any, lows: Any, highs: Any
) -> None:
    """Add what ``fill_buckets`` made of other values to the buckets with these ids."""
    for row in range(ids.shape[0]):
        bucket = ids[row]
        if counts[bucket] == 0 or other_lows[row] < lows[bucket]:
            lows[bucket] = other_lows[row]
        if counts[bucket] == 0 or other_highs[row] > highs[bucket]:
            highs[bucket] = other_highs[row]
        counts[bucket] += other_counts[row]


@kernel
def _ranked(rank: Any, first: int, counts: Any, lows: Any, highs: Any) -> Any:
    """Return the value at a rank (from 0) of the buckets from ``first`` on."""
    at = first
    while rank >= counts[at]:
        rank -= counts[at]
        at += 1
    if rank == 0 or lows[at] == highs[at] or not np.isfinite(highs[at] - lows[at]):
        return lows[at]
    return lows[at] + (highs[at] - lows[at]) * (rank / (counts[at] - 1))


@kernel
def find_quantiles(starts: Any, counts: Any, lows: Any, highs: Any, shares: Any, out: Any) -> None:
    """Find quantiles of groups of buckets, interpolated as SQL's ``quantile_cont``.

    Args:
        starts: int64, shape (groups + 1,): where each group's buckets begin, in ascending order of values.
        lows: float64, by bucket: its least value; ``highs`` its greatest, ``counts`` how many there are.
        shares: float64, shape (quantiles,), between 0 and 1.
        out: float64, shape (groups, quantiles); that of a group without buckets is left as it is.
    """
    for group in range(out.shape[0]):
        first = starts[group]
        rows = 0
        for at in range(first, starts[group + 1]):
            rows += counts[at]
        if rows == 0:
            continue
        for number in range(shares.shape[0]):
            place = shares[number] * (rows - 1)
            below = np.int64(np.floor(place))
            value = _ranked(below, first, counts, lows, highs)
            part = place - below
            if part > 0.0:
                above = _ranked(below + 1, first, counts, lows, highs)
                if above != value:
                    value = value * (1.0 - part) + above * part
            out[group, number] = value
