"""The memory of keys against a dict: crowded tables, keys that come and go, restores from what epochs wrote."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.codes import Ints
from millstream.engine.errors import SchemaError
from millstream.engine.key_log import FOR_EVER, NO_TIMES
from millstream.engine.seen_keys import SeenKeys


@dataclass
class Model:
    """What keys are, how they are made, and the times at which each was new."""

    within: int
    text: bool
    watermark: int = -1_000
    times: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def columns(self, keys: Any) -> list[pa.Array]:
        if self.text:
            return [pa.array([None if key == 0 else "k" * (key % 19) + str(key) for key in keys], pa.string())]
        return [pa.array(keys, pa.int64())]

    def add(self, keys: Any, times: Any) -> list[bool]:
        found = []
        for key, time in zip(keys, times, strict=True):
            known = [t for t in self.times[key] if self.within == FOR_EVER or t > self.watermark - self.within]
            found.append(not any(self.within == FOR_EVER or abs(t - time) < self.within for t in known))
            self.times[key] = [*known, time] if found[-1] else known
        return found


@dataclass
class Checked:
    """A memory of one crowded log, or a few, beside its model and what its epochs wrote."""

    model: Model
    logs: int
    written: list[tuple[int, list[pa.ChunkedArray], Ints]] = field(default_factory=list)
    epoch: int = 0
    full_from: int = 1

    def __post_init__(self) -> None:
        self.seen = self.anew()

    def anew(self) -> SeenKeys:
        type = pa.string() if self.model.text else pa.int64()
        return SeenKeys([type], self.model.within, logs=self.logs, room=4, seed=5)

    def add(self, keys: Any, times: Any) -> None:
        # Late rows are others' business.
        on_time = [(k, t) for k, t in zip(keys, times, strict=True) if t > self.model.watermark - self.model.within]
        if on_time:
            keys, times = zip(*on_time, strict=True)
            own = np.array(times, np.int64) if self.model.within else NO_TIMES
            assert self.seen.add(self.model.columns(keys), own).tolist() == self.model.add(keys, times)

    def forget(self, watermark: int) -> None:
        self.model.watermark = max(self.model.watermark, watermark)
        self.seen.forget(self.model.watermark)

    def take(self) -> None:
        self.epoch += 1
        written = self.seen.take(self.epoch)
        self.written.append((self.epoch, written.columns, written.times))
        self.full_from = written.full_from

    def restore(self) -> None:
        self.take()
        self.seen = self.anew()
        for epoch, columns, times in self.written:
            count = len(columns[0])
            if epoch >= self.full_from and count:
                self.seen.put([column.combine_chunks() for column in columns], times, np.full(count, epoch))
        self.seen.forget(self.model.watermark)


KEYS = st.lists(st.integers(0, 60), min_size=1, max_size=40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, st.integers(-60, 200)),
        st.tuples(st.just("forget"), st.integers(-60, 240)),
        st.tuples(st.sampled_from(["take", "restore"])),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([FOR_EVER, 1, 10, 100]), st.booleans(), st.sampled_from([1, 3]), st.data())
def test_a_crowded_memory_is_a_dict_of_times(
    steps: list[tuple[Any, ...]], within: int, text: bool, logs: int, data: st.DataObject
) -> None:
    checked = Checked(Model(within, text), logs)
    for what, *details in steps:
        if what == "add":
            keys, around = details
            jitter = data.draw(st.lists(st.integers(0, 40), min_size=len(keys), max_size=len(keys)))
            checked.add(keys, [around + j for j in jitter])
        elif what == "forget":
            if within:
                checked.forget(*details)
        else:
            getattr(checked, what)()


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("within", [FOR_EVER, 700])
def test_many_keys_that_come_and_go(within: int, text: bool) -> None:
    rng = np.random.default_rng(1)
    checked = Checked(Model(within, text), logs=2)
    for log in checked.seen._logs:
        log._tail = 2**32 - 1_000  # positions are kept modulo 2**32, and here go round
        log.clear()
    for step in range(150):
        keys = rng.integers(0, 4_000, 500).tolist()
        times = (step * 50 + rng.integers(-300, 300, 500)).tolist()
        if step % 10 == 0:
            times[0] = 100_000 + step * 1_000
        checked.add(keys, times)
        if within:
            checked.forget(step * 50 - 300)
        if step % 7 == 0:
            checked.take()
        if step % 50 == 20:
            checked.restore()
    if within:
        held = sum(log.records for log in checked.seen._logs)
        assert held < 3 * sum(len(times) for times in checked.model.times.values()) + 2_000
        read = sum(len(columns[0]) for epoch, columns, _ in checked.written if epoch >= checked.full_from)
        assert read < 3 * held + 2_000
        checked.forget(1_000_000)
        assert len(checked.seen) == 0
        assert checked.seen.take(1_000).full_from == 1_000


def test_a_key_with_nulls_is_told_from_one_without() -> None:
    seen = SeenKeys([pa.int64(), pa.bool_()])
    columns = [pa.array([0, None, 0, None, None]), pa.array([False, False, None, None, False])]
    assert seen.add(columns).tolist() == [True, True, True, True, False]
    taken = seen.take(1).columns
    rows = list(zip(*(column.to_pylist() for column in taken), strict=True))
    assert sorted(rows, key=repr) == sorted([(0, False), (None, False), (0, None), (None, None)], key=repr)
    again = SeenKeys([pa.int64(), pa.bool_()])
    again.put([column.combine_chunks() for column in taken], NO_TIMES, np.ones(4, np.int64))
    assert not again.add(columns).any()


def test_text_cut_elsewhere_is_another_key() -> None:
    seen = SeenKeys([pa.string(), pa.binary(), pa.string()])
    rows = [
        ("ab", b"c", ""),
        ("a", b"bc", ""),
        ("", b"", "abc"),
        ("abc", b"", ""),
        (None, b"", "abc"),
        ("", None, "abc"),
    ]
    columns = [pa.array(values, type) for values, type in zip(zip(*rows, strict=True), seen._types, strict=True)]
    assert seen.add(columns).all()
    assert sorted(zip(*(c.to_pylist() for c in seen.take(1).columns), strict=True), key=repr) == sorted(rows, key=repr)


def test_a_key_longer_than_everything_else() -> None:
    seen = SeenKeys([pa.string()], within=5)
    columns = [pa.array(["x" * 3_000_000, "y", "x" * 3_000_000 + "y"])]
    assert seen.add(columns, np.array([1, 1, 1])).all()
    assert not seen.add(columns, np.array([2, 2, 2])).any()
    assert sorted(map(len, seen.take(1).columns[0].to_pylist())) == [1, 3_000_000, 3_000_001]


def test_values_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(SchemaError, match="list"):
        SeenKeys([pa.list_(pa.int64())])


def numbers(first: int, count: int) -> list[pa.Array]:
    return [pa.array(np.arange(first, first + count))]


def test_what_is_forgotten_makes_room_although_no_checkpoint_is_taken_and_others_must_stay() -> None:
    seen = SeenKeys([pa.int64()], within=1_000, seed=1)
    seen.add(numbers(-300, 300), np.full(300, 10**6))
    for step in range(100):
        seen.add(numbers(step * 1_000, 1_000), np.arange(step * 1_000, (step + 1) * 1_000))
        seen.forget(step * 1_000)
        assert sum(log.records for log in seen._logs) < 7_000
    assert not seen.add(numbers(-300, 300), np.full(300, 10**6)).any()


def test_what_is_forgotten_before_its_epoch_ends_is_never_written() -> None:
    seen = SeenKeys([pa.int64()], within=10, logs=1)
    seen.add([pa.array([1, 2, 3])], np.array([0, 100, 0]))
    seen.forget(50)
    assert seen.take(1).columns[0].to_pylist() == [2]


def test_an_epoch_never_reaches_back_behind_what_is_written_after_it() -> None:
    """A failed checkpoint's rows are written with a later one's, subtask by subtask: their epochs go up and down."""
    seen = SeenKeys([pa.int64()], within=10, logs=1)
    seen.put([pa.array([1, 2])], np.array([0, 100]), np.array([5, 3]))
    assert seen.take(6).full_from == 5
    seen.forget(50)
    assert seen.take(7).full_from == 5


def test_keys_of_one_huge_epoch_that_are_left_over_are_written_anew() -> None:
    seen = SeenKeys([pa.int64()], within=1_000)
    seen.add(numbers(0, 50_000), np.where(np.arange(50_000) % 1_000 == 0, 10_000, 0))
    seen.take(1)
    seen.forget(5_000)
    for epoch in range(2, 6):
        seen.add(numbers(-epoch, 1), np.array([10_000]))
        written = seen.take(epoch)
    assert written.full_from > 1
