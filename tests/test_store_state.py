"""State tables: every type survives, damage is noticed, and the file stays in proportion to what is alive."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import random
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.engine.element import Epoch
from millstream.engine.errors import SchemaError, StoreCorrupt
from millstream.engine.state import SLICES, RollingBase, StateDelta, StateKind, StateTable
from millstream.engine.store.columns import column_names, declared, storage_type, stored
from millstream.engine.store.digest import Digest, digest_of
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import CheckpointData, NamedDelta, OperatorState

NAN = float("nan")
UTC = dt.UTC
COLUMNS = {
    "bool": pa.array([True, False, None]),
    "i8": pa.array([-128, 127, None], pa.int8()),
    "u64": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "i64": pa.array([2**63 - 1, -(2**63), None], pa.int64()),
    "f16": pa.array([1.5, -2.0, None], pa.float16()),
    "f32": pa.array([1.5, NAN, None], pa.float32()),
    "f64": pa.array([NAN, float("-inf"), None]),
    "text": pa.array(["", "a\0é🎈", None]),
    "large": pa.array(["", "x" * 5_000, None], pa.large_string()),
    "view": pa.array(["", "a longer text than twelve", None], pa.string_view()),
    "bytes": pa.array([b"", b"\0\xff", None]),
    "fixed": pa.array([b"abc", b"\0\0\0", None], pa.binary(3)),
    "date32": pa.array([dt.date(1, 1, 1), dt.date(9999, 12, 31), None]),
    "date64": pa.array([dt.date(1970, 1, 2), dt.date(2024, 2, 29), None], pa.date64()),
    "time_s": pa.array([dt.time(23, 59, 59), dt.time(0), None], pa.time32("s")),
    "time_ns": pa.array([1, 86_399_999_999_999, None], pa.time64("ns")),
    "ts_s": pa.array([2**40, -1, None], pa.timestamp("s")),
    "ts_ms": pa.array([2**50, -1, None], pa.timestamp("ms")),
    "ts_us": pa.array([2**63 - 1, -(2**63) + 1, None], pa.timestamp("us")),
    "ts_ns": pa.array([2**62 + 1, -1, None], pa.timestamp("ns")),
    "ts_tz": pa.array([2**62 + 1, -1, None], pa.timestamp("ns", "Europe/Zurich")),
    "ts_utc": pa.array([dt.datetime(2024, 1, 1, tzinfo=UTC), dt.datetime(1, 1, 1, tzinfo=UTC), None]),
    "duration": pa.array([1, -1, None], pa.duration("us")),
    "dec": pa.array([decimal.Decimal("1.23"), decimal.Decimal("-" + "9" * 36 + ".99"), None], pa.decimal128(38, 2)),
    "nothing": pa.nulls(3),
    "list": pa.array([[1, None], [], None], pa.list_(pa.int64())),
    "large_list": pa.array([["a", None], [], None], pa.large_list(pa.string())),
    "pair": pa.array([[1.0, NAN], [0.0, None], None], pa.list_(pa.float64(), 2)),
    "struct": pa.array([{"a b": 1, "x": "q"}, {"a b": None, "x": None}, None]),
    "deep": pa.array([[{"v": [b"1", None]}, None], [], None], pa.list_(pa.struct({"v": pa.list_(pa.binary())}))),
    "Epoch": pa.array([1, 2, None]),
    "map": pa.array([[("a", 1), ("b", None)], [], None], pa.map_(pa.string(), pa.int64())),
    "maps": pa.array(
        [[{"m": [(1, [0])]}, None], [], None],
        pa.list_(pa.struct({"m": pa.map_(pa.int8(), pa.list_(pa.timestamp("s", "Asia/Tokyo")))})),
    ),
    "deleted": pa.array(["yes", "no", None]),
    'we"ird; --': pa.array([1, 2, None]),
    'WE"IRD; --': pa.array([3, 4, None]),
    "select": pa.array([5, 6, None]),
}
EVERYTHING = pa.table(COLUMNS)


def commit_rows(path: Path, table: StateTable, rows: pa.Table, **delta: object) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([OperatorState("op1", "Top 3: by shop!", "top", (table,))])
    named = NamedDelta("op1", table.name, StateDelta(rows, **delta))
    store.commit(CheckpointData(Epoch(1), generation, deltas=[named]))
    store.close()


def restored(path: Path, table: StateTable, epoch: int = 1) -> pa.Table:
    store = CheckpointStore.open(path)
    try:
        return pa.Table.from_batches(store.restore_rows("op1", table, Epoch(epoch)))
    finally:
        store.close()


def same(left: pa.Table, right: pa.Table) -> bool:
    """Equal, with NaN equal to NaN."""
    columns = zip(left.combine_chunks().columns, right.combine_chunks().columns, strict=True)
    return left.schema.equals(right.schema) and all(shown(a) == shown(b) for a, b in columns)


def shown(column: pa.ChunkedArray) -> str:
    """As text: Arrow's own also for times Python has none for, Python's where Arrow shows what is below a null."""
    return repr(column.to_pylist()) if pa.types.is_nested(column.type) else column.to_string()


@pytest.mark.parametrize("kind", StateKind)
def test_rows_of_every_type_come_back_as_they_were(tmp_path: Path, kind: StateKind) -> None:
    rows = EVERYTHING.append_column("bucket", pa.array([1, 1, 2]))
    table = StateTable("select", rows.schema, ("bucket",), kind=kind)
    keyed = kind is StateKind.KEYED
    given_rows = rows.append_column("deleted", pa.array([False, False, True])) if keyed else rows
    commit_rows(tmp_path / "job.duckdb", table, given_rows, full_from=1)
    back = restored(tmp_path / "job.duckdb", table)
    assert [n for i, n in enumerate(back.schema.names) if not same(back.select([i]), given_rows.select([i]))] == []
    assert same(back, given_rows)


def test_a_table_of_every_type_fits_the_next_generation(tmp_path: Path) -> None:
    rows = EVERYTHING.append_column("bucket", pa.array([1, 1, 2]))
    table = StateTable("select", rows.schema, ("bucket",), kind=StateKind.ROWS)
    commit_rows(tmp_path / "job.duckdb", table, rows)
    store = CheckpointStore.open(tmp_path / "job.duckdb")
    assert store.begin_generation([OperatorState("op1", "Top 3: by shop!", "top", (table,))]) == 2
    store.close()


def test_the_layout_of_a_delta_does_not_matter(tmp_path: Path) -> None:
    schema = pa.schema({"k": pa.string(), "v": pa.int32(), "deleted": pa.bool_()})
    table = StateTable("t", pa.schema(list(schema)[:2]), ("k",))
    letters = pa.array(["x", "a", "b"]).dictionary_encode()
    rows = pa.table(
        {
            "k": pa.chunked_array([letters.slice(1), letters.slice(0, 1)]),
            "v": pa.chunked_array([[1], [None, 3]], pa.int64()),
            "deleted": [False, True, False],
        }
    )
    commit_rows(tmp_path / "job.duckdb", table, rows, full_from=1)
    assert same(restored(tmp_path / "job.duckdb", table), rows.cast(schema))


@pytest.mark.parametrize(
    ("type_", "message"),
    [
        (pa.list_view(pa.int64()), "cannot hold values of type list_view"),
        (pa.dictionary(pa.int32(), pa.string()), "dictionary"),
        (pa.struct([]), "a struct needs fields"),
        (pa.struct([("a", pa.int64()), ("A", pa.int64())]), "upper and lower case"),
        (pa.decimal256(60, 2), "at most 38 digits"),
        (pa.month_day_nano_interval(), "interval"),
    ],
)
def test_types_that_would_not_survive_are_refused(type_: pa.DataType, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        storage_type(type_)


@pytest.mark.parametrize("name", COLUMNS)
def test_storing_and_declaring_are_inverse(name: str) -> None:
    column = COLUMNS[name]
    back = declared(stored(column, column.type), column.type)
    assert (back.type, back.to_string()) == (column.type, column.to_string())


def test_column_names_differ_in_more_than_case() -> None:
    names = column_names(StateTable("t", EVERYTHING.schema, ("Epoch",)))
    assert len({n.lower() for n in ["epoch", *names]}) == len(names) + 1


# --- digests --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.none() | st.text(max_size=3), st.none() | st.lists(st.floats(), max_size=2))), st.data())
def test_a_digest_depends_on_values_alone(
    rows: list[tuple[str | None, list[float] | None]], data: st.DataObject
) -> None:
    columns = [pa.array([r[0] for r in rows], pa.string()), pa.array([r[1] for r in rows], pa.list_(pa.float64()))]
    table = pa.Table.from_arrays(columns, names=["a", "b"])
    cut = data.draw(st.integers(0, len(rows)))
    padded = pa.concat_tables([table.slice(0, 1), table, table.slice(0, 1)]).combine_chunks()
    pieces = Digest()
    for piece in (table.slice(0, cut), padded.slice(min(1, len(rows)) + cut, len(rows) - cut)):
        for batch in piece.combine_chunks().to_batches():
            pieces.update(batch.columns)
    large = table.set_column(0, "a", table.column(0).cast(pa.large_string()))
    assert digest_of(table) == digest_of(large)
    assert digest_of(table) == pieces.hexdigest() or not rows


@pytest.mark.parametrize("name", [n for n in COLUMNS if n != "nothing"])
def test_a_digest_notices_every_change(name: str) -> None:
    column = stored(COLUMNS[name], COLUMNS[name].type)
    as_table = lambda *order: digest_of(pa.table({"c": column.take(pa.array(order))}))  # noqa: E731
    variants = [as_table(0, 1, 2), as_table(1, 0, 2), as_table(0, 1, 1), as_table(0, 2, 1), as_table(0, 1), as_table(2)]
    assert len(set(variants)) == len(variants)


def test_text_cannot_move_between_rows_or_columns_unnoticed() -> None:
    tables = [
        pa.table({"a": ["ab", "c"], "b": ["", ""]}),
        pa.table({"a": ["a", "bc"], "b": ["", ""]}),
        pa.table({"a": ["", ""], "b": ["ab", "c"]}),
        pa.table({"a": [None, "abc"], "b": ["", ""]}),
    ]
    assert len({digest_of(t) for t in tables}) == len(tables)


TEXTS = StateTable("texts", pa.schema({"bucket": pa.int64(), "text": pa.string()}), ("bucket",))


@pytest.mark.parametrize("kind", StateKind)
@pytest.mark.parametrize(
    ("tampering", "message"),
    [
        ("UPDATE st_op1_texts SET text = 'B' WHERE text = 'b'", "epoch 1.*not those that were written"),
        ("UPDATE st_op1_texts SET text = NULL WHERE text = 'b'", "epoch 1.*not those that were written"),
        ("DELETE FROM st_op1_texts WHERE text = 'b'", "epoch 1.*rows were written"),
        ("INSERT INTO st_op1_texts SELECT * FROM st_op1_texts WHERE text = 'b'", "epoch 1.*rows were written"),
        ("UPDATE st_op1_texts SET epoch = 0", "epoch (0|1).*rows were written"),
    ],
)
def test_a_tampered_row_is_noticed(tmp_path: Path, kind: StateKind, tampering: str, message: str) -> None:
    path = tmp_path / "job.duckdb"
    table = StateTable("texts", TEXTS.schema, TEXTS.keys, kind=kind)
    rows = pa.table({"bucket": [1, 1, 2], "text": ["a", "b", "c"]})
    commit_rows(path, table, rows.append_column("deleted", pa.array([False] * 3)) if kind is StateKind.KEYED else rows)
    assert restored(path, table).num_rows == 3
    with duckdb.connect(str(path)) as connection:
        connection.execute(tampering)
    with pytest.raises(StoreCorrupt, match=f"state 'texts' of operator op1, {message}"):
        restored(path, table)


def test_a_tampered_manifest_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "job.duckdb"
    commit_rows(path, TEXTS, pa.table({"bucket": [1], "text": ["a"], "deleted": [False]}))
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE manifest SET body = body || 'x'::BLOB")
    with pytest.raises(StoreCorrupt, match="manifest of epoch 1"):
        CheckpointStore.open(path)


# --- growth ---------------------------------------------------------------------------------------------------

COUNTS = StateTable("counts", pa.schema({"k": pa.int64(), "n": pa.int64()}), ("k",), ("k",))


class RollingCounts:
    """A keyed state that hands over its deltas as operators do."""

    def __init__(self, keys: int) -> None:
        self.live = dict.fromkeys(range(keys), 0)
        self._base = RollingBase()
        self._changed: dict[int, int | None] = dict(self.live)

    def change(self, changes: dict[int, int | None]) -> None:
        for key, value in changes.items():
            self._changed[key] = value
            if value is None:
                self.live.pop(key, None)
            else:
                self.live[key] = value

    def delta(self, epoch: int) -> NamedDelta:
        if epoch == 1:
            rows, full_from = self._changed, self._base.whole(epoch)
        else:
            turn, full_from = self._base.next_slice(epoch)
            rows = {k: n for k, n in self.live.items() if k % SLICES == turn} | self._changed
        self._changed = {}
        table = pa.table({"k": list(rows), "n": list(rows.values()), "deleted": [n is None for n in rows.values()]})
        schema = pa.schema([*COUNTS.schema, pa.field("deleted", pa.bool_())])
        return NamedDelta("op1", "counts", StateDelta(table.cast(schema), full_from))


def fold(store: CheckpointStore, epoch: int) -> dict[int, int]:
    """What an operator holds after it has taken back its rows."""
    live: dict[int, int] = {}
    for batch in store.restore_rows("op1", COUNTS, Epoch(epoch)):
        for k, n, deleted in zip(*(c.to_pylist() for c in batch.columns), strict=True):
            live.pop(k, None)
            if not deleted:
                live[k] = n
    return live


def run_rolling_counts(path: Path, epochs: int, keys: int) -> RollingCounts:
    """Change a tenth of the keys in every epoch; check what is restored; leave a closed store."""
    chance = random.Random(7)
    store = CheckpointStore.open(path)
    generation = store.begin_generation([OperatorState("op1", "Count", "aggregate", (COUNTS,))])
    state = RollingCounts(keys)
    for epoch in range(1, epochs + 1):
        values = [epoch, epoch * 1_000_003, None]
        state.change({chance.randrange(keys): chance.choice(values) for _ in range(keys // 10)})
        store.commit(CheckpointData(Epoch(epoch), generation, deltas=[state.delta(epoch)]))
        store.prune()
    last = store.facts().last
    assert last is not None
    assert last.tables[("op1", "counts")].full_from == epochs - SLICES + 1
    assert fold(store, epochs) == state.live
    view = store.query("SELECT * FROM state.count_counts")
    assert dict(zip(view["k"].to_pylist(), view["n"].to_pylist(), strict=True)) == state.live
    store.close()
    return state


def test_a_rolling_base_restores_the_live_state_and_keeps_the_file_bounded(tmp_path: Path) -> None:
    run_rolling_counts(tmp_path / "short.duckdb", epochs=30, keys=40_000)
    run_rolling_counts(tmp_path / "long.duckdb", epochs=60, keys=40_000)
    short, long = (tmp_path / f"{name}.duckdb" for name in ("short", "long"))
    assert long.stat().st_size <= 1.25 * short.stat().st_size


def test_small_epochs_leave_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "job.duckdb"
    sizes = []
    for start in range(1, 201, 50):
        store = CheckpointStore.open(path)
        generation = store.begin_generation([OperatorState("op1", "Count", "aggregate", (COUNTS,))])
        for epoch in range(start, start + 50):
            rows = pa.table({"k": list(range(10)), "n": [epoch] * 10, "deleted": [False] * 10})
            delta = NamedDelta("op1", "counts", StateDelta(rows, epoch))
            store.commit(CheckpointData(Epoch(epoch), generation, deltas=[delta]))
            store.prune()
        counted = ("st_op1_counts", "written", "manifest", "operators")
        counts = {t: store.query(f"SELECT count(*) AS n FROM {t}").to_pylist()[0]["n"] for t in counted}
        store.close()
        sizes.append(path.stat().st_size)
        assert counts["st_op1_counts"] <= 80
        assert counts["written"] + counts["manifest"] <= 20
        assert counts["operators"] <= 4, "two of each of the last two generations"
    assert max(sizes) <= 4_000_000
    assert sizes[3] <= 1.3 * max(sizes[1], sizes[2])


def test_the_views_show_live_rows_to_plain_duckdb(tmp_path: Path) -> None:
    path = tmp_path / "job.duckdb"
    rows_table = StateTable(
        "order", pa.schema({"bucket": pa.int64(), "x": pa.string()}), ("bucket",), kind=StateKind.ROWS
    )
    operators = [
        OperatorState("op1", "Shop totals", "aggregate", (COUNTS,)),
        OperatorState("op2", "shop TOTALS", "aggregate", (COUNTS,)),
        OperatorState("op3", "select", "join", (rows_table,)),
        OperatorState("op4", "+++", "aggregate", (StateTable("all", pa.schema({"n": pa.int64()}), ()),)),
    ]
    store = CheckpointStore.open(path)
    generation = store.begin_generation(operators)

    def counts(id: str, live: dict[int, int], full_from: int) -> NamedDelta:
        rows = pa.table({"k": list(live), "n": list(live.values()), "deleted": [False] * len(live)})
        return NamedDelta(id, "counts", StateDelta(rows, full_from))

    def epoch(number: int, *deltas: NamedDelta) -> None:
        store.commit(CheckpointData(Epoch(number), generation, deltas=deltas))

    total = lambda n: NamedDelta("op4", "all", StateDelta(pa.table({"n": [n], "deleted": [False]}), 1))  # noqa: E731
    joined = pa.table({"bucket": [1, 2], "x": ["a", "b"]})
    epoch(1, counts("op1", {1: 1, 2: 2}, 1), NamedDelta("op3", "order", StateDelta(joined)), total(5))
    # The whole state without key 2: no tombstone is needed, for nothing older will be read.
    epoch(2, counts("op1", {1: 10}, 2), counts("op2", {7: 7}, 2), total(6))
    epoch(3, NamedDelta("op3", "order", StateDelta(joined.slice(0, 0), dropped=(1,))))
    store.close()
    with duckdb.connect(str(path), read_only=True) as connection:
        answers = {
            view: connection.execute(f'SELECT * FROM state."{view}"').fetchall()
            for (view,) in connection.execute(
                "SELECT view_name FROM duckdb_views() WHERE schema_name = 'state'"
            ).fetchall()
        }
    assert answers == {
        "shop_totals_counts": [(1, 10)],
        "shop_totals_counts_op2": [(7, 7)],
        "select_order": [(2, "b")],
        "op4_all": [(6,)],
    }


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 50), st.none() | st.integers(0, 9), max_size=12), min_size=1, max_size=25)
)
def test_any_history_of_changes_restores_to_its_fold(
    tmp_path_factory: pytest.TempPathFactory, history: list[dict[int, int | None]]
) -> None:
    store = CheckpointStore.open(tmp_path_factory.mktemp("history") / "job.duckdb")
    generation = store.begin_generation([OperatorState("op1", "Count", "aggregate", (COUNTS,))])
    state = RollingCounts(3)
    folds = {}
    for epoch, changes in enumerate(history, start=1):
        state.change(changes)
        store.commit(CheckpointData(Epoch(epoch), generation, deltas=[state.delta(epoch)]))
        store.prune()
        folds[epoch] = dict(state.live)
    for epoch in [m.epoch for m in store.manifests()]:
        assert fold(store, epoch) == folds[epoch]
    store.close()


MANY = 150_000
"""Rows of one delta; DuckDB handles what is larger than a row group of 122,880 rows differently."""


@pytest.fixture(scope="module")
def large_epoch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """A store of two epochs, the second one large, with the witness of the first; the log's size before and after."""
    path = tmp_path_factory.mktemp("large") / "job.duckdb"
    store = CheckpointStore.open(path)
    generation = store.begin_generation([OperatorState("op1", "rows", "rows", (NUMBERS,))])
    store.commit(CheckpointData(Epoch(1), generation, deltas=[numbers(0, 10)]))
    log, witness = path.with_name("job.duckdb.wal"), path.with_name("job.duckdb.witness")
    before, first = log.stat().st_size, witness.read_bytes()
    store.commit(CheckpointData(Epoch(2), generation, deltas=[numbers(10, MANY)]))
    after = log.stat().st_size
    kept = path.with_name("killed")
    kept.mkdir()
    for file in (path, log):
        shutil.copy(file, kept)
    (kept / witness.name).write_bytes(first)
    store.close()
    return kept / path.name, before, after


