"""``check_operator``: one operator, run through the same script in every way the engine may."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa
from millstream.engine.changelog import WEIGHT, unweighted
from millstream.engine.element import Watermark
from millstream.engine.hashing import exchange_hash, partition
from millstream.engine.operator import MAIN, ExchangeKind, Fault, Operator, OperatorContext, OperatorSpec
from millstream.engine.runtime.calls import SimulatedCalls
from millstream.engine.time import END_OF_TIME, ManualClock
from millstream.testing.rows import demand, rows_of, settled
from millstream.testing.states import StateModel


@dataclass(frozen=True, slots=True)
class _BarrierMark:
    """Where a script takes a checkpoint."""


BARRIER = _BarrierMark()
"""In a script: take a checkpoint here."""


@dataclass(frozen=True, slots=True)
class On:
    """In a script: a batch of one of several inputs; a batch by itself is one of input 0."""

    input: int
    batch: pa.RecordBatch


DEAD_LETTERS = "dead_letters"
"""Under this name ``check_operator`` returns what was put aside: row, error_type and error of each."""


@dataclass(frozen=True, slots=True)
class Tick:
    """In a script: processing time reaches ``time`` (microseconds); it is 0 at the start."""

    time: int


@dataclass(frozen=True, slots=True)
class Ended:
    """In a script: an input ends. Those for which there is no such step end at the end."""

    input: int


Step: TypeAlias = pa.RecordBatch | On | Watermark | Tick | Ended | _BarrierMark
MOST_TURNS = 100_000
"""After so many turns at the end of event time what works outside is taken never to end."""

Rows: TypeAlias = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to go through a script.

    Attributes:
        restore_every: after how many barriers the operator is thrown away and restored; 0: never.
        widths: how many subtasks there are at the first start, the second ... and then from the first again.
        hint: what is wrong when the rows differ.
        told_often: whether the time is told again after each step.
    """

    name: str
    script: Sequence[Step]
    restore_every: int = 0
    widths: tuple[int, ...] = (1,)
    hint: str = ""
    told_often: bool = False


