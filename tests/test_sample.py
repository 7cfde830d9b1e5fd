"""Samples: the same rows every time, about as many as asked for, whatever subtask they are on."""

from __future__ import annotations

from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.changelog import WEIGHT
from millstream.engine.hashing import exchange_hash
from millstream.operators.sample import Sample
from millstream.testing import BARRIER, check_operator
from operator_kit import Collected

ROWS = 20_000
BATCH = pa.record_batch({"user": np.arange(ROWS) % 5_000, "n": np.arange(ROWS)})


def kept(sample: Sample, batch: pa.RecordBatch = BATCH) -> list[dict[str, Any]]:
    sink = Collected()
    sample.build([batch.schema]).process(batch, sink)
    return [row for batch in sink.batches["main"] for row in batch.to_pylist()]


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 1, -7])
def test_about_as_many_are_kept_as_asked_for(fraction: float, seed: int) -> None:
    spread = (ROWS * fraction * (1 - fraction)) ** 0.5
    assert abs(len(kept(Sample(fraction, ("n",), seed))) - ROWS * fraction) < 5 * spread


def test_all_are_kept_of_a_whole_and_rows_of_a_user_go_together() -> None:
    assert len(kept(Sample(1.0, ("n",)))) == ROWS
    rows = kept(Sample(0.1, ("user",)))
    assert len(rows) == 4 * len({row["user"] for row in rows}) > 0


def test_a_smaller_sample_is_in_a_larger_one_and_another_seed_chooses_others() -> None:
    small, large, other = (
        {row["n"] for row in kept(Sample(fraction, ("n",), seed))} for fraction, seed in [(0.1, 5), (0.2, 5), (0.1, 6)]
    )
    assert small < large
    assert len(small & other) < len(small) / 4


def test_what_is_kept_has_nothing_to_do_with_the_subtask() -> None:
    users = pa.array([row["user"] for row in kept(Sample(0.25, ("user",)))])
    parts = np.bincount((exchange_hash([users]) % np.uint64(4)).astype(np.int64))
    assert len(parts) == 4
    assert parts.min() > len(users) / 6


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([None, "a", "b"]), st.integers(0, 9), st.sampled_from([-1, 1])), min_size=1))
def test_the_kit_finds_nothing(made: list[tuple[str | None, int, int]]) -> None:
    schema = pa.schema({"k": pa.string(), "n": pa.int64(), WEIGHT: pa.int64()})
    batch = pa.RecordBatch.from_pylist([{"k": k, "n": n, WEIGHT: w} for k, n, w in made], schema)
    check_operator(Sample(0.5, ("k", "n"), 3), [batch, BARRIER, batch])
    check_operator(Sample(0.5, ("n",), 3), [batch.drop_columns([WEIGHT])])


def refused() -> dict[str, tuple[Any, type[Exception], str]]:
    return {
        "nothing": (lambda s: s.sample(0), ms.JobError, "more than 0"),
        "too much": (lambda s: s.sample(10), ms.JobError, "at most 1"),
        "text": (lambda s: s.sample("1%"), ms.JobError, "such as 0.01"),
        "seed": (lambda s: s.sample(0.1, seed="x"), ms.JobError, "whole number"),
        "column": (lambda s: s.sample(0.1, by="uesr"), ms.SchemaError, "'uesr' is not a column"),
        "no column": (lambda s: s.sample(0.1, by=[]), ms.JobError, "at least one column"),
        "list": (lambda s: s.sample(0.1), ms.SchemaError, "by='id'"),
    }


@pytest.mark.parametrize("what", refused())
def test_what_makes_no_sense_is_refused(what: str) -> None:
    call, error, words = refused()[what]
    with pytest.raises(error, match=words):
        call(ms.Job("j").read(ms.memory_source([{"user": 1, "tags": ["a"]}])))


def test_event_time_and_the_key_of_a_changelog_go_on() -> None:
    job, out = ms.Job("j"), ms.memory_sink()
    totals = job.read(ms.memory_source([BATCH])).group_by("user").agg(n=ms.count())
    totals.sample(0.1, by="user").final().write(out)
    job.run()
    assert {row["user"] for row in out.rows()} == {row["user"] for row in kept(Sample(0.1, ("user",)))}
