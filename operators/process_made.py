"""The rows that Python code of ``process`` has made and that are not emitted yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from millstream.engine.changelog import is_changelog, unweighted
from millstream.operators.process_views import detached
from millstream.operators.python_rows import MOST_ROWS, BadRow, RowCollector

Origin: TypeAlias = int | tuple[str, int, Any]
"""What a row was made for: the number of a row of the batch; or clock, time and key of a timer."""


class Misfit(Exception):
    """A row does not fit the schema; the text goes on from the name of the code.

    Attributes:
        origin: what it was made for.
    """

    def __init__(self, bad: BadRow, origin: Origin) -> None:
        super().__init__(str(bad))
        self.origin = origin


class MadeRows:
    """The rows of one port, and what each was made for.

    Args:
        schema: of the port; if it is that of a changelog, rows have the weight 1, or -1 if they are taken back.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._collector = RowCollector(unweighted(schema), "yield")
        self._weighted = is_changelog(schema)
        self.rows: list[Any] = []
        self._origins: list[Origin] = []
        self._retracted: list[int] = []
        self.keep = self._keeper(nested=any(pa.types.is_nested(type) for type in schema.types))

    def _keeper(self, *, nested: bool) -> Callable[[Any, Origin], None]:
        """Return what takes a row as it is now: the dict, and lists in it, may be state, which later rows change."""
        add, note = self.rows.append, self._origins.append

        def keep(row: Any, origin: Origin) -> None:
            add(row.copy() if row.__class__ is dict else row)
            note(origin)

        def keep_nested(row: Any, origin: Origin) -> None:
            add(detached(row))
            note(origin)

        return keep_nested if nested else keep

    def retract(self, row: Any, origin: Origin) -> None:
        """Take a row that takes an earlier one back."""
        self._retracted.append(len(self.rows))
        self.keep(row, origin)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what there is, and begin anew.

        Raises:
            Misfit: a row does not fit the schema.
        """
        weights = np.ones(len(self.rows), np.int64)
        weights[self._retracted] = -1
        for first in range(0, len(self.rows), MOST_ROWS):
            try:
                batch = self._collector.batch(self.rows[first : first + MOST_ROWS])
            except BadRow as bad:
                raise Misfit(bad, self._origins[first + bad.index]) from None
            if self._weighted:
                weight = pa.array(weights[first : first + MOST_ROWS])
                batch = pa.RecordBatch.from_arrays([*batch.columns, weight], schema=self._schema)
            yield batch
        self.rows.clear()
        self._origins.clear()
        self._retracted.clear()
