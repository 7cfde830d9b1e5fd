"""Gives each aggregate of a group the rows that it sees. Importing this module loads numba."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from millstream.engine.codes import Ints, plain
from millstream.engine.expression import Expr, evaluate_all
from millstream.operators.accumulators import NO_WEIGHTS, Accumulator, Retractable
from millstream.operators.aggregate_spec import AggregateSpec


@dataclass(slots=True)
class _Seeing:
    """The aggregates that see the same rows.

    Attributes:
        where: the condition; None: all rows.
        arguments: the arguments of all of them, one after the other.
        takers: (accumulator, how many of the arguments are its own).
    """

    where: Expr | None
    arguments: list[Expr] = field(default_factory=list)
    takers: list[tuple[Accumulator, int]] = field(default_factory=list)


class AggregateFeed:
    """Evaluates conditions and arguments, each condition once per batch, and updates the accumulators."""

    def __init__(self, aggregates: Sequence[AggregateSpec], accumulators: Sequence[Accumulator]) -> None:
        seeing: dict[str, _Seeing] = {}
        for aggregate, accumulator in zip(aggregates, accumulators, strict=True):
            where = aggregate.where
            group = seeing.setdefault("" if where is None else where.text, _Seeing(where))
            group.arguments += aggregate.arguments
            group.takers.append((accumulator, len(aggregate.arguments)))
        self._groups = list(seeing.values())

    def update(self, batch: pa.RecordBatch, slots: Ints, times: Ints, weights: Ints = NO_WEIGHTS) -> None:
        """Fold rows into the slots they belong to.

        Args:
            slots: int64, shape (n,): the slot of each row.
            times: event times, int64 microseconds, shape (n,).
            weights: of the rows, int64, shape (n,), if they come from a changelog.
        """
        for group in self._groups:
            if group.where is None:
                _feed(group, batch, slots, times, weights)
                continue
            chosen = pc.fill_null(group.where.evaluate(batch), False)
            count = chosen.true_count
            if count == batch.num_rows:
                _feed(group, batch, slots, times, weights)
            elif count:
                mask = chosen.to_numpy(zero_copy_only=False)
                seen = _read(batch, group.arguments).filter(chosen)
                _feed(group, seen, slots[mask], times[mask], weights[mask] if len(weights) else weights)


def _read(batch: pa.RecordBatch, arguments: Sequence[Expr]) -> pa.RecordBatch:
    """Return the columns that the arguments read; a batch needs at least one to have rows."""
    read = frozenset().union(*(argument.columns() for argument in arguments))
    return batch.select([name for name in batch.schema.names if name in read] or batch.schema.names[:1])


def _feed(group: _Seeing, batch: pa.RecordBatch, slots: Ints, times: Ints, weights: Ints) -> None:
    values = [plain(value) for value in evaluate_all(group.arguments, batch)]
    for accumulator, count in group.takers:
        own, values = values[:count], values[count:]
        if len(weights):
            assert isinstance(accumulator, Retractable), f"{type(accumulator).__name__} cannot take rows back"
            accumulator.apply(slots, own, times, weights)
        else:
            accumulator.update(slots, own, times)
