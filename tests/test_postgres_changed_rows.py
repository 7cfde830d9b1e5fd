"""Messages of pgoutput as columns, beside a plain reading of the same messages."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.connectors.postgres_changed_rows import ChangedRows

SAME = object()
"""A large value that an update leaves as it was."""
WIDTH = 4


def tuple_of(cells):
    parts = [struct.pack(">h", len(cells))]
    for cell in cells:
        if cell is None or cell is SAME:
            parts.append(b"u" if cell is SAME else b"n")
        else:
            text = cell.encode()
            parts.append(b"t" + struct.pack(">I", len(text)) + text)
    return b"".join(parts)


def message(kind, old, new, marker=b"O"):
    whole = b"w" + bytes(24) + kind + struct.pack(">I", 16_384)
    if kind != b"I":
        whole += marker + tuple_of(old)
    return whole + (b"N" + tuple_of(new) if kind != b"D" else b"")


def cells_of(text):
    """Read CSV by hand: the standard library tells no empty text from nothing."""
    rows, row, at, data = [], [], 0, text.decode()
    while at < len(data):
        if data[at] == '"':
            cell, at = "", at + 1
            while True:
                end = data.index('"', at)
                cell, at = cell + data[at:end], end + 1
                if data[at] != '"':
                    break
                cell, at = cell + '"', at + 1
        else:
            cell = None
        row.append(cell)
        if data[at] == "\n":
            rows.append(row)
            row = []
        at += 1
    return rows


def expected(changes, places):
    rows = []
    for kind, old, new in changes:
        if kind != b"I":
            rows.append((-1, [old[place] for place in places]))
        if kind != b"D":
            rows.append((1, [old[place] if new[place] is SAME else new[place] for place in places]))
    return rows


TEXT = st.text(st.sampled_from('a"\n,\\é\t '), max_size=5)
CELLS = st.lists(st.none() | TEXT, min_size=WIDTH, max_size=WIDTH)
CHANGED = st.lists(st.none() | TEXT | st.just(SAME), min_size=WIDTH, max_size=WIDTH)
CHANGE = st.one_of(
    st.tuples(st.just(b"I"), st.none(), CELLS),
    st.tuples(st.just(b"U"), CELLS, CHANGED),
    st.tuples(st.just(b"D"), CELLS, st.none()),
)
PLACES = st.sampled_from([(0, 1, 2, 3), (2,), (3, 0)])


@settings(deadline=None)
@given(st.lists(st.tuples(PLACES, CHANGE), min_size=1, max_size=12))
def test_rows_are_those_of_the_messages_whatever_stands_in_them(changes):
    rows, whole = ChangedRows(), []
    for places, change in changes:
        assert rows.add(message(*change), places)
        whole += expected([change], places)

    made = rows.as_csv()

    assert made is not None
    text, weights = made
    assert rows.count == len(whole) == len(weights)
    assert weights.tolist() == [weight for weight, _ in whole]
    assert cells_of(text) == [cells for _, cells in whole]


@pytest.mark.parametrize("kind", [b"U", b"D"])
def test_without_the_old_row_a_change_is_not_whole(kind):
    cells = ["a"] * WIDTH

    assert not ChangedRows().add(message(kind, cells, cells, marker=b"K"), (0,))


@pytest.mark.parametrize("change", [(b"I", None, [SAME]), (b"U", [SAME], [SAME])])
def test_a_value_that_is_told_nowhere_is_noticed(change):
    rows = ChangedRows()
    rows.add(message(b"I", None, ["good"]), (0,))
    rows.add(message(*change), (0,))

    assert rows.as_csv() is None
