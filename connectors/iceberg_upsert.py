"""Upserts into an Iceberg table by copy on write: files that have rows of the keys are written anew, in one snapshot.

pyiceberg's own ``upsert`` makes up to three snapshots, compares rows in Python, and takes no rows away. What is here is
what its ``delete`` does, with the keys joined in Arrow; the Parquet files are written by pyiceberg.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.changelog import WEIGHT, is_changelog, unweighted

if TYPE_CHECKING:
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table, Transaction

_RANK: Final = "$rank"
_RANGED: Final = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_date)
"""Types of which smallest and largest values are compared; files by keys of others are all looked at."""


def upsert(
    transaction: Transaction, table: Table, rows: pa.Table, keys: Sequence[str], properties: Mapping[str, str]
) -> None:
    """Add a snapshot in which each key has the row given here, or none if its row has a negative weight.

    Args:
        table: as it was when the transaction began.
        rows: in the table's types, one for each key.
        properties: for the summary of the snapshot.
    """
    stay = _unweighted(rows)
    changed = _without(table, rows.select(list(keys)))
    first = next(changed, None)
    if first is None:
        transaction.append(stay, snapshot_properties=dict(properties))
        return
    from pyiceberg.expressions import AlwaysTrue

    with transaction.update_snapshot(snapshot_properties=dict(properties)).overwrite() as snapshot:
        snapshot.delete_by_predicate(AlwaysTrue())  # look for the files in all manifests
        numbers = itertools.count(0)
        for task, left in itertools.chain([first], changed):
            snapshot.delete_data_file(task.file)
            for written in _written(table, left, snapshot.commit_uuid, numbers):
                snapshot.append_data_file(written)
        for written in _written(table, stay, snapshot.commit_uuid, numbers):
            snapshot.append_data_file(written)


def _unweighted(rows: pa.Table) -> pa.Table:
    if not is_changelog(rows.schema):
        return rows
    return rows.filter(pc.greater(rows[WEIGHT], 0)).select(unweighted(rows.schema).names)


def _without(table: Table, keys: pa.Table) -> Iterator[tuple[FileScanTask, pa.Table]]:
    """Yield the files that have rows of these keys, each with its other rows."""
    for task in table.scan(row_filter=_near(keys)).plan_files():
        there = _read(table, task, keys.schema.names)
        left = _others(there, keys)
        if len(left) < there.num_rows:
            whole = _read(table, task, ()) if len(left) else table.schema().as_arrow().empty_table()
            yield task, whole.take(left)


def _others(there: pa.Table, keys: pa.Table) -> pa.ChunkedArray:
    """Return the positions of the rows that have none of the keys, ascending."""
    ranked = there.append_column(_RANK, pa.array(np.arange(there.num_rows)))
    left = ranked.join(keys.cast(there.schema), keys.schema.names, join_type="left anti", use_threads=False)
    return left.sort_by(_RANK)[_RANK]


def _read(table: Table, task: FileScanTask, columns: Sequence[str]) -> pa.Table:
    """Read a file without the rows that delete files take from it; all columns, if none are named."""
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan

    schema = table.schema().select(*columns) if columns else table.schema()
    return ArrowScan(table.metadata, table.io, schema, AlwaysTrue()).to_table([task])


def _near(keys: pa.Table) -> BooleanExpression:
    """Return what rows of the keys fulfil, and of other rows not many; by it files are passed over unread."""
    from pyiceberg.expressions import AlwaysTrue, And, GreaterThanOrEqual, LessThanOrEqual

    found: BooleanExpression = AlwaysTrue()
    for name, column in zip(keys.schema.names, keys.columns, strict=True):
        if any(is_kind(column.type) for is_kind in _RANGED):
            ends = pc.min_max(column).as_py()
            found = And(
                found, GreaterThanOrEqual(term=name, value=ends["min"]), LessThanOrEqual(term=name, value=ends["max"])
            )
    return found


def _written(table: Table, rows: pa.Table, name: Any, numbers: Iterator[int]) -> Iterator[DataFile]:
    """Write rows to files of the table that no snapshot has yet."""
    from pyiceberg.io.pyarrow import _dataframe_to_data_files

    if rows.num_rows:
        yield from _dataframe_to_data_files(table.metadata, rows, table.io, name, numbers)  # type: ignore[arg-type]
