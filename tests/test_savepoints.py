"""Savepoints and forks: a checkpoint outlives its store, and a second job starts from it without touching the first."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import pytest
from cli_kit import call, logged, running
from millstream.engine import failpoints
from millstream.engine.element import Epoch
from millstream.engine.errors import JobError, StoreCorrupt, StoreError
from millstream.engine.failpoints import FailpointError
from millstream.engine.store.savepoints import (
    create_savepoint,
    drop_savepoint,
    fork,
    list_savepoints,
    savepoints_folder,
)
from millstream.engine.store.store import CheckpointStore
from nursery import Nursery, Start

ROWS = 240
JOB = """
import millstream as ms
import pyarrow as pa

SCHEMA = pa.schema({"n": pa.int64(), "at": pa.timestamp("us")})

def numbers(start, stop):
    n = pa.array(range(start, stop), pa.int64())
    at = pa.array([i * 1_000_000 for i in range(start, stop)], pa.timestamp("us"))
    return pa.record_batch([n, at], schema=SCHEMA)

job = ms.Job("numbers")
source = ms.generator(numbers, schema=SCHEMA, rows=240, batch_rows=10, name="numbers")
read = job.read(source, event_time="at")
read.deduplicate("n", name="once").select("n").write(ms.jsonl("output/once", hold_bytes=0))
read.window(ms.tumbling("1m")).agg(rows=ms.count(), name="minutes").write(ms.jsonl("output/minutes", hold_bytes=0))
"""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as started:
        yield started


def lay_out(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "job.py").write_text(JOB)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "first")


def values(folder: Path, output: str) -> list[dict[str, Any]]:
    files = (folder / "output" / output).rglob("*.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def once(folder: Path) -> list[int]:
    return sorted(row["n"] for row in values(folder, "once"))


def read_until(store: Path) -> int:
    """How many rows the last checkpoint of a store has read."""
    with duckdb.connect(store, read_only=True) as connection:
        return len(connection.sql("FROM state.once_seen").fetchall())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("crashed", [False, True])
def test_a_fork_goes_on_where_the_first_was_and_shows_nothing_of_the_firsts(
    nursery: Nursery, folder: Path, tmp_path: Path, crashed: bool
) -> None:
    """Also when the first was killed between COMMIT and showing its output: that output is the first's to show."""
    if crashed:
        assert nursery.run(Start(str(folder), failpoint="store.after_commit=kill@5")).killed
    else:
        assert nursery.run(Start(str(folder), stop_after=5)).outcome == "stopped"
    before = contents(folder)
    second = lay_out(tmp_path / "second")
    manifest = fork(folder / "job.duckdb", second / "job.duckdb")
    assert contents(folder) == before, "nothing of the first is touched"
    read = read_until(second / "job.duckdb")
    assert 0 < read < ROWS

    # The same relative output means the first's folder: run it there, so that they share it.
    other = Start(str(folder), "job2.py", store=str(second / "job.duckdb"))
    refused = nursery.run(Start(str(folder), store=str(second / "job.duckdb")))
    assert refused.status == 1
    assert "it would write the same rows again beside the old ones" in refused.log
    (folder / "job2.py").write_text(JOB.replace('Job("numbers")', 'Job("second")'))
    end = nursery.run(other)
    assert (end.outcome, end.restored_from) == ("finished", manifest.epoch)
    assert "sinks are those of the job this was forked from" in end.log
    shown = once(folder)
    expected = read - 10 if crashed else read
    assert shown == [n for n in range(ROWS) if n < expected or n >= read], "the second shows what follows, only that"

    end = nursery.run(Start(str(folder)))
    assert (end.outcome, end.restored_from) == ("finished", manifest.epoch)
    assert once(folder) == sorted([*range(ROWS), *range(read, ROWS)]), "the first shows everything once"
    assert sum(row["rows"] for row in values(folder, "minutes")) > ROWS
    shutil.rmtree(second)


@pytest.mark.parametrize("point", ["sink.commit", "store.before_commit"])
def test_a_fork_is_exactly_once_like_any_job(nursery: Nursery, folder: Path, tmp_path: Path, point: str) -> None:
    assert nursery.run(Start(str(folder), stop_after=4)).outcome == "stopped"
    second = lay_out(tmp_path / "second")
    fork(folder / "job.duckdb", second / "job.duckdb")
    read = read_until(folder / "job.duckdb")
    assert nursery.run(Start(str(second), failpoint=f"{point}=kill")).killed
    assert nursery.run(Start(str(second))).outcome == "finished"
    assert once(second) == list(range(read, ROWS))
    assert nursery.run(Start(str(folder))).outcome == "finished"
    assert once(folder) == list(range(ROWS))
    assert sum(row["rows"] for row in values(folder, "minutes")) == ROWS


