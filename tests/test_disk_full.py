"""A disk that fills up or cannot be written: the job stops, says why, and goes on exactly once there is room.

The disks are real: a small tmpfs in a mount namespace of the test's own, where the system allows that without being
root. A limit on the size of files, which every system has, shows the same where it does not.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pytest

JOB = """
import os
import millstream as ms
import numpy as np
import pyarrow as pa

WORDS = pa.schema({"n": pa.int64(), "key": pa.int64(), "text": pa.string(), "at": pa.timestamp("us")})

def words(start, stop):
    n = np.arange(start, stop)
    key = n * 7_046_029_254_386_353_131 % 2**61  # too mixed to be packed
    text = pa.array([f"{k:040d}" for k in key.tolist()])
    at = pa.array(n * 1_000).cast(pa.timestamp("us"))
    return pa.RecordBatch.from_arrays([pa.array(n), pa.array(key), text, at], schema=WORDS)

job = ms.Job("words")
source = ms.generator(words, schema=WORDS, rows=30_000, rate=25_000, batch_rows=500, name="words")
rows = job.read(source, event_time="at")
out = os.environ["OUT"]
rows.select("n", "text").write(ms.jsonl(out + "/rows", hold_bytes=0, name="rows"))
(
    rows.group_by("key").window(ms.tumbling("1d")).agg(n=ms.max("n"), times=ms.count())
    .select("n", "times").write(ms.jsonl(out + "/keys", hold_bytes=0, name="keys"))
)
"""
"""A good second of many epochs: megabytes of output as they come, and state that only grows until the end."""

ROWS = 30_000
RUN = ("-m", "millstream", "run", "job.py", "--every", "5ms", "--restarts", "0")


@cache
def can_mount() -> bool:
    """Whether this user may mount a tmpfs in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*NAMESPACE, "mount -t tmpfs -o size=1m none /mnt"], capture_output=True, check=False)
    return done.returncode == 0


NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "bash", "-euc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "disk").mkdir()
    return tmp_path


def environment(out: str) -> Mapping[str, str]:
    return {**os.environ, "OUT": out, "PYTHON": sys.executable, "RUN": " ".join(RUN)}


