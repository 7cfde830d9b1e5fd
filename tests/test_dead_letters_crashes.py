"""Dead letters of jobs that are crashed, killed and resumed: each is there once, or its effect is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from millstream.engine.failpoints import ENVIRONMENT
from millstream.engine.store.letters import LetterChange, Selection
from millstream.engine.store.reader import StoreReader
from millstream.engine.store.store import CheckpointStore
from millstream.testing import simulate
from nursery import Nursery, Start

NUMBERS = range(80)
BATCHES = [pa.record_batch({"n": pa.array(range(at, at + 4), pa.int64())}) for at in range(0, len(NUMBERS), 4)]


def job(out: Any, first: int, second: int) -> ms.Job:
    """Rows go through a function on either side of an exchange; each refuses the multiples of a number (0: none)."""

    def refusing(divisor: int) -> Any:
        def through(row: dict[str, Any]) -> dict[str, Any]:
            if divisor and row["n"] % divisor == 0:
                raise ValueError(divisor)
            return row

        return through

    def refusing_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
        for row in batch.to_pylist():
            refusing(second)(row)
        return batch

    made = ms.Job("letters")
    stream = made.read(ms.memory_source(BATCHES, splits=3, name="numbers"))
    stream = stream.map(refusing(first), schema={"n": int}, on_error="dead_letter", name="first")
    stream = stream.deduplicate("n", name="unique")
    stream.map_batches(refusing_batch, schema={"n": int}, on_error="dead_letter", name="second").write(out)
    return made


def letters(store: Path) -> list[tuple[str, int, int]]:
    with StoreReader.open(store) as reader:
        rows = reader.dead_letters().to_pylist()
    assert len({(row["epoch"], row["number"]) for row in rows}) == len(rows)
    return sorted((row["operator"], json.loads(row["row_json"])["n"], row["attempts"]) for row in rows)


def mark(store: Path, selection: Selection) -> int:
    opened = CheckpointStore.open(store)
    try:
        return opened.change_letters(selection, LetterChange.MARK)
    finally:
        opened.close()


def check(seed: int, folder: Path) -> int:
    out, store = ms.memory_sink(), folder / f"{seed}.duckdb"
    where = f"seed {seed} reproduces it"

    def seen() -> Counter[int]:
        return Counter(row["n"] for row in out.rows())

    crashes = simulate(lambda: job(out, 7, 5), store, seed).crashes
    refused = [("first", n, 1) for n in NUMBERS if n % 7 == 0]
    refused += [("second", n, 1) for n in NUMBERS if n % 5 == 0 and n % 7]
    assert letters(store) == sorted(refused), where
    assert seen() == Counter(n for n in NUMBERS if n % 7 and n % 5), where

    assert mark(store, Selection()) == len(refused)
    crashes += simulate(lambda: job(out, 0, 15), store, seed + 1, steps_between=20).crashes
    left = [("second", n, 1 if n % 7 == 0 else 2) for n in NUMBERS if n % 15 == 0]
    assert letters(store) == sorted(left), where
    assert seen() == Counter(n for n in NUMBERS if n % 15), where

    mark(store, Selection(operator="second"))
    crashes += simulate(lambda: job(out, 0, 0), store, seed + 2, steps_between=20).crashes
    assert letters(store) == [], where
    assert seen() == Counter(NUMBERS), where
    return crashes


@pytest.mark.parametrize("seed", range(0, 20, 5))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    assert check(seed, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_seeds(tmp_path: Path) -> None:
    assert sum(check(seed, tmp_path) for seed in range(3000, 3300, 3)) > 300


# -- real kills ------------------------------------------------------------------------------------------------

JOB = """
import millstream as ms

BAD = {bad}

def checked(row):
    if BAD and row["n"] % BAD == 0:
        raise ValueError("bad")
    return row

job = ms.Job("letters")
numbers = job.read(ms.files("input/*.jsonl", name="numbers"))
checked_numbers = numbers.map(checked, schema={{"n": int}}, on_error="dead_letter", name="before")
unique = checked_numbers.deduplicate("n", name="unique")
unique.map(checked, schema={{"n": int}}, on_error="dead_letter", name="behind").write(ms.jsonl("output", hold_bytes=0))
"""

COUNT = 60
KILLS = [
    "letters.replay", "barrier.align", "subtask.acknowledge", "sink.prepared", "store.state", "store.before_commit",
    "store.after_commit", "sink.commit", "files.rename", "recovery.restore",
]  # fmt: skip


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.fixture(scope="module")
def refused(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that has finished with letters, which are marked, and whose function is mended."""
    folder = tmp_path_factory.mktemp("refused") / "job"
    folder.mkdir()
    make(folder, bad=3)
    assert nursery.run(Start(str(folder))).outcome == "finished"
    assert {n for _, n, _ in letters(folder / "job.duckdb")} == set(range(0, COUNT, 3))
    (folder / "job.py").write_text(JOB.format(bad=0))
    assert mark(folder / "job.duckdb", Selection()) == COUNT // 3
    shutil.copytree(folder, folder.with_name("kept"))
    return folder


