"""Measures deduplication beside DuckDB and a Python set: ``python -m millstream.benchmarks.deduplicate``.

Every contender runs in a process of its own and sees the same batches: all ids for the first time, then ids drawn from
them. Millstream then goes on, epoch by epoch, with a checkpoint store, and is restored in the end.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol

import click
import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from millstream.engine.element import Epoch
from millstream.engine.operator import MAIN
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import CheckpointData, NamedDelta, OperatorState
from millstream.operators.deduplicate import DUPLICATES, Deduplicate

BATCH_ROWS: Final = 65_536
_LETTERS: Final = np.frombuffer(b"0123456789abcdefghijklmnopqrstuv", np.uint8)

Measures = Mapping[str, float]
Words = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        kind: ``int64``, or ``string`` for ids of 16 to 36 characters.
        ids: how many different ones.
        again: how many rows of ids seen before.
        changed: new ids per epoch.
        epochs: how many epochs after the first.
    """

    kind: str
    ids: int
    again: int
    changed: int
    epochs: int

    @property
    def schema(self) -> pa.Schema:
        """The only column."""
        return pa.schema({"id": pa.string() if self.kind == "string" else pa.int64()})

    def batch(self, numbers: Words) -> pa.RecordBatch:
        """The ids with these numbers; equal numbers, equal ids."""
        mixed = _mixed(numbers.astype(np.uint64))
        if self.kind != "string":
            return pa.record_batch([pa.array(mixed.view(np.int64))], schema=self.schema)
        # 64 random bits twice over are 26 characters of 5 bits: enough to cut 16 of them, and repeat some for 36.
        words = np.stack([mixed, _mixed(mixed)], axis=1)
        digits = np.hstack([words >> np.uint64(5 * place) & np.uint64(31) for place in range(12)]).astype(np.uint8)
        letters = _LETTERS[np.hstack([digits, digits[:, :12]])]
        sizes = (16 + mixed % np.uint64(21)).astype(np.int32)
        offsets = np.zeros(len(sizes) + 1, np.int32)
        np.cumsum(sizes, out=offsets[1:])
        data = letters[np.arange(letters.shape[1]) < sizes[:, None]]
        text = pa.Array.from_buffers(pa.string(), len(sizes), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        return pa.record_batch([text], schema=self.schema)

    def new_ids(self, start: int, count: int) -> Iterator[pa.RecordBatch]:
        """Ids for the first time."""
        for at in range(start, start + count, BATCH_ROWS):
            yield self.batch(np.arange(at, min(at + BATCH_ROWS, start + count)))

    def seen_ids(self) -> Iterator[pa.RecordBatch]:
        """Ids drawn from those seen before."""
        draw = np.random.default_rng(7)
        for at in range(0, self.again, BATCH_ROWS):
            yield self.batch(draw.integers(0, self.ids, min(BATCH_ROWS, self.again - at)))


def _mixed(numbers: Words) -> Words:
    """Random-looking and all different, as splitmix64 makes them."""
    numbers = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = numbers ^ (numbers >> np.uint64(31))
    return mixed


class _Counting:
    """An output that only counts."""

    def __init__(self) -> None:
        self.rows = {MAIN: 0, DUPLICATES: 0}

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        self.rows[port] += batch.num_rows

    def dead_letter(self, rows: pa.RecordBatch, *ignored: object, **more: object) -> None:
        raise AssertionError(f"deduplication takes every row, not so {rows.num_rows}, {ignored}, {more}")


class _Contender(Protocol):
    def feed(self, batch: pa.RecordBatch) -> None: ...


class _PythonSet:
    def __init__(self) -> None:
        self.seen: set[Any] = set()

    def feed(self, batch: pa.RecordBatch) -> None:
        seen = self.seen
        new = [value not in seen and not seen.add(value) for value in batch.column(0).to_pylist()]  # type: ignore[func-returns-value]
        batch.filter(pa.array(new))


class _Millstream:
    def __init__(self, settings: Settings) -> None:
        self.spec = Deduplicate(("id",)).pruned({MAIN: frozenset(["id"]), DUPLICATES: frozenset()})
        self.operator = self.spec.build([settings.schema])
        self.out = _Counting()

    def feed(self, batch: pa.RecordBatch) -> None:
        self.operator.process(batch, self.out)


def _resident() -> int:
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _fed(contender: _Contender, batches: Iterator[pa.RecordBatch]) -> list[float]:
    """Seconds of each batch; making it does not count."""
    taken = []
    for batch in batches:
        start = time.perf_counter()
        contender.feed(batch)
        taken.append(time.perf_counter() - start)
    return taken


def _warm(settings: Settings) -> None:
    """Compile, and make everything once."""
    contender = _Millstream(settings)
    for _ in range(2):
        _fed(contender, settings.new_ids(0, 100))
    contender.operator.snapshot(1)


def _stream(settings: Settings, make: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    _fed(make(), settings.new_ids(0, 1_000))
    before = _resident()
    contender = make()
    new = _fed(contender, settings.new_ids(0, settings.ids))
    held = _resident() - before
    again = _fed(contender, settings.seen_ids())
    quarter = max(1, len(new) // 4)
    return contender, {
        "new ids, M rows/s": settings.ids / sum(new) / 1e6,
        "ids seen before, M rows/s": settings.again / sum(again) / 1e6,
        "first / last quarter of the new ids, time": sum(new[:quarter]) / sum(new[-quarter:]),
        "longest batch, ms": max(new) * 1e3,
        "bytes per id": held / settings.ids,
    }


def python_set(settings: Settings) -> Measures:
    """Measure a set of Python values."""
    return _stream(settings, _PythonSet)[1]


def duckdb_sql(settings: Settings) -> Measures:
    """Measure DuckDB over all rows at once, one thread: it keeps nothing from one query to the next."""
    rows = pa.Table.from_batches([*settings.new_ids(0, settings.ids), *settings.seen_ids()])
    measured = {}
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("rows", rows)
        for name, select in (
            ("DISTINCT ON", "SELECT DISTINCT ON (id) id FROM rows"),
            ("GROUP BY", "SELECT id FROM rows GROUP BY id"),
        ):
            start = time.perf_counter()
            found = connection.execute(f"SELECT count(*) FROM ({select})").fetchall()  # noqa: S608
            measured[f"{name}, M rows/s"] = len(rows) / (time.perf_counter() - start) / 1e6
            assert found == [(settings.ids,)], found
    return measured


def millstream(settings: Settings) -> Measures:
    """Measure the operator, then with checkpoints."""
    _warm(settings)
    running, measured = _stream(settings, partial(_Millstream, settings))
    assert running.out.rows == {MAIN: settings.ids, DUPLICATES: 0}, running.out.rows
    with tempfile.TemporaryDirectory() as folder:
        measured |= _checkpoints(settings, running, Path(folder) / "store.duckdb")
    return measured


def _checkpoints(settings: Settings, running: _Millstream, path: Path) -> dict[str, float]:
    (table,) = running.spec.state_tables([settings.schema])
    store = CheckpointStore.open(path)
    generation = store.begin_generation([OperatorState("o1", "deduplicate", "deduplicate", (table,))])
    snapshots, commits, rows = [], [], []
    for epoch in range(1, settings.epochs + 2):
        if epoch > 1:
            _fed(running, settings.new_ids(settings.ids + epoch * settings.changed, settings.changed))
        start = time.perf_counter()
        deltas = running.operator.snapshot(epoch)
        handed_over = time.perf_counter()
        named = [NamedDelta("o1", name, delta) for name, delta in deltas.items()]
        store.commit(CheckpointData(Epoch(epoch), generation, deltas=named))
        commits.append(time.perf_counter() - handed_over)
        snapshots.append(handed_over - start)
        rows.append(sum(delta.rows.num_rows for delta in deltas.values()))
    restored = _Millstream(settings)
    start = time.perf_counter()
    restored.operator.restore(table.name, store.restore_rows("o1", table, Epoch(settings.epochs + 1)), 1)
    took = time.perf_counter() - start
    _fed(restored, settings.seen_ids())
    assert restored.out.rows[MAIN] == 0, "an id was lost"
    store.close()
    return {
        "snapshot of an epoch, ms": median(snapshots[1:]) * 1e3,
        "longest, ms": max(snapshots[1:]) * 1e3,
        "its rows": median(rows[1:]),
        "its commit (another thread's work), ms": median(commits[1:]) * 1e3,
        "snapshot of all ids, ms": snapshots[0] * 1e3,
        "restore of all ids, s": took,
        "store, bytes per id": path.stat().st_size / sum(rows),
    }


CONTENDERS: Final = {"Millstream": millstream, "DuckDB": duckdb_sql, "Python set": python_set}


@click.command()
@click.option("--ids", default=10_000_000, show_default=True, help="Different ids.")
@click.option("--again", default=2_000_000, show_default=True, help="Rows of ids seen before.")
@click.option("--changed", default=100_000, show_default=True, help="New ids per epoch.")
@click.option("--epochs", default=20, show_default=True, help="Epochs after the first.")
@click.option("--kind", multiple=True, default=("int64", "string"), type=click.Choice(["int64", "string"]))
@click.option("--contender", multiple=True, default=tuple(CONTENDERS), type=click.Choice(list(CONTENDERS)))
def main(ids: int, again: int, changed: int, epochs: int, kind: tuple[str, ...], contender: tuple[str, ...]) -> None:
    """Measure deduplication of ids that are all different, beside DuckDB and a Python set."""
    processes = multiprocessing.get_context("spawn")
    for one in kind:
        settings = Settings(one, ids, again, changed, epochs)
        click.echo(f"\n{ids:,} ids, {one}")
        for name in contender:
            with processes.Pool(1) as pool:
                measured = pool.apply(CONTENDERS[name], [settings])
            click.echo(f"  {name}")
            for what, value in measured.items():
                click.echo(f"    {what:<42} {value:>12,.2f}")


if __name__ == "__main__":
    main()
