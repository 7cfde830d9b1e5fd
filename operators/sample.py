"""A fraction of the rows, chosen by a hash: the same rows every time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from millstream.engine.changelog import WEIGHT
from millstream.engine.codes import form_of
from millstream.engine.errors import JobError, SchemaError
from millstream.engine.operator import MAIN, Operator, OperatorSpec, Output
from millstream.operators.windowed import check_columns

_BITS = 64


@dataclass(frozen=True)
class Sample(OperatorSpec):
    """Keeps the rows of which the hash of some columns is low. It has no state: what is read again is chosen again.

    Attributes:
        fraction: of all values, those that are kept: more than 0, at most 1.
        by: the columns that are hashed; rows equal in them are kept together or not at all.
        seed: any other one chooses other rows.
    """

    fraction: float
    by: tuple[str, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise JobError(f"sample({self.fraction!r}): a fraction is more than 0 and at most 1, such as 0.01")

    @property
    def kind(self) -> str:
        """One word for plans and errors."""
        return "sample"

    def identity(self) -> str:
        """Text that changes exactly when the meaning changes."""
        return f"sample(fraction={self.fraction!r}, by={self.by!r}, seed={self.seed})"

    def describe(self) -> str:
        """One line for the plan."""
        return f"{self.fraction:.4g} of all {', '.join(self.by)}"

    def output_schemas(self, inputs: Sequence[pa.Schema]) -> Mapping[str, pa.Schema]:
        """As the input. Raises SchemaError when a column is not there or cannot be hashed."""
        (schema,) = inputs
        check_columns(self.by, schema, "sample(): column")
        for name in self.by:
            try:
                form_of(schema.field(name).type, f"column {name!r}")
            except SchemaError as error:
                raise SchemaError(f"sample(): {error}; name other columns, as in sample(0.1, by='id')") from None
        return {MAIN: schema}

    def columns_needed(self, wanted: Mapping[str, frozenset[str]], inputs: Sequence[pa.Schema]) -> list[frozenset[str]]:
        """Those hashed, and those wanted."""
        del inputs
        return [wanted[MAIN] | frozenset(self.by)]

    @property
    def takes_changelog(self) -> bool:
        """A row that is taken back has the hash with which it came."""
        return True

    def build(self, inputs: Sequence[pa.Schema]) -> Operator:
        """Make one running copy."""
        del inputs
        return _Sampler(self)


class _Sampler(Operator):
    """The running part of ``Sample``."""

    def __init__(self, spec: Sample) -> None:
        self._by = spec.by
        self._seed = spec.seed
        self._limit = min(math.ceil(spec.fraction * 2**_BITS), 2**_BITS - 1)

    def process(self, batch: pa.RecordBatch, out: Output) -> None:
        """Emit the rows that are chosen."""
        from millstream.engine.hashing import exchange_hash

        # The seed is hashed before the columns, so that what is kept has nothing to do with the subtask it is on.
        seed = pa.repeat(pa.scalar(self._seed, pa.int64()), batch.num_rows)
        hashes = exchange_hash([seed, *(batch.column(name) for name in self._by)])
        out.emit(batch.filter(pa.array(hashes <= self._limit)))


def sample_of(schema: pa.Schema, fraction: float, by: str | Sequence[str] | None, seed: int) -> Sample:
    """Return what ``stream.sample()`` asks for; without ``by`` rows are told apart by all columns."""
    names = [name for name in schema.names if name != WEIGHT] if by is None else [by] if isinstance(by, str) else by
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
        raise JobError(f"sample({fraction!r}): a fraction is more than 0 and at most 1, such as 0.01")
    if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) >= 2**63:
        raise JobError(f"sample(seed={seed!r}): the seed is a whole number of at most 63 bits")
    if not names:
        raise JobError("sample(by=[]): name at least one column, or leave by= out for all of them")
    return Sample(float(fraction), tuple(names), seed)
