"""Loops over records, compiled: the log of keys and its open-addressing table (``key_log``).

A record is ``[time] words...``, one after the other in an int64 array. An entry of the table is 32 bits of hash, the
tag, and 32 bits of the record's position; 0 is empty. A tag's home is ``tag * capacity / 2**32``, so the entries lie in
the order of their tags and a table grows by one pass over it. Importing this module loads numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from millstream.engine.jit import inlined, kernel
from millstream.engine.kernels import mix

_EMPTY = np.uint64(0)
_ONE = np.uint64(1)
_LOW = np.uint64(0xFFFFFFFF)
_S32 = np.uint64(32)
_SEED = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_LEAST = np.int64(-(2**63))
_MOST = np.int64(2**63 - 1)
_AHEAD = 32


# -- keys as words ---------------------------------------------------------------------------------------------


@kernel
def pack_bytes(offsets: Any, data: Any, valid: Any, at: Any, raw: Any) -> None:
    """Write byte strings, each from a new word on.

    Args:
        offsets: int64, shape (rows + 1,), into ``data``.
        valid: bool, shape (rows,), or empty; of a null row nothing is written.
        at: int64, shape (rows,): the word at which each string begins; moved past it.
        raw: uint8: the words as bytes, zero so far.
    """
    masked = valid.shape[0] > 0
    for row in range(at.shape[0]):
        if masked and not valid[row]:
            continue
        start, to = offsets[row], 8 * at[row]
        size = offsets[row + 1] - start
        for step in range(size):
            raw[to + step] = data[start + step]
        at[row] += (size + 7) >> 3


@kernel
def unpack_bytes(raw: Any, at: Any, offsets: Any, data: Any) -> None:
    """Undo ``pack_bytes``: fill ``data`` (uint8) as ``offsets`` says, and move ``at`` past what was read."""
    for row in range(at.shape[0]):
        start, source = offsets[row], 8 * at[row]
        size = offsets[row + 1] - start
        for step in range(size):
            data[start + step] = raw[source + step]
        at[row] += (size + 7) >> 3


@inlined
def _hash(words: Any, start: Any, end: Any, seed: Any) -> Any:
    state = seed
    for at in range(start, end):
        state = mix(state ^ np.uint64(words[at])) + _SEED
    return state


@kernel
def hash_rows(words: Any, starts: Any, seed: Any, hashes: Any) -> None:
    """Hash ``words[starts[i]:starts[i + 1]]`` into ``hashes`` (uint64)."""
    for row in range(hashes.shape[0]):
        hashes[row] = _hash(words, starts[row], starts[row + 1], seed)


# -- entries and records ---------------------------------------------------------------------------------------


@inlined
def _tag(hashed: Any) -> Any:
    """The upper half of a hash; never 0, so that no entry is."""
    return (hashed >> _S32) | _ONE


@inlined
def _tag_in(hashed: Any, cell: Any) -> Any:
    """The tag of a key in a cell of time."""
    return (mix(hashed ^ (np.uint64(cell) * _M1)) >> _S32) | _ONE


@inlined
def _home(tag: Any, table: Any) -> Any:
    return np.int64((tag * np.uint64(table.shape[0])) >> _S32)


@inlined
def _after(place: Any, table: Any) -> Any:
    return np.int64(0) if place + 1 == table.shape[0] else place + 1


@inlined
def _entry(tag: Any, at: Any, origin: Any) -> Any:
    return (tag << _S32) | ((np.uint64(at) + origin) & _LOW)


@inlined
def _index(entry: Any, origin: Any) -> Any:
    """Where in the log an entry's record is: positions are kept modulo 2**32, and the log is shorter than that."""
    return np.int64((entry - origin) & _LOW)


@inlined
def _same(log: Any, at: Any, words: Any, start: Any, end: Any) -> Any:
    # The first word of a key of no fixed width holds its size: the comparison never runs into the next record.
    while start < end and log[at] == words[start]:
        at += 1
        start += 1
    return start == end


@inlined
def _append(log: Any, tail: Any, words: Any, start: Any, end: Any) -> Any:
    for at in range(start, end):
        log[tail] = words[at]
        tail += 1
    return tail


# -- adding ----------------------------------------------------------------------------------------------------


