"""Loops over rows, compiled: hashing, the open-addressing tables of ``key_index``, the split of a batch.

Free functions over NumPy arrays. They hold no lock and log nothing; importing this module loads numba, so
import it where it is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from millstream.engine.jit import inlined, kernel

_EMPTY = np.uint64(0)
_ONE = np.uint64(1)
_SLOT = np.uint64(0xFFFFFFFF)
_TAG = np.uint64(0xFFFFFFFF00000000)
_SEED = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_P1 = np.uint64(0x9FB21C651E98DF25)
_S8, _S16, _S24, _S32 = np.uint64(8), np.uint64(16), np.uint64(24), np.uint64(32)
_S40, _S48, _S56 = np.uint64(40), np.uint64(48), np.uint64(56)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


@inlined
def mix(word: Any) -> Any:
    """Finish as splitmix64 does: every input bit reaches every output bit. Never change it (``hashing``)."""
    word = (word ^ (word >> _S30)) * _M1
    word = (word ^ (word >> _S27)) * _M2
    return word ^ (word >> _S31)


@kernel
def _word(data: Any, at: int) -> Any:
    return (
        np.uint64(data[at])
        | (np.uint64(data[at + 1]) << _S8)
        | (np.uint64(data[at + 2]) << _S16)
        | (np.uint64(data[at + 3]) << _S24)
        | (np.uint64(data[at + 4]) << _S32)
        | (np.uint64(data[at + 5]) << _S40)
        | (np.uint64(data[at + 6]) << _S48)
        | (np.uint64(data[at + 7]) << _S56)
    )


@kernel
def hash_bytes(data: Any, start: int, end: int) -> Any:
    """Hash ``data[start:end]``, eight bytes at a time. It must never change: see ``hashing``."""
    state = _SEED ^ (np.uint64(end - start) * _P1)
    at = start
    while at + 8 <= end:
        state = mix(state ^ _word(data, at)) + _SEED
        at += 8
    rest = np.uint64(0)
    shift = np.uint64(0)
    while at < end:
        rest |= np.uint64(data[at]) << shift
        shift += _S8
        at += 1
    return mix(state ^ rest)


@kernel
def fold_fixed(state: Any, codes: Any, valid: Any) -> None:
    """Mix a column of int64 codes into ``state`` (uint64, shape (n,)), in place."""
    masked = valid.shape[0] > 0
    for row in range(state.shape[0]):
        if masked and not valid[row]:
            state[row] = mix(state[row] * _M1 + _P1)
        else:
            state[row] = mix(state[row] * _M1 + mix(np.uint64(codes[row]) + _SEED))


@kernel
def fold_bytes(state: Any, offsets: Any, data: Any, valid: Any) -> None:
    """Mix a column of byte strings into ``state`` (uint64, shape (n,)), in place."""
    masked = valid.shape[0] > 0
    for row in range(state.shape[0]):
        if masked and not valid[row]:
            state[row] = mix(state[row] * _M1 + _P1)
        else:
            state[row] = mix(state[row] * _M1 + hash_bytes(data, offsets[row], offsets[row + 1]))


@kernel
def counting_sort(hashes: Any, parts: int, order: Any, ends: Any) -> None:
    """Order rows by ``hash % parts``, keeping their order within a part.

    ``order`` (int64) takes the row numbers, ``ends`` (int64, shape (parts,)) where each part ends.
    """
    modulus = np.uint64(parts)
    rows = hashes.shape[0]
    ends[:] = 0
    for row in range(rows):
        ends[np.int64(hashes[row] % modulus)] += 1
    start = 0
    for part in range(parts):
        size = ends[part]
        ends[part] = start
        start += size
    for row in range(rows):
        target = np.int64(hashes[row] % modulus)
        order[ends[target]] = row
        ends[target] += 1


@inlined
def _hash_codes(codes: Any, row: int) -> Any:
    state = _SEED
    for column in range(codes.shape[0]):
        state = mix(state ^ np.uint64(codes[column, row])) + _SEED
    return state


@kernel
def find_slots(  # noqa: PLR0912  one loop, spelled out for the compiler
    codes: Any, row: int, table: Any, stored: Any, count: int, out: Any
) -> Any:
    """Look rows of codes up in an open-addressing table, inserting what is new.

    Args:
        codes: int64, shape (columns, rows).
        row: the row to begin with.
        table: uint64, a power of two long; an entry is 32 bits of hash and slot + 1, or 0.
        stored: int64, shape (capacity, columns): the codes of each slot, side by side for the cache.
        count: how many slots are taken.
        out: int64, shape (rows,): takes the slots.

    Returns:
        (the row reached, the new count). A row below the last means that ``stored`` is full: grow and go on.
    """
    columns, rows = codes.shape
    mask = np.uint64(table.shape[0] - 1)
    while row < rows:
        if row > 0:
            same = True
            for column in range(columns):
                if codes[column, row] != codes[column, row - 1]:
                    same = False
                    break
            if same:
                out[row] = out[row - 1]
                row += 1
                continue
        hashed = _hash_codes(codes, row)
        place = hashed & mask
        while True:
            entry = table[place]
            if entry == _EMPTY:
                if count == stored.shape[0]:
                    return row, count
                for column in range(columns):
                    stored[count, column] = codes[column, row]
                out[row] = count
                count += 1
                table[place] = (hashed & _TAG) | np.uint64(count)
                break
            if (entry & _TAG) == (hashed & _TAG):
                slot = np.int64(entry & _SLOT) - 1
                equal = True
                for column in range(columns):
                    if stored[slot, column] != codes[column, row]:
                        equal = False
                        break
                if equal:
                    out[row] = slot
                    break
            place = (place + _ONE) & mask
        row += 1
    return row, count


@kernel
def fill_table(table: Any, stored: Any, count: int) -> None:
    """Put the slots 0..count-1 (all different) into an empty table."""
    mask = np.uint64(table.shape[0] - 1)
    for slot in range(count):
        hashed = _hash_codes(stored.T, slot)
        place = hashed & mask
        while table[place] != _EMPTY:
            place = (place + _ONE) & mask
        table[place] = (hashed & _TAG) | np.uint64(slot + 1)


@kernel
def _equal_bytes(left: Any, at: int, right: Any, other: int, size: int) -> bool:
    for step in range(size):  # noqa: SIM110  the compiler knows no generators
        if left[at + step] != right[other + step]:
            return False
    return True


@kernel
def find_strings(  # noqa: PLR0913, PLR0917  kernels know no objects
    offsets: Any, data: Any, valid: Any, row: int, table: Any, ends: Any, heap: Any, count: int, out: Any
) -> Any:
    """Look byte strings up in an open-addressing table, inserting what is new.

    Args:
        offsets: int64, shape (rows + 1,), into ``data``.
        valid: bool, shape (rows,), or empty; a null row gets the number 0 and is not looked up.
        row: the row to begin with.
        table: as in ``find_slots``.
        ends: int64, shape (capacity + 1,): string i is ``heap[ends[i]:ends[i + 1]]``.
        count: how many strings are held.
        out: int64, shape (rows,): takes the numbers.

    Returns:
        (the row reached, the new count). A row below the last means that ``ends`` or ``heap`` is full.
    """
    rows = offsets.shape[0] - 1
    masked = valid.shape[0] > 0
    mask = np.uint64(table.shape[0] - 1)
    while row < rows:
        if masked and not valid[row]:
            out[row] = 0
            row += 1
            continue
        start = offsets[row]
        size = offsets[row + 1] - start
        hashed = hash_bytes(data, start, start + size)
        place = hashed & mask
        while True:
            entry = table[place]
            if entry == _EMPTY:
                end = ends[count] + size
                if count + 1 == ends.shape[0] or end > heap.shape[0]:
                    return row, count
                for step in range(size):
                    heap[ends[count] + step] = data[start + step]
                out[row] = count
                count += 1
                ends[count] = end
                table[place] = (hashed & _TAG) | np.uint64(count)
                break
            if (entry & _TAG) == (hashed & _TAG):
                number = np.int64(entry & _SLOT) - 1
                begin = ends[number]
                if ends[number + 1] - begin == size and _equal_bytes(heap, begin, data, start, size):
                    out[row] = number
                    break
            place = (place + _ONE) & mask
        row += 1
    return row, count


@kernel
def fill_strings(table: Any, ends: Any, heap: Any, count: int) -> None:
    """Put the strings 0..count-1 (all different) into an empty table."""
    mask = np.uint64(table.shape[0] - 1)
    for number in range(count):
        hashed = hash_bytes(heap, ends[number], ends[number + 1])
        place = hashed & mask
        while table[place] != _EMPTY:
            place = (place + _ONE) & mask
        table[place] = (hashed & _TAG) | np.uint64(number + 1)
