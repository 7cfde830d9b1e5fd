"""Row buffers against plain lists, through appends, drops, tidying and new slots; and the queue of deadlines."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.time import END_OF_TIME, START_OF_TIME
from millstream.operators import row_buffer, row_log
from millstream.operators.deadlines import Deadlines
from millstream.operators.row_buffer import RowBuffer
from millstream.operators.row_log import RowLog

SCHEMA = pa.schema({"n": pa.int64(), "text": pa.string(), "tags": pa.list_(pa.string())})
SLOTS = 5


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what happens to many rows happen to few."""
    monkeypatch.setattr(row_log, "_MOST_ROWS", 8)
    monkeypatch.setattr(row_buffer, "_MIN_GARBAGE", 4)
    monkeypatch.setattr(row_buffer, "_FIRST_CAPACITY", 2)


def rows_from(first: int, count: int) -> pa.RecordBatch:
    numbers = range(first, first + count)
    columns = [pa.array(numbers, pa.int64()), [f"row {n}" for n in numbers], [["a"] * (n % 3) for n in numbers]]
    return pa.RecordBatch.from_arrays([pa.array(c) for c in columns], schema=SCHEMA)


class Model:
    """A buffer, and beside it a list of (number, slot, low, high)."""

    def __init__(self, draw: random.Random, spans: bool) -> None:
        self.draw = draw
        self.spans = spans
        self.buffer = RowBuffer(SCHEMA, spans=spans, lanes={"number": np.int64, "low": np.int64, "high": np.int64})
        self.buffer.resize_slots(SLOTS)
        self.rows: dict[int, tuple[int, int, int]] = {}
        self.ids: dict[int, int] = {}
        self.appended = 0

    def append(self) -> None:
        count = self.draw.randint(1, 12)
        batch = rows_from(self.appended, count)
        slots = [self.draw.randrange(SLOTS) for _ in range(count)]
        low = [self.appended // 2 + self.draw.randint(-9, 9) for _ in range(count)]
        high = [at + self.draw.choice([0, 0, 3, 20, -1]) for at in low]
        numbers = np.arange(self.appended, self.appended + count)
        ids = self.buffer.append(batch, np.array(slots), number=numbers, low=np.array(low), high=np.array(high))
        for number, row in zip(numbers.tolist(), zip(slots, low, high, strict=True), strict=True):
            self.rows[number] = row
        self.ids.update(zip(numbers.tolist(), ids.tolist(), strict=True))
        self.appended += count

    def drop(self) -> None:
        some = self.draw.sample(sorted(self.rows), self.draw.randint(0, len(self.rows)))
        self.buffer.drop(np.array([self.ids[number] for number in some], np.int64))
        for number in some:
            del self.rows[number]
        renewed = self.buffer.tidy()
        numbers = self.buffer.lane("number")[self.buffer.at(renewed)]
        self.ids = {number: self.ids[number] for number in self.rows}
        self.ids.update(zip(numbers.tolist(), renewed.tolist(), strict=True))

    def move_slots(self) -> None:
        moved = np.array(self.draw.sample(range(SLOTS), SLOTS))
        self.buffer.move_slots(moved)
        self.rows = {number: (int(moved[slot]), low, high) for number, (slot, low, high) in self.rows.items()}

    def check(self) -> None:
        assert self.buffer.count == len(self.rows)
        held = self.buffer.ids()
        assert sorted(held.tolist()) == sorted(self.ids[number] for number in self.rows)
        assert (
            self.buffer.take(held).column("n").to_pylist() == self.buffer.lane("number")[self.buffer.at(held)].tolist()
        )
        asking = [
            (self.draw.randrange(-1, SLOTS), self.draw.randint(-5, 60), self.draw.randint(0, 9)) for _ in range(8)
        ]
        slots, low = (np.array([ask[i] for ask in asking]) for i in (0, 1))
        high = low + np.array([ask[2] for ask in asking])
        spans = (low, high) if self.spans else None
        for most in (1, 3, 1_000):
            found = list(self.buffer.matches(slots, spans, most=most))
            assert all(0 < len(rows) <= most for rows, _ in found)
            pairs = sorted(
                (row, id_) for rows, ids in found for row, id_ in zip(rows.tolist(), ids.tolist(), strict=True)
            )
            assert pairs == self.expected(slots.tolist(), low.tolist(), high.tolist())
        once = [row for rows, _ in self.buffer.matches(slots, spans, once=True) for row in rows.tolist()]
        assert once == sorted({row for row, _ in pairs})

    def expected(self, slots: list[int], low: list[int], high: list[int]) -> list[tuple[int, int]]:
        return sorted(
            (asking, self.ids[number])
            for asking, slot in enumerate(slots)
            for number, (own, first, last) in self.rows.items()
            if own == slot and (not self.spans or (last >= low[asking] and first <= high[asking]))
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_buffer_finds_what_a_list_holds(seed: int, spans: bool) -> None:
    model = Model(random.Random(seed), spans)
    for _ in range(30):
        model.draw.choice([model.append, model.append, model.drop, model.move_slots])()
        model.check()


def test_memory_is_in_proportion_to_the_rows_that_wait() -> None:
    """One row of the first batch waits for ever; the others go, batch by batch."""
    buffer = RowBuffer(SCHEMA, spans=True)
    buffer.resize_slots(1)
    waiting = np.empty(0, np.int64)
    for batch in range(500):
        ids = buffer.append(rows_from(batch, 4), np.zeros(4, np.int64))
        buffer.drop(waiting)
        waiting = ids[1:] if batch == 0 else ids
        buffer.tidy()
        assert len(buffer._log) <= 2 * buffer.count + 16
        assert len(buffer.lane("slot")) <= 4 * (buffer.count + 16)
    assert buffer.take(buffer.ids()).column("n").to_pylist().count(0) == 1


def test_rows_far_back_in_a_chain_are_found_in_few_steps() -> None:
    """A search leaps over rows of other times: it must not walk 100,000 rows for each that asks."""
    from millstream.operators import join_kernels

    count = 100_000
    buffer = RowBuffer(pa.schema({"n": pa.int64()}), spans=True)
    buffer.resize_slots(1)
    times = np.arange(count)
    buffer.append(pa.record_batch({"n": times}), np.zeros(count, np.int64), low=times, high=times)
    jumps, at, steps = buffer.lane("jump"), count - 1, 0
    low, previous = buffer.lane("jump_low"), buffer.lane("previous")
    while at > 10:
        at = int(jumps[at]) if low[at] > 10 else int(previous[at])
        steps += 1
    assert steps < 100
    slots = np.zeros(5, np.int64)
    asked = np.array([0, 10, 50_000, 99_999, 100_000])
    found = [ids.tolist() for _, ids in buffer.matches(slots, (asked, asked + 1))]
    assert found == [[1, 0, 11, 10, 50_001, 50_000, 99_999]]
    assert join_kernels.START == -2


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_deadlines_come_when_their_time_has_passed(data: st.DataObject) -> None:
    near = st.integers(-100, 100)
    times = st.one_of(
        near, st.integers(START_OF_TIME, END_OF_TIME), st.sampled_from([START_OF_TIME, END_OF_TIME, -1, 0])
    )
    waiting: dict[int, int] = {}
    queue, now, next_id = Deadlines(), START_OF_TIME, 0
    for _ in range(data.draw(st.integers(1, 8))):
        some = data.draw(st.lists(times, max_size=6))
        queue.add(np.array(some, np.int64), np.arange(next_id, next_id + len(some)))
        waiting.update(enumerate(some, next_id))
        next_id += len(some)
        now = max(now, data.draw(times))
        due = sorted(id_ for id_, time in waiting.items() if time < now or now == END_OF_TIME)
        assert sorted(queue.due(now).tolist()) == due
        for id_ in due:
            del waiting[id_]
        assert queue.count == len(waiting)


def test_a_log_merges_chunks_and_gives_them_up() -> None:
    log = RowLog(SCHEMA)
    for first in range(40):
        log.append(rows_from(first, 1))
    assert len(log._chunks) < 15
    assert log.take(np.array([39, 0, 17])).column("n").to_pylist() == [39, 0, 17]
    log.give_up()
    kept: Any = log.first
    assert 0 < kept <= 8
    assert log.take(np.array([kept, 39]), ["text"]).to_pydict() == {"text": [f"row {kept}", "row 39"]}
