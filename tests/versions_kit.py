"""A job in two versions: an operator whose state has grown by then, and one that was taken out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec, Output
from millstream.engine.state import DELETED, StateDelta, StateTable

OLD = pa.schema({"key": pa.int64(), "total": pa.int32()})
NEW = pa.schema({"key": pa.int64(), "seen": pa.int64(), "note": pa.string(), "total": pa.int64()})
OUT = pa.schema({"n": pa.int64(), "total": pa.int64(), "seen": pa.int64()})
ROWS = 240

JOB = """
import millstream as ms
import pyarrow as pa
from versions_kit import Totals

def numbers(start, stop):
    return pa.record_batch({"n": pa.array(range(start, stop), pa.int64())})

job = ms.Job("versions")
source = ms.generator(numbers, schema=pa.schema({"n": pa.int64()}), rows=240, batch_rows=10, name="numbers")
numbers = job.read(source)
numbers._then(Totals(VERSION), None, "totals").write(ms.jsonl("output/totals", hold_bytes=0))
if VERSION == 1:
    numbers.deduplicate("n", name="once").write(ms.jsonl("output/once", hold_bytes=0))
else:
    numbers.select(m=-ms.col("n")).write(ms.jsonl("output/minus", hold_bytes=0))
"""


@dataclass(frozen=True)
class Totals(OperatorSpec):
    """The sum so far of n % 10 by n % 4, kept in 32 bits by the first version; the second also counts rows."""

    version: int

    @property
    def kind(self) -> str:
        return "totals"

    def identity(self) -> str:
        return "totals"

    def exchange(self) -> Exchange:
        return Exchange(ExchangeKind.SINGLE)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        return {MAIN: OUT}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        if self.version == 1:
            return (StateTable("totals", OLD, ("key",)),)
        return (StateTable("totals", NEW, ("key",), defaults={"seen": 1_000}),)

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        return _Totals(self.state_tables(inputs)[0])


class _Totals(Operator):
    def __init__(self, table: StateTable) -> None:
        self._table = table
        self._rows: dict[int, dict[str, object]] = {}

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        made = []
        for n in batch.column(0).to_pylist():
            row = self._rows.setdefault(n % 4, {"key": n % 4, "total": 0, "seen": 0, "note": "new"})
            row["total"] += n % 10
            row["seen"] = row.get("seen", 0) + 1
            made.append({"n": n, "total": row["total"], "seen": row["seen"]})
        out.emit(pa.RecordBatch.from_pylist(made, schema=OUT))

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        schema = self._table.schema.append(pa.field(DELETED, pa.bool_()))
        rows = [{**row, DELETED: False} for row in self._rows.values()]
        return {"totals": StateDelta(pa.Table.from_pylist(rows, schema=schema), full_from=epoch)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        for batch in batches:
            assert batch.schema.names == [*self._table.schema.names, DELETED]
            self._rows.update((row["key"], row) for row in batch.drop_columns([DELETED]).to_pylist())


def lay_out(folder: Path) -> Path:
    for version in (1, 2):
        (folder / f"v{version}.py").write_text(JOB.replace("VERSION", str(version)))
    return folder


def lines(folder: Path) -> list[dict[str, int]]:
    return [json.loads(line) for file in folder.rglob("*.jsonl") for line in file.read_text().splitlines()]


def expected_totals() -> dict[int, int]:
    totals = dict.fromkeys(range(4), 0)
    found = {}
    for n in range(ROWS):
        totals[n % 4] += n % 10
        found[n] = totals[n % 4]
    return found