def test_a_savepoint_outlives_the_pruning_and_the_loss_of_its_store(
    nursery: Nursery, folder: Path, tmp_path: Path
) -> None:
    assert nursery.run(Start(str(folder), stop_after=4)).outcome == "stopped"
    store = folder / "job.duckdb"
    read = read_until(store)
    made = create_savepoint(store, "early")
    with pytest.raises(StoreError, match="there is a savepoint 'early'"):
        create_savepoint(store, "early")
    assert nursery.run(Start(str(folder))).outcome == "finished"
    with duckdb.connect(store, read_only=True) as connection:
        oldest = connection.sql("SELECT min(epoch) FROM manifest").fetchall()[0][0]
    assert oldest > made.manifest.epoch
    late = create_savepoint(store, "late")
    assert [(s.name, s.manifest.epoch) for s in list_savepoints(store)] == [
        ("early", made.manifest.epoch),
        ("late", late.manifest.epoch),
    ]
    store.unlink()

    second = lay_out(tmp_path / "second")
    assert nursery.run(Start(str(second), start_from=f"{store}@early")).outcome == "finished"
    assert once(second) == list(range(read, ROWS))
    drop_savepoint(store, "early")
    with pytest.raises(JobError, match="no savepoint 'early'; it has late"):
        drop_savepoint(store, "early")
    # The command that began the second job may be given again, whatever has become of the savepoint.
    assert nursery.run(Start(str(second), start_from=f"{store}@early")).outcome == "already finished"


def test_a_job_begins_from_another_store_once_however_often_it_is_killed(
    nursery: Nursery, folder: Path, tmp_path: Path
) -> None:
    assert nursery.run(Start(str(folder), stop_after=4)).outcome == "stopped"
    read = read_until(folder / "job.duckdb")
    second = lay_out(tmp_path / "second")
    start = Start(str(second), start_from=str(folder / "job.duckdb"))
    for point in ("copy.written", "recovery.begin", "store.generation", "store.before_commit", "store.after_commit"):
        killed = nursery.run(Start(**{**vars_of(start), "failpoint": f"{point}=kill"}))
        assert killed.killed, killed.log
        assert not (second / "job.duckdb").exists() or point != "copy.written"
    assert nursery.run(start).outcome == "finished"
    assert once(second) == list(range(read, ROWS))
    assert not list(second.glob(".*.tmp*"))

    for wrong in (f"{folder / 'job.duckdb'}@3", str(second / "job.duckdb"), f"{second / 'job.duckdb'}@1"):
        assert nursery.run(Start(str(second), start_from=wrong)).status == 1
    told = nursery.run(Start(str(second), start_from=f"{second / 'job.duckdb'}@1")).log
    assert "cannot go back to an earlier checkpoint of its own" in told
    told = nursery.run(Start(str(folder), start_from=str(second / "job.duckdb"))).log
    assert "holds a job of its own" in told


def vars_of(start: Start) -> dict[str, Any]:
    return {name: getattr(start, name) for name in start.__dataclass_fields__}


def test_killed_while_a_savepoint_is_made(nursery: Nursery, folder: Path) -> None:
    assert nursery.run(Start(str(folder), stop_after=3)).outcome == "stopped"
    store = folder / "job.duckdb"
    pid = os.fork()
    if pid == 0:
        failpoints.arm("copy.written=kill")
        create_savepoint(store, "half")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert list_savepoints(store) == []
    assert len(list(savepoints_folder(store).iterdir())) == 1
    assert nursery.run(Start(str(folder), stop_after=1)).outcome == "stopped"
    assert list(savepoints_folder(store).iterdir()) == [], "the next start tidies up"
    assert create_savepoint(store, "half").name == "half"


@pytest.mark.parametrize("retained", [0, 1])
def test_every_retained_epoch_can_be_forked_and_queried(
    nursery: Nursery, folder: Path, tmp_path: Path, retained: int
) -> None:
    assert nursery.run(Start(str(folder), stop_after=6)).outcome == "stopped"
    store = folder / "job.duckdb"
    with duckdb.connect(store, read_only=True) as connection:
        epochs = [epoch for (epoch,) in connection.sql("SELECT epoch FROM manifest ORDER BY epoch").fetchall()]
    epoch = epochs[retained]
    query = "SELECT count(*) AS n FROM state.once_seen"
    asked = json.loads(call("state", "query", store, query, "--epoch", epoch).stdout)["n"]
    call("fork", store, tmp_path / "new.duckdb", "--epoch", epoch)
    assert read_until(tmp_path / "new.duckdb") == asked
    opened = CheckpointStore.open(tmp_path / "new.duckdb")
    assert opened.facts().last.epoch == epoch
    assert opened.positions(Epoch(epoch))[0].position == asked
    opened.close()
    told = call("fork", store, tmp_path / "other.duckdb", "--epoch", 1_000, code=1).stderr
    assert "epoch 1000 is not in the store" in told
    assert not (tmp_path / "other.duckdb").exists()
    told = call("state", "query", store, query, "--epoch", 1_000, code=1).stderr
    assert "epoch 1000 is not in the store; it holds" in told


