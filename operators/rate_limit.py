"""``rate_limit``: no more than so many rows a second."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
from millstream.engine.errors import JobError
from millstream.engine.operator import MAIN, Exchange, ExchangeKind, Operator, OperatorSpec
from millstream.engine.state import StateTable
from millstream.operators.in_hand_table import check_can_be_in_hand, in_hand_table


@dataclass(frozen=True)
class RateLimit(OperatorSpec):
    """Lets rows through in their order, so many a second, all in one subtask; those that wait are state.

    Attributes:
        rate: rows a second, more than 0; another one is the same operator.
    """

    rate: float = field(compare=False)

    def __post_init__(self) -> None:
        right = isinstance(self.rate, (int, float)) and not isinstance(self.rate, bool)
        if not right or not 0 < self.rate < math.inf:
            raise JobError(f"rate_limit({self.rate!r}): say how many rows a second, more than 0, as in rate_limit(100)")

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "rate_limit"

    def identity(self) -> str:
        """How fast it is does not change what it yields."""
        return "rate_limit"

    def describe(self) -> str:
        """One line for the plan."""
        return f"at most {self.rate:,.10g} rows a second"

    def exchange(self) -> Exchange:
        """One subtask counts all rows: shares of several would not be used up where rows are few."""
        return Exchange(ExchangeKind.SINGLE)

    @property
    def takes_changelog(self) -> bool:
        """Rows stay in order, so what is taken back has come before."""
        return True

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """As the input. Raises SchemaError when state cannot hold a column."""
        check_can_be_in_hand(inputs[0], "rate_limit()")
        return {MAIN: inputs[0]}

    def state_tables(self, inputs: Sequence[pa.Schema]) -> tuple[StateTable, ...]:
        """The rows in hand."""
        return (in_hand_table(inputs[0]),)

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        from millstream.operators.rate_limit_operator import RateLimitOperator

        (table,) = self.state_tables(inputs)
        return RateLimitOperator(self, table, inputs[0])
