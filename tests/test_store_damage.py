"""A store that was cut, changed or put back: it opens at an acknowledged epoch or refuses, never at an older one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import call
from millstream.engine.element import BarrierKind, Epoch
from millstream.engine.errors import StoreCorrupt, StoreError
from millstream.engine.sink import Committable
from millstream.engine.source import Split
from millstream.engine.state import StateDelta, StateKind, StateTable
from millstream.engine.store.salvaging import salvage
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import CheckpointData, NamedDelta, OperatorState, SplitPosition
from millstream.engine.store.verifying import verify_store
from millstream.engine.store.witness import witness_path

COUNTS = StateTable("counts", pa.schema({"k": pa.int64(), "n": pa.int64()}), ("k",), ("k",))
WAITING = StateTable("waiting", pa.schema({"bucket": pa.int64(), "v": pa.string()}), ("bucket",), (), StateKind.ROWS)
OPERATORS = [
    OperatorState("op1", "Counts", "aggregate", (COUNTS, WAITING)),
    OperatorState("src", "numbers", "source", ()),
    OperatorState("snk", "out", "sink", ()),
]
BIG = 100_000
"""Bytes of a committable that goes into the outbox."""


def commit(store: CheckpointStore, epoch: int, big: int = 0) -> None:
    """Epoch n counts key n up to n, adds a bucket, moves the source, and gives the sink something to show."""
    keyed = pa.table({"k": list(range(epoch)), "n": [epoch] * epoch, "deleted": [False] * epoch})
    rows = pa.table({"bucket": [epoch] * 3, "v": [f"row {epoch}", "", None]}, WAITING.schema)
    store.commit(
        CheckpointData(
            Epoch(epoch),
            store.facts().generation,
            BarrierKind.CHECKPOINT,
            deltas=[
                NamedDelta("op1", "counts", StateDelta(keyed, 1)),
                NamedDelta("op1", "waiting", StateDelta(rows, 1)),
            ],
            positions=[SplitPosition("src", Split("all"), epoch * 10, None, finished=False)],
            committables=[("snk", Committable({"raw": bytes([epoch]) * (big or 10)}))],
        )
    )


@dataclass(frozen=True)
class Files:
    """The files of a store, as bytes."""

    path: Path

    @property
    def log(self) -> Path:
        return self.path.with_name(self.path.name + ".wal")

    def copy_to(self, folder: Path) -> Files:
        folder.mkdir()
        for file in (self.path, self.log, witness_path(self.path)):
            shutil.copyfile(file, folder / file.name)
        return Files(folder / self.path.name)


EPOCHS = 5


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A job that was killed at epoch 5: all that is in the log, except how it began."""
    path = tmp_path_factory.mktemp("original") / "job.duckdb"
    store = CheckpointStore.open(path)
    store.begin_generation(OPERATORS)
    for epoch in range(1, EPOCHS + 1):
        commit(store, epoch)
    files = Files(path).copy_to(path.parent / "killed")
    store.close()
    assert files.log.stat().st_size > 1_000
    return files


def opened_at(path: Path) -> int | None:
    """The epoch at which a store opens, with its state read whole; None if it refuses."""
    try:
        store = CheckpointStore.open(path)
    except StoreError:
        return None
    try:
        last = store.facts().last
        assert last is not None
        counts = list(store.restore_rows("op1", COUNTS, last.epoch))
        latest = {k: n for batch in counts for k, n in zip(*(c.to_pylist() for c in batch.columns[:2]), strict=True)}
        assert latest == dict.fromkeys(range(last.epoch), int(last.epoch))
        assert store.positions(last.epoch)[0].position == last.epoch * 10
        return int(last.epoch)
    finally:
        store.close()


def damaged(original: Files, folder: Path, change: bytes) -> Files:
    files = original.copy_to(folder)
    files.log.write_bytes(change)
    return files