def in_namespace(folder: Path, script: str, out: str, timeout: float = 250) -> None:
    """Run a script that may mount; what it leaves in ``disk`` is copied to ``kept``."""
    if not can_mount():
        pytest.skip("this system does not let the test mount a small disk")
    done = subprocess.run(
        [*NAMESPACE, script + "\ncp -r disk kept"],
        cwd=folder,
        env=environment(out),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def failure(log: Path) -> Mapping[str, Any]:
    """The last line of a log, which says why the job ended."""
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["event"] == "failed", last
    return last


def check_output(folder: Path) -> None:
    """Every row is there once, and nothing else is."""
    for name, columns in (("rows", "n, text"), ("keys", "n, times")):
        files = [path for path in (folder / name).rglob("*") if path.is_file()]
        found = duckdb.sql(f"select {columns} from read_json({[str(f) for f in files]})").fetchall()
        assert Counter(n for n, _ in found) == Counter(range(ROWS)), name
        assert {len(text) if name == "rows" else text for _, text in found} == {40 if name == "rows" else 1}
    hidden = [path for path in (folder / ".millstream").rglob("*") if path.is_file()]
    unfinished = [path for path in hidden if path.suffix == ".staged" or path.name.startswith("part-")]
    assert unfinished == []


FULL = """
mount -t tmpfs -o size=SIZE none disk
code=0; $PYTHON $RUN --store STORE 2>first.log || code=$?
test $code = 1
mount -o remount,size=200m disk
$PYTHON $RUN --store STORE 2>second.log
"""


def test_the_disk_of_the_store_is_full(folder: Path) -> None:
    in_namespace(folder, FULL.replace("STORE", "disk/job.duckdb").replace("SIZE", "600k"), out="output")
    why = failure(folder / "first.log")
    assert "the disk is full" in why["message"]
    assert "make room" in why["message"]
    check_output(folder / "output")
    assert json.loads((folder / "second.log").read_text().splitlines()[-1])["event"] == "finished"


FULL_FOR_A_WHILE = """
mount -t tmpfs -o size=20m none disk
$PYTHON $RUN --every 200ms --store disk/job.duckdb 2>first.log &
until test -s disk/job.duckdb.witness; do sleep 0.01; done
cat /dev/zero >disk/filler || true
until grep -q "checkpoint failed" first.log; do kill -0 $!; sleep 0.01; done
rm disk/filler
wait $!
"""


def test_a_checkpoint_that_finds_no_room_goes_with_the_next(folder: Path) -> None:
    """The job neither stops nor restarts, and what the failed checkpoint held is in the one after it."""
    in_namespace(folder, FULL_FOR_A_WHILE, out="output")
    last = json.loads((folder / "first.log").read_text().splitlines()[-1])
    assert (last["event"], last["restarts"], last["restored_from"]) == ("finished", 0, 0)
    check_output(folder / "output")


@pytest.mark.parametrize("size", [pytest.param("100k", marks=pytest.mark.slow), "2m"])
def test_the_disk_of_the_sink_is_full(folder: Path, size: str) -> None:
    in_namespace(folder, FULL.replace("STORE", "job.duckdb").replace("SIZE", size), out="disk/output")
    why = failure(folder / "first.log")
    assert "No space left on device" in why["message"]
    assert "rows" in why["message"], "it names the sink"
    check_output(folder / "kept" / "output")


@pytest.mark.slow
def test_one_disk_for_both_is_full(folder: Path) -> None:
    in_namespace(folder, FULL.replace("STORE", "disk/job.duckdb").replace("SIZE", "3m"), out="disk/output")
    assert failure(folder / "first.log")["error"] == "JobFailed"
    check_output(folder / "kept" / "output")


READ_ONLY = """
mount -t tmpfs -o size=200m none disk
MILLSTREAM_FAILPOINTS="store.after_commit=kill@3" $PYTHON $RUN --store STORE 2>zeroth.log || test $? = 137
mount -o remount,ro disk
code=0; $PYTHON $RUN --store STORE 2>first.log || code=$?
test $code = 1
mount -o remount,rw disk
$PYTHON $RUN --store STORE 2>second.log
"""


def test_the_disk_of_the_store_cannot_be_written(folder: Path) -> None:
    in_namespace(folder, READ_ONLY.replace("STORE", "disk/job.duckdb"), out="output")
    why = failure(folder / "first.log")
    assert "Read-only file system" in why["message"]
    assert "job.duckdb" in why["message"]
    check_output(folder / "output")


def test_the_disk_of_the_sink_cannot_be_written(folder: Path) -> None:
    in_namespace(folder, READ_ONLY.replace("STORE", "job.duckdb"), out="disk/output")
    why = failure(folder / "first.log")
    assert "Read-only file system" in why["message"]
    assert "disk/output" in why["message"]
    check_output(folder / "kept" / "output")


def run_limited(folder: Path, megabytes: float | None) -> subprocess.CompletedProcess[str]:
    """Run the job; no file may become larger than so much."""

    def limit() -> None:
        if megabytes is not None:
            size = int(megabytes * 2**20)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        [sys.executable, *RUN, "--store", "job.duckdb"],
        cwd=folder,
        env=environment("output"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        preexec_fn=limit,
    )


@pytest.mark.parametrize("megabytes", [pytest.param(0.02, marks=pytest.mark.slow), 0.5])
def test_a_file_cannot_grow(folder: Path, megabytes: float) -> None:
    first = run_limited(folder, megabytes)
    assert first.returncode == 1, first.stderr
    why = json.loads(first.stderr.splitlines()[-1])
    assert why["event"] == "failed"
    assert "File too large" in why["message"] or "the disk is full" in why["message"]
    second = run_limited(folder, None)
    assert second.returncode == 0, second.stderr
    check_output(folder / "output")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_disk_of_both_is_full_after_any_number_of_bytes(folder: Path) -> None:
    """From no room at all upwards until the job gets through, each time with what the time before has left."""
    grow = """
mount -t tmpfs -o size=16k none disk
for kilobytes in $(seq 200 400 24000); do
    mount -o remount,size=${kilobytes}k disk
    $PYTHON $RUN --store disk/job.duckdb 2>log.$kilobytes && break
done
"""
    in_namespace(folder, grow, out="disk/output", timeout=1500)
    check_output(folder / "kept" / "output")
    logs = sorted(folder.glob("log.*"), key=lambda path: int(path.suffix[1:]))
    assert len(logs) > 10
    for log in logs[:-1]:
        assert failure(log)["error"] in ("JobFailed", "StoreError", "ExternalError")
