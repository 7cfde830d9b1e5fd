"""Snapshots of an epoch that could not be written, put before those of the next."""

from __future__ import annotations

import pyarrow as pa
from millstream.engine.runtime.merging import merge_deltas, merge_positions
from millstream.engine.source import Split
from millstream.engine.state import StateDelta
from millstream.engine.store.types import NamedDelta, SplitPosition


def delta(rows: list[int], subtask: int = 0, table: str = "t", full_from: int = 0, dropped: tuple[int, ...] = ()):
    return NamedDelta(
        "op", table, StateDelta(pa.table({"key": pa.array(rows, pa.int64())}), full_from, dropped), subtask
    )


def shown(deltas: list[NamedDelta]) -> list[tuple[object, ...]]:
    return [
        (d.table, d.subtask, d.delta.rows["key"].to_pylist(), d.delta.full_from, d.delta.dropped)
        for d in merge_deltas(deltas)
    ]


def test_one_delta_per_table_and_subtask_in_the_order_they_came() -> None:
    assert shown([delta([1, 2]), delta([3], subtask=1), delta([2, 1]), delta([4], table="u"), delta([5])]) == [
        ("t", 0, [1, 2, 2, 1, 5], 0, ()),
        ("t", 1, [3], 0, ()),
        ("u", 0, [4], 0, ()),
    ]


def test_the_latest_word_on_where_to_read_from_holds_and_every_dropped_bucket_stays_dropped() -> None:
    assert shown([delta([1], full_from=7, dropped=(5,)), delta([], full_from=8, dropped=(6, 9))]) == [
        ("t", 0, [1], 8, (5, 6, 9))
    ]


def test_the_last_position_of_each_split_holds() -> None:
    def at(source: str, split: str, position: int) -> SplitPosition:
        return SplitPosition(source, Split(split), position, None, finished=False)

    merged = merge_positions([at("s", "a", 1), at("s", "b", 2), at("r", "a", 3), at("s", "a", 4)])
    assert merged == [at("s", "a", 4), at("s", "b", 2), at("r", "a", 3)]
