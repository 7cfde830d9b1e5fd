"""The running part of ``ProcessSpec``. Importing this module loads numba."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import is_changelog, single_changes, unweighted, weights_of
from millstream.engine.codes import Ints
from millstream.engine.errors import JobError, MillstreamError, StateMismatch, UserCodeError
from millstream.engine.expression_types import shown_scalar
from millstream.engine.key_index import KeyIndex
from millstream.engine.memory import bytes_held
from millstream.engine.operator import MAIN, Operator, OperatorContext, Output
from millstream.engine.state import DELETED, StateDelta
from millstream.engine.time import END_OF_TIME, START_OF_TIME, Duration
from millstream.operators.event_time import event_times
from millstream.operators.process import STATE, TIMERS, Process, user_place
from millstream.operators.process_cells import At, Cells, Unkept, lifetime
from millstream.operators.process_context import ProcessContext, Times
from millstream.operators.process_entries import EntryCells
from millstream.operators.process_made import MadeRows, Misfit, Origin
from millstream.operators.process_states import EVENT, PROCESSING, ListState, MapState, ValueState
from millstream.operators.process_tables import KeyedTable
from millstream.operators.process_timers import Timers
from millstream.operators.process_values import ValueCells
from millstream.operators.process_views import KeyedList, KeyedMap
from millstream.operators.python_rows import MOST_ROWS, rows_as_dicts, shown, shown_row, values_of

if TYPE_CHECKING:
    from millstream.operators.process import ProcessSpec

_PLAIN: Final = frozenset([GeneratorType, list])
_RUN: Final = 4_096  # timers whose keys are looked up together
_LEAST: Final = 1_024
_SPARE_TIMERS: Final = 100_000
_EACH: Final = 100


class ProcessOperator(Operator):
    """Gives every key a slot; states and timers keep Python objects by slot."""

    uses_clock = True

    def __init__(self, spec: ProcessSpec, schema: pa.Schema) -> None:
        self._spec = spec
        self._cls = spec.cls
        self._reads = spec.reads
        tables = {table.name: table for table in spec.state_tables([schema])}
        self._index = KeyIndex([plain.type for plain in list(tables[STATE].schema)[: len(spec.keys)]])
        self._at = At()
        self._cells = {name: self._cells_of(name) for name in spec.states}
        self._times = {PROCESSING: Times.of(pa.timestamp("us", "UTC"))}
        if spec.time is not None:
            self._times[EVENT] = Times.of(spec.time.type_in(schema))
        has_timers = self._cls.on_timer is not Process.on_timer
        clocks = [clock for clock in (EVENT, PROCESSING) if clock in self._times and has_timers]
        self._timers: dict[str, Timers] = {clock: Timers(clock) for clock in clocks}
        self._reached = {EVENT: START_OF_TIME, PROCESSING: START_OF_TIME}  # timers up to here are due
        self._ended_with = 0
        self._fired_after_end = 0
        self._made = {port: MadeRows(schema) for port, schema in spec.output_schemas([schema]).items()}
        self._tables = {name: KeyedTable(table, len(spec.keys)) for name, table in tables.items()}
        self._slots = 0
        self._crowded = _LEAST
        self._batch: pa.RecordBatch | None = None
        self._row_keys: list[Any] | None = None
        self._origin: Origin = 0
        self._context = ProcessContext(
            self._at, self._timers, self._times, self._emit_beside, self._retract, self._put_for, self._key
        )
        self._code = self._make_code()
        self._own: frozenset[str] = frozenset()

    def _cells_of(self, name: str) -> Cells:
        state = self._spec.states[name]
        clock = self._spec.clock_of(state)
        if isinstance(state, ValueState):
            return ValueCells(name, state, self._at, clock)
        assert isinstance(state, (MapState, ListState))
        return EntryCells(name, state, self._at, clock)

    def _make_code(self) -> Process:
        """Make the user's object, of a class in which state stands in the place of its declarations."""
        body: dict[str, Any] = {}
        for name, cells in self._cells.items():
            state = self._spec.states[name]
            if isinstance(cells, EntryCells):
                view = KeyedMap[Any, Any](cells, state.keys) if isinstance(state, MapState) else KeyedList[Any](cells)
                body[name] = _fixed(name, view)
        code: Any = self._spec.code
        arguments: list[functools.partial[Any]] = []
        while isinstance(code, functools.partial):
            arguments.append(code)
            code = code.func
        made: Any = type(self._cls.__name__, (self._cls,), {**body, "__module__": self._cls.__module__})
        for cells in self._cells.values():
            if isinstance(cells, ValueCells):
                cells.stand_in(made)
        for part in reversed(arguments):
            made = functools.partial(made, *part.args, **part.keywords)
        process: Process = self._guarded("__init__", made)
        return process

    def _guarded(self, method: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except MillstreamError:
            raise
        except Exception as error:
            place = f"{self._cls.__module__}.{self._cls.__qualname__}.{method}"
            raise UserCodeError(f"{place} raised {type(error).__name__}: {error}") from error

    def open(self, context: OperatorContext) -> None:
        """As ``Operator.open``."""
        del context
        self._guarded("open", self._code.open)
        self._own = frozenset(vars(self._code))

    def close(self) -> None:
        """As ``Operator.close``."""
        self._guarded("close", self._code.close)

    def memory(self) -> Mapping[str, int]:
        """As ``Operator.memory``: by state."""
        parts = {"keys": self._index, **self._cells, **{f"{clock} timers": of for clock, of in self._timers.items()}}
        return {name: bytes_held(part) for name, part in parts.items()}

    # -- rows --------------------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Call ``on_row`` for each row, in order; of a changelog for each change of one row."""
        if not is_changelog(batch.schema):
            self._process(batch, itertools.repeat(1, batch.num_rows), out)
            return
        for part in single_changes(batch, MOST_ROWS):
            self._process(part.select(unweighted(part.schema).names), weights_of(part).tolist(), out)

    def _process(self, batch: pa.RecordBatch, weights: Iterable[int], out: Output) -> None:
        slots = self._index.slots([batch.column(key) for key in self._spec.keys], batch.num_rows)
        self._grow()
        names = [name for name in batch.schema.names if self._reads is None or name in self._reads]
        self._batch, self._row_keys = batch, None
        at, context, on_row, made = self._at, self._context, self._code.on_row, self._made[MAIN]
        keep = made.keep
        rows = zip(rows_as_dicts(batch, names), slots.tolist(), self._moments(batch), weights, strict=True)
        for index, (row, at.slot, at.moment, context.weight) in enumerate(rows):
            self._origin = index
            try:
                results = on_row(row, context)
                if results.__class__ is dict:
                    keep(results, index)
                elif results is not None:
                    for result in results if results.__class__ in _PLAIN else self._iterable(results, "on_row"):
                        keep(result, index)
            except Exception as error:
                raise self._raised(error, "on_row") from error
            if context.overdue:
                self._fire()
            if len(made.rows) >= MOST_ROWS:
                self._flush(out)
        self._flush(out)
        at.leave()
        self._batch = None

    def _moments(self, batch: pa.RecordBatch) -> list[int | None]:
        if self._spec.time is None:
            return [None] * batch.num_rows
        times, valid = event_times(self._spec.time.evaluate(batch))
        moments: list[int | None] = times.tolist()
        if not len(valid):
            return moments
        return [time if known else None for time, known in zip(moments, valid.tolist(), strict=True)]

    def _iterable(self, results: Any, method: str) -> Iterable[Any]:
        if isinstance(results, (Mapping, str, bytes)) or not isinstance(results, Iterable):
            what = f"must yield dicts, or return one, a list of them or None, got {shown(results)}"
            raise self._blamed(what, method)
        return results

    def _emit_beside(self, output: str, row: Any) -> None:
        made = self._made.get(output) if output != MAIN else None
        if made is None:
            there = ", ".join(map(repr, self._spec.sides)) or "none"
            raise JobError(
                f"ctx.emit({output!r}, ...): there is no such side output (there are: {there}); declare it in the "
                f"class: {output} = ms.side_output({{...}}), and yield what belongs to the result"
            )
        made.keep(row, self._origin)

    def _retract(self, row: Any) -> None:
        if not self._spec.retracts:
            raise JobError(
                "ctx.retract() takes back a row of the result, whose rows are to stay: write process(..., "
                "retracts=True), which makes the result a changelog"
            )
        self._made[MAIN].retract(row, self._origin)

    def _put_for(self, state: str, value: Any, ttl: Duration) -> None:
        cells = self._cells.get(state)
        if not isinstance(cells, ValueCells):
            values = ", ".join(repr(name) for name, of in self._cells.items() if isinstance(of, ValueCells)) or "none"
            raise JobError(
                f"ctx.put({state!r}, ...): there is no such value state (there are: {values}); maps and lists take "
                "ttl= themselves: self.seen.put(key, value, ttl='1h'), self.last.append(item, ttl='1h')"
            )
        cells.put_for(value, lifetime(ttl))

    def _flush(self, out: Output) -> None:
        for port, made in self._made.items():
            try:
                for batch in made.batches() if made.rows else ():
                    out.emit(batch, port)
            except Misfit as misfit:
                where = "" if port == MAIN else f" for ctx.emit({port!r}, ...)"
                raise self._blamed_for(f"{misfit}{where}", misfit.origin) from None

    # -- timers ------------------------------------------------------------------------------------------------

    def on_watermark(self, time: int, out: Output) -> None:
        """Call ``on_timer`` for the timers of event time that are due."""
        self._reached[EVENT] = max(self._reached[EVENT], time)
        if time == END_OF_TIME and not self._context.ended:
            self._context.ended = True
            self._ended_with = sum(timers.pending for timers in self._timers.values())
        self._fire()
        # Only now: what a timer sees depends on its own time, not on how far the watermark has jumped. When the input
        # has ended there is no time after it, and what waits for the clock still sees its state.
        if time != END_OF_TIME:
            self._at.watermark = self._reached[EVENT]
        self._flush(out)

    def next_due(self) -> int | None:
        """As ``Operator.next_due``."""
        timers = self._timers.get(PROCESSING)
        return None if timers is None else timers.due()

    def on_clock(self, now: int, out: Output) -> None:
        """Call ``on_timer`` for the timers of processing time that are due."""
        self._reached[PROCESSING] = now
        if now != END_OF_TIME:
            self._at.now = now
        self._fire()
        self._flush(out)

    def _fire(self) -> None:
        """Fire what is due, in the order of times; those of event time come first."""
        at, context = self._at, self._context
        slot, moment, weight = at.slot, at.moment, context.weight
        context.weight = 1
        while True:
            context.overdue = False
            for clock, timers in self._timers.items():
                due = timers.due()
                if due is not None and due <= self._reached[clock]:
                    self._fire_some(timers, clock)
                    break
            else:
                break
        context.firing, context.name = None, ""
        at.slot, at.moment, context.weight = slot, moment, weight

    def _fire_some(self, timers: Timers, clock: str) -> None:
        """Fire the first timers that are due, until one sets another that comes before the next."""
        taken = timers.take(self._reached[clock], _RUN)
        keys = self._keys_of([slot for _, slot, _ in taken])
        # At one time in an order that a restart does not change.
        due = sorted(
            ((time, repr(key), name, slot, key) for (time, slot, name), key in zip(taken, keys, strict=True)),
            key=lambda timer: timer[:3],
        )
        before = due[0][0]
        for number, (time, _, name, slot, key) in enumerate(due):
            if time > before:
                sooner = timers.due()
                if self._context.overdue or (sooner is not None and sooner <= time):
                    timers.put_back((time, slot, name) for time, _, name, slot, _ in due[number:])
                    return
            before = time
            if timers.claim(slot, time, name):
                self._call_timer(clock, time, name, slot, key)

    def _call_timer(self, clock: str, time: int, name: str, slot: int, key: Any) -> None:
        at, context, made = self._at, self._context, self._made[MAIN]
        at.slot, at.moment = slot, time if clock == EVENT else None
        if clock == PROCESSING:
            at.now = max(at.now, time)  # when the input has ended, the clock goes on with the timers
        context.firing, context.name = (clock, time), name
        self._origin = (clock, time, key)
        self._count_after_end()
        try:
            results = self._code.on_timer(self._times[clock].datetime(time), context)
            if results is not None:
                for result in [results] if type(results) is dict else self._iterable(results, "on_timer"):
                    made.keep(result, self._origin)
        except Exception as error:
            raise self._raised(error, "on_timer") from error

    def _count_after_end(self) -> None:
        """Timers that set timers for ever would keep a job that has read everything from ending."""
        if not self._context.ended:
            return
        self._fired_after_end += 1
        if self._fired_after_end > _SPARE_TIMERS + _EACH * self._ended_with:
            raise UserCodeError(
                f"{user_place(self._cls, 'on_timer')} goes on setting timers though the input has ended, and "
                f"{self._fired_after_end} have fired since: set none when ctx.ended is true"
            )

    @property
    def _holders(self) -> list[Cells | Timers | KeyedTable]:
        return [*self._cells.values(), *self._timers.values(), *self._tables.values()]

    # -- keys --------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        slots = len(self._index)
        if slots > self._slots:
            for holder in self._holders:
                holder.grow(slots)
            self._slots = slots

    def _key(self) -> Any:
        """The key whose turn it is."""
        if isinstance(self._origin, tuple):
            return self._origin[2]
        if self._row_keys is None:
            assert self._batch is not None
            columns = [values_of(self._batch.column(key), key) for key in self._spec.keys]
            self._row_keys = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
        return self._row_keys[self._origin]

    def _keys_of(self, slots: list[int]) -> list[Any]:
        columns = self._index.keys(np.array(slots, np.int64))
        values = [values_of(column, key) for column, key in zip(columns, self._spec.keys, strict=True)]
        return values[0] if len(values) == 1 else list(zip(*values, strict=True))

    def _shown_key(self, key: Any) -> str:
        parts = key if len(self._spec.keys) > 1 else (key,)
        return ", ".join(f"{name}={part!r}" for name, part in zip(self._spec.keys, parts, strict=True))

    # -- errors ------------------------------------------------------------------------------------------------

    def _raised(self, error: Exception, method: str) -> MillstreamError:
        if isinstance(error, UserCodeError):
            return error
        if isinstance(error, JobError):
            return type(error)(f"{user_place(self._cls, method)}: {error}; {self._shown_origin(self._origin)}")
        if isinstance(error, MillstreamError):
            return error
        return self._blamed(f"raised {type(error).__name__}: {error}", method)

    def _blamed(self, what: str, method: str) -> UserCodeError:
        return UserCodeError(f"{user_place(self._cls, method)} {what}; {self._shown_origin(self._origin)}")

    def _blamed_for(self, what: str, origin: Origin) -> UserCodeError:
        method = "on_row" if isinstance(origin, int) else "on_timer"
        return UserCodeError(f"{user_place(self._cls, method)} {what}; {self._shown_origin(origin)}")

    def _shown_origin(self, origin: Origin) -> str:
        if isinstance(origin, tuple):
            clock, time, key = origin
            return f"the timer is that of {self._shown_key(key)} at {self._times[clock].datetime(time)}"
        assert self._batch is not None
        cells = ((name, self._batch.column(name)[origin]) for name in self._spec.keys)
        key = ", ".join(f"{name}={shown_scalar(cell)}" for name, cell in cells)
        return f"the key is {key}, the row is {shown_row(self._batch, origin)}"

    # -- state -------------------------------------------------------------------------------------------------

    def snapshot(self, epoch: int) -> Mapping[str, StateDelta]:
        """As ``Operator.snapshot``."""
        self._demand_nothing_else()
        deltas = {}
        for name, holders in ((STATE, self._cells), (TIMERS, self._timers)):
            try:
                delta = self._tables[name].delta(epoch, list(holders.values()), self._index)
            except Unkept as error:
                (key,) = self._keys_of([error.slot])
                raise UserCodeError(f"{user_place(self._cls, 'on_row')}: {error}; {self._shown_key(key)}") from None
            if delta is not None:
                deltas[name] = delta
        self._drop_dead()
        return deltas

    def _demand_nothing_else(self) -> None:
        new = sorted(vars(self._code).keys() - self._own)
        if new:
            raise UserCodeError(
                f"{self._cls.__qualname__} has set self.{new[0]}, which is no state: all keys would share it, and a "
                f"restart would lose it. Declare it in the class, {new[0]} = ms.value_state(...), or set it in open()"
            )

    def restore(self, table: str, batches: Iterable[pa.RecordBatch], full_from: int) -> None:
        """As ``Operator.restore``."""
        for batch in batches:
            slots = self._index.slots([batch.column(i) for i in range(len(self._spec.keys))], batch.num_rows).tolist()
            self._grow()
            columns = batch.columns[len(self._spec.keys) :]
            gone = batch.column(DELETED).to_pylist()
            if table == STATE:
                self._restore_state(slots, [column.to_pylist() for column in columns[:4]], gone)
            else:
                times = columns[3].cast(pa.int64())
                self._restore_timers(slots, [column.to_pylist() for column in (*columns[:3], times)], gone)
        for holder in (self._cells if table == STATE else self._timers).values():
            holder.settle()
        self._tables[table].restored(full_from)

    def _restore_state(self, slots: list[int], columns: list[list[Any]], gone: list[bool]) -> None:
        for slot, name, entry, value, expires, deleted in zip(slots, *columns, gone, strict=True):
            cells = self._cells.get(name)
            if cells is None:
                if deleted:
                    continue
                raise StateMismatch(
                    f"process {self._cls.__qualname__!r}: the checkpoint has state {name!r}, which the class does not "
                    f"declare (it has: {', '.join(self._cells) or 'none'}): declare it again, or run with another "
                    "--store"
                )
            if deleted:
                cells.remove(slot, entry)
            else:
                cells.restore(slot, entry, value, expires)

    def _restore_timers(self, slots: list[int], columns: list[list[Any]], gone: list[bool]) -> None:
        for slot, clock, name, at, time, deleted in zip(slots, *columns, gone, strict=True):
            timers = self._timers.get(clock)
            if timers is not None:
                timers.restore(slot, name, at, None if deleted else time)
            elif not deleted:
                raise StateMismatch(
                    f"process {self._cls.__qualname__!r}: the checkpoint has timers of {clock} time, but the class has "
                    "no on_timer() for them, or the stream no such time: write it again, or run with another --store"
                )

    def _drop_dead(self) -> None:
        """Give the slots of keys that keep nothing back, once they may be the most."""
        if len(self._index) < self._crowded:
            return
        holders: list[Cells | Timers] = [*self._cells.values(), *self._timers.values()]
        alive = [any(holder.holds(slot) for holder in holders) for slot in range(len(self._index))]
        kept = [slot for slot, held in enumerate(alive) if held]
        if 2 * len(kept) < len(alive):
            moved: Ints = self._index.compact(np.array(alive, np.bool_))
            for holder in self._holders:
                holder.compact(kept, moved)
            self._slots = len(kept)
        self._crowded = max(_LEAST, 2 * len(self._index))


def _fixed(name: str, view: Any) -> property:
    """An attribute that is a map or list of the current key, and cannot be replaced by another."""

    def get(_: Any) -> Any:
        return view

    def put(_: Any, value: Any) -> None:
        change = f"self.{name}.clear(), then self.{name}." + ("extend" if isinstance(view, KeyedList) else "update")
        raise TypeError(f"state {name!r} cannot be replaced, only changed: write {change}({value!r})")

    return property(get, put)
