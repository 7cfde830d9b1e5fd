"""A job that starts anew where it has written before, and what runs without a store leave when they are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import millstream as ms
import pytest
from millstream.engine import failpoints
from millstream.engine.errors import JobError, JobFailed, StoreLocked
from millstream.engine.runtime.coordinator import CheckpointSettings
from millstream.engine.runtime.run import RunSettings, run_job
from millstream.engine.store.lock import StoreLock
from millstream.engine.store.store import CheckpointStore

ROWS = [{"n": n} for n in range(20)]


def job(out: Path, name: str = "numbers", **options: object) -> ms.Job:
    made = ms.Job(name)
    made.read(ms.memory_source(ROWS)).write(ms.jsonl(out, hold_bytes=0, **options))
    return made


def numbers(out: Path) -> Counter[int]:
    return Counter(json.loads(line)["n"] for file in out.rglob("*.jsonl") for line in file.read_text().splitlines())


def times(count: int) -> Counter[int]:
    return Counter({row["n"]: count for row in ROWS})


def remove_store(store: Path) -> None:
    for file in store.parent.glob(f"{store.name}*"):
        file.unlink()


# -- starting anew ------------------------------------------------------------------------------------------------


def test_a_deleted_store_is_noticed(tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "job.duckdb"
    job(out).run(store)
    remove_store(store)
    for _ in range(2):
        with pytest.raises(JobError, match=rf"with the store {store}, which is gone.*append=True"):
            job(out).run(store)
        assert list(tmp_path.glob("job.duckdb*")) == [], "a store that was made for nothing"
    assert numbers(out) == times(1)


def test_a_refusal_leaves_stores_that_were_there(tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "job.duckdb"
    job(out).run(store)
    empty = tmp_path / "empty.duckdb"
    CheckpointStore.open(empty).close()
    with pytest.raises(JobError, match="starts anew now"):
        job(out).run(empty)
    assert empty.exists()
    fails = ms.Job("fails")
    fails.read(ms.memory_source(ROWS)).map(lambda row: 1 / 0, schema={"n": int}).write(ms.memory_sink())
    with pytest.raises(JobFailed):
        fails.run(tmp_path / "began.duckdb", restarts=0)
    assert (tmp_path / "began.duckdb").exists()


def test_who_waits_for_the_lock_of_a_store_that_is_removed_locks_the_next(tmp_path: Path) -> None:
    path = tmp_path / "job.duckdb"
    first = StoreLock.shared(path)  # for one that is exclusive nobody waits
    waits = threading.Thread(target=lambda: found.append(StoreLock.exclusive(path)))
    found: list[StoreLock] = []
    waits.start()
    first.remove()
    waits.join()
    with pytest.raises(StoreLocked):
        StoreLock.exclusive(path)
    found[0].release()


def test_another_store_is_told_of_the_first(tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "job.duckdb"
    job(out).run(store)
    with pytest.raises(JobError, match=rf"store {store}, and starts anew.*Go on with that store\. To start over"):
        job(out).run(tmp_path / "other.duckdb")
    with pytest.raises(JobError, match=rf"with the store {store}"):
        job(out).run()
    assert job(out).run(store).outcome == "already finished"
    assert numbers(out) == times(1)


def test_a_second_run_without_a_store_adds_only_if_told_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job(out).run()
    with pytest.raises(JobError, match=r"in a run without a store, and starts anew.*ones\. To start over, remove"):
        job(out).run()
    assert numbers(out) == times(1)
    job(out, append=True).run()
    assert numbers(out) == times(2)


def test_after_the_folder_was_removed_nothing_is_remembered(tmp_path: Path) -> None:
    out, store = tmp_path / "out", tmp_path / "job.duckdb"
    job(out).run(store)
    remove_store(store)
    shutil.rmtree(out)
    failpoints.arm("sink.prepare=raise")
    with pytest.raises(JobFailed):
        job(out).run(store, restarts=0)
    failpoints.disarm()
    assert out.exists()
    job(out).run(store)
    assert numbers(out) == times(1)


def test_a_folder_that_a_reader_has_emptied_is_not_new(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job(out).run(tmp_path / "job.duckdb")
    for seen in out.iterdir():
        seen.unlink()
    with pytest.raises(JobError, match="has written to"):
        job(out).run(tmp_path / "other.duckdb")


def test_jobs_of_other_names_share_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job(out).run(tmp_path / "job.duckdb")
    job(out, "others").run()
    assert numbers(out) == times(2)


def test_folders_of_one_name_are_told_apart_though_they_share_their_staging(tmp_path: Path) -> None:
    for region in ("north", "south"):
        job(tmp_path / region / "out", staging=tmp_path / "staging").run(tmp_path / f"{region}.duckdb")
    with pytest.raises(JobError, match=r"has written to .*south/out before"):
        job(tmp_path / "south" / "out", staging=tmp_path / "staging").run()


# -- what runs without a store leave ------------------------------------------------------------------------------

PROGRAM = """
import sys
import millstream as ms

job = ms.Job(sys.argv[1])
rows = [{"n": n} for n in range(20)]
job.read(ms.memory_source(rows)).write(ms.jsonl("out", hold_bytes=0))
job.run(*sys.argv[2:])
"""


def start(folder: Path, failpoint: str, *words: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "MILLSTREAM_FAILPOINTS": failpoint, "TMPDIR": str(folder / "tmp")}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], cwd=folder, env=environment)


def staged(folder: Path) -> list[Path]:
    return sorted((folder / ".millstream").rglob("*.staged"))


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def test_what_killed_runs_have_staged_is_removed_and_what_others_need_is_not(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    for words in (["stopped", "job.duckdb"], ["one"]):
        assert start(tmp_path, "sink.commit=kill", *words).wait() == -signal.SIGKILL
    killed = staged(tmp_path)
    assert len(killed) == 2
    with start(tmp_path, "sink.commit=hang", "two") as alive:
        try:
            wait_until(lambda: len(staged(tmp_path)) == 2 and staged(tmp_path) != killed)
            job(tmp_path / "out", "three").run(tmp_path / "three.duckdb")
            assert len(staged(tmp_path)) == 2
        finally:
            alive.kill()
    job(tmp_path / "out", "four").run()
    (left,) = staged(tmp_path)
    assert left in killed, "it is the stopped job's, which comes back for it"
    assert start(tmp_path, "", "stopped", "job.duckdb").wait() == 0
    assert staged(tmp_path) == []
    assert numbers(tmp_path / "out") == times(3)


def test_a_run_without_a_store_leaves_nothing_but_its_claim(tmp_path: Path) -> None:
    job(tmp_path / "out").run()
    hidden = [path for path in (tmp_path / ".millstream" / "out").rglob("*") if path.is_file()]
    assert [path.name.split("-")[0] for path in hidden] == ["job"]


def test_a_run_that_restarts_is_alive_in_between(tmp_path: Path) -> None:
    out = tmp_path / "out"
    meanwhile = []

    def sleep(seconds: float) -> None:
        meanwhile.append(seconds)
        job(out, "other").run()

    failpoints.arm("sink.commit=raise")
    settings = RunSettings(checkpoints=CheckpointSettings(every=0.01))
    assert run_job(job(out).plan(), settings, sleep=sleep).restarts == len(meanwhile) == 1
    failpoints.disarm()
    assert numbers(out) == times(2)
