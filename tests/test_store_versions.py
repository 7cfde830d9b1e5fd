"""State tables whose columns change: old rows in new columns, through pruning, drops and copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from millstream.engine.element import Epoch
from millstream.engine.state import StateDelta, StateKind, StateTable
from millstream.engine.store.savepoints import fork
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import CheckpointData, NamedDelta, OperatorState

OLD = pa.schema({"b": pa.int64(), "k": pa.string(), "n": pa.int32()})
NEW = pa.schema({"b": pa.int64(), "n": pa.int64(), "K": pa.list_(pa.float64()), "k": pa.large_string()})
DEFAULTS = {"K": [1.5, None]}


def operator(kind: StateKind, schema: pa.Schema, defaults: dict[str, object] | None = None) -> OperatorState:
    keys = ("k",) if kind is StateKind.KEYED else ("b",)
    return OperatorState("op1", "Op", "op", (StateTable("t", schema, keys, (), kind, defaults or {}),))


def commit(store: CheckpointStore, generation: Any, epoch: int, of: OperatorState, *rows: dict[str, Any]) -> None:
    (table,) = of.tables
    given = pa.Table.from_pylist(list(rows), schema=table.schema)
    if table.kind is StateKind.KEYED:
        given = given.append_column("deleted", pa.array([False] * len(rows), pa.bool_()))
    drops = (epoch - 20,) if epoch > 20 else ()
    delta = StateDelta(given, full_from=1, dropped=drops if table.kind is StateKind.ROWS else ())
    store.commit(CheckpointData(Epoch(epoch), generation, deltas=[NamedDelta("op1", "t", delta)]))
    store.prune()


def read(store: CheckpointStore, of: OperatorState) -> dict[str, Any]:
    last = store.facts().last
    assert last is not None
    batches = list(store.restore_rows("op1", of.tables[0], last.epoch))
    assert all(batch.schema.names[: len(of.tables[0].schema)] == of.tables[0].schema.names for batch in batches)
    restored = {row["k"]: row["n"] for batch in batches for row in batch.to_pylist()}
    # DuckDB knows no upper and lower case, so one of K and k has another name there.
    view = store.query("FROM state.op_t").rename_columns(of.tables[0].schema.names)
    assert restored == {row["k"]: row["n"] for row in view.to_pylist()}
    return restored


@pytest.mark.parametrize("kind", StateKind)
def test_old_and_new_rows_are_one_table_until_the_old_ones_are_gone(tmp_path: Path, kind: StateKind) -> None:
    path = tmp_path / "job.duckdb"
    old, new = operator(kind, OLD), operator(kind, NEW, DEFAULTS)
    store = CheckpointStore.open(path)
    generation = store.begin_generation([old])
    for epoch in range(1, 11):
        commit(store, generation, epoch, old, {"b": epoch, "k": f"k{epoch}", "n": epoch})
    store.close()

    store = CheckpointStore.open(path)
    generation = store.begin_generation([new])
    before = {f"k{n}": n for n in range(1, 11)}
    assert read(store, new) == before
    assert store.query("FROM state.op_t WHERE n = 1").to_pylist() == [{"b": 1, "n": 1, "K": [1.5, None], "k_1": "k1"}]
    for epoch in range(11, 21):
        commit(store, generation, epoch, new, {"b": epoch, "k": f"k{epoch}", "n": 2**40 + epoch, "K": None})
    after = before | {f"k{n}": 2**40 + n for n in range(11, 21)}
    assert read(store, new) == after
    store.close()

    fork(path, tmp_path / "copy.duckdb")
    for file in (path, tmp_path / "copy.duckdb"):
        store = CheckpointStore.open(file)
        assert read(store, new) == after
        # Started again without a change it goes on in the same table.
        generation = store.begin_generation([new])
        assert read(store, new) == after
        tables = "SELECT count(*) AS n FROM duckdb_tables() WHERE table_name LIKE 'st_op1_t%'"
        assert store.query(tables).to_pylist() == [{"n": 2}]
        if kind is StateKind.ROWS:
            for epoch in range(21, 41):
                commit(store, generation, epoch, new, {"b": epoch, "k": f"k{epoch}", "n": epoch, "K": []})
            assert read(store, new) == {f"k{n}": n for n in range(21, 41)}
            store.begin_generation([new])
            assert store.query(tables).to_pylist() == [{"n": 1}], "the old table is empty, and goes"
        store.close()


@pytest.mark.parametrize("kind", StateKind)
def test_what_was_dropped_stays_dropped_beside_what_comes_after(tmp_path: Path, kind: StateKind) -> None:
    path = tmp_path / "job.duckdb"
    first = operator(kind, OLD)
    other = operator(kind, pa.schema({"b": pa.int64(), "k": pa.string(), "n": pa.string()}))
    store = CheckpointStore.open(path)
    generation = store.begin_generation([first])
    commit(store, generation, 1, first, {"b": 1, "k": "a", "n": 1})
    store.close()
    store = CheckpointStore.open(path)
    store.begin_generation([other], {"op1": "Op"})
    last = store.facts().last
    assert (last.epoch, dict(last.tables), dict(last.operators)) == (1, {}, {})
    assert store.facts().dropped == {"op1": "Op"}
    store.close()  # killed before anything was committed: dropped all the same

    store = CheckpointStore.open(path)
    generation = store.begin_generation([other])
    assert store.query("FROM state.op_t").num_rows == 0
    commit(store, generation, 2, other, {"b": 1, "k": "b", "n": "x"})
    assert read(store, other) == {"b": "x"}
    for epoch in range(3, 14):
        commit(store, generation, epoch, other, {"b": epoch, "k": f"k{epoch}", "n": "y"})
    store.begin_generation([other])
    assert len(read(store, other)) == 12
    tables = store.query("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'st_op1_t%'").to_pylist()
    assert len(tables) == 1, "the dropped rows are gone from the file"
    store.close()