@inlined
def _find(tags: Any, table: Any, log: Any, origin: Any, places: Any, near: Any) -> None:
    """Find the first place of each tag, or the empty one where it ends in vain, and bring near what is compared there.

    Memory answers many requests as fast as one, if none has to wait for what another decides: so first everything that
    can be asked at once, then the rest. ``near`` (uint64) takes what is read, or else the compiler would leave it out.
    """
    for number in range(tags.shape[0]):
        places[number] = _home(tags[number], table)
        near[number] = table[places[number]]
    for number in range(tags.shape[0]):
        place = places[number]
        while table[place] != _EMPTY and table[place] >> _S32 != tags[number]:
            place = _after(place, table)
        places[number] = place
        if table[place] != _EMPTY:
            near[number] = np.uint64(log[_index(table[place], origin)])


@kernel
def add(  # noqa: PLR0913, PLR0917  kernels know no objects
    words: Any, starts: Any, hashes: Any, rows: Any, log: Any, origin: Any, tail: int, table: Any, new: Any
) -> Any:
    """Append the keys that are not there yet.

    Args:
        words: int64: row i is ``words[starts[i]:starts[i + 1]]``.
        hashes: uint64, one per row.
        rows: int64: the rows to look at, in this order.
        log: int64, with room for all rows behind index ``tail``.
        origin: uint64: the position of ``log[0]``.
        table: uint64, with room for all rows.
        new: bool, one per row: takes which rows were appended.

    Returns:
        (the new tail, how many were appended).
    """
    added = 0
    tags = np.empty(_AHEAD, np.uint64)
    places = np.empty(_AHEAD, np.int64)
    near = np.empty(_AHEAD, np.uint64)
    for first in range(0, rows.shape[0], _AHEAD):
        ahead = rows[first : first + _AHEAD]
        for number in range(ahead.shape[0]):
            tags[number] = _tag(hashes[ahead[number]])
        _find(tags[: ahead.shape[0]], table, log, origin, places, near)
        for number in range(ahead.shape[0]):
            row, tag, place = ahead[number], tags[number], places[number]
            start, end = starts[row], starts[row + 1]
            fresh = True
            while fresh and table[place] != _EMPTY:
                entry = table[place]
                if entry >> _S32 == tag and _same(log, _index(entry, origin), words, start, end):
                    fresh = False
                else:
                    place = _after(place, table)
            new[row] = fresh
            if fresh:
                table[place] = _entry(tag, tail, origin)
                tail = _append(log, tail, words, start, end)
                added += 1
    return tail, added


@kernel
def add_within(  # noqa: PLR0913, PLR0917  kernels know no objects
    words: Any,
    starts: Any,
    hashes: Any,
    times: Any,
    rows: Any,
    log: Any,
    origin: Any,
    tail: int,
    table: Any,
    within: int,
    shift: int,
    forgotten: int,
    new: Any,
) -> Any:
    """Append the keys that are not there yet with a time less than ``within`` away.

    An entry is found by key and cell of time, ``time >> shift``. A cell is many times as long as ``within``: two have
    all that is near, mostly one; and the times of one key in one cell are few, however far apart its times may be.

    Args:
        times: int64, one per row.
        forgotten: records of this time and older do not count.

    Other arguments and the result are as for ``add``.
    """
    added = 0
    tags = np.empty(_AHEAD, np.uint64)
    places = np.empty(_AHEAD, np.int64)
    near = np.empty(_AHEAD, np.uint64)
    for first in range(0, rows.shape[0], _AHEAD):
        ahead = rows[first : first + _AHEAD]
        for number in range(ahead.shape[0]):
            tags[number] = _tag_in(hashes[ahead[number]], times[ahead[number]] >> shift)
        _find(tags[: ahead.shape[0]], table, log, origin, places, near)
        for number in range(ahead.shape[0]):
            row = ahead[number]
            start, end, time = starts[row], starts[row + 1], times[row]
            low = time - within + 1 if time >= _LEAST + within else _LEAST
            high = time + within - 1 if time <= _MOST - within else _MOST
            fresh, place = _look(
                words, start, end, low, high, log, origin, table, tags[number], places[number], forgotten
            )
            for cell in (low >> shift, high >> shift):
                if fresh and cell != time >> shift:
                    tag = _tag_in(hashes[row], cell)
                    home = _home(tag, table)
                    fresh = _look(words, start, end, low, high, log, origin, table, tag, home, forgotten)[0]
            new[row] = fresh
            if fresh:
                table[place] = _entry(tags[number], tail, origin)
                log[tail] = time
                tail = _append(log, tail + 1, words, start, end)
                added += 1
    return tail, added


@kernel
def _look(  # noqa: PLR0913, PLR0917  kernels know no objects
    words: Any,
    start: int,
    end: int,
    low: Any,
    high: Any,
    log: Any,
    origin: Any,
    table: Any,
    tag: Any,
    place: int,
    forgotten: int,
) -> Any:
    """Look from a place on: whether no record of this key has a time from ``low`` to ``high``, and where that ends."""
    while table[place] != _EMPTY:
        entry = table[place]
        if entry >> _S32 == tag:
            at = _index(entry, origin)
            if forgotten < log[at] and low <= log[at] <= high and _same(log, at + 1, words, start, end):
                return False, place
        place = _after(place, table)
    return True, place


