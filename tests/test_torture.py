"""A short torture run, and a reader that does notice what no reader should see."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from millstream.benchmarks.torture_job import QUERIES_RUN, output_of
from millstream.benchmarks.torture_reader import FolderReader

WHOLE = "part-0123abcd-0000010000000000.parquet"
SECOND = "part-0123abcd-0000010010000000.parquet"
EPOCH = "epoch-000000000001-0123abcd"


def torture(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "millstream.benchmarks.torture_q7", "--folder", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_five_kills_and_nobody_could_have_noticed(tmp_path: Path) -> None:
    done = torture(tmp_path, "--kills", "5", "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    assert len(ledger["kills"]) == 5
    assert ledger["violations"] == []
    assert ledger["rows"] > 0
    looked = ledger["readers"][str(output_of(tmp_path) / "q0")]
    assert looked["rows"] == ledger["rows"]
    assert looked["files"] > looked["epochs"] > 0, "an epoch of several files should be among them"


def test_a_row_that_is_doubled_is_a_violation(tmp_path: Path) -> None:
    """The comparison at the end is worth something: a file of the output is copied before it."""
    sabotage = (
        "import shutil, sys\n"
        "from millstream.benchmarks import torture_q7\n"
        "finish = torture_q7.Torture._finish\n"
        "def doubled(torture):\n"
        "    events = finish(torture)\n"
        "    file = next((torture.folder / 'output' / 'q0').rglob('part-*'))\n"
        f"    shutil.copy(file, file.with_name({SECOND!r}))\n"
        "    return events\n"
        "torture_q7.Torture._finish = doubled\n"
        "torture_q7.main()\n"
    )
    command = [sys.executable, "-c", sabotage, "--folder", str(tmp_path), "--kills", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "lost or doubled" in " ".join(json.loads((tmp_path / "ledger.json").read_text())["violations"])
    assert all(query in done.stdout for query in QUERIES_RUN)


@pytest.fixture
def reader(tmp_path: Path) -> FolderReader:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / WHOLE)
    (tmp_path / EPOCH).mkdir()
    pq.write_table(pa.table({"a": [3]}), tmp_path / EPOCH / WHOLE)
    reader = FolderReader(tmp_path)
    reader.look()
    reader.look()
    findings = reader.findings
    assert (findings.looks, findings.epochs, findings.files, findings.rows) == (2, 2, 2, 3)
    assert findings.violations == []
    return reader


def test_a_reader_notices_an_epoch_that_grows(reader: FolderReader) -> None:
    pq.write_table(pa.table({"a": [4]}), reader.folder / EPOCH / SECOND)
    reader.look()
    assert [EPOCH in violation for violation in reader.findings.violations] == [True]


def test_a_reader_notices_a_file_that_goes_away(reader: FolderReader) -> None:
    (reader.folder / WHOLE).unlink()
    reader.look()
    assert reader.findings.violations == [f"{reader.folder / WHOLE} has gone"]


def test_a_reader_notices_a_file_that_changes(reader: FolderReader) -> None:
    pq.write_table(pa.table({"a": [1, 2, 3, 4]}), reader.folder / WHOLE)
    reader.look()
    assert len(reader.findings.violations) == 1


def test_a_reader_notices_half_a_file_and_an_empty_epoch(reader: FolderReader) -> None:
    half = (reader.folder / WHOLE).read_bytes()[:-20]
    (reader.folder / SECOND).write_bytes(half)
    (reader.folder / EPOCH.replace("1", "2", 1)).mkdir()
    reader.look()
    assert len(reader.findings.violations) == 2


def test_a_reader_notices_names_that_are_not_those_of_finished_files(reader: FolderReader) -> None:
    pq.write_table(pa.table({"a": [1]}), reader.folder / "0000010000000000.parquet.staged")
    reader.look()
    assert "not the name of a finished file" in reader.findings.violations[0]
