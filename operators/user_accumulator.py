"""Running values of aggregates of the user's. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from millstream.engine.codes import Bools, Ints
from millstream.engine.errors import MillstreamError, UserCodeError
from millstream.operators import aggregate_kernels as kernels
from millstream.operators.accumulators import Retractable
from millstream.operators.cells import cells_for, resized
from millstream.operators.python import function_place, shown_schema
from millstream.operators.python_rows import shown, shown_row
from millstream.operators.user_aggregate import Functions

_State = dict[str, pa.Array]


class UserAccumulator(Retractable):
    """Calls functions of the user's with the state of the groups in a batch. State: the columns declared."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._schema = functions.init.schema
        self._cells = [cells_for(type) for type in self._schema.types]
        self._begun: Bools = np.empty(0, np.bool_)

    def resize(self, slots: int) -> None:
        """As ``Accumulator.resize``."""
        for cells in self._cells:
            cells.resize(slots)
        self._begun = resized(self._begun, slots, fill=False)

    def apply(self, slots: Ints, arguments: Sequence[pa.Array], times: Ints, weights: Ints) -> None:
        """As ``Retractable.apply``. Raises UserCodeError if a function fails, or returns what it must not."""
        del times
        if not len(weights):
            self._take_in(slots, arguments)
            return
        for wanted, take in ((weights, self._take_in), (-weights, self._take_out)):
            # A row of weight n is n rows to the user's function.
            rows = np.repeat(np.arange(len(slots)), np.maximum(wanted, 0))
            if len(rows):
                take(slots[rows], [argument.take(pa.array(rows)) for argument in arguments])

    def _take_in(self, slots: Ints, arguments: Sequence[pa.Array]) -> None:
        touched, groups = np.unique(slots, return_inverse=True)
        groups = groups.reshape(-1).astype(np.int64, copy=False)
        merge, update = self._functions.merge, self._functions.update
        held = self._held(touched)
        begin = self._init(len(touched)) if merge else held
        made = self._call(update, len(touched), [begin, groups, *arguments], arguments)
        if merge:
            made = self._call(merge, len(touched), [held, made], ())
        self._put(touched, made)

    def _take_out(self, slots: Ints, arguments: Sequence[pa.Array]) -> None:
        retract = self._functions.retract
        assert retract is not None, "aggregates without retract= refuse changelogs"
        touched, groups = np.unique(slots, return_inverse=True)
        groups = groups.reshape(-1).astype(np.int64, copy=False)
        self._put(touched, self._call(retract, len(touched), [self._held(touched), groups, *arguments], arguments))

    def clear(self, slots: Ints) -> None:
        """As ``Accumulator.clear``."""
        self._begun[slots] = False

    def merge(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.merge``. Raises UserCodeError as ``update``."""
        merge = self._functions.merge
        assert merge is not None, "windows of panes refuse aggregates without merge="
        rows, rounds = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
        kernels.number_rows(slots, len(slots), np.zeros(len(self._begun), np.int64), rows, rounds)
        # A slot may be there many times, but the user's function joins one state to one.
        for number in range(int(rounds.max(initial=-1)) + 1):
            rows = np.flatnonzero(rounds == number)
            later = {
                name: column.take(pa.array(rows)) for name, column in zip(self._schema.names, columns, strict=True)
            }
            groups = slots[rows]
            self._put(groups, self._call(merge, len(groups), [self._held(groups), later], ()))

    def result(self, slots: Ints) -> pa.Array:
        """As ``Accumulator.result``. Raises UserCodeError as ``update``."""
        result, type = self._functions.result, self._functions.type
        made = _called(result, [self._held(slots)], ())
        return _column(result, made, "a result", type, len(slots))

    def state(self, slots: Ints) -> list[pa.Array]:
        """As ``Accumulator.state``."""
        return list(self._held(slots).values())

    def load(self, slots: Ints, columns: Sequence[pa.Array]) -> None:
        """As ``Accumulator.load``."""
        self._put(slots, dict(zip(self._schema.names, columns, strict=True)))

    def compact(self, kept: Ints) -> None:
        """As ``Accumulator.compact``."""
        for cells in self._cells:
            cells.compact(kept)
        self._begun = self._begun[kept]

    def _init(self, count: int) -> _State:
        """Return the state that groups begin with."""
        return {name: pa.repeat(self._functions.init.column(name)[0], count) for name in self._schema.names}

    def _held(self, slots: Ints) -> _State:
        """Return the state of some slots; those that have none begin."""
        fresh = slots[~self._begun[slots]]
        if len(fresh):
            self._put(fresh, self._init(len(fresh)))
        return {name: cells.get(slots) for name, cells in zip(self._schema.names, self._cells, strict=True)}

    def _put(self, slots: Ints, state: _State) -> None:
        for cells, column in zip(self._cells, state.values(), strict=True):
            cells.put(slots, column)
        self._begun[slots] = True

    def _call(self, fn: Callable[..., Any], groups: int, parts: Sequence[Any], arguments: Sequence[pa.Array]) -> _State:
        """Call a function that makes a state, and check what it returns."""
        made = _called(fn, parts, arguments)
        names = self._schema.names
        if not isinstance(made, Mapping) or made.keys() != set(names):
            raise UserCodeError(
                f"{function_place(fn)} must return a state, a dict of arrays with exactly the columns "
                f"{shown_schema(self._schema)}; got {shown(made)}"
            )
        return {
            field.name: _column(fn, made[field.name], f"column {field.name!r} of the state", field.type, groups)
            for field in self._schema
        }


def _called(fn: Callable[..., Any], parts: Sequence[Any], arguments: Sequence[pa.Array]) -> Any:
    try:
        return fn(*parts)
    except MillstreamError:
        raise
    except Exception as error:
        row = ""
        if arguments:
            batch = pa.record_batch(list(arguments), names=[f"argument {n}" for n in range(1, len(arguments) + 1)])
            row = f", for {batch.num_rows} rows; the first: {shown_row(batch, 0)}"
        raise UserCodeError(f"{function_place(fn)} raised {type(error).__name__}: {error}{row}") from error


def _column(fn: Callable[..., Any], values: Any, what: str, type: pa.DataType, groups: int) -> pa.Array:
    """Return what a function made as an array of a type. Raises UserCodeError if it is none."""
    try:
        array = _array(values, type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UserCodeError(
            f"{function_place(fn)} must return an array of {type} as {what}, got {shown(values)} ({error})"
        ) from None
    if len(array) != groups:
        raise UserCodeError(
            f"{function_place(fn)} must return as many values as there are groups, {groups}, as {what}, "
            f"got {len(array)}: {shown(values)}"
        )
    return array


def _array(values: Any, type: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, np.ndarray):
        values = pa.array(values)
    if isinstance(values, pa.Array):
        return values if values.type == type else values.cast(type)
    return pa.array(values, type)
