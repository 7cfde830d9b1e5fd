"""Windows of so many rows of a key, in order of arrival, whatever batches and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.operators.count_window import CountWindowAggregate
from millstream.testing import BARRIER, check_operator, simulate
from operator_kit import Collected

SCHEMA = pa.schema({"k": pa.string(), "h": pa.float64(), "v": pa.int64()})
AGGREGATES: dict[str, Any] = {
    "n": ms.count(),
    "total": ms.sum("v"),
    "last": ms.last("v"),
    "all": ms.collect("v"),
    "distinct": ms.count_distinct("v"),
}


def spec(rows: int, keys: tuple[str, ...] = ("k",)) -> CountWindowAggregate:
    return CountWindowAggregate(keys, rows, tuple(AGGREGATES.items()))


def reference(rows: list[dict[str, Any]], keys: tuple[str, ...], size: int) -> Iterator[dict[str, Any]]:
    """Every window, as plain Python makes it."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for key, own in groups.items():
        for first in range(0, len(own), size):
            v = [row["v"] for row in own[first : first + size]]
            made = {"n": len(v), "total": sum(v), "last": v[-1], "all": v, "distinct": len(set(v))}
            yield {**dict(zip(keys, key, strict=True)), **made}


ROWS = st.fixed_dictionaries(
    {"k": st.sampled_from([None, "", "a", "b"]), "h": st.sampled_from([None, 0.0, 1.5]), "v": st.integers(-9, 9)}
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.lists(ROWS, min_size=1, max_size=12), min_size=1, max_size=5),
    st.sampled_from([1, 2, 3, 10]),
    st.sampled_from([(), ("k",), ("h", "k")]),
)
def test_the_windows_are_those_of_plain_python(
    batches: list[list[dict[str, Any]]], size: int, keys: tuple[str, ...]
) -> None:
    script = [step for batch in batches for step in (pa.RecordBatch.from_pylist(batch, SCHEMA), BARRIER)]
    got = check_operator(spec(size, keys), script)["main"]
    wanted = reference([row for batch in batches for row in batch], keys, size)
    assert sorted(map(repr, got)) == sorted(map(repr, wanted))


