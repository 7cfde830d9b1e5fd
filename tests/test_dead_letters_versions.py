"""Dead letters of a job that becomes another version, is forked, or ends at another limit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import millstream as ms
import pyarrow as pa
import pytest
from cli_kit import call
from millstream.engine.errors import MemoryExceeded
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Fault, Operator, OperatorSpec, Output
from millstream.engine.state import DELETED, StateDelta, StateTable
from millstream.engine.store.letters import LetterChange, Selection
from millstream.engine.store.reader import StoreReader
from millstream.engine.store.savepoints import fork
from millstream.engine.store.schema import FORMAT
from millstream.engine.store.store import CheckpointStore

OUT = pa.schema({"n": pa.int64(), "count": pa.int64()})
NUMBERS = [pa.record_batch({"n": list(range(at, at + 10))}) for at in range(0, 50, 10)]


@dataclass(frozen=True)
class Tally(OperatorSpec):
    """Counts rows, and cannot take those with n % 10 in ``bad``; the count is kept in columns of the type ``wide``."""

    bad: tuple[int, ...] = (3,)
    means: str = "tally"
    wide: pa.DataType = pa.int32()  # noqa: RUF009  Arrow types do not change

    @property
    def kind(self) -> str:
        return "tally"

    def identity(self) -> str:
        return self.means

    def exchange(self) -> Exchange:
        return Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        return {MAIN: OUT}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        return (StateTable("count", pa.schema({"key": self.wide, "count": self.wide}), ("key",)),)

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        return _Tally(self.bad, self.state_tables(inputs)[0])


class _Tally(Operator):
    def __init__(self, bad: tuple[int, ...], table: StateTable) -> None:
        self._bad, self._table, self._count = bad, table, 0

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        made = []
        for index, n in enumerate(batch.column("n").to_pylist()):
            if n % 10 in self._bad:
                out.dead_letter(batch.slice(index, 1), [Fault("Bad", f"{n} is bad")])
            else:
                self._count += 1
                made.append({"n": n, "count": self._count})
        out.emit(pa.RecordBatch.from_pylist(made, schema=OUT))

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        schema = self._table.schema.append(pa.field(DELETED, pa.bool_()))
        rows = [{"key": 0, "count": self._count, DELETED: False}]
        return {"count": StateDelta(pa.Table.from_pylist(rows, schema=schema), full_from=epoch)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        for batch in batches:
            self._count = batch.column("count").to_pylist()[-1]


class Runs:
    """One job in whatever version, on one store and with one sink; ``run`` returns what is new in it."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._out = ms.memory_sink()

    def job(self, tally: Tally | None, *, bounded: bool = True, source: Any = None) -> ms.Job:
        job = ms.Job("numbers")
        numbers = job.read(ms.memory_source(NUMBERS, bounded=bounded, name="numbers"))
        numbers = numbers.with_columns(count=ms.col("n")) if tally is None else numbers._then(tally, None, "tally")
        numbers.write(self._out)
        if source is not None:
            job.read(source).write(ms.blackhole(name="more"))
        return job

    def rows(self) -> list[tuple[int, int]]:
        return [(row["n"], row["count"]) for row in self._out.rows()]

    def run(self, job: ms.Job, **options: Any) -> tuple[str, list[tuple[int, int]]]:
        before = len(self.rows())
        outcome = job.run(self.store, **options).outcome
        return outcome, self.rows()[before:]

    def mark(self) -> None:
        store = CheckpointStore.open(self.store)
        store.change_letters(Selection(), LetterChange.MARK)
        store.close()

    def letters(self, *, marked: bool | None = None) -> int:
        return letters(self.store, marked=marked)


def letters(path: Path, *, marked: bool | None = None) -> int:
    with StoreReader.open(path) as reader:
        return reader.count_dead_letters(Selection(marked=marked))


@pytest.fixture
def finished(tmp_path: Path) -> Runs:
    """A job that has read 50 numbers and put 5 aside."""
    runs = Runs(tmp_path / "numbers.duckdb")
    outcome, rows = runs.run(runs.job(Tally()))
    assert (outcome, len(rows), runs.letters()) == ("finished", 45, 5)
    return runs


BAD = (3, 13, 23, 33, 43)


@pytest.mark.parametrize("savepoint", [None, "kept"])
def test_letters_and_marks_stay_with_the_first_job(finished: Runs, savepoint: str | None) -> None:
    finished.mark()
    second = Runs(finished.store.with_name("second.duckdb"))
    if savepoint is not None:
        call("savepoint", "create", finished.store, savepoint)
    fork(finished.store, second.store, savepoint=savepoint)
    assert second.letters() == 0
    assert second.run(second.job(Tally(bad=()))) == ("already finished", [])
    assert finished.run(finished.job(Tally(bad=()))) == ("finished", [(n, 46 + i) for i, n in enumerate(BAD)])


def test_a_fork_counts_its_own_letters_only(tmp_path: Path) -> None:
    first, second = Runs(tmp_path / "first.duckdb"), Runs(tmp_path / "second.duckdb")
    with pytest.raises(ms.TooManyDeadLetters):
        first.run(first.job(Tally()), max_dead_letters=4)
    done = second.run(second.job(Tally()), start_from=first.store, max_dead_letters=0)
    assert done == ("finished", [])
    assert (first.letters(), second.letters()) == (5, 0)