@kernel
def put(  # noqa: PLR0913, PLR0917  kernels know no objects
    words: Any,
    starts: Any,
    hashes: Any,
    times: Any,
    rows: Any,
    log: Any,
    origin: Any,
    tail: int,
    table: Any,
    shift: int,
) -> Any:
    """Append every row; a record of the same key and time that was there before counts no more.

    Args:
        times: as for ``add_within``, or empty.

    Returns:
        (the new tail, how many rows were not there before).
    """
    timed = times.shape[0] > 0
    added = 0
    for row in rows:
        start, end = starts[row], starts[row + 1]
        tag = _tag_in(hashes[row], times[row] >> shift) if timed else _tag(hashes[row])
        place = _home(tag, table)
        while table[place] != _EMPTY:
            entry = table[place]
            at = _index(entry, origin)
            known = entry >> _S32 == tag and (not timed or log[at] == times[row])
            if known and _same(log, at + 1 if timed else at, words, start, end):
                break
            place = _after(place, table)
        if table[place] == _EMPTY:
            added += 1
        table[place] = _entry(tag, tail, origin)
        if timed:
            log[tail] = times[row]
            tail += 1
        tail = _append(log, tail, words, start, end)
    return tail, added


# -- taking out ------------------------------------------------------------------------------------------------


@inlined
def _size(log: Any, at: Any, width: Any) -> Any:
    """How many words a key that begins here has: its first word says so, if the width is not fixed."""
    return width if width > 0 else 1 + (log[at] & np.int64(0xFFFFFFFF))


@kernel
def _remove(table: Any, place: int) -> None:
    """Empty a place; what lies behind it and would no longer be found moves up."""
    hole = place
    while True:
        place = _after(place, table)
        entry = table[place]
        if entry == _EMPTY:
            break
        home = _home(entry >> _S32, table)
        # Home lies behind the hole and not behind the place, going round: it is found where it is.
        stays = hole < home <= place if hole <= place else (hole < home or home <= place)
        if not stays:
            table[hole] = entry
            hole = place
    table[hole] = _EMPTY


@kernel
def retire(  # noqa: PLR0913, PLR0917  kernels know no objects
    log: Any,
    origin: Any,
    head: int,
    stop: int,
    tail: int,
    table: Any,
    width: int,
    timed: bool,
    shift: int,
    forgotten: int,
    seed: Any,
    renew: bool,
) -> Any:
    """Take records off the head of the log, as long as they begin before index ``stop``.

    Those that do not count any more vanish from the table too. One that does count is appended anew if ``renew`` is
    true and there is room; else it ends the work.

    Returns:
        (the new head, the new tail, records taken off, records appended anew, entries removed from the table).
    """
    gone = 0
    renewed = 0
    removed = 0
    while head < stop:
        key = head + 1 if timed else head
        end = key + _size(log, key, width)
        hashed = _hash(log, key, end, seed)
        tag = _tag_in(hashed, log[head] >> shift) if timed else _tag(hashed)
        wanted = _entry(tag, head, origin)
        place = _home(tag, table)
        while table[place] != _EMPTY and table[place] != wanted:
            place = _after(place, table)
        if table[place] == wanted:
            if timed and log[head] <= forgotten:
                _remove(table, place)
                removed += 1
            elif renew and tail + end - head <= log.shape[0]:
                table[place] = _entry(tag, tail, origin)
                tail = _append(log, tail, log, head, end)
                renewed += 1
            else:
                break
        head = end
        gone += 1
    return head, tail, gone, renewed, removed


@kernel
def keys_between(log: Any, at: int, end: int, width: int, timed: bool, forgotten: int, keys: Any) -> int:
    """Find the records from index ``at`` to ``end`` that still count.

    ``keys`` (int64) takes where the key of each begins. Returns how many there are.
    """
    count = 0
    while at < end:
        key = at + 1 if timed else at
        if not timed or log[at] > forgotten:
            keys[count] = key
            count += 1
        at = key + _size(log, key, width)
    return count


@kernel
def refill(old: Any, table: Any) -> None:
    """Put all entries of a table into an empty one of another size, in one pass over both."""
    for entry in old:
        if entry != _EMPTY:
            place = _home(entry >> _S32, table)
            while table[place] != _EMPTY:
                place = _after(place, table)
            table[place] = entry
