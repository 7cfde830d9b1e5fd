"""Nexmark's streams made on the fly."""

from __future__ import annotations

from pathlib import Path

import millstream as ms
import pyarrow.parquet as pq
import pytest
from millstream.benchmarks.nexmark_events import rows_of
from millstream.benchmarks.nexmark_files import STREAMS, events_file, write_events
from millstream.benchmarks.nexmark_source import nexmark_source
from millstream.engine.errors import JobError
from millstream.testing import simulate

EVENTS = 3_000


@pytest.mark.parametrize("stream", STREAMS)
def test_it_makes_the_rows_that_are_in_the_files(tmp_path: Path, stream: str) -> None:
    write_events(tmp_path, EVENTS, seed=5)
    out = ms.memory_sink()
    job = ms.Job("j")
    job.read(nexmark_source(stream, events=EVENTS, seed=5, batch_rows=97)).write(out)
    job.run()
    assert out.rows() == pq.read_table(events_file(tmp_path, stream)).to_pylist()


def test_it_is_read_on_after_crashes(tmp_path: Path) -> None:
    out = ms.memory_sink()

    def make() -> ms.Job:
        job = ms.Job("j")
        job.read(nexmark_source("bid", events=500, splits=2, batch_rows=10)).select("auction", "date_time").write(out)
        return job

    assert simulate(make, tmp_path / "j.duckdb", seed=3, steps_between=30).crashes
    assert len(out.rows()) == rows_of("bid", 500)


def test_the_streams_are_named_to_who_asks_for_another() -> None:
    with pytest.raises(JobError, match=r"nexmark_source\('bids'\): the streams are person, auction, bid"):
        nexmark_source("bids")