@pytest.fixture
def folder(refused: Path) -> Path:
    """That job, as it was, and where it was: its output is known by its place."""
    shutil.rmtree(refused)
    shutil.copytree(refused.with_name("kept"), refused)
    return refused


def make(folder: Path, bad: int) -> None:
    (folder / "input").mkdir()
    for part in range(4):
        lines = "".join(json.dumps({"n": n}) + "\n" for n in range(part, COUNT, 4))
        (folder / "input" / f"{part}.jsonl").write_text(lines)
    (folder / "job.py").write_text(JOB.format(bad=bad))


def output(folder: Path) -> list[int]:
    files = (folder / "output").rglob("*.jsonl")
    return sorted(json.loads(line)["n"] for file in files for line in file.read_text().splitlines())


@pytest.mark.parametrize("point", KILLS)
def test_a_replay_killed_anywhere_has_its_effect_once(point: str, folder: Path, nursery: Nursery) -> None:
    end = nursery.run(Start(str(folder), failpoint=f"{point}=kill"))
    assert end.killed, end
    waiting = {n for _, n, _ in letters(folder / "job.duckdb")}
    assert not waiting & set(output(folder)), "a row is both in the output and still to be replayed"
    assert len(set(output(folder))) == len(output(folder))
    end = nursery.run(Start(str(folder), parallelism=3))
    assert end.outcome in ("finished", "already finished"), end
    assert output(folder) == list(range(COUNT))
    assert letters(folder / "job.duckdb") == []


@pytest.mark.parametrize("point", ["store.before_commit@2", "store.after_commit@2", "subtask.snapshot@5"])
def test_letters_of_a_killed_job_are_neither_lost_nor_doubled(point: str, nursery: Nursery, tmp_path: Path) -> None:
    make(tmp_path, bad=3)
    name, _, hits = point.partition("@")
    assert nursery.run(Start(str(tmp_path), failpoint=f"{name}=kill@{hits}")).killed
    assert nursery.run(Start(str(tmp_path), parallelism=1)).outcome == "finished"
    assert letters(tmp_path / "job.duckdb") == [("before", n, 1) for n in range(0, COUNT, 3)]
    assert output(tmp_path) == [n for n in range(COUNT) if n % 3]