def check_operator(
    spec: OperatorSpec, script: Sequence[Step], *, schemas: Sequence[pa.Schema] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Run an operator over a script in several ways and demand the same rows each time.

    The ways: as written; row by row; each run of batches at once; restored after every barrier, every second one, and
    after each single row; on several subtasks, restored on more and fewer of them; making each column alone, from the
    columns it says it needs; with its combiner; told the time more often than it asks. At the end event time goes to
    infinity, and so does the clock. Besides: what it emits must have the schema it promised, and state must stay as it
    was handed over.

    Args:
        spec: the operator.
        script: batches (``On(index, batch)`` where there are several inputs), watermarks, ``Tick(time)``,
            ``Ended(index)`` and ``BARRIER``.
        schemas: of the inputs; may be left out when every input has a batch in the script.

    Returns:
        The rows of each port, in the order of the first way; under ``"dead_letters"``, if there are any, the rows that
        were put aside, each as ``{"row": ..., "error_type": ..., "error": ...}``. These must be the same each time too.

    Raises:
        AssertionError: a way gave other rows, or a promise was broken.

    >>> import pyarrow as pa
    >>> from millstream import col
    >>> from millstream.operators.project import Filter
    >>> batch = pa.RecordBatch.from_pylist([{"a": 1}, {"a": 2}, {"a": 3}])
    >>> check_operator(Filter(col("a") > 1), [batch, BARRIER])
    {'main': [{'a': 2}, {'a': 3}]}
    """
    steps = [On(0, step) if isinstance(step, pa.RecordBatch) else step for step in script]
    inputs = list(schemas) if schemas is not None else _schemas_in(steps)
    _check_identity(spec)
    first = _run(spec, inputs, _Way("as written", steps))
    for way in _ways(spec, inputs, steps):
        got = _run(spec, inputs, way)
        for port in sorted(first.keys() | got.keys()):
            where = f"{spec.describe()}, {way.name}, port {port!r}"
            demand(_compared(got, port), _compared(first, port), where + (f" ({way.hint})" if way.hint else ""))
    _check_pruning(spec, inputs, steps, first)
    _check_shortcuts(spec, steps, first)
    return first


def _compared(rows: Rows, port: str) -> list[dict[str, Any]]:
    """The rows of a port, without the messages of errors: these may show addresses."""
    found = rows.get(port, [])
    return [{**row, "error": ""} for row in found] if port == DEAD_LETTERS else found


def _schemas_in(steps: Sequence[Step]) -> list[pa.Schema]:
    found = {step.input: step.batch.schema for step in reversed(steps) if isinstance(step, On)}
    assert sorted(found) == list(range(len(found))), (
        f"the script has batches of the inputs {sorted(found)}: write schemas=[...], one for each input"
    )
    return [found[index] for index in sorted(found)]


def _check_identity(spec: OperatorSpec) -> None:
    assert spec.kind, f"{type(spec).__name__} has no kind"
    assert spec.identity(), f"{spec.kind}: identity() is empty"
    assert spec.identity() == spec.identity(), f"{spec.kind}: identity() is another one each time it is asked"


def _ways(spec: OperatorSpec, inputs: Sequence[pa.Schema], steps: Sequence[Step]) -> Iterator[_Way]:
    by_row = list(_row_by_row(steps))
    every_row = [s for step in by_row for s in ((step, BARRIER) if isinstance(step, On) else (step,))]
    twice = [s for step in steps for s in ((step, step) if step == BARRIER else (step,))]
    batches = "what comes out depends on where batches begin and end"
    state = "what it keeps is not all in snapshot(), or not taken back in restore()"
    yield _Way("row by row", by_row, hint=batches)
    yield _Way("all at once", list(_merged(steps)), hint=batches)
    yield _Way("restored after every barrier", steps, 1, hint=state)
    yield _Way("restored after every second barrier", steps, 2, hint=state)
    yield _Way("restored twice at every barrier", twice, 1, hint=state)
    yield _Way("restored after every row", every_row, 1, hint=state)
    if any(isinstance(step, Tick) for step in steps):
        yield _Way("told the time at every step", steps, told_often=True, hint="on_clock() does what is not due")
    combiner = spec.combiner({port: frozenset(s.names) for port, s in spec.output_schemas(inputs).items()})
    if combiner is not None:
        yield _Way("combined before the exchange", list(_combined(combiner, inputs, steps)), hint="see combiner()")
    kinds = {spec.exchange_of(index).kind for index in range(len(inputs))}
    routed = all(table.route_by for table in spec.state_tables(inputs))
    if kinds & {ExchangeKind.HASH, ExchangeKind.BROADCAST} or (kinds == {ExchangeKind.FORWARD} and routed):
        keys = "rows that belong together are not those of equal exchange() keys, or route_by is not these keys"
        yield _Way("on three subtasks", steps, 0, (3,), hint=keys)
        yield _Way("restored on one, three and two subtasks", steps, 1, (1, 3, 2), hint=keys)
        yield _Way("restored on two, one and three subtasks after every row", every_row, 1, (2, 1, 3), hint=keys)


class _Promised:
    """An Output that keeps what is emitted and holds the operator to the schemas it promised."""

    def __init__(self, spec: OperatorSpec, inputs: Sequence[pa.Schema]) -> None:
        self._what = spec.describe()
        self._inputs = list(inputs)
        self._schemas = spec.output_schemas(inputs)
        self.put_aside: list[dict[str, Any]] = []
        self.batches: dict[str, list[pa.RecordBatch]] = {}

    def emit(self, batch: pa.RecordBatch, port: str = MAIN) -> None:
        """Keep a batch."""
        assert port in self._schemas, f"{self._what} emits into port {port!r}; it has {sorted(self._schemas)}"
        promised = [(field.name, field.type) for field in self._schemas[port]]
        got = [(field.name, field.type) for field in batch.schema]
        assert got == promised, f"{self._what}, port {port!r}: promised {promised}, emits {got}"
        batch.validate(full=True)
        if batch.num_rows:
            self.batches.setdefault(port, []).append(batch)

    def dead_letter(
        self,
        rows: pa.RecordBatch,
        faults: Sequence[Fault],
        *,
        times: pa.Array | None = None,
        code: str = "",
        attempt: int | None = None,
    ) -> None:
        """Keep rows that were put aside, as rows of a port of their own."""
        where = f"{self._what} puts rows aside"
        assert self._inputs == [rows.schema], f"{where} with {rows.schema}: rows must be as they came in, all columns"
        assert len(faults) == rows.num_rows > 0, f"{where}: {len(faults)} faults of {rows.num_rows} rows"
        assert all(fault.type for fault in faults), f"{where} without the type of the error"
        assert times is None or times.type == pa.timestamp("us"), f"{where}: times must be timestamp[us], {times.type}"
        assert attempt is None or attempt >= 1, f"{where}: attempts count from 1, got {attempt}"
        assert isinstance(code, str), f"{where}: the version of the code must be text, got {code!r}"
        for row, fault in zip(rows.to_pylist(), faults, strict=True):
            self.put_aside.append({"row": row, "error_type": fault.type, "error": fault.message})


class _Running:
    """The subtasks of an operator, thrown away and restored as the way says."""

    def __init__(self, spec: OperatorSpec, inputs: Sequence[pa.Schema], way: _Way) -> None:
        self._spec = spec
        self._inputs = inputs
        self._way = way
        self._state = StateModel(spec.state_tables(inputs), spec.describe())
        self.out = _Promised(spec, inputs)
        self._time: int | None = None
        self._now = 0
        self._ended: list[int] = []
        self._epoch = self._starts = self._batches = 0
        self._clock = ManualClock()
        self._draw = random.Random(0)  # noqa: S311 - repeatable on purpose
        self._calls = SimulatedCalls(self._draw, self._clock)
        self._start()

    def _start(self) -> None:
        width = self._way.widths[self._starts % len(self._way.widths)]
        if self._spec.exchange().kind is ExchangeKind.SINGLE:
            width = 1
        self._starts += 1
        self._calls.close()
        self._calls = SimulatedCalls(self._draw, self._clock)
        self._subtasks = [self._spec.build(self._inputs) for _ in range(width)]
        for number, subtask in enumerate(self._subtasks):
            subtask.open(OperatorContext("check", self._spec.kind, number, width, calls=self._calls))
        self._state.begin(width)

    def feed(self, input: int, batch: pa.RecordBatch) -> None:
        """Process a batch where its rows belong."""
        self._batches += 1
        exchange = self._spec.exchange_of(input)
        if exchange.kind is ExchangeKind.BROADCAST:
            for subtask in self._subtasks:
                self._process(subtask, input, batch)
        elif exchange.kind is ExchangeKind.HASH and len(self._subtasks) > 1:
            hashes = exchange_hash([batch.column(key) for key in exchange.keys], batch.num_rows)
            parts = partition(batch, hashes, len(self._subtasks))
            for subtask, part in zip(self._subtasks, parts, strict=True):
                self._process(subtask, input, part)
        else:
            self._process(self._subtasks[self._batches % len(self._subtasks)], input, batch)

    def _process(self, subtask: Operator, input: int, batch: pa.RecordBatch) -> None:
        if batch.num_rows:
            self._tell_time(subtask)
            subtask.process_input(input, batch, self.out)

    def end(self, input: int) -> None:
        """An input has ended; time that waited for that passes."""
        self._ended.append(input)
        for subtask in self._subtasks:
            subtask.on_input_end(input, self.out)
        if self._time is not None:
            self.advance(self._time)

    def _waits(self) -> bool:
        broadcast = (n for n in range(len(self._inputs)) if self._spec.exchange_of(n).kind is ExchangeKind.BROADCAST)
        return any(index not in self._ended for index in broadcast)

    def advance(self, time: int) -> None:
        """Event time has reached ``time``."""
        self._time = time
        if self._waits():
            return
        for subtask in self._subtasks:
            self._tell_time(subtask)
            subtask.on_watermark(time, self.out)
            if time == END_OF_TIME and subtask.uses_clock:
                subtask.on_clock(END_OF_TIME, self.out)

    def tick(self, now: int) -> None:
        """Processing time has reached ``now``."""
        assert now >= self._now, f"the script sets the clock back from {self._now} to {now}"
        self._clock.advance((now - self._now) / 1_000_000)
        self._now = now
        for subtask in self._subtasks:
            due = subtask.next_due() if subtask.uses_clock else None
            if due is not None and due <= now:
                self._tell_time(subtask)
                due = subtask.next_due()
                assert due is None or due > now, (
                    f"{self._spec.describe()}: at {now} still due at {due} after on_clock()"
                )

    def tell_time(self) -> None:
        """Tell the time to everyone who uses it, whether due or not."""
        for subtask in self._subtasks:
            self._tell_time(subtask)

    def go_on_aside(self) -> None:
        """Let what works outside go on a little; at the end of event time, to its end."""
        aside = [subtask for subtask in self._subtasks if subtask.works_aside]
        ends = self._time == END_OF_TIME
        for _ in range(MOST_TURNS if ends else self._draw.randrange(6) if aside else 0):
            if ends and all(subtask.held_watermark() is None for subtask in aside):
                return
            self._calls.step()
            self._clock.advance(0.01 if ends else 0)
            for subtask in aside:
                self._take_ready(subtask)
                if ends and subtask.uses_clock:
                    self._wake_by_clock(subtask)
        assert not ends or not aside, f"{self._spec.describe()}: rows stay in hand though the input has ended"

    def _wake_by_clock(self, subtask: Operator) -> None:
        due = subtask.next_due()
        if due is not None and due <= self._clock.wall():
            subtask.on_clock(self._clock.wall(), self.out)

    def _take_ready(self, subtask: Operator) -> None:
        while subtask.is_ready():
            before = subtask.held_watermark()
            subtask.on_ready(self.out)
            after = subtask.held_watermark()
            assert before is None or after is None or before <= after, (
                f"{self._spec.describe()}: held_watermark() went back from {before} to {after}"
            )

    def _tell_time(self, subtask: Operator) -> None:
        if subtask.uses_clock:
            subtask.on_clock(self._now, self.out)

    def barrier(self) -> None:
        """Take a checkpoint, and start again from it if it is time to."""
        self._epoch += 1
        for subtask in self._subtasks:
            subtask.on_barrier(self.out)
        self._state.commit(self._epoch, [subtask.snapshot(self._epoch) for subtask in self._subtasks])
        if self._way.restore_every and self._epoch % self._way.restore_every == 0:
            self._start()
            self._state.restore(self._subtasks)
            for input in self._ended:
                for subtask in self._subtasks:
                    subtask.on_input_end(input, self.out)
            if self._time is not None and not self._waits():
                for subtask in self._subtasks:
                    subtask.on_watermark(self._time, self.out)
            self.tick(self._now)

    def close(self) -> None:
        """End."""
        for subtask in self._subtasks:
            subtask.on_barrier(self.out)
            subtask.counters()
            subtask.close()
        self._calls.close()
        self._state.check_untouched()


def _run(spec: OperatorSpec, inputs: Sequence[pa.Schema], way: _Way) -> Rows:
    running = _Running(spec, inputs, way)
    told = {step.input for step in way.script if isinstance(step, Ended)}
    rest = [Ended(index) for index in range(len(inputs)) if index not in told]
    for step in [*way.script, *rest, Watermark(END_OF_TIME)]:
        match step:
            case Ended():
                running.end(step.input)
            case On():
                running.feed(step.input, step.batch)
            case Watermark():
                running.advance(step.time)
            case Tick():
                running.tick(step.time)
            case _:
                running.barrier()
        running.go_on_aside()
        if way.told_often:
            running.tell_time()
    running.close()
    rows = {port: settled(rows_of(batches)) for port, batches in running.out.batches.items()}
    return {**rows, DEAD_LETTERS: running.out.put_aside} if running.out.put_aside else rows


# -- the same script, cut otherwise ----------------------------------------------------------------------------


def _row_by_row(steps: Sequence[Step]) -> Iterator[Step]:
    for step in steps:
        if isinstance(step, On):
            yield from (On(step.input, step.batch.slice(i, 1)) for i in range(step.batch.num_rows))
        else:
            yield step


def _merged(steps: Sequence[Step]) -> Iterator[Step]:
    waiting: list[On] = []
    for step in [*steps, None]:
        if isinstance(step, On) and (not waiting or waiting[0].input == step.input):
            waiting.append(step)
            continue
        if waiting:
            merged = pa.Table.from_batches([on.batch for on in waiting]).combine_chunks()
            yield from (On(waiting[0].input, batch) for batch in merged.to_batches())
        waiting = [step] if isinstance(step, On) else []
        if step is not None and not waiting:
            yield step


def _combined(combiner: OperatorSpec, inputs: Sequence[pa.Schema], steps: Sequence[Step]) -> Iterator[Step]:
    assert not combiner.state_tables(inputs), f"{combiner.describe()}: a combiner cannot have state"
    for step in steps:
        if not isinstance(step, On):
            yield step
            continue
        schema = inputs[step.input]
        operator, out = combiner.build([schema]), _Promised(combiner, [schema])
        if step.batch.num_rows:
            operator.process(step.batch, out)
        yield from (On(step.input, batch) for batch in out.batches.get(MAIN, []))


# -- what a spec says of itself, for the planner ---------------------------------------------------------------


def _check_pruning(spec: OperatorSpec, inputs: Sequence[pa.Schema], steps: Sequence[Step], whole: Rows) -> None:
    promised = spec.output_schemas(inputs)
    for port, schema in promised.items():
        for column in unweighted(schema).names:
            # A changelog's weight always travels.
            weight = frozenset([WEIGHT]) & frozenset(schema.names)
            wanted = {name: frozenset([column]) | weight if name == port else frozenset() for name in promised}
            where = f"{spec.describe()}, making only {column!r} of port {port!r}"
            needed = spec.columns_needed(wanted, inputs)
            assert len(needed) == len(inputs), f"{where}: columns_needed() must speak of each of {len(inputs)} inputs"
            for index, names in enumerate(needed):
                unknown = sorted(names - set(inputs[index].names))
                assert not unknown, f"{where}: columns_needed() names {unknown}, not columns of input {index}"
            # A batch without any column has no rows either: one column always travels.
            kept = [
                [name for name in schema.names if name in names or name == WEIGHT] or schema.names[:1]
                for schema, names in zip(inputs, needed, strict=True)
            ]
            script = [On(s.input, s.batch.select(kept[s.input])) if isinstance(s, On) else s for s in steps]
            narrow = [_select(schema, names) for schema, names in zip(inputs, kept, strict=True)]
            pruned = spec.pruned(wanted)
            got = _run(pruned, narrow, _Way("pruned", script))
            demand(_only(got, port, column), _only(whole, port, column), where)


def _select(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names], schema.metadata)


def _only(rows: Rows, port: str, column: str) -> list[dict[str, Any]]:
    found = rows.get(port, [])
    assert all(column in row for row in found), f"column {column!r} of port {port!r} was wanted and is not made"
    return settled([{name: row[name] for name in (column, WEIGHT) if name in row} for row in found])


def _check_shortcuts(spec: OperatorSpec, steps: Sequence[Step], first: Mapping[str, Any]) -> None:
    batches = [step.batch for step in steps if isinstance(step, On) and step.batch.num_rows]
    predicate, projection = spec.as_filter(), spec.as_projection()
    if predicate is not None:
        names = list(first[MAIN][0]) if first.get(MAIN) else []
        kept = [batch.filter(predicate.evaluate(batch)).select(names) for batch in batches]
        demand(first.get(MAIN, []), rows_of(kept), f"{spec.describe()}: as_filter() says it keeps other rows")
    if projection is not None:
        made = [pa.RecordBatch.from_pydict({n: e.evaluate(batch) for n, e in projection.items()}) for batch in batches]
        demand(first.get(MAIN, []), rows_of(made), f"{spec.describe()}: as_projection() says it makes other columns")
