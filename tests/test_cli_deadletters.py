"""``millstream deadletters``, on a stopped job and on a running one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cli_kit import call, logged, running

JOB = """
import millstream as ms

def parsed(row):
    return {"n": row["n"], "price": 1 / (row["n"] % 5)}

job = ms.Job("prices")
source = ms.files("in/*.jsonl", on_error="dead_letter", name="orders")
orders = job.read(source).map(parsed, schema={"n": int, "price": float}, on_error="dead_letter", name="parse")
orders.write(ms.jsonl("out", hold_bytes=0))
"""
FIXED = JOB.replace("(row[", "(1 + row[")
STORE = "prices.duckdb"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "in").mkdir()
    lines = "".join(json.dumps({"n": n}) + "\n" for n in range(20))
    (tmp_path / "in" / "a.jsonl").write_text(lines + '{"n": oops}\n')
    return tmp_path


@pytest.fixture
def stopped(folder: Path) -> Path:
    call("run", "job.py")
    return folder


def rows(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in call(*words).stdout.splitlines()]


def written() -> list[int]:
    return sorted(
        json.loads(line)["n"] for file in Path("out").rglob("*.jsonl") for line in file.read_text().splitlines()
    )


def told(*words: object) -> str:
    result = call(*words, code=1)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr


def test_ls_lists_and_chooses(stopped: Path) -> None:
    everything = rows("deadletters", "ls", STORE)
    assert [row["id"] for row in everything] == [f"1.{n}" for n in range(1, 6)]
    (bad,) = rows("deadletters", "ls", STORE, "--source", "orders")
    assert (bad["split"], bad["position"]) == ("a.jsonl", "line 21, byte 190")
    of_parse = rows("deadletters", "ls", STORE, "--operator", "parse")
    assert [row["row"]["n"] for row in of_parse] == [0, 5, 10, 15]
    assert {row["error_type"] for row in of_parse} == {"ZeroDivisionError"}
    assert rows("deadletters", "ls", STORE, "1.2") == [row for row in everything if row["id"] == "1.2"]
    assert rows("deadletters", "ls", STORE, "--since", 2) == []
    result = call("deadletters", "ls", STORE, "--limit", 2)
    assert len(result.stdout.splitlines()) == 2
    assert result.stderr == "2 of 5 dead letters\n"
    table = call("deadletters", "ls", STORE, "--format", "table").stdout
    assert "ZeroDivisionError: division by zero" in table
    assert "a.jsonl, line 21" in table
    assert "is not the id of a dead letter" in told("deadletters", "ls", STORE, "x")


def test_show_tells_everything(stopped: Path) -> None:
    (line,) = [row["id"] for row in rows("deadletters", "ls", STORE, "--source", "orders")]
    shown = json.loads(call("deadletters", "show", STORE, line).stdout)
    assert shown["text"] == '{"n": oops}\n'
    assert bytes.fromhex(shown["raw"]) == b'{"n": oops}\n'
    row = next(row["id"] for row in rows("deadletters", "ls", STORE, "--operator", "parse"))
    table = call("deadletters", "show", STORE, row, "--format", "table").stdout
    assert 'row: {"n": 0}' in table
    assert "holds no dead letter 9.9" in told("deadletters", "show", STORE, "9.9")


def test_export_writes_rows_with_types_and_lines_as_they_were(stopped: Path) -> None:
    call("deadletters", "export", STORE, "--operator", "parse", "--out", "rows.parquet")
    assert pq.read_table("rows.parquet").to_pylist() == [{"n": n} for n in (0, 5, 10, 15)]
    call("deadletters", "export", STORE, "--operator", "parse", "--out", "rows.jsonl")
    assert list(map(json.loads, Path("rows.jsonl").read_text().splitlines())) == [{"n": n} for n in (0, 5, 10, 15)]
    call("deadletters", "export", STORE, "--source", "orders", "--out", "lines.jsonl")
    assert Path("lines.jsonl").read_bytes() == b'{"n": oops}\n'
    assert "do not go into one file" in told("deadletters", "export", STORE, "--out", "all.jsonl")
    assert "is there already" in told("deadletters", "export", STORE, "--operator", "parse", "--out", "rows.jsonl")
    assert "has no columns" in told("deadletters", "export", STORE, "--source", "orders", "--out", "l.parquet")
    assert "no such dead letters" in told("deadletters", "export", STORE, "--operator", "x", "--out", "x.jsonl")
    assert "to a .parquet or a .jsonl file" in told("deadletters", "export", STORE, "1.1", "1.2", "--operator", "parse",
                                                    "--out", "x.txt")  # fmt: skip
    assert "cannot write" in told("deadletters", "export", STORE, "--operator", "parse", "--out", "no/x.jsonl")
    assert not [path for path in stopped.iterdir() if path.suffix == ".tmp"]


def test_many_letters_are_exported_in_pages(folder: Path) -> None:
    (folder / "in" / "b.jsonl").write_text("".join(json.dumps({"n": 5 * n}) + "\n" for n in range(2_500)))
    call("run", "job.py")
    call("deadletters", "export", STORE, "--operator", "parse", "--out", "rows.parquet")
    assert pq.read_table("rows.parquet").num_rows == 2_504


def test_drop_needs_a_choice(stopped: Path) -> None:
    assert "say which" in call("deadletters", "drop", STORE, code=2).stderr
    assert "contradict" in call("deadletters", "drop", STORE, "--all", "--source", "orders", code=2).stderr
    assert call("deadletters", "drop", STORE, "--source", "orders").stderr == "1 dead letters dropped\n"
    assert call("deadletters", "drop", STORE, "1.5").stderr == "1 dead letters dropped\n"
    assert len(rows("deadletters", "ls", STORE)) == 3
    call("deadletters", "drop", STORE, "--all")
    assert rows("deadletters", "ls", STORE) == []
    assert "there is no store at" in told("deadletters", "drop", "nothing.duckdb", "--all")
    assert not Path("nothing.duckdb").exists()


def test_replay_feeds_the_operator_as_it_is_now_exactly_once(stopped: Path) -> None:
    before = written()
    assert before == [n for n in range(20) if n % 5]
    said = call("deadletters", "replay", STORE, "job.py", "--operator", "parse").stderr
    assert said == "4 dead letters will be replayed by: millstream run job.py --store prices.duckdb\n"
    assert {row["replay"] for row in rows("deadletters", "ls", STORE, "--operator", "parse")} == {True}

    call("run", "job.py")  # the function has not been mended: they fail again
    again = rows("deadletters", "ls", STORE, "--operator", "parse")
    assert [(row["row"]["n"], row["attempts"], row["replay"]) for row in again] == [
        (n, 2, False) for n in (0, 5, 10, 15)
    ]
    assert written() == before

    (stopped / "job.py").write_text(FIXED)
    call("deadletters", "replay", STORE, "job.py", "--operator", "parse")
    assert logged(call("run", "job.py").stderr)[-1]["event"] == "finished"
    assert rows("deadletters", "ls", STORE, "--operator", "parse") == []
    assert written() == list(range(20))
    assert logged(call("run", "job.py").stderr)[-1]["event"] == "already finished"
    assert written() == list(range(20))


def test_a_finished_job_that_replays_reads_nothing_new(stopped: Path) -> None:
    (stopped / "job.py").write_text(FIXED)
    (stopped / "in" / "new.jsonl").write_text('{"n": 100}\n')
    call("deadletters", "replay", STORE, "job.py", "1.2", "1.3")
    call("run", "job.py")
    assert 100 not in written()
    assert len(written()) == 18


def test_marks_can_be_taken_off(stopped: Path) -> None:
    call("deadletters", "replay", STORE, "job.py", "--operator", "parse")
    assert (
        "4 dead letters will not be replayed"
        in call("deadletters", "replay", STORE, "job.py", "--all", "--undo").stderr
    )
    assert logged(call("run", "job.py").stderr)[-1]["event"] == "already finished"


def test_lines_of_sources_are_exported_instead(stopped: Path) -> None:
    assert "deadletters export, mend it" in told("deadletters", "replay", STORE, "job.py", "--source", "orders")
    said = call("deadletters", "replay", STORE, "job.py", "--all").stderr
    assert "1 dead letters of sources, or of sinks that are not in the job, are left" in said
    assert "4 dead letters will be replayed" in said


def test_an_exported_line_that_was_mended_goes_in_again_as_a_file(folder: Path) -> None:
    (folder / "job.py").write_text(JOB.replace('name="orders")', 'follow=True, name="orders")'))

    def run_until(n: int) -> None:
        with running(folder, "run", "job.py", "--every", "50ms") as job:
            job.until(lambda: (written() and written()[-1] >= n) or None)
            job.send(signal.SIGTERM)
            assert job.code() == 0

    run_until(19)
    call("deadletters", "export", STORE, "--source", "orders", "--out", "mended.jsonl")
    mended = Path("mended.jsonl").read_text().replace("oops", "21")
    Path("mended.jsonl").write_text(mended)
    Path("mended.jsonl").rename("in/mended.jsonl")
    call("deadletters", "drop", STORE, "--source", "orders")
    run_until(21)
    assert written() == [*(n for n in range(20) if n % 5), 21]


def test_a_job_that_lacks_the_operator_is_refused_by_name(stopped: Path) -> None:
    (stopped / "other.py").write_text(JOB.replace('name="parse"', 'name="other"'))
    said = told("deadletters", "replay", STORE, "other.py", "--operator", "parse")
    assert "4 x operator 'parse' (o" in said
    assert "is not in the job" in said
    (stopped / "wider.py").write_text(
        JOB.replace(
            'on_error="dead_letter", name="orders"',
            "schema=__import__('pyarrow').schema({'n': 'float64'}), name=\"orders\"",
        )
    )
    said = told("deadletters", "replay", STORE, "wider.py", "--operator", "parse")
    assert "the rows of map 'parse' have changed: column 'n' is int64 in the letter, double in the job" in said

    call("deadletters", "replay", STORE, "job.py", "--operator", "parse")
    said = call("run", "wider.py", code=1).stderr
    assert "--undo --all" in said
    assert {row["replay"] for row in rows("deadletters", "ls", STORE, "--operator", "parse")} == {True}


def test_a_row_that_must_not_fail_and_does_again_stops_the_job_and_stays(stopped: Path) -> None:
    (stopped / "job.py").write_text(JOB.replace('on_error="dead_letter", name="parse"', 'name="parse"'))
    call("deadletters", "replay", STORE, "job.py", "--operator", "parse")
    said = call("run", "job.py", "--restarts", 0, code=1).stderr
    assert "while dead letters were replayed" in said
    assert len(rows("deadletters", "ls", STORE, "--operator", "parse")) == 4


def test_too_many_fail_the_run_with_what_to_do(folder: Path) -> None:
    last = logged(call("run", "job.py", "--max-dead-letters", 4, code=1).stderr)[-1]
    assert last["error"] == "TooManyDeadLetters"
    assert "5 dead letters in the store, max_dead_letters (--max-dead-letters) allows 4" in last["message"]
    call("deadletters", "drop", STORE, "--source", "orders")
    assert logged(call("run", "job.py", "--max-dead-letters", 4).stderr)[-1]["event"] == "finished"
    assert len(written()) == 16


def test_a_running_job_is_asked_through_its_socket(folder: Path) -> None:
    (folder / "job.py").write_text(JOB.replace('name="orders")', 'follow=True, name="orders")'))
    with running(folder, "run", "job.py", "--every", "50ms") as job:
        job.until(lambda: job.event("status", lambda line: line["dead_letters"].get("parse")))
        job.until(lambda: rows("deadletters", "ls", STORE) or None)
        assert len(rows("deadletters", "ls", STORE, "--operator", "parse")) == 4
        assert json.loads(call("deadletters", "show", STORE, "1.1").stdout)["id"] == "1.1"
        call("deadletters", "export", STORE, "--operator", "parse", "--out", "rows.parquet")
        assert "stop it, drop the dead letters, and start it again" in told("deadletters", "drop", STORE, "--all")
        job.send(signal.SIGTERM)
        assert job.code() == 0
    assert pq.read_table("rows.parquet").num_rows == 4
