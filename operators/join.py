"""What all joins have in common: keys, columns, and what is left of a row that matches nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import pyarrow as pa
from millstream.engine.codes import plain_type
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.expression import Expr
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, OperatorSpec
from millstream.operators.join_columns import JoinedColumn, check_keys, joined_schema

HOWS: Final = ("inner", "left", "right", "full", "semi", "anti")
"""What can be asked of a join."""

SIDES: Final = ("left", "right")
"""The names of the inputs, and of the state tables of their rows."""

_MOST_KEYS: Final = 62


@dataclass(frozen=True, eq=False)
class Join(OperatorSpec):
    """Brings rows of two inputs together whose keys are equal, and for which ``where`` is true.

    ``inner`` gives the pairs; ``left``, ``right`` and ``full`` also the rows of that side (of both) that are in no
    pair, with nulls for the other; ``semi`` gives each left row that is in a pair, once; ``anti`` each that is in none.
    As in SQL a null key equals nothing. NaN equals NaN.

    Attributes:
        left_keys: the columns that are equal to ``right_keys``, one by one; at least one.
        columns: the columns of a pair, in order.
        where: over the columns of a pair; None: every pair of equal keys will do.
        keep: the columns wanted of each port, since nobody wants the others; None: all.
    """

    left_keys: tuple[str, ...]
    right_keys: tuple[str, ...]
    how: str
    columns: tuple[JoinedColumn, ...]
    where: Expr | None = None
    keep: Mapping[str, frozenset[str]] | None = None

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise JobError(f"join(how={self.how!r}): how is one of {', '.join(map(repr, HOWS))}")
        if not 1 <= len(self.left_keys) <= _MOST_KEYS or len(self.left_keys) != len(self.right_keys):
            raise JobError(f"a join has 1 to {_MOST_KEYS} key columns on each side, as many left as right")

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "join"

    @abstractmethod
    def timing(self) -> str:
        """Text that changes exactly when rows are in time for each other otherwise."""

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        where = "" if self.where is None else f", where={self.where}"
        return f"join({self.left_keys!r}, {self.right_keys!r}, {self.how}, {self.timing()}{where})"

    def on(self) -> str:
        """The keys, for the plan."""
        pairs = zip(self.left_keys, self.right_keys, strict=True)
        return ", ".join(left if left == right else f"{left} = {right}" for left, right in pairs)

    def exchange(self) -> Exchange:
        """By hash of the left keys; see ``exchange_of``."""
        return self.exchange_of(0)

    def exchange_of(self, index: int) -> Exchange:
        """By hash of the input's keys."""
        return Exchange(ExchangeKind.HASH, self.keys_of(index))

    def keys_of(self, side: int) -> tuple[str, ...]:
        """The key columns of one side."""
        return self.right_keys if side else self.left_keys

    # -- columns -----------------------------------------------------------------------------------------------

    @property
    def left_only(self) -> bool:
        """Whether the output has the left columns only."""
        return self.how in {"semi", "anti"}

    def keeps_unmatched(self, side: int) -> bool:
        """Whether rows of the side that are in no pair are put out, with nulls for the other side."""
        return self.how in {SIDES[side], "full"}

    def puts_out_alone(self, side: int) -> bool:
        """Whether rows of the side that are in no pair are put out, whatever stands beside them."""
        return self.keeps_unmatched(side) or (self.how == "anti" and side == 0)

    @property
    def output_columns(self) -> tuple[JoinedColumn, ...]:
        """The columns put out."""
        wanted = None if self.keep is None else self.keep.get(MAIN, frozenset())
        return tuple(
            column
            for column in self.columns
            if (wanted is None or column.name in wanted)
            and not (self.left_only and column.left is None and column.right is not None)
        )

    @property
    def where_columns(self) -> tuple[JoinedColumn, ...]:
        """The columns ``where`` looks at."""
        looked_at = frozenset() if self.where is None else self.where.columns()
        return tuple(column for column in self.columns if column.name in looked_at)

    def kept(self, side: int, schema: pa.Schema) -> pa.Schema:
        """The columns of a side that its rows must keep while they wait: what is put out, keys, what is compared."""
        needed = self._kept_names(side)
        return pa.schema([pa.field(f.name, plain_type(f.type)) for f in schema if f.name in needed])

    def _kept_names(self, side: int) -> frozenset[str]:
        # Of a key that both sides have the right row's is put out only where there is no left row.
        used = (*self.output_columns, *self.where_columns)
        names = (column.right if side else column.left for column in used)
        return frozenset(name for name in names if name is not None) | frozenset(self.keys_of(side))

    def check_inputs(self, inputs: Sequence[pa.Schema]) -> None:
        """Raise SchemaError unless keys and ``where`` fit."""
        left, right = inputs
        check_keys(list(zip(self.left_keys, self.right_keys, strict=True)), left, right)
        if self.where is not None:
            type = self.where.type_in(joined_schema(self._there(left, right), left, right))
            if not pa.types.is_boolean(type):
                raise SchemaError(
                    f"join(where={self.where}) is {type}; a condition such as col('a') > col('b') is bool"
                )

    def _there(self, left: pa.Schema, right: pa.Schema) -> list[JoinedColumn]:
        """The columns that can be made of inputs which may be pruned."""
        return [
            column
            for column in self.columns
            if (column.left is None or column.left in left.names)
            and (column.left is not None or column.right is None or column.right in right.names)
        ]

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """What is kept, and what is wanted of late rows and looked at by the clock."""
        del inputs
        pruned = self.pruned(wanted)
        return [pruned._kept_names(side) | self.clock_columns(side, wanted) for side in (0, 1)]

    def clock_columns(self, side: int, wanted: Mapping[str, frozenset[str]]) -> frozenset[str]:
        """The columns needed besides those that are kept."""
        del side, wanted
        return frozenset()

    def pruned(self, wanted: Mapping[str, frozenset[str]]) -> Self:
        """Return one that keeps and puts out no more than is wanted."""
        return replace(self, keep=dict(wanted))

    @property
    def takes_changelog(self) -> bool:
        """Whether it understands weights."""
        return False
