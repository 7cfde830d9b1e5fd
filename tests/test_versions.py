"""A job that has become another version of itself: what is migrated, refused, dropped; and killed while at it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from cli_kit import call, logged
from nursery import Nursery, Start
from versions_kit import ROWS, expected_totals, lay_out, lines


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_out(tmp_path)


def stopped(nursery: Nursery, folder: Path, after: int = 4) -> int:
    end = nursery.run(Start(str(folder), "v1.py", stop_after=after))
    assert end.outcome == "stopped", end.log
    return end.epoch


def check_output(folder: Path, stopped_at: int) -> None:
    found = lines(folder / "output/totals")
    assert sorted((row["n"], row["total"]) for row in found) == sorted(expected_totals().items())
    seen = {row["n"]: row["seen"] for row in found}
    new = {n for n, count in seen.items() if count > 1_000}
    assert min(new) == stopped_at * 10, "the first row that the new version saw"
    assert {n: seen[n] for n in new} == {n: n // 4 + 1 - (stopped_at * 10 + 3 - n % 4) // 4 + 1_000 for n in new}
    assert sorted(row["m"] for row in lines(folder / "output/minus")) == sorted(-n for n in new)
    assert sorted(row["n"] for row in lines(folder / "output/once")) == [n for n in range(ROWS) if n not in new]


def read_rows(folder: Path) -> int:
    with duckdb.connect(folder / "job.duckdb", read_only=True) as connection:
        return len(connection.sql("FROM state.once_seen").fetchall())


POINTS = [
    "store.generation=kill",
    "recovery.declared=kill",
    "recovery.restore=kill",
    "store.before_commit=kill",
    "store.after_commit=kill",
    "store.prune=kill",
    *(
        pytest.param(f"{name}=kill", marks=pytest.mark.slow)
        for name in ("recovery.commit_again", "recovery.done", "subtask.snapshot", "sink.commit")
    ),
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_state_is_dropped_and_migrated(nursery: Nursery, folder: Path, point: str) -> None:
    stopped(nursery, folder)
    read = read_rows(folder) // 10
    refused = nursery.run(Start(str(folder), "v2.py"))
    assert refused.status == 1
    assert "deduplicate 'once'" in refused.log
    assert "its state (seen) would be lost" in refused.log
    assert "--drop-state once" in refused.log

    killed = nursery.run(Start(str(folder), "v2.py", drop_state=("once",), failpoint=point))
    assert killed.killed, killed.log
    # Once it is written down that the state is dropped, nobody is asked again.
    drop = ("once",) if point == "store.generation=kill" else ()
    end = nursery.run(Start(str(folder), "v2.py", drop_state=drop))
    assert end.outcome == "finished", end.log
    check_output(folder, read)

    with duckdb.connect(folder / "job.duckdb", read_only=True) as connection:
        rows = connection.sql("SELECT key, total, note FROM state.totals_totals ORDER BY key").fetchall()
        assert [total for _, total, _ in rows] == [expected_totals()[ROWS - 4 + key] for key in range(4)]


def test_old_rows_are_readable_in_the_new_columns_before_and_after_new_ones_come(
    nursery: Nursery, folder: Path
) -> None:
    stopped(nursery, folder)
    killed = nursery.run(Start(str(folder), "v2.py", drop_state=("once",), failpoint="recovery.done=kill"))
    assert killed.killed
    with duckdb.connect(folder / "job.duckdb", read_only=True) as connection:
        before = connection.sql("SELECT * FROM state.totals_totals ORDER BY key")
        assert before.columns == ["key", "seen", "note", "total"]
        assert [str(type_) for type_ in before.types] == ["BIGINT", "BIGINT", "VARCHAR", "BIGINT"]
        assert [(key, seen, note) for key, seen, note, _ in before.fetchall()] == [(k, 1_000, None) for k in range(4)]
        (older,) = connection.sql("SELECT max(epoch) FROM manifest").fetchall()[0:1]
    end = nursery.run(Start(str(folder), "v2.py", stop_after=1))
    assert end.outcome == "stopped"
    with duckdb.connect(folder / "job.duckdb", read_only=True) as connection:
        after = connection.sql("SELECT seen FROM state.totals_totals").fetchall()
        assert all(seen > 1_000 for (seen,) in after)
        connection.execute(f"SET VARIABLE millstream_epoch = {older[0]}")
        assert connection.sql("SELECT DISTINCT seen, note FROM state.totals_totals").fetchall() == [(1_000, None)]
    # Back to the first version: its columns cannot hold what the second has written.
    back = nursery.run(Start(str(folder), "v1.py"))
    assert back.status == 1
    assert "total: int64 in the checkpoint, int32 in the job" in back.log


def test_a_sink_goes_only_once_its_output_is_certain_to_be_visible(nursery: Nursery, folder: Path) -> None:
    assert nursery.run(Start(str(folder), "v1.py", failpoint="sink.commit=kill@3")).killed
    for _ in range(2):
        refused = nursery.run(Start(str(folder), "v2.py", drop_state=("once",)))
        assert refused.status == 1
        assert "may not be visible yet" in refused.log
        assert "run the job as it was and stop it" in refused.log
    read = stopped(nursery, folder, after=1) and read_rows(folder) // 10
    assert nursery.run(Start(str(folder), "v2.py", drop_state=("once",))).outcome == "finished"
    check_output(folder, read)


def test_what_was_dropped_comes_back_empty(nursery: Nursery, folder: Path) -> None:
    stopped(nursery, folder)
    read = read_rows(folder)
    assert nursery.run(Start(str(folder), "v2.py", drop_state=("once",), failpoint="recovery.done=kill")).killed
    # Nothing was committed since: but what was given up is given up.
    (folder / "v3.py").write_text((folder / "v2.py").read_text() + JOB_TAIL)
    assert nursery.run(Start(str(folder), "v3.py", stop_after=2)).outcome == "stopped"
    with duckdb.connect(folder / "job.duckdb", read_only=True) as connection:
        first = connection.sql("SELECT min(n) FROM state.once_seen").fetchall()[0][0]
    assert first == read


JOB_TAIL = """
numbers.deduplicate("n", name="once").write(ms.blackhole(name="gone"))
"""


def test_plan_against_a_store_shows_every_verdict(
    nursery: Nursery, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(nursery, folder)
    monkeypatch.chdir(folder)
    same = call("plan", "v1.py", "--against", "job.duckdb", "--json").stdout.splitlines()
    assert {json.loads(line)["becomes"] for line in same} == {"kept"}

    shown = call("plan", "v2.py", "--against", "job.duckdb", "--json", code=3).stdout.splitlines()
    found = {line["name"]: line for line in map(json.loads, shown)}
    assert {name: line["becomes"] for name, line in found.items()} == {
        "numbers": "kept", "totals": "migrated", "jsonl:output/totals": "kept", "jsonl:output/minus": "new",
        "once": "dropped", "jsonl:output/once": "dropped",
    }  # fmt: skip
    assert found["totals"]["details"] == [
        "state 'totals': seen: added, 1000 in older rows",
        "state 'totals': note: added, null in older rows",
        "state 'totals': total: int32 is widened to int64",
    ]
    assert [name for name, line in found.items() if line["refused"]] == ["once"]

    table = call("plan", "v2.py", "--against", "job.duckdb", code=3)
    assert "its state (seen) would be lost" in table.stdout
    assert "would refuse to go on after epoch" in table.stderr
    assert f"--drop-state {found['once']['id']}" in table.stderr

    told = logged(call("run", "v2.py", "--store", "job.duckdb", code=1).stderr)[-1]
    assert told["error"] == "StateMismatch"
    told = logged(call("run", "v2.py", "--store", "job.duckdb", "--drop-state", "onc", code=1).stderr)[-1]
    assert "there is no 'onc'" in told["message"]
    ended = logged(call("run", "v2.py", "--store", "job.duckdb", "--drop-state", "once").stderr)
    assert ended[-1]["event"] == "finished"
    assert next(line for line in ended if line["event"] == "dropping state")["dropped"] == ["once"]
