"""``millstream checkpoints`` and ``state``, on a stopped job and on a running one."""

import json
import signal

import duckdb
import pytest
from cli_kit import ENDLESS, call, running

ROWS = 1_000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "endless.py").write_text(ENDLESS)
    return tmp_path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The store of a job that was stopped, with open windows in its state, and the rows it had counted."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "endless.py").write_text(ENDLESS)
    with running(folder, "run", "endless.py", "--every", "50ms") as job:
        job.until(lambda: job.event("status", lambda line: line["rows_read"]["numbers"]))
        job.send(signal.SIGTERM)
        assert job.code() == 0
    with duckdb.connect(folder / "endless.duckdb", read_only=True) as connection:
        counted = connection.sql("SELECT sum(rows_count) FROM state.window_aggregate_windows").fetchall()[0][0]
    return folder / "endless.duckdb", counted


def rows(*words):
    return [json.loads(line) for line in call(*words).stdout.splitlines()]


def test_a_stopped_job_is_asked_through_its_file(stopped):
    store, counted = stopped
    listed = rows("checkpoints", "ls", store)
    assert [row["epoch"] for row in listed] == sorted(row["epoch"] for row in listed)
    assert listed[-1]["kind"] == "stop"

    (relation,) = rows("state", "ls", store)
    assert relation["relation"] == "state.window_aggregate_windows"
    assert relation["rows"] == 4
    assert relation["columns"].startswith("key, window_start, ")
    assert rows("state", "query", store, f"SELECT sum(rows_count) AS n FROM {relation['relation']}") == [{"n": counted}]

    shown = json.loads(call("checkpoints", "show", store).stdout)
    assert shown["epoch"] == listed[-1]["epoch"]
    (state,) = shown["state"]
    assert (state["operator"], state["table"], state["rows"]) == ("window_aggregate", "windows", 4)
    assert state["bytes"] >= 4 * 3 * 8
    assert shown["sources"][0]["position"] == counted, "every row before the position is in the state, and no other"
    assert shown["sinks"] == [{"sink": "nowhere", "pending": 0, "committables": []}]


def test_each_epoch_is_shown_as_it_was(stopped):
    store, counted = stopped
    epochs = [row["epoch"] for row in rows("checkpoints", "ls", store)]
    shown = [json.loads(call("checkpoints", "show", store, epoch).stdout) for epoch in epochs]
    assert [one["epoch"] for one in shown] == epochs
    positions = [one["sources"][0]["position"] if one["sources"] else 0 for one in shown]
    assert positions == sorted(positions)
    assert positions[-1] == counted
    assert [sum(table["rows"] for table in one["state"]) for one in shown] == [
        4 if position else 0 for position in positions
    ]

    told = call("checkpoints", "show", store, 1_000_000, code=1).stderr
    assert f"does not hold epoch 1000000; it holds {', '.join(map(str, epochs))}" in told


def test_a_running_job_answers_itself_and_goes_on(folder):
    ask = ("state", "query", "endless.duckdb", "SELECT max(epoch) AS epoch FROM manifest")
    with running(folder, "run", "endless.py", "--every", "50ms") as job:
        job.until(lambda: job.event("status"))
        first = job.until(lambda: rows(*ask)[0]["epoch"])
        later = job.until(lambda: next((e for row in rows(*ask) if (e := row["epoch"]) > first), None))
        assert [row["relation"] for row in rows("state", "ls", "endless.duckdb")] == ["state.window_aggregate_windows"]
        assert rows("checkpoints", "ls", "endless.duckdb")[-1]["kind"] == "checkpoint"
        shown = json.loads(call("checkpoints", "show", "endless.duckdb").stdout)
        assert shown["epoch"] >= later
        told = call("state", "query", "endless.duckdb", "DELETE FROM manifest", code=1).stderr
        assert "only a single SELECT can be answered, got DELETE" in told
        job.send(signal.SIGTERM)
        assert job.code() == 0

    last = rows(*ask)[0]["epoch"]
    assert last > later
    assert last == json.loads(job.err.splitlines()[-1])["epoch"]
    assert not (folder / "endless.duckdb.sock").exists()


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELEC 1", "syntax error at or near"),
        ("SELECT nothing FROM manifest", 'Referenced column "nothing" not found'),
        ("FROM state.nothing", "relations with state: state.window_aggregate_windows"),
        ("DROP TABLE manifest", "only a single SELECT can be answered, got DROP"),
        ("INSERT INTO manifest (epoch) VALUES (9)", "got INSERT; the store is written by the job alone"),
        ("SELECT 1; SELECT 2", "got SELECT, SELECT"),
        ("COPY (SELECT 1) TO 'out.csv'", "got COPY"),
        ("ATTACH 'other.duckdb'", "got ATTACH"),
        ("SET memory_limit = '1GB'", "got SET"),
        ("FROM read_csv('endless.py')", "file system operations are disabled"),
        ("", "got nothing"),
    ],
)
def test_what_is_not_a_select_is_refused_with_the_reason(folder, finished, sql, told):
    before = finished.read_bytes()
    result = call("state", "query", finished, sql, code=1)
    assert result.stderr.startswith("JobError: ")
    assert told in result.stderr
    assert result.stdout == ""
    assert finished.read_bytes() == before
    assert not (folder / "out.csv").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The store of a job that has finished."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "job.py").write_text(ENDLESS.replace("rate=2000", f"rows={ROWS}"))
    call("run", folder / "job.py", "--store", folder / "job.duckdb")
    return folder / "job.duckdb"


def test_values_of_any_type_become_json(finished):
    sql = """SELECT 1.5::DECIMAL(4,1) AS decimal, 'NaN'::DOUBLE AS nan, [1, 2] AS list, {'a': 1} AS struct,
        '\\x01'::BLOB AS blob, DATE '2026-01-02' AS day, NULL AS nothing, '[red]é' AS text, 1 AS text"""
    assert rows("state", "query", finished, sql) == [
        {
            "decimal": "1.5", "nan": None, "list": [1, 2], "struct": {"a": 1}, "blob": "01", "day": "2026-01-02",
            "nothing": None, "text": "[red]é", "text_2": 1,
        }
    ]  # fmt: skip


def test_tables_show_every_value_as_it_is(finished):
    shown = call("state", "query", finished, "SELECT '[red]' AS \"[bold]\", 7 AS n", "--format", "table")
    assert "[bold]" in shown.stdout
    assert "[red]" in shown.stdout
    assert shown.stderr == "1 row\n"
    shown = call("state", "ls", finished, "--format", "table")
    assert "state.window_aggregate_windows" in shown.stdout
    assert f'millstream state query {finished} "FROM state.window_aggregate_windows LIMIT 10"' in shown.stderr
    shown = call("checkpoints", "show", finished, "--format", "table").stdout
    assert shown.startswith("epoch 1 (final) of generation 1, committed ")
    assert str(ROWS) not in shown.partition("sources")[0]
    assert "nowhere" in shown


def test_an_empty_answer_has_no_lines(finished):
    assert call("state", "query", finished, "SELECT 1 WHERE false").stdout == ""
    assert call("state", "query", finished, "SELECT 1 WHERE false", "--format", "table").stderr == "0 rows\n"
