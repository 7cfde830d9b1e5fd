"""Committables too big for a manifest: kept until the next epoch, noticed if damaged, and gone after it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import duckdb
import pytest
from millstream.engine.element import BarrierKind, Epoch
from millstream.engine.errors import StoreCorrupt
from millstream.engine.sink import Committable
from millstream.engine.store.outbox import INLINE_BYTES
from millstream.engine.store.reader import StoreReader
from millstream.engine.store.savepoints import create_savepoint, find_savepoint
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import CheckpointData, OperatorState


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.duckdb"


def started(path: Path) -> CheckpointStore:
    store = CheckpointStore.open(path)
    store.begin_generation([OperatorState(id_, id_, "sink", ()) for id_ in ("one", "two")])
    return store


def commit(store: CheckpointStore, epoch: int, given: Sequence[tuple[str, Committable]]) -> None:
    generation = store.facts().generation
    store.commit(CheckpointData(Epoch(epoch), generation, BarrierKind.CHECKPOINT, committables=given))


def chunks(*sizes: int) -> list[tuple[str, Committable]]:
    return [("two" if i % 3 else "one", Committable({"n": i, "raw": os.urandom(s)})) for i, s in enumerate(sizes)]


def by_sink(given: Sequence[tuple[str, Committable]]) -> dict[str, list[Committable]]:
    return {id_: [c for sink, c in given if sink == id_] for id_ in dict(given)}


@pytest.mark.parametrize("sizes", [(10, 20), (INLINE_BYTES,), (INLINE_BYTES + 1, 0, 5), (3_000_000, 1, 3_000_000, 7)])
def test_committables_of_any_size_come_back_in_order_after_a_crash(path: Path, sizes: tuple[int, ...]) -> None:
    given = chunks(*sizes)
    store = started(path)
    commit(store, 1, given)
    assert store.facts().unpublished == {id_: len(held) for id_, held in by_sink(given).items()}
    store.close()
    again = CheckpointStore.open(path)
    assert again.committables(Epoch(1)) == by_sink(given)
    again.close()


def test_the_next_epoch_takes_the_place_of_the_last(path: Path) -> None:
    store = started(path)
    for epoch in range(1, 4):
        commit(store, epoch, chunks(INLINE_BYTES, 5))
        assert store.cursor().execute("SELECT DISTINCT epoch FROM outbox").fetchall() == [(epoch,)]
    commit(store, 4, [])
    assert store.cursor().execute("SELECT count(*) FROM outbox").fetchall() == [(0,)]
    assert store.committables(Epoch(4)) == {}
    store.close()


def test_a_committable_that_changed_or_went_missing_is_noticed(path: Path) -> None:
    store = started(path)
    commit(store, 1, chunks(INLINE_BYTES, 5, 6))
    store.close()
    for damage in ("DELETE FROM outbox WHERE number = 1", "UPDATE outbox SET sink = 'two' WHERE number = 0"):
        with duckdb.connect(str(path)) as connection:
            connection.execute(damage)
        store = CheckpointStore.open(path)
        with pytest.raises(StoreCorrupt, match=r"outbox of epoch 1 .* not the 3 that were written"):
            store.committables(Epoch(1))
        store.close()


def test_the_file_does_not_grow_with_what_has_been_published(path: Path) -> None:
    store = started(path)
    sizes = []
    for epoch in range(1, 41):
        commit(store, epoch, chunks(*[250_000] * 16))
        store.prune()
        sizes.append(sum(file.stat().st_size for file in path.parent.glob("job.duckdb*") if file.is_file()))
    store.close()
    # 160 MB went through: at most those between two foldings of the log are still there.
    assert max(sizes[20:]) <= max(sizes[:20]) * 1.1
    assert max(sizes) < 100_000_000


def test_a_savepoint_leaves_out_what_its_job_has_still_to_show(path: Path) -> None:
    store = started(path)
    commit(store, 1, chunks(INLINE_BYTES, 5))
    store.close()
    create_savepoint(path, "before")
    with StoreReader.open_copy(find_savepoint(path, "before").path) as copy:
        assert copy.count_committables(Epoch(1)) == {}
    with StoreReader.open(path) as reader:
        assert reader.count_committables(Epoch(1)) == {"one": 1, "two": 1}