def places(size: int, count: int) -> list[int]:
    return sorted({round(i * (size - 1) / (count - 1)) for i in range(count)})


def demand_all_or_nothing(original: Files, folder: Path, log: bytes, what: str) -> None:
    files = damaged(original, folder, log)
    assert opened_at(files.path) in (EPOCHS, None), what
    shutil.rmtree(folder)


@pytest.mark.parametrize("points", [30, pytest.param(100_000, marks=pytest.mark.exhaustive)])
def test_a_log_cut_anywhere_is_never_an_older_epoch(original: Files, tmp_path: Path, points: int) -> None:
    log = original.log.read_bytes()
    for at in places(len(log), points):
        demand_all_or_nothing(original, tmp_path / "cut", log[:at], f"cut at byte {at} of {len(log)}")


@pytest.mark.parametrize("points", [20, pytest.param(100_000, marks=pytest.mark.exhaustive)])
def test_a_log_with_a_tail_of_zeros_is_never_an_older_epoch(original: Files, tmp_path: Path, points: int) -> None:
    log = original.log.read_bytes()
    for at in places(len(log), points):
        zeros = log[:at] + bytes(len(log) - at)
        demand_all_or_nothing(original, tmp_path / "zeros", zeros, f"zeros from byte {at} of {len(log)}")


@pytest.mark.parametrize("points", [30, pytest.param(100_000, marks=pytest.mark.exhaustive)])
def test_a_log_with_a_flipped_bit_is_never_an_older_epoch(original: Files, tmp_path: Path, points: int) -> None:
    log = original.log.read_bytes()
    for number, at in enumerate(places(len(log), points)):
        flipped = log[:at] + bytes([log[at] ^ 1 << number % 8]) + log[at + 1 :]
        demand_all_or_nothing(original, tmp_path / "flip", flipped, f"bit {number % 8} of byte {at} of {len(log)}")


def test_a_store_without_its_log_is_refused(original: Files, tmp_path: Path) -> None:
    files = original.copy_to(tmp_path / "lost")
    files.log.unlink()
    assert opened_at(files.path) is None
    assert "had been acknowledged" in verify_store(files.path).problem


def test_an_older_copy_put_back_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.duckdb"
    store = CheckpointStore.open(path)
    store.begin_generation(OPERATORS)
    commit(store, 1)
    store.close()
    shutil.copyfile(path, tmp_path / "older")
    store = CheckpointStore.open(path)
    store.begin_generation(OPERATORS)
    commit(store, 2)
    store.close()
    assert opened_at(path) == 2
    shutil.copyfile(tmp_path / "older", path)
    Files(path).log.unlink(missing_ok=True)
    with pytest.raises(StoreCorrupt, match="ends at epoch 1, but epoch 2 had been acknowledged"):
        CheckpointStore.open(path)


def test_a_whole_store_is_found_whole(original: Files, tmp_path: Path) -> None:
    verdict = verify_store(original.copy_to(tmp_path / "whole").path)
    assert verdict.whole
    assert [finding.epoch for finding in verdict.findings] == [1, 2, 3, 4, 5]
    assert verdict.findings[-1].rows == 15 + 15
    assert verdict.acknowledged == 5


@pytest.mark.parametrize(
    ("damage", "first_bad"),
    [
        ("UPDATE st_op1_counts SET n = n + 1 WHERE epoch = 4 AND k = 0", 4),
        ("DELETE FROM st_op1_waiting WHERE epoch = 3 AND v IS NULL", 3),
        ("DELETE FROM st_op1_counts WHERE epoch = 5", 5),
    ],
)
def test_state_that_was_changed_is_named_and_an_older_epoch_saved(
    original: Files, tmp_path: Path, damage: str, first_bad: int
) -> None:
    files = original.copy_to(tmp_path / "changed")
    with duckdb.connect(str(files.path)) as connection:
        connection.execute(damage)
    verdict = verify_store(files.path)
    assert [f.epoch for f in verdict.findings if f.problem] == list(range(first_bad, EPOCHS + 1))
    assert "st" in verdict.findings[-1].problem
    saved = salvage(files.path, tmp_path / "saved.duckdb")
    assert (saved.epoch, saved.acknowledged) == (first_bad - 1, 5)
    assert [finding.epoch for finding in saved.given_up] == list(range(EPOCHS, first_bad - 1, -1))
    assert opened_at(tmp_path / "saved.duckdb") == first_bad - 1


