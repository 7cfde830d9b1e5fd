"""Aggregates of the user's: ``aggregate(..., state=..., init=..., update=..., result=..., type=...)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.expression_types import data_type, schema_of, shown_scalar
from millstream.engine.store.columns import storage_type
from millstream.operators.aggregate_spec import AggregateSpec, condition, expressions
from millstream.operators.python import check_function, function_name, shown_schema
from millstream.operators.python_values import typed_array

if TYPE_CHECKING:
    from millstream.operators.accumulators import Accumulator

State: TypeAlias = Mapping[str, pa.Array]
"""The state of some groups: for each declared column an array, shape (groups,)."""


@dataclass(frozen=True)
class Functions:
    """What the user wrote.

    Attributes:
        init: a row of the state's schema: where every group begins.
        update: (state, groups, *arguments) -> state.
        result: state -> an array of ``type``.
        merge: (state, state of later rows) -> state; None: there is none.
        retract: (state, groups, *arguments) -> state without these rows; None: there is none.
    """

    init: pa.RecordBatch
    update: Callable[..., Any]
    result: Callable[..., Any]
    merge: Callable[..., Any] | None
    retract: Callable[..., Any] | None
    type: pa.DataType


@dataclass(frozen=True, eq=False)
class UserAggregate(AggregateSpec):
    """An aggregate in functions of the user's."""

    functions: Functions

    @property
    def function(self) -> str:
        """What users call it."""
        return "aggregate"

    def options(self) -> tuple[str, ...]:
        """As ``AggregateSpec.options``: the functions by name, for what they do cannot be told."""
        own = self.functions
        init = ", ".join(f"{name}={shown_scalar(own.init.column(name)[0])}" for name in own.init.schema.names)
        given = (("merge", own.merge), ("retract", own.retract))
        more = tuple(f"{name}={function_name(fn)}" for name, fn in given if fn is not None)
        return (
            f"state=({shown_schema(own.init.schema)})",
            f"init=({init})",
            f"update={function_name(own.update)}",
            *more,
            f"result={function_name(own.result)}",
            f"type={own.type}",
        )

    def type_in(self, schema: pa.Schema) -> pa.DataType:
        """Return the type that was promised."""
        for argument in self.arguments:
            argument.type_in(schema)
        return self.functions.type

    def state_fields(self, schema: pa.Schema) -> tuple[pa.Field, ...]:
        """As ``AggregateSpec.state_fields``: as declared."""
        del schema
        return tuple(self.functions.init.schema)

    @property
    def instead(self) -> str:
        """As ``AggregateSpec.instead``: nothing, if the user said how."""
        if self.functions.retract is not None:
            return ""
        return "give it a function retract=(state, groups, *arguments) -> state, which undoes update"

    @property
    def can_merge(self) -> bool:
        """As ``AggregateSpec.can_merge``: if the user said how."""
        return self.functions.merge is not None

    def accumulator(self, schema: pa.Schema) -> Accumulator:
        """As ``AggregateSpec.accumulator``."""
        from millstream.operators.user_accumulator import UserAccumulator

        del schema
        return UserAccumulator(self.functions)


def aggregate(  # noqa: PLR0913  most are functions, by name
    *arguments: str | Expr,
    state: pa.Schema | Mapping[str, Any],
    init: Mapping[str, Any],
    update: Callable[..., Any],
    result: Callable[..., Any],
    type: Any,
    merge: Callable[..., Any] | None = None,
    retract: Callable[..., Any] | None = None,
    where: str | Expr | None = None,
) -> AggregateSpec:
    """Make an aggregate of functions over arrays, with an element per group: they are called once per batch.

    A state is a dict of ``pa.Array``, one for each declared column (``np.asarray`` makes NumPy of it). Functions
    return a dict of arrays, Arrow or NumPy, of the same names and length. Where batches begin and end is not fixed:
    the result must not depend on it.

    Args:
        arguments: columns or expressions.
        state: the columns of the state: ``{"total": float}``, or a ``pa.Schema``. Checkpoints hold them as they are.
        init: where every group begins: ``{"total": 0.0}``.
        update: ``(state, groups, *arguments) -> state``, where ``groups`` (int64) says for each row where its group
            stands in the state, and the arguments are a ``pa.Array`` each, nulls included.
        result: ``(state) -> array`` of ``type``, one value per group.
        type: of the result.
        merge: ``(state, later) -> state``: joins the states of the same groups over earlier and later rows; joined to
            ``init`` a state stays what it is. If it is given, each batch is reduced by itself, from ``init`` on, and
            merged into what there is; otherwise ``update`` goes on from there.
        retract: takes rows back, over a changelog: it gets what ``update`` got for them, and returns the state as it
            would be without them. In a batch the rows that come are taken in before others are taken back.
        where: as for ``count``.

    Raises:
        JobError: a function cannot be called that way, or ``init`` does not fit ``state``.

    >>> import numpy as np
    >>> def add(state, groups, values):
    ...     return {"total": np.asarray(state["total"]) + np.bincount(groups, values, len(state["total"]))}
    >>> total = aggregate(
    ...     "price", state={"total": float}, init={"total": 0.0}, update=add, result=lambda s: s["total"], type=float
    ... )
    >>> total.type_in(pa.schema({"price": pa.float64()}))
    DataType(double)
    """
    count = len(arguments)
    takes = f"{2 + count} arguments, the state, the groups and what it aggregates"
    check_function(update, "aggregate(update=...)", 2 + count, takes)
    check_function(result, "aggregate(result=...)", 1, "one argument, the state")
    if merge is not None:
        check_function(merge, "aggregate(merge=...)", 2, "two arguments, states")
    if retract is not None:
        check_function(retract, "aggregate(retract=...)", 2 + count, takes)
    functions = Functions(_beginning(schema_of(state), init), update, result, merge, retract, data_type(type))
    return UserAggregate(expressions("aggregate", *arguments), functions, where=condition("aggregate", where))


def _beginning(schema: pa.Schema, init: Mapping[str, Any]) -> pa.RecordBatch:
    """Return the starting values as a row of the state's schema."""
    if not isinstance(init, Mapping) or init.keys() != set(schema.names):
        raise JobError(
            f"aggregate(init=...) takes a dict of where a group begins, with exactly the columns of the state, "
            f"{', '.join(map(repr, schema.names))}; got {init!r}"
        )
    columns = []
    for field in schema:
        try:
            storage_type(field.type)
            columns.append(typed_array([init[field.name]], field.type))
        except SchemaError as error:
            raise JobError(f"aggregate(state=...), column {field.name!r}: {error}") from None
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            given = init[field.name]
            raise JobError(
                f"aggregate(init=...): {field.name!r} is {field.type} and cannot begin with {given!r}: {error}"
            ) from None
    return pa.record_batch(columns, schema=pa.schema([pa.field(field.name, field.type) for field in schema]))
