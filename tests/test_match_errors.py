"""What is wrong with a pattern is said where it is written, with what to write instead."""

from __future__ import annotations

import datetime as dt
from typing import Any

import millstream as ms
import pytest
from hypothesis import given
from match_kit import NODES
from millstream import col
from millstream.operators.row_pattern import JobError, may_be_empty, parse, show

ROWS = [{"k": "a", "at": dt.datetime(2026, 1, 1), "price": 1.0, "name": "x", "tags": {"a": 1}}]


def grouped() -> Any:
    return ms.Job("j").read(ms.memory_source(ROWS), event_time="at").group_by("k")


@pytest.mark.parametrize(
    ("pattern", "at", "words"),
    [
        ("", None, "such as"),
        ("a b)", 3, "nothing to close"),
        ("a (b", 2, "not closed"),
        ("a $", 2, "expected a name"),
        ("a | ", 4, "a name is missing"),
        ("a ()", 3, "a name is missing"),
        ("a+?", 2, "one of"),
        ("a{2", 3, "expected }"),
        ("a{}", 2, "a number is missing"),
        ("a{3,2}", 1, "not smaller"),
        ("a{0}", 1, "at least 1"),
        ("a* b?", 0, "without any row"),
        ("a (b? c*)+", 2, "without end"),
        ("!a b", 0, "not optional before it"),
        ("a? !b c", 3, "not optional before it"),
        ("a !", 3, "a name must follow"),
        ("a !b+", 4, "not repeated"),
        ("a (b !c)", 5, "outside of parentheses"),
        ("a | b !c", 6, "outside of parentheses"),
        ("a !b | c", 2, "outside of alternatives"),
        ("a !b c?", 5, "must not be optional"),
        ("a{1001}", 0, "more than 1,000"),
    ],
)
def test_a_pattern_that_is_none_is_refused_with_the_place(pattern: str, at: int | None, words: str) -> None:
    with pytest.raises(ms.JobError) as caught:
        grouped().match(pattern, within="1h")
    message, *shown = str(caught.value).splitlines()
    assert words in message
    assert shown == ([] if at is None else [f"    {pattern}", f"    {' ' * at}^"])


@given(NODES)
def test_what_is_shown_of_a_pattern_means_the_same(node: Any) -> None:
    try:
        parsed = parse(show(node))
    except JobError:
        return
    assert show(parsed) == show(node)
    assert parse(show(parsed)) == parsed
    assert not may_be_empty(parsed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"define": {"c": col("price") > 1}}, "'c', which is not in the pattern 'a b'"),
        ({"define": {"b": col("prise") > 1}}, "no column 'prise' (did you mean 'price'?)"),
        ({"define": {"b": ms.prev("prise") > 1}}, "no column 'prise' (did you mean 'price'?)"),
        ({"define": {"b": col("price") > col("a.prise")}}, "no column 'prise' (did you mean 'price'?)"),
        ({"define": {"b": col("c.price") > 1}}, "no column 'c.price'"),
        ({"define": {"b": col("price")}}, "price is double; expected a condition"),
        ({"define": {"b": ms.last("a.price")}}, "for select="),
        ({"define": {"b": True}}, "takes a condition"),
        ({"define": {"a": col("price") > col("b.price")}}, "which may be one of several rows"),
        ({"define": {"b": (col("price") - col("a.price")) > 1}}, "that row alone on one side"),
        ({"define": {"b": (col("price") > col("a.price")) | (col("price") > 9)}}, "joined to others with &"),
        ({"define": {"b": ms.prev("price") > col("a.price")}}, "without ms.prev()"),
        ({"define": {"b": col("name") > col("a.name")}}, "name is string"),
        ({"define": {"b": col("name") == col("a.price")}}, "must be of one type"),
        ({"select": {"x": ms.last("c.price")}}, "names 'c', which is not in the pattern"),
        ({"select": {"x": ms.last("b.prise")}}, "reads 'prise', which is no column (did you mean 'price'?)"),
        ({"select": {"x": ms.count("bb")}}, "'bb', which is no column (did you mean 'b'?)"),
        ({"select": {"x": ms.sum(col("a.price") + col("b.price"))}}, "rows of 'a', 'b'"),
        ({"select": {"x": ms.sum(col("a.price") + col("price"))}}, "rows of 'a', all rows"),
        ({"select": {"x": ms.sum("b.name")}}, "expected a number"),
        ({"select": {"k": ms.last("price")}}, "two columns called k"),
        ({"select": {"known_at": ms.last("at")}}, "two columns called known_at"),
        ({"select": {"x": "a.price"}}, "takes an aggregate"),
        ({"within": "0s"}, "at least '1us'"),
        ({"contiguity": "loose"}, "'strict', 'relaxed'"),
        ({"after_match": "skip"}, "'skip_past_last', 'skip_to_next_row'"),
    ],
)
def test_a_mistake_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ms.JobError) as caught:
        grouped().match("a b", **{"within": "1h", **arguments})
    assert words in str(caught.value)


def test_a_pattern_needs_event_time() -> None:
    stream = ms.Job("j").read(ms.memory_source(ROWS))
    with pytest.raises(ms.JobError, match="event_time='at'"):
        stream.group_by("k").match("a", within="1h")


def test_a_pattern_takes_no_more_than_twelve_conditions() -> None:
    names = [f"n{number}" for number in range(13)]
    with pytest.raises(ms.JobError, match="at most 12"):
        grouped().match(" ".join(names), within="1h", define={name: col("price") > 1 for name in names})


def test_prev_is_for_patterns_alone() -> None:
    stream = ms.Job("j").read(ms.memory_source(ROWS))
    with pytest.raises(ms.JobError, match="only the conditions of match"):
        stream.filter(ms.prev("price") > 1)
    with pytest.raises(ms.JobError, match="only the row right before"):
        ms.prev(ms.prev("price"))
    with pytest.raises(ms.JobError, match="column's name or an expression"):
        ms.prev(1)  # type: ignore[arg-type]


def test_names_of_the_pattern_may_be_given_to_the_rows_own_columns() -> None:
    out = ms.memory_sink()
    job = ms.Job("j")
    read = job.read(ms.memory_source(ROWS), event_time="at").group_by("k")
    made = read.match("a", within="1s", define={"a": col("a.price") == 1}, select={"n": ms.count("a.name")})
    made.select("n").write(out)
    job.run()
    assert out.rows() == [{"n": 1}]
