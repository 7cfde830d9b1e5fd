"""Nexmark queries that are killed, and a steady rate at which they can be."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

import millstream as ms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from millstream.benchmarks import nexmark_kills
from millstream.benchmarks.nexmark_events import FIRST_TIME, Timing
from millstream.benchmarks.nexmark_files import write_events
from millstream.benchmarks.nexmark_kills import KillOptions, Trial, kill_queries, table
from millstream.benchmarks.nexmark_verify import Verdict, verify
from millstream.engine.errors import JobError
from millstream.engine.source import ReadContext, SplitEnd
from millstream.testing import ManualClock
from millstream.torture.killer import Kill
from millstream.torture.pace import BATCHES_A_SECOND, paced
from rich.console import Console

OUT_OF_ORDER = Timing(rate=2_000, disorder=3_000_000, first=FIRST_TIME)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    write_events(folder, 300_000, 6, OUT_OF_ORDER)
    return folder


def _numbers(rows: int) -> pa.Table:
    return pa.table({"n": range(rows), "m": range(rows)})


@pytest.mark.slow
@pytest.mark.parametrize("query", ["q4", "q11", "q18"])
def test_a_query_that_is_killed_at_work_equals_batch_sql(query: str, events: Path, tmp_path: Path) -> None:
    """An interval join before two aggregates; sessions; the last row of each key."""
    (trial,) = kill_queries([query], KillOptions(events, kills=4, parallelism=(2,), seed=3), tmp_path)
    assert trial.violations == []
    assert len(trial.kills) == 4
    assert trial.recoveries > 0
    assert trial.left > 0, "the input should outlast the kills"
    assert trial.rows > 0
    assert list(tmp_path.iterdir()) == [], "nothing was wrong, so nothing should be kept"


@pytest.mark.slow
def test_a_query_that_moves_among_parallelisms_equals_batch_sql(events: Path, tmp_path: Path) -> None:
    first, second = kill_queries(["q20"], KillOptions(events, kills=3, parallelism=(1, 3), seed=2), tmp_path)
    assert first.violations + second.violations == []
    assert first.moves + second.moves > 0


def test_a_row_that_is_doubled_is_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is worth something: a file of the output is copied before it."""
    write_events(tmp_path / "events", 5_000, 1)

    def doubled(query: str, events: Path, results: Path) -> Verdict:
        file = next((results / query).glob("*.parquet"))
        shutil.copy(file, file.with_name("again.parquet"))
        return verify(query, events, results)

    monkeypatch.setattr(nexmark_kills, "verify", doubled)
    seen: list[Trial] = []
    kill_queries(["q2"], KillOptions(tmp_path / "events", kills=0, parallelism=(1,)), tmp_path / "t", seen.append)
    (violation,) = seen[0].violations
    assert "lost or doubled: +1 ×" in violation
    assert (tmp_path / "t" / "q2-1" / "job.log").exists(), "what was wrong should be kept"


def test_a_start_that_fails_and_tries_again_is_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job's own warning is put into its log before the comparison."""
    write_events(tmp_path / "events", 5_000, 1)

    def failed(query: str, events: Path, results: Path) -> Verdict:
        code = "from millstream.engine.logs import log; log.warning('restarting', job='j', error='of its own')"
        with (results.parent / "job.log").open("ab") as log:
            subprocess.run([sys.executable, "-c", code], check=True, stdout=log, stderr=log)
        return verify(query, events, results)

    monkeypatch.setattr(nexmark_kills, "verify", failed)
    (trial,) = kill_queries(["q2"], KillOptions(tmp_path / "events", kills=0, parallelism=(1,)), tmp_path / "t")
    (violation,) = trial.violations
    assert "a start failed by itself" in violation
    assert "of its own" in violation


def test_a_query_that_fails_is_a_violation(tmp_path: Path) -> None:
    write_events(tmp_path / "events", 5_000, 1)
    options = KillOptions(tmp_path / "events", kills=1, parallelism=(1,), delay="soon")
    (trial,) = kill_queries(["q0"], options, tmp_path / "t")
    assert "ended by itself with exit code 1" in trial.violations[0]


def test_what_another_run_has_left_is_not_touched(tmp_path: Path) -> None:
    left = tmp_path / "q0-3" / "job.duckdb"
    left.parent.mkdir()
    left.write_text("evidence")
    with pytest.raises(JobError, match="q0-3 is there already"):
        kill_queries(["q0"], KillOptions(tmp_path / "events"), tmp_path)
    assert left.read_text() == "evidence"
    assert list(tmp_path.iterdir()) == [left.parent]


def test_the_table_counts_what_was_hit() -> None:
    trial = Trial(
        "q5",
        2,
        kills=[
            Kill(1.0, "between epochs", 0, 3, 0.5),
            Kill(1.0, "before its first epoch", 3, 3, None),
            Kill(1.0, "between epochs", 3, 9, 0.5),
        ],
        missed=4,
        starts=[2, 1, 1, 3],
        rows=1_234,
        violations=["wrong"],
    )
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(table([trial]))
    row = next(line for line in console.export_text().splitlines() if "q5" in line)
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    assert cells == ["q5", "2", "3", "1", "3", "2", "9", "1,234", "WRONG"]


def test_all_readers_of_a_source_share_its_pace(tmp_path: Path) -> None:
    rows = 1_000
    for name in ("a", "b"):
        pq.write_table(_numbers(rows), tmp_path / f"{name}.parquet")
    clock = ManualClock()
    source = paced(ms.files(str(tmp_path)), rate=200, clock=clock)
    context = ReadContext(lambda _: None)
    readers = [source.open(split, None, context) for split in source.discover()]
    assert len(readers) == 2

    def read_all() -> int:
        """Read until none has anything; return how many rows that were."""
        got = 0
        while batches := [batch for r in readers if not isinstance(batch := r.read(), SplitEnd)]:
            got += sum(batch.num_rows for batch in batches)
        return got

    batch = 200 // BATCHES_A_SECOND
    assert read_all() <= 2 * batch
    clock.advance(5.0)
    assert abs(read_all() - 1_000) <= 2 * batch
    clock.advance(10.0)
    read_all()
    assert [reader.position() for reader in readers] == [rows, rows]
    assert [reader.read() for reader in readers] == [SplitEnd.FINISHED] * 2


def test_after_the_most_rows_nothing_comes_and_no_end(tmp_path: Path) -> None:
    pq.write_table(_numbers(100), tmp_path / "a.parquet")
    clock = ManualClock()
    source = paced(ms.files(str(tmp_path)), rate=200, clock=clock, most=25)
    (split,) = source.discover()
    reader = source.open(split, None, ReadContext(lambda _: None))
    read = 0
    for _ in range(60):
        batch = reader.read()
        read += 0 if isinstance(batch, SplitEnd) else batch.num_rows
        clock.advance(1.0)
    assert 25 <= read < 25 + 200 // BATCHES_A_SECOND
    assert reader.read() is SplitEnd.PENDING


def test_a_pace_does_not_change_what_a_source_is(tmp_path: Path) -> None:
    pq.write_table(_numbers(10), tmp_path / "a.parquet")
    plain = ms.files(str(tmp_path))
    slow = paced(plain, rate=1).pushed_down(frozenset(["n"]), None, None)
    assert slow.identity() == plain.identity()
    assert slow.name == plain.name
    assert slow.folders() == plain.folders()
    assert slow.order is plain.order
    assert slow.schema.names == ["n"]
