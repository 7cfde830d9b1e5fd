"""What ``millstream run`` shows on a terminal: live while it runs, a summary in the end, whatever the width."""

import json
import signal

import pytest
from cli_kit import ENDLESS, on_terminal
from millstream.cli.progress import Look
from millstream.cli.recent import Recent
from millstream.cli.summary import details, sentence
from millstream.cli.view import render
from millstream.engine.runtime.coordinator import CheckpointStats, Phase
from millstream.engine.runtime.monitor import JobStatus
from millstream.engine.runtime.run import JobResult
from millstream.engine.time import END_OF_TIME
from rich.console import Console

MINUTE = 60_000_000
LONG = "a source with a very long name indeed, [red]longer[/red] than any terminal is wide, and 語 in it"


def status(generation=1, read=0, written=0, blocked=(), **changes):
    given = {
        "watermarks": {"orders": 90 * MINUTE},
        "counters": {"window": {"late_rows": 0}},
        "dead_letters": {"orders": 0},
        "memory": {},
        "checkpoints": CheckpointStats(),
        "phase": Phase.IDLE,
        "waiting_for": (),
    }
    return JobStatus(
        generation=generation,
        rows_read={"orders": read},
        rows_written={"files": written},
        blocked=blocked,
        **{**given, **changes},
    )


def drawn(latest, *, width=100, earlier=(), age=None, stopping=False):
    """The lines of the view after looks at the job a second apart."""
    recent = Recent()
    for second, look in enumerate([*earlier, latest]):
        recent.add(float(second), look)
    console = Console(width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(Look("job · store", latest, recent, age, stopping), width))
    return capture.get().splitlines()


def test_the_view_shows_rates_watermark_checkpoint_and_back_pressure():
    lines = drawn(
        status(read=5_000, written=700, blocked=("0:orders[0]",), checkpoints=CheckpointStats(3, 0, 7, 0.0214, 1_200)),
        earlier=[status(read=1_000, written=500), status(read=2_000, written=600)],
        age=4.2,
    )
    assert lines[0] == "job · store"
    assert lines[1].split() == ["rows", "rows/s", "watermark"]
    assert lines[2].split() == ["←", "orders", "5,000", "2,000", "1970-01-01", "01:30:00"]
    assert lines[3].split() == ["→", "files", "700", "100"]
    assert lines[4] == "checkpoint: 7, 4 s ago (21 ms, 1,200 rows of state)"
    assert lines[5] == "back-pressure: orders[0] waits for room 33% of the time"
    assert len(lines) == 6
    assert "memory: 3.0 MiB (window 2.0 MiB, files 1.0 MiB)" in drawn(
        status(memory={"files": 1 << 20, "window": 2 << 20})
    )


def test_the_view_shows_what_is_worth_a_look_only_if_there_is_any():
    lines = drawn(
        status(
            counters={"window": {"late_rows": 3, "null_time_rows": 0}},
            dead_letters={"orders": 2},
            checkpoints=CheckpointStats(failed=1, last_epoch=9),
            waiting_for=("1:window[0]",),
            watermarks={"orders": END_OF_TIME},
        ),
        stopping=True,
    )
    assert lines[2].split() == ["←", "orders", "0", "0", "end"]
    assert lines[4:] == [
        "late rows: 3 (window)",
        "dead letters: 2 (orders)",
        "checkpoint: none yet, resumed from 9; 1 failed; the next waits for window[0]",
        "back-pressure: none",
        "stopping after a last checkpoint; Ctrl-C again stops at once",
    ]


def test_a_restart_does_not_make_rates_negative():
    lines = drawn(status(generation=2, read=50), earlier=[status(read=9_000)])
    assert lines[2].split()[:4] == ["←", "orders", "50", "0"]


@pytest.mark.parametrize("width", [20, 40, 63, 64, 200])
def test_long_names_on_any_terminal_break_nothing(width):
    latest = status(read=1_234_567)
    long = status(
        read=1_234_567,
        blocked=(f"0:{LONG}[0]",),
        counters={LONG: {"late_rows": 1}},
        watermarks={LONG: -(2**62)},
    )
    object.__setattr__(long, "rows_read", {LONG: 1_234_567, "orders": 1})
    lines = drawn(long, width=width)
    assert len(lines) == 8, "a row is a line"
    if width >= 40:
        assert "1,234,567" in drawn(latest, width=width)[2], "numbers are never cut"
        assert "01:30:00" in drawn(latest, width=width)[2]
    if width == 200:
        assert LONG in lines[2], "what looks like markup is shown as it is"


def test_rates_are_taken_over_the_last_seconds_only():
    recent = Recent()
    for second in range(100):
        recent.add(float(second), status(read=second * (1 if second < 90 else 10), blocked=("0:a",) * (second < 90)))
    assert recent.read_rates() == {"orders": 10.0}
    assert recent.back_pressure() == {}


def test_the_summary_names_everything():
    ended = status(read=12_345, written=1, counters={"window": {"late_rows": 3}}, dead_letters={"orders": 1})
    result = JobResult("finished", 4, 2, 1, 12.34, ended)
    assert sentence("revenue", result) == "revenue finished in 12.3 s at checkpoint 4, resumed from checkpoint 2"
    assert details(result) == [
        "← orders  12,345 rows in since restart 1",
        "→ files   1 row out since restart 1",
        "late rows: 3 (window)",
        "dead letters: 1 (orders)",
    ]
    assert sentence("j", JobResult("interrupted", 4, 2, 0, 1.0, None)) == (
        "j was interrupted; run it again to go on from checkpoint 4"
    )


def test_a_terminal_shows_the_job_live_and_a_summary_in_the_end(tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    with on_terminal(tmp_path, 100, "run", "endless.py", "--every", "50ms") as job:
        job.until(lambda: "back-pressure: none" in job.seen or None)
        job.until(lambda: " s ago (" in job.seen or None)
        job.send(signal.SIGINT)
        assert job.code() == 0
        seen = job.seen

    assert "numbers → nowhere: exactly once" in seen
    assert "endless · endless.duckdb" in seen
    assert "rows/s" in seen
    assert "← numbers" in seen
    assert "→ nowhere" in seen
    assert "endless stopped at checkpoint " in seen
    assert "rows in\n" in seen.partition("endless stopped")[2]
    assert "run it again to go on" in seen
    assert '"event"' not in seen


def test_what_a_job_prints_goes_where_standard_output_goes(tmp_path):
    (tmp_path / "job.py").write_text(
        "import millstream as ms\njob = ms.Job('print')\n"
        "job.read(ms.memory_source([{'a': 1}, {'a': 2}])).write(ms.print_sink())\n"
    )
    with on_terminal(tmp_path, 80, "run", "job.py", "--store", "one.duckdb", out=tmp_path / "rows") as job:
        assert job.code() == 0
        assert '{"a":' not in job.seen
        assert "print finished in" in job.seen
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()] == [{"a": 1}, {"a": 2}]

    with on_terminal(tmp_path, 80, "run", "job.py", "--store", "two.duckdb") as job:
        assert job.code() == 0
        assert '{"a":1}\n{"a":2}\n' in job.seen


def test_a_mistake_on_a_terminal_is_told_in_words(tmp_path):
    (tmp_path / "job.py").write_text("1 / 0\n")
    with on_terminal(tmp_path, 80, "run", "job.py") as job:
        assert job.code() == 1
        seen = job.seen
    assert seen.startswith("JobError: job.py cannot be imported: ZeroDivisionError: division by zero\n")
    assert f'File "{tmp_path}/job.py", line 1' in seen
    assert '"event"' not in seen