def test_a_savepoint_is_not_a_store_and_a_fork_needs_a_new_one(nursery: Nursery, folder: Path) -> None:
    assert nursery.run(Start(str(folder), stop_after=3)).outcome == "stopped"
    store = folder / "job.duckdb"
    made = create_savepoint(store, "before")
    with pytest.raises(StoreError, match="is a savepoint: start a job from it with --from"):
        CheckpointStore.open(made.path)
    with pytest.raises(StoreError, match="holds a job already: a fork needs a new store"):
        fork(store, store.with_name("other.duckdb")) and fork(store, store.with_name("other.duckdb"))
    for name in ("../x", "", "1", "a b", "a" * 65, ".x"):
        with pytest.raises(JobError, match="a savepoint cannot be called"):
            create_savepoint(store, name)
    shown = [json.loads(line) for line in call("checkpoints", "ls", store).stdout.splitlines()]
    assert [row["savepoint"] for row in shown].count("before") == 1
    assert json.loads(call("savepoint", "ls", store).stdout)["name"] == "before"
    call("savepoint", "drop", store, "before")
    assert call("savepoint", "ls", store).stdout == ""


def damaged(store: Path) -> None:
    with duckdb.connect(store) as connection:
        (name,) = connection.sql("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'st_%seen'").fetchall()
        connection.execute(f"UPDATE {name[0]} SET n = n + 1")


def older(store: Path) -> None:
    (store.parent / "job.duckdb.witness").unlink()
    opened = CheckpointStore.open(store)
    opened._witness.acknowledge(Epoch(1_000))
    opened.close()


@pytest.mark.parametrize("harm", [damaged, older])
def test_a_store_that_contradicts_itself_is_not_copied(
    nursery: Nursery, folder: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    assert nursery.run(Start(str(folder), stop_after=3)).outcome == "stopped"
    harm(folder / "job.duckdb")
    with pytest.raises(StoreCorrupt):
        fork(folder / "job.duckdb", tmp_path / "new.duckdb")
    with pytest.raises(StoreCorrupt):
        create_savepoint(folder / "job.duckdb", "copy")
    assert not (tmp_path / "new.duckdb").exists()
    assert list_savepoints(folder / "job.duckdb") == []


def test_a_failed_copy_leaves_nothing(nursery: Nursery, folder: Path, tmp_path: Path) -> None:
    assert nursery.run(Start(str(folder), stop_after=3)).outcome == "stopped"
    failpoints.arm("copy.written=raise")
    try:
        with pytest.raises(FailpointError):
            fork(folder / "job.duckdb", tmp_path / "new.duckdb")
    finally:
        failpoints.disarm()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "new.duckdb.lock"]


def test_a_running_job_makes_a_savepoint_of_its_next_checkpoint_and_lends_itself_to_a_fork(tmp_path: Path) -> None:
    job = JOB.replace("rows=240, batch_rows=10", "rate=2_000").replace('"output', f'"{tmp_path}/output')
    (tmp_path / "job.py").write_text(job)
    store = tmp_path / "numbers.duckdb"
    with running(tmp_path, "run", "job.py", "--every", "10m") as process:
        process.until(lambda: process.event("status", lambda line: line["rows_read"]["numbers"]))
        # Far from due: asking for a savepoint is what makes it take a checkpoint.
        told = call("savepoint", "create", store, "before").stdout
        assert told.startswith("before: epoch 1, ")
        call("savepoint", "create", store, "after")
        call("fork", store, tmp_path / "second.duckdb")
        epochs = [s.manifest.epoch for s in list_savepoints(store)]
        assert epochs == [1, 2]
        query = "SELECT count(*) AS n FROM state.once_seen"
        n = [json.loads(call("state", "query", store, query, *w).stdout)["n"] for w in ((), ("--epoch", 1))]
        assert n[0] > n[1] > 0
        assert json.loads(call("state", "query", store, query, "--savepoint", "before").stdout)["n"] == n[1]
        assert sorted(path.name for path in savepoints_folder(store).iterdir()) == ["after.duckdb", "before.duckdb"]
        process.send(signal.SIGTERM)
        assert process.code() == 0
    assert logged(process.err)[-1]["epoch"] == 3
    assert read_until(tmp_path / "second.duckdb") == n[0]


def test_from_a_program(tmp_path: Path) -> None:
    def make(out: Any) -> ms.Job:
        job = ms.Job("numbers")
        job.read(ms.memory_source([{"n": n} for n in range(10)])).deduplicate("n", name="once").write(out)
        return job

    make(ms.memory_sink()).run(tmp_path / "a.duckdb")
    done = make(ms.memory_sink()).run(tmp_path / "b.duckdb", start_from=tmp_path / "a.duckdb")
    assert done.outcome == "already finished"
    with pytest.raises(JobError, match="say where it is to be"):
        make(ms.memory_sink()).run(start_from=tmp_path / "a.duckdb")
