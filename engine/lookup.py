"""The contract between the engine and something outside in which values are looked up by key."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyarrow as pa


class LookupTable(ABC):
    """Rows to be found by key, now: asked again it may answer otherwise.

    Subtasks ask at the same time, each from its own thread.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors and the plan call it."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns it has, keys included."""

    @abstractmethod
    def identity(self) -> str:
        """Text that changes exactly when it is another table."""

    @abstractmethod
    def fetch(self, keys: pa.RecordBatch, columns: list[str]) -> pa.Table:
        """Return the rows that have one of these keys.

        Args:
            keys: distinct, without nulls, under this table's names.
            columns: the columns wanted, keys included.
        """
