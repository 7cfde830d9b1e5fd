"""A checkpoint store as far as a sink sees it: what is committed is durable at once, and whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from millstream.engine.sink import Committable

Row = tuple[int, str]
"""A message's partition and value."""


@dataclass(frozen=True, slots=True)
class Committed:
    """One epoch."""

    number: int
    rows: tuple[Row, ...]
    committables: tuple[Committable, ...]


@dataclass
class Store:
    """What a job has committed, and how often it has started.

    Attributes:
        position: how many rows of the source are in committed epochs.
        outbox: the sink's own state: its last epoch with rows, 0: not handed over yet.
    """

    name: str
    generation: int = 0
    epochs: list[Committed] = field(default_factory=list)
    position: int = 0
    outbox: int = 0

    @property
    def last(self) -> int:
        """The last epoch; 0: none."""
        return self.epochs[-1].number if self.epochs else 0

    def copy(self, name: str) -> Store:
        """Copy the file as it is now."""
        return Store(name, self.generation, list(self.epochs), self.position, self.outbox)

    def commit(self, number: int, rows: Sequence[Row], committables: Sequence[Committable], outbox: int | None) -> None:
        """Commit an epoch."""
        self.epochs.append(Committed(number, tuple(rows), tuple(committables)))
        self.position += len(rows)
        self.outbox = self.outbox if outbox is None else outbox
