"""``process``: Python code over the rows of each key, with state, timers and side outputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

import pyarrow as pa
from millstream.engine.changelog import is_changelog, weighted
from millstream.engine.codes import form_of, plain_type
from millstream.engine.errors import JobError
from millstream.engine.expression import Expr
from millstream.engine.expression_types import Schema, schema_of
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import DELETED, StateTable
from millstream.engine.time import Duration
from millstream.operators.column_reads import columns_read
from millstream.operators.event_time import TIME_TYPE
from millstream.operators.process_code import looks_at, says
from millstream.operators.process_states import EVENT, PROCESSING, SideOutput, State, ValueState
from millstream.operators.python import check_function, function_name, function_place, shown_schema
from millstream.operators.windowed import check_columns, check_time, distinct_names

if TYPE_CHECKING:
    import datetime as dt

    from millstream.operators.process_context import ProcessContext

STATE: Final = "state"
"""The state table of values and entries."""

TIMERS: Final = "timers"
"""The state table of timers."""

Made: TypeAlias = Iterable[dict[str, Any]] | dict[str, Any] | None
"""What user code returns or yields: rows as dicts."""


class Process:
    """Base of classes for ``group_by(...).process(...)``: one is made per subtask, and serves all its keys.

    ``schema`` says which rows come out. State (``ms.value_state``, ``map_state``, ``list_state``) and side outputs
    (``ms.side_output``) are declared in the body of the class; in ``on_row`` and ``on_timer`` they are those of the
    row's or timer's key. Other attributes are not kept: they are for what ``open`` sets up.

    >>> import millstream as ms
    >>> class Total(ms.Process):
    ...     schema = {"user": str, "total": float}
    ...     total = ms.value_state(float, default=0.0)
    ...     def on_row(self, row, ctx):
    ...         self.total += row["amount"]
    ...         yield {"user": row["user"], "total": self.total}
    >>> job, out = ms.Job("j"), ms.memory_sink()
    >>> payments = job.read(ms.memory_source([{"user": "ann", "amount": 2.0}, {"user": "ann", "amount": 3.5}]))
    >>> payments.group_by("user").process(Total).write(out)
    >>> _ = job.run()
    >>> [row["total"] for row in out.rows()]
    [2.0, 5.5]
    """

    schema: ClassVar[Schema]

    def open(self) -> None:
        """Called once, before the first row: for connections, models and caches. There is no state here."""

    def on_row(self, row: dict[str, Any], ctx: ProcessContext) -> Made:
        """Take a row; yield rows, or return one, or None. The rows of a key come one after the other."""
        raise NotImplementedError

    def on_timer(self, time: dt.datetime, ctx: ProcessContext) -> Made:
        """A timer that ``ctx.timer(...)`` set has come due; yield or return as ``on_row`` does."""
        raise NotImplementedError

    def close(self) -> None:
        """Called once, after the last row; not after a crash."""


Code: TypeAlias = type[Process] | functools.partial[Process]


def process_of(code: Any) -> Code:
    """Return the class, or the class with arguments, if it is in order.

    Raises:
        JobError: it is not; the message says what to write.
    """
    if isinstance(code, Process):
        name = type(code).__name__
        raise JobError(
            f"process() takes the class itself, since it makes one for each subtask: write process({name}), or "
            f"functools.partial({name}, limit=100) for one with arguments"
        )
    cls = class_of(code)
    if not (isinstance(cls, type) and issubclass(cls, Process)):
        raise JobError(f"process() takes a function, or a class derived from ms.Process; got {code!r}")
    if cls.on_row is Process.on_row:
        raise JobError(f"{cls.__qualname__} has no on_row(self, row, ctx), which process() calls for each row")
    _check_method(cls, "on_row", "row")
    _check_method(cls, "on_timer", "time")
    if cls.on_timer is Process.on_timer and says(cls.on_row, "timer"):
        raise JobError(
            f"{cls.__qualname__}.on_row() sets a timer, and there is no method to call then: write "
            "def on_timer(self, time, ctx)"
        )
    _check_names(cls)
    checked: Code = code
    return checked


def class_of(code: Any) -> Any:
    """The class, without its arguments."""
    while isinstance(code, functools.partial):
        code = code.func
    return code


def _check_method(cls: type[Process], name: str, first: str) -> None:
    method = getattr(cls, name)
    if isinstance(method, (State, SideOutput)) or not callable(method):
        raise JobError(f"{cls.__qualname__}.{name} is taken: {name}() is a method; give the state another name")
    if not inspect.isfunction(method):
        raise JobError(f"{cls.__qualname__}.{name} must be a plain method: def {name}(self, {first}, ctx)")
    check_function(method, "process()", 3, f"self, {first} and ctx, as in def {name}(self, {first}, ctx)")


def _check_names(cls: type[Process]) -> None:
    seen: dict[int, str] = {}
    for name, declared in [*states_of(cls).items(), *sides_of(cls).items()]:
        what = f"{cls.__qualname__}.{name}"
        if name in ("open", "close", "schema"):
            raise JobError(f"{what} is taken: every ms.Process has such an attribute; give the state another name")
        if name == MAIN:
            raise JobError(f"{what}: {MAIN!r} is the name of the result; give the side output another name")
        if id(declared) in seen:
            raise JobError(f"{what} is the same as {seen[id(declared)]!r}: declare each by a call of its own")
        seen[id(declared)] = name


def states_of(cls: type[Process]) -> dict[str, State]:
    """Return the declared states by name, those of base classes too."""
    return _declared(cls, State)


def sides_of(cls: type[Process]) -> dict[str, SideOutput]:
    """Return the declared side outputs by name."""
    return _declared(cls, SideOutput)


def _declared(cls: type[Process], kind: type[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        found.update(vars(base))
    return {name: value for name, value in found.items() if isinstance(value, kind)}


def check_changes(cls: type[Process], *, changes: bool, retracts: bool) -> None:
    """Raise JobError if the code plainly ignores the weights of a changelog, or takes rows back that are to stay."""
    on_row = vars(cls)["function"].__func__ if "function" in vars(cls) else cls.on_row
    if changes and not looks_at(on_row):
        form = (
            "def on_row(self, row, ctx)" if on_row is cls.on_row else "a function of three arguments, row, state, ctx"
        )
        raise JobError(
            f"process(changes=True): {cls.__qualname__} does not look at ctx.weight, and so would take a row that is "
            f"taken back for one more: write {form}, and undo what a row has done where ctx.weight is -1"
        )
    for method in (on_row, cls.on_timer):
        if not retracts and says(method, "retract"):
            raise JobError(
                f"process(): {cls.__qualname__} says ctx.retract(...), which takes rows of the result back: write "
                "process(..., retracts=True), which makes the result a changelog"
            )


def process_from_function(
    fn: Callable[..., Any], ttl: Duration | None, side_outputs: Mapping[str, SideOutput]
) -> type[Process]:
    """Return a class that keeps one dict per key and hands it to a function ``fn(row, state)`` or with ``ctx`` too.

    Raises:
        JobError: the function takes other arguments.
    """
    takes = "two arguments, a row and a state, both dicts (or three: row, state, ctx)"
    try:
        check_function(fn, "process()", 3, takes)
        with_context = True
    except JobError:
        check_function(fn, "process()", 2, takes)
        with_context = False

    if with_context and says(fn, "timer"):
        raise JobError(
            f"process(): {function_name(fn)} sets a timer, and a function has no on_timer(): write a class derived "
            "from ms.Process, with on_row(self, row, ctx) and on_timer(self, time, ctx)"
        )
    if with_context:

        def on_row(self: Any, row: dict[str, Any], ctx: Any) -> Made:
            made: Made = fn(row, self.state, ctx)
            return made
    else:

        def on_row(self: Any, row: dict[str, Any], ctx: Any) -> Made:  # noqa: ARG001
            made: Made = fn(row, self.state)
            return made

    state: Any = ValueState(dict, dict, ttl, None, called="state")
    body = {"on_row": on_row, "state": state, "function": staticmethod(fn), **side_outputs}
    made = type(getattr(fn, "__name__", "function"), (Process,), body)
    made.__module__, made.__qualname__ = function_name(fn).rpartition(".")[0], function_name(fn).rpartition(".")[2]
    return made


def user_place(cls: type[Process], method: str) -> str:
    """Name the code that is called, for an error: with file and line."""
    return function_place(vars(cls)["function"].__func__ if "function" in vars(cls) else getattr(cls, method))


@dataclass(frozen=True, eq=False)
class ProcessSpec(OperatorSpec):
    """Calls Python code for each row, in the order of arrival, and for each timer that comes due.

    Rows go through whatever their event time, late ones too. Timers of event time fire when the watermark has passed
    them, in the order of their times, before the watermark goes on; one that is set for a time already passed fires
    right after the row that set it. Timers of processing time fire by the clock; at the end of the input all that are
    left fire at once.

    Attributes:
        keys: the columns that make up the key.
        code: a subclass of ``Process``, or one with arguments.
        schema: of the result.
        time: the event time of a row; None if the stream has none.
        changes: whether the code takes a changelog, and looks at the weight of each row.
        retracts: whether the code takes back what it has made: the result is a changelog then.
    """

    keys: tuple[str, ...]
    code: Code
    schema: pa.Schema
    time: Expr | None = None
    changes: bool = False
    retracts: bool = False

    def __post_init__(self) -> None:
        for name, state in self.states.items():
            if state.clock == EVENT and self.time is None:
                raise JobError(
                    f"{self.cls.__qualname__}.{name} goes by event time, which the stream does not have: name its "
                    "column in job.read(..., event_time='sent_at'), or write clock='processing'"
                )

    @property
    def cls(self) -> type[Process]:
        """The class of the code."""
        cls: type[Process] = class_of(self.code)
        return cls

    @functools.cached_property
    def states(self) -> dict[str, State]:
        """The declared states."""
        return states_of(self.cls)

    @functools.cached_property
    def sides(self) -> dict[str, SideOutput]:
        """The declared side outputs."""
        return sides_of(self.cls)

    def clock_of(self, state: State) -> str:
        """What measures how long a state lives."""
        return state.clock or (PROCESSING if self.time is None else EVENT)

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "process"

    def identity(self) -> str:
        """The name of the code and what comes out; what it keeps is compared when it is restored."""
        sides = "".join(f", {name}({shown_schema(side.schema)})" for name, side in self.sides.items())
        return (
            f"process({self.cls.__module__}.{self.cls.__qualname__}, keys={self.keys!r}, time={self.time}, "
            f"{shown_schema(self.schema)}{sides}{', retracts' if self.retracts else ''})"
        )

    def describe(self) -> str:
        """One line for the plan."""
        kept = f", keeps {', '.join(self.states)}" if self.states else ""
        return f"{self.cls.__qualname__} for each {', '.join(self.keys)}{kept}"

    def exchange(self) -> Exchange:
        """By hash of the keys."""
        return Exchange(ExchangeKind.HASH, self.keys)

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """The result and the side outputs. Raises SchemaError when the input does not fit."""
        (schema,) = inputs
        if self.changes and not is_changelog(schema):
            raise JobError(
                "process(changes=True) is for changelogs; no row of this stream is ever taken back: leave it out"
            )
        check_columns(self.keys, schema, "key")
        for key in self.keys:
            form_of(schema.field(key).type, f"key column {key!r}")
        if self.time is not None:
            check_time(self.time, schema)
        made = weighted(self.schema) if self.retracts else self.schema
        return {MAIN: made, **{name: side.schema for name, side in self.sides.items()}}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """A row for each value and entry, and one for each timer."""
        (schema,) = inputs
        types = [plain_type(schema.field(key).type) for key in self.keys]
        entries = {"state": pa.string(), "entry": pa.binary(), "value": pa.binary(), "expires": pa.int64()}
        timers = {"clock": pa.string(), "name": pa.string(), "at": pa.int64(), "time": TIME_TYPE}
        tables = []
        for table, columns, width in ((STATE, entries, 2), (TIMERS, timers, 3)):
            names = distinct_names([*self.keys, *columns], {DELETED})
            fields = pa.schema(list(zip(names, [*types, *columns.values()], strict=True)))
            keys = len(self.keys)
            tables.append(StateTable(table, fields, keys=tuple(names[: keys + width]), route_by=tuple(names[:keys])))
        return tuple(tables)

    @functools.cached_property
    def reads(self) -> frozenset[str] | None:
        """The columns of its row that the code looks at; None: perhaps all."""
        cls = self.cls
        if "function" in vars(cls):
            return columns_read([vars(cls)["function"].__func__])
        return columns_read([cls.on_row], 1)

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """Keys, time, and what the code reads, if that can be told."""
        del wanted
        names, read = frozenset(inputs[0].names), self.reads
        time = frozenset() if self.time is None else self.time.columns()
        return [names if read is None else frozenset(self.keys) | time | (names & read)]

    @property
    def takes_changelog(self) -> bool:
        """Only if the code looks at weights: nobody can undo for it what it has done with a row."""
        return self.changes

    @property
    def uses_event_time(self) -> bool:
        """Timers and times to live may need watermarks."""
        return self.time is not None

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.process_operator import ProcessOperator

        return ProcessOperator(self, inputs[0])


def schema_for(cls: type[Process], schema: Schema | None) -> pa.Schema:
    """Return the schema of the result: the one given, or the class's.

    Raises:
        JobError: there is none.
    """
    found = schema if schema is not None else getattr(cls, "schema", None)
    if found is None:
        where = "process(..., schema={...})" if "function" in vars(cls) else f"schema = {{...}} in {cls.__qualname__}"
        raise JobError(
            f"process() needs to know the columns that {cls.__qualname__} yields and their types: write {where}, as in "
            "{'user': str, 'total': float}"
        )
    return schema_of(found)
