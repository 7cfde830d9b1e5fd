"""The running part of ``Deduplicate``. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
from millstream.engine.codes import Bools, Ints, fixed_codes
from millstream.engine.key_log import FOR_EVER, NO_TIMES
from millstream.engine.operator import MAIN, Operator, Output
from millstream.engine.seen_keys import SeenKeys
from millstream.engine.state import DELETED, StateDelta
from millstream.operators.deduplicate import DUPLICATES
from millstream.operators.event_time import event_times
from millstream.operators.windowed import LATE

if TYPE_CHECKING:
    from millstream.operators.deduplicate import Deduplicate


class DeduplicateOperator(Operator):
    """Asks of every row's key whether it has been seen."""

    def __init__(self, spec: Deduplicate, schema: pa.Schema) -> None:
        self._keys = spec.keys
        self._time = spec.time
        (self._table,) = spec.state_tables([schema])
        self._rows = pa.schema([*self._table.schema, pa.field(DELETED, pa.bool_())])
        schemas = spec.output_schemas([schema])
        self._columns = {port: names.names for port, names in schemas.items() if spec.wants(port)}
        types = [self._table.schema.field(name).type for name in self._table.route_by]
        self._seen = SeenKeys(types, spec.within or FOR_EVER)
        self._full_from: int | None = None
        self._duplicates = 0
        self._late_rows = 0
        self._null_time_rows = 0

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Pass the rows of new keys on."""
        times = NO_TIMES
        if self._time is not None:
            times, valid = event_times(self._time.evaluate(batch))
            refused = self._refused(times, valid)
            if refused is not None:
                self._emit(batch, refused, out, LATE)
                batch, times = batch.filter(pa.array(~refused)), times[~refused]
        if batch.num_rows:
            new = self._seen.add([batch.column(key) for key in self._keys], times)
            self._duplicates += len(new) - int(new.sum())
            self._emit(batch, new, out, MAIN)
            self._emit(batch, ~new, out, DUPLICATES)

    def _refused(self, times: Ints, valid: Bools) -> Bools | None:
        """Which rows are late or have no time; None if none is."""
        late = times <= self._seen.forgotten
        if len(valid):
            late &= valid
            self._null_time_rows += len(valid) - int(valid.sum())
        self._late_rows += int(late.sum())
        refused = late | ~valid if len(valid) else late
        return refused if bool(refused.any()) else None

    def _emit(self, batch: pa.RecordBatch, rows: Bools, out: Output, port: str) -> None:
        columns = self._columns.get(port)
        if columns is None or not bool(rows.any()):
            return
        chosen = batch.select(columns)
        out.emit(chosen if bool(rows.all()) else chosen.filter(pa.array(rows)), port)

    def on_watermark(self, time: int, out: Output) -> None:
        """Forget the keys that are due."""
        del out
        if self._time is not None:
            self._seen.forget(time)

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        written = self._seen.take(epoch)
        count = len(written.columns[0])
        # Said even if there are no rows: what the restored job said holds until each of its subtasks has said better.
        if count == 0 and written.full_from == self._full_from:
            return {}
        self._full_from = written.full_from
        columns = [*written.columns, *([] if self._time is None else [pa.array(written.times)])]
        columns += [pa.repeat(pa.scalar(epoch, pa.int64()), count), pa.repeat(pa.scalar(False), count)]
        rows = pa.Table.from_arrays(columns, schema=self._rows)
        return {self._table.name: StateDelta(rows, written.full_from)}

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``; how far back the next restore must read, rows say themselves."""
        del table, full_from
        for batch in batches:
            if batch.num_rows:
                keys = [batch.column(number) for number in range(len(self._keys))]
                times = NO_TIMES if self._time is None else fixed_codes(batch.column(len(self._keys)))
                self._seen.put(keys, times, fixed_codes(batch.column(len(self._table.keys))))

    def counters(self) -> Mapping[str, int]:
        """As ``Operator.counters``."""
        counters = {"duplicates": self._duplicates}
        if self._time is not None:
            counters |= {"late_rows": self._late_rows, "null_time_rows": self._null_time_rows}
        return counters
