"""The checkpoint store's contract: what is committed comes back, and nothing else does."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from millstream.engine import failpoints
from millstream.engine.element import BarrierKind, Epoch, Generation
from millstream.engine.errors import InternalError, StateMismatch, StoreCorrupt, StoreError, StoreLocked
from millstream.engine.failpoints import FailpointError
from millstream.engine.sink import Committable
from millstream.engine.source import DeadLetter, Split
from millstream.engine.state import StateDelta, StateKind, StateTable
from millstream.engine.store.instance import check_version
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import CheckpointData, NamedDelta, NodeLetters, OperatorState, SplitPosition

COUNTS = StateTable("counts", pa.schema({"k": pa.int64(), "n": pa.int64()}), ("k",), ("k",))
ROWS = StateTable("rows", pa.schema({"bucket": pa.int64(), "text": pa.string()}), ("bucket",), kind=StateKind.ROWS)


def operator(*tables: StateTable, id: str = "op1", name: str = "Count", parallelism: int = 1) -> OperatorState:
    return OperatorState(id, name, "aggregate", tables, parallelism)


def keyed(live: dict[int, int | None], full_from: int, subtask: int = 0, id: str = "op1") -> NamedDelta:
    """A delta of COUNTS; None means deleted."""
    rows = pa.table(
        {"k": list(live), "n": list(live.values()), "deleted": [n is None for n in live.values()]},
        schema=pa.schema([*COUNTS.schema, pa.field("deleted", pa.bool_())]),
    )
    return NamedDelta(id, "counts", StateDelta(rows, full_from), subtask)


def bucketed(rows: list[tuple[int, str]], dropped: tuple[int, ...] = ()) -> NamedDelta:
    table = pa.table({"bucket": [b for b, _ in rows], "text": [t for _, t in rows]}, schema=ROWS.schema)
    return NamedDelta("op1", "rows", StateDelta(table, dropped=dropped))


def live_counts(store: CheckpointStore, epoch: int, id: str = "op1") -> dict[int, int]:
    live: dict[int, int] = {}
    for batch in store.restore_rows(id, COUNTS, Epoch(epoch)):
        for row in batch.to_pylist():
            live.pop(row["k"], None)
            if not row["deleted"]:
                live[row["k"]] = row["n"]
    return live


def live_rows(store: CheckpointStore, epoch: int) -> list[tuple[int, str]]:
    batches = store.restore_rows("op1", ROWS, Epoch(epoch))
    return [(row["bucket"], row["text"]) for batch in batches for row in batch.to_pylist()]


def at(split: str, position: object, max_time: int | None = None, finished: bool = False) -> SplitPosition:
    return SplitPosition("src", Split(split, {"path": f"/data/{split}"}), position, max_time, finished)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.duckdb"


def test_a_new_store_knows_nothing_and_keeps_its_job_id(path: Path) -> None:
    store = CheckpointStore.open(path)
    facts = store.facts()
    store.close()
    again = CheckpointStore.open(path)
    assert (facts.last, facts.witness, facts.generation) == (None, None, 0)
    assert again.job_id == facts.job_id
    again.close()


def test_what_a_new_store_has_in_mind_is_what_is_read_when_it_is_opened_again(path: Path) -> None:
    operators = [operator(COUNTS, ROWS), OperatorState("src", "orders", "source", (), 1, folders=("/data",))]
    store = CheckpointStore.open(path)
    began = store.begin_generation(operators)
    assert (began, store.generation) == (1, 1)
    before = store.facts()
    given = CheckpointData(Epoch(1), began, deltas=[keyed({1: 7}, 1), bucketed([(3, "c")])], positions=[at("a", 5)])
    manifest = store.commit(given)
    facts = store.facts()
    store.close()
    again = CheckpointStore.open(path)
    assert before.folders == {"op1": (), "src": ("/data",)}
    assert (again.facts(), again.manifests(), again.generation) == (facts, [manifest], 1)
    assert (live_counts(again, 1), live_rows(again, 1)) == ({1: 7}, [(3, "c")])
    again.close()


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    CheckpointStore.open(tmp_path / "a" / "b" / "job.duckdb").close()
    assert (tmp_path / "a" / "b" / "job.duckdb").exists()


def test_everything_of_an_epoch_comes_back_after_reopening(path: Path) -> None:
    store = CheckpointStore.open(path)
    operators = [operator(COUNTS, ROWS), operator(id="src", name="orders"), operator(id="snk", name="out")]
    generation = store.begin_generation(operators)
    data = CheckpointData(
        Epoch(1),
        generation,
        BarrierKind.FINAL,
        deltas=[keyed({1: 10, 2: None}, 1), bucketed([(5, "x"), (4, "")])],
        positions=[at("b", {"offset": 3, "raw": b"\x00"}, 77, finished=True), at("a", None)],
        committables=[("snk", Committable({"file": "x"})), ("snk", Committable({"n": [1, 2.5, None]}))],
        dead_letters=[NodeLetters("src", "orders", 0, DeadLetter("orders", "a", "17", "not JSON", b"{\xff"))],
        watermarks={"op1": 2**63 - 1, "src": -5},
    )
    manifest = store.commit(data)
    store.close()

    store = CheckpointStore.open(path)
    facts = store.facts()
    assert facts.last == manifest
    assert facts.last.finished
    assert facts.last.operators == {o.id: o for o in operators}
    assert facts.last.watermarks == {"op1": 2**63 - 1, "src": -5}
    assert (facts.witness, facts.generation) == (1, 1)
    assert live_counts(store, 1) == {1: 10}
    assert live_rows(store, 1) == [(4, ""), (5, "x")]
    assert store.positions(Epoch(1)) == [at("a", None), at("b", {"offset": 3, "raw": b"\x00"}, 77, finished=True)]
    assert store.committables(Epoch(1)) == {"snk": [c for _, c in data.committables]}
    (letter,) = store.dead_letters().to_pylist()
    told = {"epoch": 1, "number": 1, "source": "orders", "node": "src", "split": "a", "position": "17", "attempts": 1}
    told |= {"error": "not JSON", "raw": b"{\xff", "replay": False, "operator": None}
    assert told.items() <= letter.items()
    store.close()


def test_the_last_row_of_a_key_wins_within_and_across_epochs(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS)])
    rows = pa.table({"k": [1, 1, 2], "n": [1, 2, 3], "deleted": [False] * 3})
    twice = NamedDelta("op1", "counts", StateDelta(rows, 1))
    store.commit(CheckpointData(Epoch(1), generation, deltas=[twice]))
    store.commit(CheckpointData(Epoch(2), generation, deltas=[keyed({2: 30, 3: 4}, 1)]))
    store.commit(CheckpointData(Epoch(4), generation, deltas=[keyed({1: None, 3: 5}, 1)]))
    assert live_counts(store, 1) == {1: 2, 2: 3}
    assert live_counts(store, 2) == {1: 2, 2: 30, 3: 4}
    assert live_counts(store, 4) == {2: 30, 3: 5}
    store.close()


def test_epochs_without_a_delta_carry_full_from_on(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS)])
    store.commit(CheckpointData(Epoch(1), generation, deltas=[keyed({1: 1}, 1)]))
    for epoch in range(2, 40):
        store.commit(CheckpointData(Epoch(epoch), generation))
        store.prune()
    assert store.facts().last.tables[("op1", "counts")].full_from == 1
    assert live_counts(store, 39) == {1: 1}
    store.close()


def test_full_from_is_that_of_the_slowest_subtask(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS, parallelism=2)])
    full_from = lambda: store.facts().last.tables[("op1", "counts")].full_from  # noqa: E731
    store.commit(CheckpointData(Epoch(1), generation, deltas=[keyed({1: 1}, 1, 0), keyed({2: 1}, 1, 1)]))
    store.commit(CheckpointData(Epoch(2), generation, deltas=[keyed({1: 2}, 2, 0)]))
    assert full_from() == 1
    store.commit(CheckpointData(Epoch(3), generation, deltas=[keyed({2: 3}, 3, 1)]))
    assert full_from() == 2
    store.close()

    # Restored with three subtasks: until each of them has spoken, what was restored is still needed.
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS, parallelism=3)])
    for subtask, expected in ((0, 2), (2, 2), (1, 4)):
        epoch = 4 + (0, 2, 1).index(subtask)
        store.commit(CheckpointData(Epoch(epoch), generation, deltas=[keyed({}, epoch, subtask)]))
        assert full_from() == expected
    store.close()


def test_dropped_buckets_do_not_come_back_but_may_be_used_again(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(ROWS)])
    store.commit(CheckpointData(Epoch(1), generation, deltas=[bucketed([(2, "b"), (1, "a"), (2, "c")])]))
    store.commit(CheckpointData(Epoch(2), generation, deltas=[bucketed([(3, "d"), (2, "never")], dropped=(2,))]))
    store.commit(CheckpointData(Epoch(3), generation, deltas=[bucketed([(2, "e")])]))
    assert live_rows(store, 1) == [(1, "a"), (2, "b"), (2, "c")]
    assert live_rows(store, 2) == [(1, "a"), (3, "d")]
    assert live_rows(store, 3) == [(1, "a"), (3, "d"), (2, "e")]
    for epoch in range(4, 20):
        store.commit(CheckpointData(Epoch(epoch), generation))
        store.prune()
    assert live_rows(store, 19) == [(1, "a"), (3, "d"), (2, "e")]
    assert store.query("SELECT count(*) AS n FROM st_op1_rows").to_pylist() == [{"n": 3}]
    assert store.query("SELECT count(*) AS n FROM dropped").to_pylist() == [{"n": 0}]
    store.close()


def test_positions_are_the_latest_at_each_epoch_however_many_there_are(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([])
    store.commit(CheckpointData(Epoch(1), generation, positions=[at(f"f{i:04}", i) for i in range(1_000)]))
    for epoch in range(2, 30):
        moved = [at("f0007", epoch * 10), at("new", epoch)]
        store.commit(CheckpointData(Epoch(epoch), generation, positions=moved))
        store.prune()
    store.close()
    store = CheckpointStore.open(path)
    for epoch in [m.epoch for m in store.manifests()]:
        positions = {p.split.id: p.position for p in store.positions(epoch)}
        expected = {f"f{i:04}": i for i in range(1_000)} | {"f0007": epoch * 10, "new": epoch}
        assert positions == expected
    store.close()


def test_superseded_positions_are_pruned(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([])
    for epoch in range(1, 41):
        store.commit(CheckpointData(Epoch(epoch), generation, positions=[at(f"f{i}", epoch) for i in range(100)]))
        store.prune()
    assert store.query("SELECT count(*) AS n FROM positions").to_pylist()[0]["n"] <= 1_500
    assert {p.position for p in store.positions(Epoch(40))} == {40}
    store.close()


def test_at_least_three_epochs_stay_restorable_and_old_ones_are_refused(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS)])
    for epoch in range(1, 51):
        store.commit(CheckpointData(Epoch(epoch), generation, deltas=[keyed({epoch % 3: epoch}, max(1, epoch - 5))]))
        store.prune()
        epochs = [m.epoch for m in store.manifests()]
        assert epochs[-3:] == list(range(max(1, epoch - 2), epoch + 1))
        assert len(epochs) <= 8
    for epoch in epochs:
        assert live_counts(store, epoch) == {e % 3: e for e in (epoch - 2, epoch - 1, epoch)}
    with pytest.raises(StoreError, match=r"epoch 1 is not in the store.*50"):
        store.positions(Epoch(1))
    store.close()


def test_generations_count_up_and_older_ones_cannot_commit(path: Path) -> None:
    store = CheckpointStore.open(path)
    first = store.begin_generation([])
    second = store.begin_generation([])
    assert (first, second) == (1, 2)
    with pytest.raises(InternalError, match="generation 1"):
        store.commit(CheckpointData(Epoch(1), first))
    store.commit(CheckpointData(Epoch(1), second))
    with pytest.raises(InternalError, match="epoch 1 cannot follow epoch 1"):
        store.commit(CheckpointData(Epoch(1), second))
    store.close()


def test_an_operator_that_was_taken_out_comes_back_empty(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS), operator(COUNTS, id="op2")])
    store.commit(CheckpointData(Epoch(1), generation, deltas=[keyed({1: 1}, 1), keyed({2: 2}, 1, id="op2")]))
    generation = store.begin_generation([operator(COUNTS)])
    store.commit(CheckpointData(Epoch(2), generation))
    assert list(store.facts().last.tables) == [("op1", "counts")]
    assert live_counts(store, 1, "op2") == {2: 2}
    generation = store.begin_generation([operator(COUNTS), operator(COUNTS, id="op2")])
    store.commit(CheckpointData(Epoch(3), generation, deltas=[keyed({9: 9}, 3, id="op2")]))
    assert live_counts(store, 3, "op2") == {9: 9}
    assert live_counts(store, 3) == {1: 1}
    store.close()


def test_state_of_another_type_is_refused_with_the_difference(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS)])
    store.commit(CheckpointData(Epoch(1), generation, deltas=[keyed({1: 1}, 1)]))
    other = StateTable("counts", pa.schema({"k": pa.int64(), "n": pa.string()}), ("k",))
    with pytest.raises(StateMismatch, match="n: int64 in the checkpoint, string in the job"):
        store.begin_generation([operator(other)])
    generation = store.begin_generation([operator(COUNTS)])
    assert live_counts(store, 1) == {1: 1}
    store.close()


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (NamedDelta("nobody", "counts", StateDelta(pa.table({}))), "never declared"),
        (NamedDelta("op1", "counts", StateDelta(pa.table({"k": [1]}))), r"columns \['k'\]"),
        (keyed({1: 1}, 1, subtask=3), "subtask 3.*parallelism of 1"),
    ],
)
def test_deltas_that_contradict_the_declaration_change_nothing(path: Path, delta: NamedDelta, message: str) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS)])
    with pytest.raises(InternalError, match=message):
        store.commit(CheckpointData(Epoch(1), generation, deltas=[delta]))
    store.commit(CheckpointData(Epoch(1), generation, deltas=[keyed({1: 1}, 1)]))
    assert live_counts(store, 1) == {1: 1}
    store.close()


def test_a_position_that_msgpack_cannot_carry_names_its_split(path: Path) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([])
    with pytest.raises(InternalError, match="split 'f1' of source src cannot be kept"):
        store.commit(CheckpointData(Epoch(1), generation, positions=[at("f1", object())]))
    store.close()


@pytest.mark.parametrize("name", ["store.begin", "store.state", "store.before_commit"])
def test_a_failure_before_the_commit_point_leaves_nothing(path: Path, name: str) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS)])
    failpoints.arm(f"{name}=raise")
    try:
        with pytest.raises(FailpointError):
            store.commit(CheckpointData(Epoch(1), generation, deltas=[keyed({1: 1}, 1)], positions=[at("a", 1)]))
    finally:
        failpoints.disarm()
    assert store.facts().last is None
    store.commit(CheckpointData(Epoch(2), generation, deltas=[keyed({2: 2}, 2)]))
    assert live_counts(store, 2) == {2: 2}
    assert store.positions(Epoch(2)) == []
    store.close()


@pytest.mark.parametrize("name", ["store.after_commit", "store.witness"])
def test_a_failure_behind_the_commit_point_does_not_undo_it(path: Path, name: str) -> None:
    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS)])
    failpoints.arm(f"{name}=raise")
    try:
        with pytest.raises(FailpointError):
            store.commit(CheckpointData(Epoch(1), generation, deltas=[keyed({1: 1}, 1)]))
    finally:
        failpoints.disarm()
    assert (store.facts().last.epoch, store.facts().witness) == (1, None)
    store.close()
    store = CheckpointStore.open(path)
    assert live_counts(store, 1) == {1: 1}
    store.close()


def test_a_second_open_is_refused_and_names_the_holder(path: Path) -> None:
    store = CheckpointStore.open(path)
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        CheckpointStore.open(path)
    code = (
        "import sys; from pathlib import Path\n"
        "from millstream.engine.store.store import CheckpointStore\n"
        "CheckpointStore.open(Path(sys.argv[1]))"
    )
    other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert f"StoreLocked: {path} is in use by process {os.getpid()}" in other.stderr
    store.close()
    CheckpointStore.open(path).close()


def test_a_store_whose_closing_is_interrupted_is_let_go_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        if name == "store.checkpoint":
            raise KeyboardInterrupt

    store = CheckpointStore.open(path)
    generation = store.begin_generation([operator(COUNTS)])
    store.commit(CheckpointData(Epoch(1), generation, deltas=[keyed({1: 1}, 1)]))
    monkeypatch.setattr("millstream.engine.store.store.hit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.close()
    monkeypatch.undo()
    again = CheckpointStore.open(path)
    assert live_counts(again, 1) == {1: 1}
    again.close()


def test_a_store_held_by_another_program_is_refused(path: Path) -> None:
    CheckpointStore.open(path).close()
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked, match="another program has the file open"):
            CheckpointStore.open(path)
        other.stdin.close()
    CheckpointStore.open(path).close()


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give another path"):
        CheckpointStore.open(tmp_path / "file" / "job.duckdb")


def test_a_read_only_folder_is_explained() -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from millstream.engine.store.store import CheckpointStore\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"  # root may write anywhere
        "CheckpointStore.open(Path(sys.argv[1]))"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        command = [sys.executable, "-c", code, Path(folder) / "job.duckdb"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        Path(folder).chmod(0o700)
    assert "StoreError: cannot open the lock file" in ran.stderr
    assert "writable" in ran.stderr


def test_a_file_that_is_no_store_is_refused(path: Path) -> None:
    path.write_bytes(b"hello" * 10_000)
    with pytest.raises(StoreCorrupt, match="not a Millstream store"):
        CheckpointStore.open(path)
    path.unlink()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE mine (a INTEGER)")
    with pytest.raises(StoreError, match="somebody else's"):
        CheckpointStore.open(path)


def test_a_store_of_another_format_is_refused(path: Path) -> None:
    CheckpointStore.open(path).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE job SET format = 99")
    with pytest.raises(StoreError, match=r"99.*run the job with the version that wrote it"):
        CheckpointStore.open(path)


@pytest.mark.parametrize(("version", "good"), [("1.4.4", False), ("0.10.1", False), ("1.5.6", True), ("2.1.0", True)])
def test_versions_of_duckdb_that_damage_files_are_refused(version: str, good: bool) -> None:
    if good:
        check_version(version)
    else:
        with pytest.raises(StoreError, match=f"DuckDB {version}"):
            check_version(version)


def test_generation_zero_is_not_a_generation(path: Path) -> None:
    store = CheckpointStore.open(path)
    with pytest.raises(InternalError):
        store.commit(CheckpointData(Epoch(1), Generation(0)))
    store.close()
