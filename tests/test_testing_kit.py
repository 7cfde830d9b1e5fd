"""The conformance kit takes operators that keep the contract, and catches whatever breaks it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import millstream as ms
import numpy as np
import pyarrow as pa
import pytest
from millstream import col
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec, Output
from millstream.engine.state import DELETED, StateDelta, StateKind, StateTable
from millstream.operators.aggregates import count
from millstream.operators.project import Filter
from millstream.operators.union import Union
from millstream.operators.window_aggregate import WindowAggregate
from millstream.testing import BARRIER, On, Watermark, check_operator, simulate

SCHEMA = pa.schema([("key", pa.string()), ("n", pa.int64())])
TOTALS = pa.schema([("key", pa.string()), ("total", pa.int64())])


def rows(*pairs: tuple[str, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"key": key, "n": n} for key, n in pairs], schema=SCHEMA)


SCRIPT = [rows(("a", 1), ("b", 2)), rows(("a", 3)), BARRIER, rows(("c", 1), ("a", 1)), BARRIER, BARRIER]
SCRIPT += [rows(("b", 5), ("b", 1)), BARRIER, rows(("a", 2))]
TABLE = StateTable("totals", TOTALS, keys=("key",), route_by=("key",))


@dataclass(frozen=True)
class RunningTotal(OperatorSpec):
    """The sum so far, of each key, for each row; ``make`` makes the running copy."""

    make: Callable[[], Operator]
    table: StateTable = TABLE
    keys: tuple[str, ...] = ("key",)
    needed: frozenset[str] = frozenset(["key", "n"])
    names: tuple[str, ...] = ("key", "total")

    @property
    def kind(self) -> str:
        return "running_total"

    def identity(self) -> str:
        return f"running_total({self.make.__name__})"

    def exchange(self) -> Exchange:
        return Exchange(ExchangeKind.HASH, self.keys)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        return {MAIN: pa.schema([TOTALS.field(i).with_name(name) for i, name in enumerate(self.names)])}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        return (self.table,)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        return [self.needed]

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        return self.make()


class Total(Operator):
    """Keeps what it should."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        made = []
        for row in batch.to_pylist():
            self.totals[row["key"]] = self.totals.get(row["key"], 0) + row["n"]
            made.append({"key": row["key"], "total": self.totals[row["key"]]})
        out.emit(pa.RecordBatch.from_pylist(made, schema=TOTALS))

    def delta(self) -> pa.Table:
        rows = [{"key": key, "total": total, DELETED: False} for key, total in self.totals.items()]
        return pa.Table.from_pylist(rows, schema=TOTALS.append(pa.field(DELETED, pa.bool_())))

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        return {"totals": StateDelta(self.delta(), full_from=epoch)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        for batch in batches:
            self.totals.update(zip(*(batch.column(i).to_pylist() for i in (0, 1)), strict=True))


class ForgetsAtRestore(Total):
    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        pass


class LeavesAKeyOutOfSnapshots(Total):
    def delta(self) -> pa.Table:
        return super().delta().slice(0, 1)


class HandsOverOnlyTheFirstTime(Total):
    """Says that its state lies in the epoch of the delta, though later deltas do not have it."""

    done = False

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        delta = super().delta() if not self.done else super().delta().slice(0, 0)
        self.done = True
        return {"totals": StateDelta(delta, full_from=epoch)}


class AddsAtRestore(Total):
    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        for row in (row for batch in batches for row in batch.to_pylist()):
            self.totals[row["key"]] = self.totals.get(row["key"], 0) + row["total"] * 2


class LooksAtWholeBatches(Total):
    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        super().process(batch, out)
        if batch.num_rows > 1:
            out.emit(pa.RecordBatch.from_pylist([{"key": "many", "total": 0}], schema=TOTALS))


class ChangesWhatItHandedOver(Total):
    """Keeps its totals in an array that the delta shows directly."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = np.zeros(8, np.int64)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        super().process(batch, out)
        self.numbers[: len(self.totals)] = list(self.totals.values())

    def delta(self) -> pa.Table:
        used = len(self.totals)
        self.numbers[:used] = list(self.totals.values())
        totals = pa.Array.from_buffers(pa.int64(), used, [None, pa.py_buffer(self.numbers)])
        return super().delta().set_column(1, "total", totals)


class FiresAtRestore(Total):
    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        super().restore(table, batches, full_from)
        self.due = True

    due = False

    def on_watermark(self, time: int, out: Output) -> None:
        if self.due:
            out.emit(pa.RecordBatch.from_pylist([{"key": "again", "total": 0}], schema=TOTALS))


class EmitsOtherTypes(Total):
    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        out.emit(pa.record_batch({"key": ["a"], "total": [1.5]}))


class EmitsIntoAnUnknownPort(Total):
    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        out.emit(batch, "side")


class UndeclaredTable(Total):
    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        return {"other": StateDelta(self.delta())}


def test_an_operator_that_keeps_the_contract() -> None:
    total = check_operator(RunningTotal(Total), SCRIPT)
    assert [row["total"] for row in total[MAIN] if row["key"] == "a"] == [1, 4, 5, 7]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (RunningTotal(ForgetsAtRestore), "restored after every barrier.*not all in snapshot.*missing: .*too many"),
        (RunningTotal(LeavesAKeyOutOfSnapshots), "restored after every"),
        (RunningTotal(HandsOverOnlyTheFirstTime), "restored after every"),
        (RunningTotal(AddsAtRestore), "restored after every barrier"),
        (RunningTotal(LooksAtWholeBatches), "row by row.*where batches begin and end.*'many'"),
        (RunningTotal(ChangesWhatItHandedOver), "handed over at epoch 1 changed afterwards"),
        (RunningTotal(EmitsOtherTypes), r"port 'main': promised .*int64.*emits .*double"),
        (RunningTotal(EmitsIntoAnUnknownPort), r"emits into port 'side'; it has \['main'\]"),
        (RunningTotal(UndeclaredTable), "hands over the state table 'other', which it never declared"),
        (RunningTotal(Total, keys=("n",)), "on three subtasks.*equal exchange"),
        (RunningTotal(Total, replace(TABLE, route_by=())), "restored on one, three and two subtasks.*route_by"),
        (RunningTotal(Total, replace(TABLE, name="My Totals")), r"the name must be of the form \[a-z_\]"),
        (RunningTotal(Total, replace(TABLE, keys=("nope",))), r"\['nope'\] are not among its columns"),
        (RunningTotal(Total, replace(TABLE, kind=StateKind.ROWS)), "ROWS need exactly one key, an int64 bucket"),
        (RunningTotal(Total, replace(TABLE, schema=SCHEMA)), "declared .*'n'.*handed over .*'total'"),
        (RunningTotal(Total, needed=frozenset(["key", "x"])), r"columns_needed\(\) names \['x'\]"),
    ],
)
def test_operators_that_break_it(spec: OperatorSpec, message: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)running_total.*{message}"):
        check_operator(spec, SCRIPT)


def test_an_operator_that_fires_because_it_was_restored() -> None:
    with pytest.raises(AssertionError, match=r"restored after every barrier.*too many: .*'again'"):
        check_operator(RunningTotal(FiresAtRestore), [Watermark(0), *SCRIPT])


@dataclass(frozen=True)
class WrongPromise(Filter):
    """A filter that tells the planner of another predicate than it applies, or prunes what it needs."""

    told: Expr | None = None
    forgets: bool = False

    def as_filter(self) -> Expr:
        return self.told if self.told is not None else self.predicate

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> OperatorSpec:
        return replace(self, keep=frozenset(["key"])) if self.forgets else super().pruned(wanted)


def test_what_is_said_to_the_planner_is_held_against_the_rows() -> None:
    with pytest.raises(AssertionError, match=r"as_filter\(\) says it keeps other rows"):
        check_operator(WrongPromise(col("n") > 1, told=col("n") > 2), SCRIPT)
    with pytest.raises(AssertionError, match=r"making only 'n' of port 'main'|column 'n' .* is not made"):
        check_operator(WrongPromise(col("n") > 1, forgets=True), SCRIPT)


def test_engine_operators_of_all_shapes() -> None:
    at = [dt.datetime(2026, 1, 1, 0, 0, s) for s in (1, 2, 11, 3, 25)]
    batch = pa.RecordBatch.from_pydict({"key": list("aabab"), "at": pa.array(at, pa.timestamp("us"))})
    spec = WindowAggregate(("key",), ms.tumbling("10s"), (("rows", count()),), col("at"))
    mark = Watermark(1_767_225_610_000_000)
    result = check_operator(spec, [batch.slice(0, 3), BARRIER, mark, BARRIER, batch.slice(3), BARRIER])
    assert sorted(row["rows"] for row in result[MAIN]) == [1, 1, 2]
    assert len(result["late"]) == 1
    left, right = rows(("a", 1), ("b", 2)), rows(("c", 3))
    both = check_operator(Union(2), [On(0, left), BARRIER, On(1, right), On(0, left)])
    assert len(both[MAIN]) == 5
    with pytest.raises(AssertionError, match=r"inputs \[1\]: write schemas=\[...\]"):
        check_operator(Union(2), [On(1, right)])
    assert check_operator(Union(2), [On(1, right)], schemas=[SCHEMA, SCHEMA]) == {MAIN: [{"key": "c", "n": 3}]}


def test_simulation_is_decided_by_its_seed(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> tuple[Any, list[dict[str, Any]]]:
        out = ms.memory_sink()

        def make() -> ms.Job:
            job = ms.Job("j")
            job.read(ms.memory_source([{"n": n} for n in range(11)], splits=2)).filter(col("n") > 2).write(out)
            return job

        done = simulate(make, tmp_path / name, seed, parallelism=2, steps_between=30)
        return done, out.rows()

    first, rows = run("a", 1)
    assert run("b", 1) == (first, rows)
    assert first.crashes >= 1
    assert sorted(row["n"] for row in rows) == list(range(3, 11))