NUMBERS = StateTable("numbers", pa.schema({"k": pa.int64(), "n": pa.int64()}), ("k",))


def numbers(start: int, stop: int) -> NamedDelta:
    columns = [np.arange(start, stop), np.arange(start, stop), np.zeros(stop - start, bool)]
    return NamedDelta("op1", "numbers", StateDelta(pa.table(columns, names=["k", "n", "deleted"]), full_from=1))


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.9, 0.999, "one byte less"])
def test_a_kill_while_the_log_is_written_leaves_nothing_of_the_epoch(
    part: float | str, large_epoch: tuple[Path, int, int], tmp_path: Path
) -> None:
    killed, before, after = large_epoch
    for file in killed.parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / killed.name
    end = after - 1 if isinstance(part, str) else before + int(part * (after - before))
    os.truncate(tmp_path / f"{path.name}.wal", end)
    store = CheckpointStore.open(path)
    try:
        last = store.facts().last
        assert last is not None
        assert last.epoch == 1
        generation = store.begin_generation([OperatorState("op1", "rows", "rows", (NUMBERS,))])
        store.commit(CheckpointData(Epoch(2), generation, deltas=[numbers(10, 13)]))
        rows = pa.Table.from_batches(store.restore_rows("op1", NUMBERS, Epoch(2)))
        assert rows["k"].to_pylist() == list(range(13))
    finally:
        store.close()
