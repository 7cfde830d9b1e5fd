"""The clock of operators: they are told the time when it is due, also when no data flows, and after a restart."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from clock_kit import Bench, rows
from millstream.engine.graph import Edge
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec, Output
from millstream.engine.state import DELETED, StateDelta, StateTable
from millstream.engine.time import END_OF_TIME
from millstream.stream import Stream
from millstream.testing import BARRIER, Tick, Watermark, check_operator

DELAYED = pa.schema({"n": pa.int64(), "told": pa.int64()})
SECOND = 1_000_000
DELAY = 10 * SECOND


class Delays(Operator):
    """Passes each row on ten seconds after it came."""

    uses_clock = True

    def __init__(self) -> None:
        self.now = 0
        self.due: dict[int, int] = {}
        self.told: list[int] = []

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        self.due.update(dict.fromkeys(batch.column(0).to_pylist(), self.now + DELAY))

    def next_due(self) -> int | None:
        return min(self.due.values(), default=None)

    def on_clock(self, now: int, out: Output) -> None:
        self.told.append(now)
        self.now = now if now != END_OF_TIME else self.now
        gone = [n for n, due in self.due.items() if due <= now]
        out.emit(pa.record_batch({"n": gone, "told": [now] * len(gone)}, schema=DELAYED))
        self.due = {n: due for n, due in self.due.items() if due > now}

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        rows = [{"n": n, "due": due, DELETED: False} for n, due in self.due.items()]
        schema = pa.schema({"n": pa.int64(), "due": pa.int64(), DELETED: pa.bool_()})
        return {"due": StateDelta(pa.Table.from_pylist(rows, schema), full_from=epoch)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        for batch in batches:
            self.due.update(zip(*(batch.column(i).to_pylist() for i in (0, 1)), strict=True))


class ForgetsTheTime(Delays):
    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        return {}


class ActsBeforeItIsDue(Delays):
    def on_clock(self, now: int, out: Output) -> None:
        super().on_clock(now + SECOND if now < END_OF_TIME else now, out)


class StaysDue(Delays):
    def on_clock(self, now: int, out: Output) -> None:
        self.now = now


@dataclass(frozen=True)
class Delay(OperatorSpec):
    make: type[Delays] = Delays
    made: list[Delays] | None = None

    @property
    def kind(self) -> str:
        return "delay"

    def identity(self) -> str:
        return "delay"

    def exchange(self) -> Exchange:
        return Exchange(ExchangeKind.HASH, ("n",))

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        return {MAIN: DELAYED}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        schema = pa.schema({"n": pa.int64(), "due": pa.int64()})
        return (StateTable("due", schema, keys=("n",), route_by=("n",)),)

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        operator = self.make()
        if self.made is not None:
            self.made.append(operator)
        return operator


SCRIPT = [rows(1, 2), BARRIER, Tick(4 * SECOND), rows(3), Watermark(5), BARRIER]
SCRIPT += [Tick(10 * SECOND), rows(4), BARRIER, Tick(14 * SECOND), Tick(15 * SECOND)]


def test_the_kit_moves_the_clock() -> None:
    told = [(1, 10), (2, 10), (3, 14), (4, END_OF_TIME // SECOND)]
    assert [(row["n"], row["told"] // SECOND) for row in check_operator(Delay(), SCRIPT)[MAIN]] == told


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (ForgetsTheTime, "restored after every barrier.*missing"),
        (ActsBeforeItIsDue, "on_clock"),
        (StaysDue, "still due at 10000000 after on_clock"),
    ],
)
def test_the_kit_catches(make: type[Delays], fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        check_operator(Delay(make), SCRIPT)


# -- in a job --------------------------------------------------------------------------------------------------


class Delaying(Bench):
    """A job whose rows are delayed."""

    def __init__(self, folder: Path) -> None:
        self.made: list[Delays] = []
        super().__init__(folder, self._delayed)

    def _delayed(self, stream: Stream) -> Stream:
        node = stream._graph.operator(Delay(made=self.made), [stream._edge])
        return Stream(stream._graph, Edge(node.id), None)

    def got(self) -> list[int]:
        return sorted(row["n"] for row in self.out.rows())


def test_an_operator_is_woken_though_no_data_flows(tmp_path: Path) -> None:
    bench = Delaying(tmp_path)
    bench.faucet.numbers = [1, 2, 3]
    assert bench.run(until=8) == "stopped"
    assert bench.got() == []
    assert bench.run(until=14) == "stopped"
    assert bench.got() == [1, 2, 3]


@pytest.mark.parametrize("stop", [True, False], ids=["stopped", "interrupted"])
def test_what_came_due_while_the_job_was_down_is_done_at_once(stop: bool, tmp_path: Path) -> None:
    bench = Delaying(tmp_path)
    bench.faucet.numbers = [1, 2, 3]
    bench.run(until=5, stop=stop)
    bench.clock.advance(60)
    bench.faucet.numbers.append(4)
    bench.made.clear()
    bench.run(until=67)
    assert bench.got() == [1, 2, 3]
    for operator in bench.made:
        assert min(operator.told, default=END_OF_TIME) >= 65 * SECOND
    bench.run(until=80)
    assert bench.got() == [1, 2, 3, 4]


def test_when_the_input_has_ended_what_waits_for_the_clock_happens_at_once(tmp_path: Path) -> None:
    bench = Delaying(tmp_path)
    bench.faucet.numbers, bench.faucet.ended = list(range(20)), True
    assert bench.run(until=None) == "finished"
    assert bench.got() == list(range(20))
    assert bench.clock.monotonic() < 10


def test_a_wall_clock_that_is_set_back_does_not_set_operators_back(tmp_path: Path) -> None:
    bench = Delaying(tmp_path)
    bench.faucet.numbers = list(range(9))
    wall, turns = bench.clock.wall, random.Random(1)
    bench.clock.wall = lambda: wall() - turns.choice([0, 0, 5 * SECOND])  # type: ignore[method-assign]
    bench.run(until=20)
    assert bench.got() == list(range(9))
    assert all(operator.told == sorted(operator.told) for operator in bench.made)
