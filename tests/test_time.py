"""Durations as users write them, and clocks that move by hand."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from millstream.engine.errors import JobError
from millstream.engine.time import ManualClock, micros, show_duration


@given(st.integers(0, 10**15))
def test_a_shown_duration_reads_back(value: int) -> None:
    assert micros(show_duration(value)) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5s", 5_000_000),
        ("1m30s", 90_000_000),
        ("100ms", 100_000),
        ("1.5 h", 5_400_000_000),
        ("3us", 3),
        ("2d", 172_800_000_000),
    ],
)
def test_units(text: str, expected: int) -> None:
    assert micros(text) == expected


def test_seconds_and_timedeltas() -> None:
    assert (micros(0.25), micros(dt.timedelta(minutes=2))) == (250_000, 120_000_000)


@pytest.mark.parametrize("bad", ["", "5", "s", "5 parsecs", "5s!", "-5s", -1])
def test_what_is_not_a_duration_is_refused(bad: str | int) -> None:
    with pytest.raises(JobError, match="duration"):
        micros(bad)


def test_a_manual_clock_moves_only_by_hand() -> None:
    clock = ManualClock()
    assert (clock.monotonic(), clock.wall()) == (0, 0)
    clock.advance(0.5)
    assert (clock.monotonic(), clock.wall()) == (0.5, 500_000)
