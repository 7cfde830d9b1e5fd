"""The minimum over inputs: never back, idle inputs do not count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from millstream.engine.runtime.watermarks import WatermarkMerge
from millstream.engine.time import END_OF_TIME, START_OF_TIME

EVENTS = st.lists(st.tuples(st.integers(0, 2), st.one_of(st.none(), st.integers(-100, 100))), max_size=60)


def test_nothing_is_known_until_every_input_has_spoken() -> None:
    merge = WatermarkMerge(2)
    assert merge.advance(0, 5) is None
    assert merge.current == START_OF_TIME
    assert merge.advance(1, 3) == 3


def test_an_idle_input_lets_the_others_go_on_and_comes_back_without_turning_time_back() -> None:
    merge = WatermarkMerge(2)
    merge.advance(0, 50)
    assert merge.set_idle(1) == 50
    assert merge.advance(1, 10) is None
    assert merge.current == 50
    assert merge.advance(1, 60) is None
    assert merge.advance(0, 55) == 55


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_when_all_are_idle_it_does_not_matter_who_was_first(order: tuple[int, int]) -> None:
    merge = WatermarkMerge(2)
    merge.advance(0, 9)
    merge.advance(1, 3)
    for index in order:
        merge.set_idle(index)
    assert merge.all_idle
    assert merge.current == 9


def test_the_end_of_one_input_is_not_the_end_of_those_that_are_idle() -> None:
    merge = WatermarkMerge(2)
    merge.advance(1, 7)
    merge.set_idle(1)
    assert merge.advance(0, END_OF_TIME) == 7
    assert (merge.current, merge.all_idle) == (7, True)
    assert merge.advance(1, 8) == 8
    assert not merge.all_idle
    assert merge.advance(1, END_OF_TIME) == END_OF_TIME


@given(EVENTS)
def test_it_only_rises_to_the_lowest_active_or_the_highest_idle(
    events: list[tuple[int, int | None]],
) -> None:
    merge = WatermarkMerge(3)
    times, idle, last = [START_OF_TIME] * 3, [False] * 3, START_OF_TIME
    for index, time in events:
        risen = merge.set_idle(index) if time is None else merge.advance(index, time)
        idle[index] = time is None
        times[index] = times[index] if time is None else max(times[index], time)
        active = [t for t, i in zip(times, idle, strict=True) if not i]
        expected = max(last, min(active) if active else max(times))
        assert merge.current == expected
        assert risen == (expected if expected > last else None)
        last = expected