@pytest.mark.parametrize(
    "words", [("drop", "job.duckdb", "--all"), ("replay", "job.duckdb", "job.py", "--all", "--undo")]
)
def test_a_killed_command_has_changed_all_or_nothing(words: tuple[str, ...], folder: Path) -> None:
    command = [sys.executable, "-m", "millstream", "deadletters", *words]
    killed = subprocess.run(
        command, cwd=folder, env={**os.environ, ENVIRONMENT: "letters.change=kill"}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    with StoreReader.open(folder / "job.duckdb") as reader:
        assert reader.count_dead_letters(Selection(marked=True)) == COUNT // 3
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    with StoreReader.open(folder / "job.duckdb") as reader:
        assert reader.count_dead_letters(Selection(marked=True)) == 0


@pytest.mark.parametrize("then", ["count_window", "processing_time"])
@pytest.mark.parametrize("parallelism", [1, 2])
def test_what_is_replayed_after_the_end_gets_through_whatever_waits_for_the_end(
    then: str, parallelism: int, tmp_path: Path
) -> None:
    out, good = ms.memory_sink(), False

    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        assert good or row["n"] != 3
        return row

    def made() -> ms.Job:
        job = ms.Job("waits")
        rows = job.read(ms.memory_source([{"n": n} for n in range(6)]))
        rows = rows.map(refuse, schema={"n": int}, on_error="dead_letter", name="refuse")
        match then:
            case "count_window":
                rows = rows.group_by("n").window(ms.count_window(2)).agg(rows=ms.count())
            case "processing_time":
                rows = rows.group_by("n").window(ms.tumbling("1h", time="processing")).agg(rows=ms.count())
        rows.select("n").write(out)
        return job

    store = tmp_path / "s.duckdb"
    made().run(store, parallelism=parallelism)
    assert sorted(row["n"] for row in out.rows()) == [0, 1, 2, 4, 5]
    assert mark(store, Selection()) == 1
    good = True
    assert made().run(store, parallelism=parallelism).outcome == "finished"
    assert sorted(row["n"] for row in out.rows()) == list(range(6)), "the letter is gone, and so is its row"


def test_a_replayed_row_is_not_left_in_hand_however_the_job_is_scheduled(tmp_path: Path) -> None:
    """It reaches map_async by a channel, and for a while is in nobody's hand."""

    async def later(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return row

    def made(out: Any, *, good: bool) -> ms.Job:
        def refuse(row: dict[str, Any]) -> dict[str, Any]:
            assert good or row["n"] != 3
            return row

        job = ms.Job("waits")
        rows = job.read(ms.memory_source([{"n": n} for n in range(6)]))
        rows = rows.map(refuse, schema={"n": int}, on_error="dead_letter", name="refuse").deduplicate("n")
        rows.map_async(later, schema={"n": int}).write(out)
        return job

    for seed in range(8):
        out, store = ms.memory_sink(), tmp_path / f"{seed}.duckdb"
        simulate(lambda: made(out, good=False), store, seed, crashes=0, parallelism=2)  # noqa: B023
        assert mark(store, Selection()) == 1
        simulate(lambda: made(out, good=True), store, seed, crashes=0, parallelism=2)  # noqa: B023
        assert sorted(row["n"] for row in out.rows()) == list(range(6)), f"seed {seed} reproduces it"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_a_replay_that_is_interrupted_reads_nothing_that_was_added_since(seed: int, tmp_path: Path) -> None:
    """Its checkpoints are not those of a finished job any more, but its sources have ended all the same."""
    out, store, good = ms.memory_sink(), tmp_path / "s.duckdb", False
    (tmp_path / "1.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(20)))

    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        assert good or row["n"] % 2
        return row

    async def slowly(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(row["n"] / 20)
        return row

    def made() -> ms.Job:
        job = ms.Job("replays")
        rows = job.read(ms.files(str(tmp_path / "*.jsonl"), schema={"n": int}, name="numbers"))
        rows = rows.map(refuse, schema={"n": int}, on_error="dead_letter", name="refuse")
        rows.map_async(slowly, schema={"n": int}).write(out)
        return job

    simulate(made, store, seed, crashes=0, parallelism=1)
    assert mark(store, Selection()) == 10
    good = True
    (tmp_path / "2.jsonl").write_text('{"n": 100}\n')
    assert simulate(made, store, seed, crashes=4, steps_between=400).crashes == 4
    assert sorted(row["n"] for row in out.rows()) == list(range(20))


def test_a_source_that_is_new_in_a_job_whose_others_have_ended_is_read(tmp_path: Path) -> None:
    control, seen, others = ms.Control(), ms.memory_sink("seen"), ms.memory_sink("others")

    async def never(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.Event().wait()
        return row

    async def at_once(row: dict[str, Any]) -> dict[str, Any]:
        return row

    def made(fn: Any, *, another: bool) -> ms.Job:
        job = ms.Job("grows")
        fn.__qualname__ = "look_up"
        rows = job.read(ms.memory_source([{"n": 1}], name="one"))
        rows.map_async(fn, schema={"n": int}, timeout=None).write(seen)
        if another:
            job.read(ms.memory_source([{"n": 2}], name="another")).write(others)
        return job

    def stop(status: Any) -> None:
        if status.checkpoints.committed > 3:
            control.stop()

    store = tmp_path / "s.duckdb"
    assert made(never, another=False).run(store, every="20ms", control=control, on_status=stop).outcome == "stopped"
    assert made(at_once, another=True).run(store).outcome == "finished"
    assert [row["n"] for row in seen.rows()] == [1]
    assert [row["n"] for row in others.rows()] == [2]


@pytest.mark.parametrize("seed", range(3))
def test_a_letter_of_map_async_counts_its_attempts_also_after_a_crash(seed: int, tmp_path: Path) -> None:
    out, store = ms.memory_sink(), tmp_path / "s.duckdb"

    async def refuse(row: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(row["n"] / 40)
        assert row["n"] % 2
        return row

    def made() -> ms.Job:
        job = ms.Job("again")
        rows = job.read(ms.memory_source([{"n": n} for n in range(8)]))
        rows.map_async(refuse, schema={"n": int}, on_error="dead_letter", name="refuse").write(out)
        return job

    simulate(made, store, seed, crashes=0, parallelism=1)
    for attempts in (2, 3):
        assert mark(store, Selection()) == 4
        simulate(made, store, seed, crashes=2, steps_between=300)
        with StoreReader.open(store) as reader:
            assert reader.dead_letters(Selection())["attempts"].to_pylist() == [attempts] * 4
    assert sorted(row["n"] for row in out.rows()) == [1, 3, 5, 7]
