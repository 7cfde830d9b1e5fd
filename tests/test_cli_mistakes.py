"""What people see who make a mistake: one sentence that says what to do, and no frame but their own."""

import duckdb
import pytest
from cli_kit import call, logged

ONE = """
import millstream as ms
job = ms.Job("one")
job.read(ms.memory_source([{"price": 1}])).write(ms.memory_sink())
"""
FILES = {
    "one.py": ONE,
    "none.py": "x = 1\n",
    "two.py": "import millstream as ms\na = ms.Job('a')\nb = ms.Job('b')\n",
    "unsunk.py": "import millstream as ms\njob = ms.Job('j')\njob.read(ms.memory_source([{'a': 1}]))\n",
    "boom.py": "def halve(x):\n    return 1 / x\n\n\nhalve(0)\n",
    "syntax.py": "x = = 1\n",
    "column.py": ONE + "job.read(ms.memory_source([{'price': 1}], name='b')).filter(ms.col('pric') > 2)\n",
    "module.py": "import not_there\n",
    "exits.py": "import sys\nsys.exit('no')\n",
    "itself.py": ONE + "job.run()\n",
    "calls.py": ONE.replace(".write", ".map(lambda row: row['cost'], schema={'a': 'int64'}).write"),
    "notes.txt": "not a program\n",
    "csv.py": ONE,
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("plan nofile.py", 1, "JobError: nofile.py does not exist: give a Python file with a job in it"),
        ("plan folder", 1, "JobError: folder is a folder: give a Python file"),
        ("plan notes.txt", 1, "JobError: notes.txt is not a Python file"),
        ("plan none.py", 1, "none.py makes no job at its top level: it needs a line such as job = ms.Job('orders')"),
        ("plan two.py", 1, "two.py has several jobs (a, b): say which, as in two.py:a"),
        ("plan two.py:c", 1, "two.py has no job called 'c' at its top level; it has a, b"),
        ("plan none.py:c", 1, "none.py has no job called 'c' at its top level; it has none"),
        ("plan two.py:a", 1, "job 'a' reads nothing: start with job.read(...)"),
        ("plan unsunk.py", 1, "job 'j' has no sink"),
        ("plan itself.py", 1, "itself.py runs its job itself when it is imported: leave that to the command line"),
        ("plan one.py --parallelism 0", 2, "'--parallelism': 0 is not in the range x>=1"),
        ("plan one.py --parallelism many", 2, "'--parallelism': 'many' is not a valid integer"),
        ("plan", 2, "Missing argument 'FILE[:NAME]'"),
        ("run one.py --every 5", 2, "'--every': '5' is not a duration: write a number and a unit"),
        ("run one.py --every soon", 2, "'--every': 'soon' is not a duration"),
        ("run one.py --every 0s", 2, "'--every': '0s' is no time at all: give more, as in 200ms, 10s or 1m"),
        ("run one.py --every -1s", 2, "'-1s' is not a duration"),
        ("run one.py --checkpoint-timeout never", 2, "'--checkpoint-timeout': 'never' is not a duration"),
        ("run one.py --restarts -1", 2, "'--restarts': -1 is not in the range x>=0"),
        ("run one.py --store folder", 2, "'--store': File 'folder' is a directory"),
        ("run one.py --evry 1s", 2, "No such option '--evry'. (Did you mean one of: '--every', '--memory'?)"),
        ("rnu one.py", 2, "No such command 'rnu'"),
        ("state ls nostore", 1, "nostore: give the path the job was started with"),
        ("state ls folder", 2, "File 'folder' is a directory"),
        ("state ls one.py", 1, "one.py is not the store of a job: give the file that the job was started with"),
        ("state ls notes.txt", 1, "notes.txt is not the store of a job"),
        ("checkpoints show nostore", 1, "nostore: give the path the job was started with"),
        ("checkpoints show nostore last", 2, "'last' is not a valid integer"),
        ("state query notes.txt", 2, "Missing argument 'SQL'"),
        ("init nowhere/job.py", 2, "there is no folder 'nowhere'"),
        ("init job", 2, "'job' should end in .py"),
        ("init one.py", 1, "one.py exists and was left as it is: give another name"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_on_standard_error(folder, words, code, told):
    before = sorted(folder.iterdir())
    result = call(*words.split(), code=code)
    assert told in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    after = sorted(path for path in folder.iterdir() if path.name != "__pycache__")
    assert after == before, "a command that refuses leaves nothing behind"
    assert (folder / "one.py").read_text() == ONE


@pytest.mark.parametrize(
    ("file", "error", "lines"),
    [
        ("boom.py", "boom.py cannot be imported: ZeroDivisionError: division by zero", ["halve(0)", "return 1 / x"]),
        ("module.py", "ModuleNotFoundError: No module named 'not_there'", ["import not_there"]),
        ("exits.py", "exits.py cannot be imported: SystemExit: no", ["sys.exit('no')"]),
        ("column.py", "no column 'pric'", ["filter(ms.col('pric') > 2)"]),
        ("itself.py", "runs its job itself", ["job.run()"]),
    ],
)
def test_an_error_in_the_file_shows_the_lines_of_the_file_and_no_others(folder, file, error, lines):
    told = call("plan", file, code=1).stderr
    assert error in told
    frames = [line for line in told.splitlines() if line.startswith("  File ")]
    assert all(f'/{file}", line ' in frame for frame in frames)
    assert len(frames) == len(lines)
    assert all(line in told for line in lines)


def test_a_syntax_error_shows_the_place(folder):
    told = call("plan", "syntax.py", code=1).stderr
    assert 'syntax.py", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax' in told
    assert told.count("File") == 1


def test_a_failing_function_is_shown_with_its_row_and_line(folder):
    lines = logged(call("run", "calls.py", "--restarts", 0, code=1).stderr)
    failure = lines[-1]
    assert (failure["event"], failure["level"], failure["error"]) == ("failed", "error", "JobFailed")
    assert failure["message"].startswith("job 'one' failed: calls.<lambda>")
    assert "raised KeyError: 'cost'; the row is {'price': 1}" in failure["message"]
    assert failure["notes"] == ["in map 'map', subtask 0"]
    assert failure["frames"] == [f"{folder / 'calls.py'}:4 in <lambda>"]
    assert {line["job"] for line in lines} == {"one"}


def test_a_file_called_like_a_module_of_pythons_does_not_replace_it(folder):
    import csv

    call("run", "csv.py")
    import sys

    assert sys.modules["csv"] is csv


def test_a_database_of_somebody_elses_is_refused_and_left_alone(folder):
    with duckdb.connect("theirs.duckdb") as connection:
        connection.execute("CREATE TABLE theirs AS SELECT 42 AS n")
    assert (
        "theirs.duckdb is a DuckDB database, but not the store of a job"
        in call("state", "ls", "theirs.duckdb", code=1).stderr
    )
    failure = logged(call("run", "one.py", "--store", "theirs.duckdb", code=1).stderr)[-1]
    assert "tables of somebody else's: give the job a store of its own" in failure["message"]
    with duckdb.connect("theirs.duckdb", read_only=True) as connection:
        assert connection.sql("SHOW TABLES").fetchall() == [("theirs",)]


def test_a_damaged_store_is_refused_with_advice(folder):
    call("run", "one.py")
    whole = (folder / "one.duckdb").read_bytes()
    (folder / "one.duckdb").write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    told = call("state", "ls", "one.duckdb", code=1).stderr
    assert told.startswith("StoreCorrupt: ")
    assert "from a backup" in told


def test_the_store_of_another_job_is_refused_by_name(folder):
    (folder / "grouped.py").write_text(
        "import datetime as dt\nimport millstream as ms\njob = ms.Job('grouped')\n"
        "rows = [{'k': 1, 'at': dt.datetime(2026, 1, 1)}]\n"
        "s = job.read(ms.memory_source(rows, name='other', bounded=False), event_time='at')\n"
        "s.group_by('k').window(ms.tumbling('1m')).agg(n=ms.count()).write(ms.print_sink())\n"
    )
    call("run", "one.py", "--store", "s.duckdb")
    failure = logged(call("run", "grouped.py", "--store", "s.duckdb", code=1).stderr)[-1]
    assert failure["error"] == "StateMismatch"
    assert "start anew with another --store" in failure["message"]


def test_a_job_that_asks_for_more_than_it_gets_is_refused(folder):
    (folder / "printing.py").write_text(ONE.replace("memory_sink", "print_sink"))
    failure = logged(call("run", "printing.py", "--exactly-once", code=1).stderr)[-1]
    assert "memory → print" in failure["message"]
    assert "printed as they come" in failure["message"]
