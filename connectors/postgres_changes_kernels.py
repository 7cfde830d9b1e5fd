"""Rows out of pgoutput's messages, compiled: the cells of many messages as one CSV. Importing this module loads numba.

A tuple is a count of columns (int16), and of each a kind: ``t`` with a length (int32) and text, ``n`` for null, ``u``
for a large value that an update has left as it was, which only the old row tells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from millstream.connectors.postgres_pgoutput import DELETE, INSERT, KIND
from millstream.engine.jit import kernel

_TEXT, _UNCHANGED_KIND = ord("t"), ord("u")
_QUOTE, _COMMA, _NEWLINE = ord('"'), ord(","), ord("\n")
_NULL, _UNCHANGED = -1, -2
_MOST_COLUMNS = 1664


@kernel
def rows_as_csv(data: Any, starts: Any, places: Any, out: Any, weights: Any) -> int:
    """Write the rows of inserts, updates and deletes: of an update the old one and then the new one.

    Args:
        data: uint8: the messages, one after the other; of each update and delete with the whole old row.
        starts: int64: where each message begins.
        places: int64: which columns of the table are wanted, in order.
        out: uint8: the CSV, where nulls alone are not quoted; with room for all of it.
        weights: int64, shape (rows,): 1 for a row that came, -1 for one that went.

    Returns:
        How many bytes were written; -1: a value is told nowhere.
    """
    old_at, old_size = np.empty(_MOST_COLUMNS, np.int64), np.empty(_MOST_COLUMNS, np.int64)
    new_at, new_size = np.empty(_MOST_COLUMNS, np.int64), np.empty(_MOST_COLUMNS, np.int64)
    to, row = 0, 0
    for message in range(starts.shape[0]):
        at = starts[message] + KIND
        kind = data[at]
        at += 6
        if kind != INSERT:
            at = _find_cells(data, at, old_at, old_size) + 1
            to = _write_row(data, old_at, old_size, places, out, to)
            weights[row] = -1
            row += 1
        if kind != DELETE:
            _find_cells(data, at, new_at, new_size)
            for place in places:
                if new_size[place] == _UNCHANGED:
                    if kind == INSERT or old_size[place] == _UNCHANGED:
                        return -1
                    new_at[place], new_size[place] = old_at[place], old_size[place]
            to = _write_row(data, new_at, new_size, places, out, to)
            weights[row] = 1
            row += 1
    return to


@kernel
def _find_cells(data: Any, at: int, begins: Any, sizes: Any) -> int:
    """Note where each cell of a tuple is; return where the tuple ends."""
    count = (np.int64(data[at]) << 8) | np.int64(data[at + 1])
    at += 2
    for column in range(count):
        kind = data[at]
        at += 1
        if kind == _TEXT:
            size: Any = np.int64(0)
            for byte in range(4):
                size = (size << 8) | np.int64(data[at + byte])
            at += 4
            begins[column], sizes[column] = at, size
            at += size
        else:
            begins[column] = at
            sizes[column] = _UNCHANGED if kind == _UNCHANGED_KIND else _NULL
    return at


@kernel
def _write_row(data: Any, begins: Any, sizes: Any, places: Any, out: Any, to: int) -> int:
    """Write a line; return where the next one begins."""
    for index in range(places.shape[0]):
        if index:
            out[to] = _COMMA
            to += 1
        start, size = begins[places[index]], sizes[places[index]]
        if size >= 0:
            out[to] = _QUOTE
            to += 1
            for at in range(start, start + size):
                if data[at] == _QUOTE:
                    out[to] = _QUOTE
                    to += 1
                out[to] = data[at]
                to += 1
            out[to] = _QUOTE
            to += 1
    out[to] = _NEWLINE
    return to + 1