def overlapping(rows: list[dict[str, Any]], keys: tuple[str, ...], size: int, slide: int) -> Iterator[dict[str, Any]]:
    """After every so many rows of a key the last ones; and at the end what the next one would have had."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for key, own in groups.items():
        for end in range(slide, len(own) + slide, slide):
            v = [row["v"] for row in own[max(0, end - size) : end]]
            made = {"n": len(v), "total": sum(v), "last": v[-1], "all": v, "distinct": len(set(v))}
            yield {**dict(zip(keys, key, strict=True)), **made}


@settings(max_examples=6, deadline=None)
@given(
    st.lists(st.lists(ROWS, min_size=1, max_size=12), min_size=1, max_size=5),
    st.sampled_from([(2, 1), (3, 2), (6, 4), (10, 5), (9, 3)]),
    st.sampled_from([(), ("k",), ("h", "k")]),
)
def test_windows_that_overlap_are_those_of_plain_python(
    batches: list[list[dict[str, Any]]], window: tuple[int, int], keys: tuple[str, ...]
) -> None:
    size, slide = window
    script = [step for batch in batches for step in (pa.RecordBatch.from_pylist(batch, SCHEMA), BARRIER)]
    got = check_operator(CountWindowAggregate(keys, size, tuple(AGGREGATES.items()), slide), script)["main"]
    wanted = overlapping([row for batch in batches for row in batch], keys, size, slide)
    assert sorted(map(repr, got)) == sorted(map(repr, wanted))


def test_only_the_panes_of_windows_to_come_are_kept() -> None:
    operator = CountWindowAggregate(("k",), 10, tuple(AGGREGATES.items()), 2).build([SCHEMA])
    out = Collected()
    for first in range(0, 30_000, 1_000):
        rows = [{"k": f"k{n % 100}", "h": None, "v": n} for n in range(first, first + 1_000)]
        operator.process(pa.RecordBatch.from_pylist(rows, SCHEMA), out)
        operator.snapshot(first)
    assert sum(batch.num_rows for batch in out.batches["main"]) == 15_000
    assert len(operator._index) < 2_500  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(2))
def test_crashes_do_not_show_in_windows_that_overlap(seed: int, tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("count")
        rows = job.read(ms.memory_source([many(n, n + 40) for n in range(0, 2_800, 40)]))
        rows.group_by("k").window(ms.count_window(3, slide=2)).agg(**AGGREGATES).write(out)
        return job

    assert simulate(make, tmp_path / "s.duckdb", seed).crashes > 0
    wanted = overlapping(many(0, 2_800).to_pylist(), ("k",), 3, 2)
    assert sorted(map(repr, out.rows())) == sorted(map(repr, wanted))


def many(start: int, stop: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"k": f"k{n % 700}", "h": None, "v": n} for n in range(start, stop)], SCHEMA)


def test_dead_windows_are_given_back_and_windows_go_on_after_it() -> None:
    script = [step for n in range(0, 9_000, 900) for step in (many(n, n + 900), BARRIER)]
    operator = spec(2).build([SCHEMA])

    class Sink:
        rows = 0

        def emit(self, batch: pa.RecordBatch, port: str = "main") -> None:
            self.rows += batch.num_rows

    out = Sink()
    for step in script:
        if isinstance(step, pa.RecordBatch):
            operator.process(step, out)
            assert len(operator._index) < 4_000  # type: ignore[attr-defined]
    assert out.rows == sum((9_000 - n + 699) // 700 // 2 for n in range(700))


def test_windows_are_emitted_in_the_order_in_which_they_are_full_and_then_those_that_are_not() -> None:
    script = [pa.RecordBatch.from_pylist([{"k": k, "h": None, "v": n} for n, k in enumerate("abbcac")], SCHEMA)]
    got = check_operator(spec(2), [*script, script[0].slice(0, 2)])["main"]
    assert [(row["k"], row["n"]) for row in got] == [("b", 2), ("a", 2), ("c", 2), ("a", 1), ("b", 1)]


@pytest.mark.parametrize("seed", range(3))
def test_crashes_do_not_show(seed: int, tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("count")
        rows = job.read(ms.memory_source([many(n, n + 40) for n in range(0, 4_000, 40)]))
        rows.group_by("k").window(ms.count_window(3)).agg(**AGGREGATES).write(out)
        return job

    done = simulate(make, tmp_path / "s.duckdb", seed)
    wanted = reference(many(0, 4_000).to_pylist(), ("k",), 3)
    assert sorted(map(repr, out.rows())) == sorted(map(repr, wanted))
    assert done.crashes > 0


def unmerged() -> Any:
    return ms.aggregate(
        "v", state={"n": int}, init={"n": 0}, update=lambda s, g, v: s, result=lambda s: s["n"], type=int
    )


def refused() -> dict[str, tuple[Any, type[Exception], str]]:
    two = ms.count_window(2)
    return {
        "none": (lambda s: ms.count_window(0), ms.JobError, "from 1 to"),
        "slide": (lambda s: ms.count_window(3, slide=4), ms.JobError, "after 1 to 3 rows"),
        "panes": (lambda s: ms.count_window(100_001, slide=100_000), ms.JobError, "from 100,001 parts, at most 1,000"),
        "merge": (lambda s: s.window(ms.count_window(4, slide=2)).agg(x=unmerged()), ms.JobError, "needs merge="),
        "a time": (lambda s: ms.count_window("1m"), ms.JobError, "whole number"),  # type: ignore[arg-type]
        "lateness": (lambda s: s.window(two, lateness="1s"), ms.JobError, "for windows of time"),
        "early": (lambda s: s.window(two, early="1s"), ms.JobError, "for windows of time"),
        "name": (lambda s: s.group_by("k").window(two).agg(k=ms.count()), ms.SchemaError, "two columns called k"),
        "top": (lambda s: s.window(two).top(1, by="v"), AttributeError, "go on with .agg"),
    }


@pytest.mark.parametrize("what", refused())
def test_what_makes_no_sense_is_refused(what: str) -> None:
    call, error, words = refused()[what]
    with pytest.raises(error, match=words):
        call(ms.Job("j").read(ms.memory_source([many(0, 1)])))