def test_a_log_changed_inside_is_salvaged_up_to_there(original: Files, tmp_path: Path) -> None:
    log = original.log.read_bytes()
    epochs = set()
    for number, at in enumerate(places(len(log), 12)[4:-1]):
        files = damaged(original, tmp_path / str(number), log[:at] + bytes([log[at] ^ 255]) + log[at + 1 :])
        saved = salvage(files.path, tmp_path / f"{number}.duckdb")
        assert opened_at(tmp_path / f"{number}.duckdb") == saved.epoch
        assert files.log.read_bytes() != log, "the damaged store itself is left alone"
        epochs.add(int(saved.epoch))
    assert len(epochs) > 1
    assert max(epochs) < EPOCHS


def test_what_is_salvaged_is_the_same_job_with_all_it_has_to_show(tmp_path: Path) -> None:
    path = tmp_path / "job.duckdb"
    store = CheckpointStore.open(path)
    store.begin_generation(OPERATORS)
    for epoch in (1, 2, 3):
        commit(store, epoch, BIG)
    job, shown = store.job_id, store.committables(Epoch(3))
    store.close()
    assert salvage(path, tmp_path / "saved.duckdb").epoch == 3
    again = CheckpointStore.open(tmp_path / "saved.duckdb")
    assert (again.job_id, again.parent) == (job, None)
    assert again.committables(Epoch(3)) == shown
    assert len(shown["snk"][0].payload["raw"]) == BIG
    again.begin_generation(OPERATORS)
    commit(again, 4)
    again.close()
    assert opened_at(tmp_path / "saved.duckdb") == 4
    with pytest.raises(StoreError, match="is there already"):
        salvage(path, tmp_path / "saved.duckdb")


def test_a_file_that_is_no_database_any_more_cannot_be_salvaged(original: Files, tmp_path: Path) -> None:
    files = original.copy_to(tmp_path / "gone")
    content = files.path.read_bytes()
    files.path.write_bytes(content[:4096] + bytes(len(content) - 4096))
    with pytest.raises(StoreCorrupt, match="restore it from a backup"):
        salvage(files.path, tmp_path / "saved.duckdb")
    assert list(tmp_path.glob(".salvage*")) == []


def test_the_command_line_verifies_salvages_and_exports(original: Files, tmp_path: Path) -> None:
    whole = original.copy_to(tmp_path / "whole").path
    assert "5 epochs are whole" in call("store", "verify", whole, "--format", "table").stderr
    changed = original.copy_to(tmp_path / "changed").path
    with duckdb.connect(str(changed)) as connection:
        connection.execute("DELETE FROM st_op1_counts WHERE epoch = 5")
    told = call("store", "verify", changed, code=1)
    assert json.loads(told.stdout.splitlines()[-1])["verdict"] != "whole"
    assert "millstream store salvage" in told.stderr
    told = call("store", "salvage", changed, tmp_path / "saved.duckdb")
    assert "Epochs 5 to 5 had been acknowledged and are LOST" in told.stdout
    call("store", "export", whole, "--out", tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "counts_counts.parquet").num_rows == EPOCHS
    described = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert (described["epoch"], described["positions"][0]["position"]) == (5, 50)
    call("store", "export", whole, "--out", tmp_path / "older", "--epoch", 3)
    assert pq.read_table(tmp_path / "older" / "counts_counts.parquet").num_rows == 3
    call("store", "export", whole, "--out", tmp_path / "out", code=1)