@pytest.mark.parametrize(
    ("tally", "options", "count"),
    [
        pytest.param(Tally((), means="other"), {"drop_state": ["tally"]}, 1, id="dropped"),
        pytest.param(Tally((), wide=pa.int64()), {}, 46, id="migrated"),
    ],
)
def test_a_finished_job_replays_into_the_state_of_its_new_version(
    finished: Runs, tally: Tally, options: dict[str, Any], count: int
) -> None:
    finished.mark()
    assert finished.run(finished.job(tally), **options) == ("finished", [(n, count + i) for i, n in enumerate(BAD)])
    assert finished.letters() == 0
    assert finished.run(finished.job(tally), **options) == ("already finished", [])


@pytest.mark.parametrize("bounded", [True, False])
def test_a_finished_job_that_replays_does_not_begin_with_a_new_source(finished: Runs, bounded: bool) -> None:
    finished.mark()
    source = ms.memory_source(NUMBERS, bounded=bounded, name="more")
    result = finished.job(Tally(bad=()), source=source).run(finished.store)
    assert result.outcome == "finished"
    assert result.status is not None
    assert result.status.rows_read == {"numbers": 0, "more": 0}
    assert finished.letters() == 0


def test_letters_outlive_the_state_that_is_dropped(finished: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    other = finished.job(Tally((), means="other"))
    with pytest.raises(ms.StateMismatch, match=r"tally in the checkpoint, other in the job; its 5 dead letters"):
        finished.run(other)
    finished.run(other, drop_state=["tally"])
    told = capsys.readouterr().err
    assert "dropping state" in told
    assert "dead_letters_kept={'tally': 5}" in told
    assert finished.letters() == 5


def test_an_operator_with_marked_letters_is_not_taken_out_in_silence(finished: Runs) -> None:
    finished.mark()
    without = finished.job(None)
    with pytest.raises(ms.StateMismatch, match=r"5 x operator 'tally' .* is not in the job(.|\n)*--undo --all"):
        finished.run(without, drop_state=["tally"])
    assert finished.letters(marked=True) == 5
    # The refusal has dropped nothing either.
    assert finished.run(finished.job(Tally(bad=()))) == ("finished", [(n, 46 + i) for i, n in enumerate(BAD)])


def test_the_comparison_with_a_store_knows_of_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = """
import millstream as ms
job = ms.Job("parsing")
rows = job.read(ms.memory_source([{"n": 0}, {"n": 1}])).map(
    lambda row: {"n": 1 // row["n"]}, schema={"n": int}, on_error="dead_letter", name="parse"
)
rows.write(ms.blackhole())
"""
    Path("job.py").write_text(text)
    Path("other.py").write_text(text.replace('"parse"', '"other"'))
    call("run", "job.py", "--store", "s.duckdb")
    call("plan", "other.py", "--against", "s.duckdb")
    call("deadletters", "replay", "s.duckdb", "job.py", "--all")

    def against(job: str, code: int) -> dict[str, Any]:
        lines = call("plan", job, "--against", "s.duckdb", "--json", code=code).stdout.splitlines()
        (said,) = [row for row in map(json.loads, lines) if row["what"] == "dead letters"]
        return said

    assert against("job.py", 0) | {"id": ""} == {
        "what": "dead letters",
        "name": "parse",
        "id": "",
        "becomes": "replayed",
        "refused": False,
        "details": ["1 of them"],
    }
    said = against("other.py", 3)
    assert said["refused"]
    assert "is not in the job" in said["details"][0]
    shown = call("plan", "other.py", "--against", "s.duckdb", code=3).stderr
    assert "millstream deadletters replay s.duckdb JOB --undo --all" in shown
    call("run", "other.py", "--store", "s.duckdb", code=1)


def test_whichever_limit_ends_a_job_it_goes_on_and_replays_once(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "s.duckdb")
    with pytest.raises(ms.TooManyDeadLetters):
        runs.run(runs.job(Tally(), bounded=False), every="1h", memory=1, max_dead_letters=4)
    with StoreReader.open(runs.store) as reader:
        assert reader.facts().unpublished == {}
    runs.mark()
    mended = runs.job(Tally(bad=()), bounded=False)
    with pytest.raises(MemoryExceeded):
        runs.run(mended, every="1ms", memory=1, max_dead_letters=0)
    with StoreReader.open(runs.store) as reader:
        assert reader.facts().unpublished == {}
    assert runs.letters() == 0, "they went with the checkpoint before the end"
    assert sorted(n for n, _ in runs.rows()) == list(range(50))
    control = ms.Control()
    control.stop()
    assert runs.run(mended, control=control) == ("stopped", [])


def test_stores_before_the_letters_of_operators_are_refused_by_name(finished: Runs) -> None:
    with duckdb.connect(finished.store) as connection:
        connection.execute("UPDATE job SET format = 2")
    for words in (("ls",), ("show", "1.1"), ("export", "--out", "x.jsonl"), ("drop", "--all")):
        said = call("deadletters", words[0], finished.store, *words[1:], code=1).stderr
        assert f"format [2], this version of Millstream reads {FORMAT}" in said
