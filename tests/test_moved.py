"""A job started from another folder, or moved to one: nothing is read or written beside the point."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import millstream as ms
import pyarrow as pa
import pytest
from cli_kit import call
from millstream.engine import failpoints
from millstream.engine.errors import JobFailed, StateMismatch

SCHEMA = pa.schema({"n": pa.int64()})


PROGRAM = """
import millstream as ms
import pyarrow as pa

job = ms.Job("numbers")
job.read(ms.files("in/*.csv", schema=pa.schema({"n": pa.int64()}))).write(ms.jsonl("out", hold_bytes=0))
"""


def project(folder: Path, numbers: range) -> Path:
    """Lay out some input, a line a file."""
    (folder / "in").mkdir(parents=True)
    for n in numbers:
        (folder / "in" / f"{n:02}.csv").write_text(f"n\n{n}\n")
    return folder


def job(source: str = "in/*.csv", **options: str) -> ms.Job:
    made = ms.Job("numbers")
    made.read(ms.files(source, schema=SCHEMA), **options).write(ms.jsonl("out", hold_bytes=0))
    return made


def numbers(folder: Path) -> Counter[str]:
    return Counter(line for path in (folder / "out").rglob("*.jsonl") for line in path.read_text().splitlines())


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that died between the commit of an epoch and its becoming visible."""
    here = project(tmp_path / "here", range(20))
    monkeypatch.chdir(here)
    failpoints.arm("sink.commit=raise")
    with pytest.raises(JobFailed):
        job().run("job.duckdb", every="1ms", restarts=0)
    failpoints.disarm()
    return here


def everything(count: int = 20) -> Counter[str]:
    return Counter(f'{{"n":{n}}}' for n in range(count))


def test_the_same_store_from_another_folder_is_refused(broken_off: Path, tmp_path: Path, monkeypatch) -> None:
    """The other folder has files of the same names and sizes, which would count as read."""
    other = project(tmp_path / "other", range(20))
    monkeypatch.chdir(other)
    before = files(tmp_path)
    with pytest.raises(StateMismatch) as refused:
        job().run(broken_off / "job.duckdb")
    assert f"source 'in/*.csv': {broken_off}/in at the last start, {other}/in now" in str(refused.value)
    assert f"sink 'jsonl:out': {broken_off}/out at the last start, {other}/out now" in str(refused.value)
    assert files(tmp_path).keys() == before.keys()
    monkeypatch.chdir(broken_off)
    job().run("job.duckdb")
    assert numbers(broken_off) == everything()
    monkeypatch.chdir(other)
    with pytest.raises(StateMismatch):
        job().run(broken_off / "job.duckdb")


def test_a_project_that_was_moved_goes_on_once_that_is_said(broken_off: Path, tmp_path: Path, monkeypatch) -> None:
    there = tmp_path / "deep" / "there"
    shutil.copytree(broken_off, there)
    monkeypatch.chdir(there)
    with pytest.raises(StateMismatch, match=f"--moved-from {broken_off}"):
        job().run("job.duckdb")
    failpoints.arm("recovery.done=raise")
    with pytest.raises(JobFailed):
        job().run("job.duckdb", restarts=0, moved_from="../../here")
    failpoints.disarm()
    # No checkpoint was taken since, but what was committed is visible in the new folder.
    monkeypatch.chdir(broken_off)
    with pytest.raises(StateMismatch):
        job().run(there / "job.duckdb")
    monkeypatch.chdir(there)
    assert job().run("job.duckdb").restored_from > 0
    assert numbers(there) == everything()
    assert numbers(broken_off) == Counter()


def test_the_command_line_takes_it_too(broken_off: Path, tmp_path: Path, monkeypatch) -> None:
    (broken_off / "job.py").write_text(PROGRAM)
    there = tmp_path / "there"
    broken_off.rename(there)
    monkeypatch.chdir(there)
    words = ("run", "job.py", "--store", "job.duckdb")
    assert f"--moved-from {broken_off}, or" in call(*words, code=1).stderr
    call(*words, "--moved-from", broken_off)
    assert numbers(there) == everything()


def test_a_source_under_a_name_may_not_take_its_positions_to_another_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(project(tmp_path, range(3)))
    job(name="numbers").run("job.duckdb")
    with pytest.raises(StateMismatch, match=f"source 'numbers': {tmp_path}/in at the last start, {tmp_path} now"):
        job("*/*.csv", name="numbers").run("job.duckdb")


def test_a_job_that_changes_its_folder_goes_on_in_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(project(tmp_path / "here", range(3)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made = job()
    os.chdir(elsewhere)
    made.run(tmp_path / "job.duckdb")
    assert numbers(tmp_path / "here") == everything(3)
    assert list(elsewhere.iterdir()) == []
