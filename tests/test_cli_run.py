"""``millstream run`` without a terminal: JSON on standard error, signals, exit codes, restarts after a kill."""

import json
import os
import signal
import threading
from datetime import datetime

import millstream as ms
import pytest
from cli_kit import ENDLESS, call, logged, running
from millstream.cli.init import STARTER

BOUNDED = """
import datetime as dt
import millstream as ms

START = dt.datetime(2026, 1, 1)
MINUTES = [0, 1, 2, 9, 3, 10]
rows = [{"k": "a", "n": n, "at": START + dt.timedelta(minutes=m)} for n, m in enumerate(MINUTES)]
job = ms.Job("orders/eu")
counted = (
    job.read(ms.memory_source(rows, name="orders"), event_time="at")
    .map_batches(lambda batch: batch, name="as they are")
    .group_by("k").window(ms.tumbling("1m")).agg(n=ms.count())
)
counted.write(ms.print_sink())
counted.late.write(ms.memory_sink(name="late"))
"""

HANGS = """
import threading
import millstream as ms

def hang(row):
    print("hanging", flush=True)
    threading.Event().wait()

job = ms.Job("hangs")
job.read(ms.memory_source([{"a": 1}])).map(hang, schema={"a": "int64"}).write(ms.print_sink())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "endless.py").write_text(ENDLESS)
    (tmp_path / "bounded.py").write_text(BOUNDED)
    (tmp_path / "hangs.py").write_text(HANGS)
    return tmp_path


def test_rows_go_to_standard_output_and_json_to_standard_error(folder):
    result = call("run", "bounded.py")

    printed = [json.loads(line) for line in result.stdout.splitlines()]
    assert sum(row["n"] for row in printed) == 6
    lines = logged(result.stderr)
    # The first run on a machine compiles kernels, so there may be time for a status.
    events = [line["event"] for line in lines if line["event"] != "status"]
    assert events == ["guarantee", "guarantee", "finished"]
    assert all({"timestamp", "level", "event", "job", "epoch"} <= line.keys() for line in lines)
    assert {line["job"] for line in lines} == {"orders/eu"}
    assert all(datetime.fromisoformat(line["timestamp"]) for line in lines)
    assert {(line["sink"], line["holds"]) for line in lines[:2]} == {
        ("print", "at least once"),
        ("late", "exactly once"),
    }


def test_the_last_line_sums_the_run_up(folder):
    last = logged(call("run", "bounded.py").stderr)[-1]

    assert last["epoch"] == 1
    assert last["rows_read"] == {"orders": 6}
    assert last["rows_written"]["print"] == 6
    assert last["dead_letters"] == {"orders": 0}
    assert (last["restored_from"], last["restarts"]) == (0, 0)
    assert last["seconds"] > 0


def test_the_store_is_named_after_the_job_and_a_finished_job_says_so(folder):
    call("run", "bounded.py")
    assert (folder / "orders-eu.duckdb").is_file()

    again = call("run", "bounded.py")

    assert again.stdout == ""
    last = logged(again.stderr)[-1]
    assert (last["event"], last["epoch"], last["restored_from"]) == ("already finished", 1, 1)


def test_the_starter_runs_at_once_and_says_what_to_do_next(folder):
    told = call("init", "shop.py").stdout
    assert told == "Wrote shop.py. Next:\n  millstream plan shop.py\n  millstream run shop.py\n"
    assert "shop: 1 stage" in call("plan", "shop.py").stdout

    result = call("run", "shop.py")

    assert len(result.stdout.splitlines()) == 6
    (file,) = (folder / "shop").rglob("*.jsonl")
    written = [json.loads(line) for line in file.read_text().splitlines()]
    paid = [5 + n % 40 for n in range(6_000) if n % 10]
    assert sum(row["revenue"] for row in written) == sum(paid)
    assert sum(row["orders"] for row in written) == len(paid)
    assert logged(result.stderr)[-1]["rows_read"] == {"orders": 6_000}


def test_the_starter_is_named_revenue_when_no_name_is_given(folder):
    call("init")
    assert (folder / "revenue.py").read_text() == STARTER.format(name="revenue.py", job="revenue", folder="revenue/")


def test_a_running_job_logs_its_numbers_and_ends_on_sigterm(folder):
    with running(folder, "run", "endless.py", "--every", "50ms") as job:
        status = job.until(lambda: job.event("status", lambda line: line["watermarks"] and line["epoch"]))
        job.send(signal.SIGTERM)
        assert job.code() == 0

    lines = logged(job.err)
    assert {line["job"] for line in lines} == {"endless"}
    assert all("epoch" in line for line in lines)
    assert status["epoch"] >= 1
    assert status["rows_read"]["numbers"] > 0
    assert status["rows_read_per_second"]["numbers"] > 0
    assert status["watermarks"].keys() == {"numbers"}
    assert status["back_pressure"] == {}
    assert status["rows_written"] == {"nowhere": 0}
    assert lines[-1]["event"] == "stopped"
    assert lines[-1]["epoch"] > status["epoch"]


def test_a_second_signal_ends_a_job_that_hangs(folder):
    with running(folder, "run", "hangs.py") as job:
        job.until(lambda: "hanging" in job.out or None)
        job.send(signal.SIGINT)
        job.until(lambda: job.event("stopping after a last checkpoint"))
        job.send(signal.SIGINT)
        assert job.code() == 130


def test_a_stop_ends_the_pause_before_a_restart():
    control = ms.Control()
    pause = threading.Thread(target=control.sleep, args=(1e9,), daemon=True)
    pause.start()
    assert pause.is_alive()
    control.stop()
    pause.join(timeout=60)
    assert not pause.is_alive()


def test_a_supervised_job_that_is_killed_goes_on_where_it_was(folder):
    options = ("--every", "50ms", "--supervise")
    with running(folder, "run", "endless.py", *options) as job:
        first = job.until(lambda: job.event("status", lambda line: line["epoch"]))
        pid = int((folder / "endless.duckdb.lock").read_text())
        assert pid != job.process.pid
        os.kill(pid, signal.SIGKILL)
        resumed = job.until(lambda: job.event("resuming"))
        job.until(lambda: int((folder / "endless.duckdb.lock").read_text()) != pid or None)
        job.send(signal.SIGTERM)
        assert job.code() == 0

    lines = logged(job.err)
    (killed,) = [line for line in lines if line["event"] == "job was killed, starting it again"]
    assert killed["signal"] == "SIGKILL"
    assert resumed["epoch"] >= first["epoch"]
    assert lines[-1]["event"] == "stopped"
    assert all({"job", "epoch"} <= line.keys() for line in lines)


def test_a_job_that_is_killed_every_time_is_given_up(folder):
    (folder / "dies.py").write_text(HANGS.replace("threading.Event().wait()", "import os; os.kill(os.getpid(), 9)"))
    with running(folder, "run", "dies.py", "--supervise", "--restarts", "1") as job:
        assert job.code() == 128 + signal.SIGKILL

    assert job.out.splitlines() == ["hanging", "hanging"]
    assert [line["event"] for line in logged(job.err) if "killed" in line["event"]] == [
        "job was killed, starting it again",
        "killed too often",
    ]


def test_a_checkpoint_that_takes_too_long_fails_and_says_which_option_helps(folder):
    (folder / "slow.py").write_text(HANGS.replace(".wait()", ".wait(2)"))
    options = ("--every", "50ms", "--checkpoint-timeout", "100ms", "--restarts", "0")

    failure = logged(call("run", "slow.py", *options, code=1).stderr)[-1]

    assert "is not complete after 0.1 s" in failure["message"]
    assert "(--checkpoint-timeout)" in failure["message"]


def test_a_store_that_is_in_use_is_refused_with_the_process(folder):
    with running(folder, "run", "endless.py", "--every", "50ms") as job:
        job.until(lambda: job.event("status"))

        failure = logged(call("run", "endless.py", code=1).stderr)[-1]

    assert failure["error"] == "StoreLocked"
    assert f"in use by process {job.process.pid}" in failure["message"]
    assert "Stop the other one" in failure["message"]
