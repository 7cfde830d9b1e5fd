"""What the readers of a file source are told: columns, filter, and what becomes of bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import pyarrow as pa
from millstream.engine.errors import DataError
from millstream.engine.source import DeadLetter, ReadContext, Split

if TYPE_CHECKING:
    from millstream.connectors.paths import InputPath
    from millstream.engine.expression import Expr

_T = TypeVar("_T")

RAW_OF_A_FILE: Final = 1024
"""How many bytes of a file that cannot be read go into its dead letter."""


@dataclass(frozen=True, slots=True)
class ReadingPlan:
    """What is read, and what becomes of bad input.

    Attributes:
        source: the source's name.
        schema: every column the source promises.
        columns: names of the columns to yield, in the schema's order.
        predicate: rows for which it is not true may be left out.
        event_time: the column whose maximum goes into a Chunk.
        keep_bad: bad input becomes dead letters instead of an error.
        guessed: the schema's types were guessed from how the files begin.
    """

    source: str
    schema: pa.Schema
    columns: tuple[str, ...]
    predicate: Expr | None = None
    event_time: str | None = None
    keep_bad: bool = False
    guessed: bool = False

    @property
    def output(self) -> pa.Schema:
        """The columns it yields."""
        return pa.schema([self.schema.field(name) for name in self.columns])

    def narrowed(self, columns: frozenset[str], predicate: Expr | None, event_time: str | None) -> ReadingPlan:
        """Return the plan with only these columns, those of the predicate and the event time."""
        wanted = set(columns) | (set(predicate.columns()) if predicate is not None else set())
        wanted |= {event_time} if event_time is not None else set()
        kept = tuple(name for name in self.columns if name in wanted) or self.columns[:1]
        return replace(self, columns=kept, predicate=predicate, event_time=event_time)


class BadFile(Exception):
    """A whole file, or what is left of it, cannot be read; the text says why."""


class FileChanged(Exception):
    """A file is not the one that was found; the text says how that shows."""


@dataclass(frozen=True, slots=True)
class BadInput:
    """What to do with input that breaks its contract, in one split."""

    plan: ReadingPlan
    split: Split
    path: InputPath
    context: ReadContext

    def line(self, line: int, offset: int, problem: str, raw: bytes) -> None:
        """Refuse one line. Raises DataError unless bad input is kept."""
        if not self.plan.keep_bad:
            guessed = "; types are guesses from how the files begin, pass schema= if wrong" if self.plan.guessed else ""
            raise DataError(
                f"{self.path}:{line}: {problem}, in {shown(raw)}; mend the line, or pass on_error='dead_letter' to "
                f"put bad lines aside{guessed}"
            )
        self._keep(f"line {line}, byte {offset}", problem, raw)

    def rest_of_file(self, where: str, problem: str) -> None:
        """Refuse what is left of the split. Raises DataError unless bad input is kept."""
        if not self.plan.keep_bad:
            raise DataError(
                f"{self.path}{', ' + where if where else ''}: {problem}; replace the file, or pass "
                "on_error='dead_letter' to put it aside"
            )
        try:
            with self.path.open("rb") if isinstance(self.path, Path) else self.path.open() as file:
                raw = file.read(RAW_OF_A_FILE)
        except FileChanged as error:
            raise self.changed(str(error)) from error
        self._keep(where or "the file", problem, raw)

    def changed(self, problem: str) -> DataError:
        """Return the error for a file that is no longer what it was."""
        return DataError(
            f"{self.path}: {problem}, so no position in it can be trusted; put the old file back, and write new data "
            "to new files: elsewhere first, then rename"
        )

    def _keep(self, position: str, problem: str, raw: bytes) -> None:
        self.context.dead_letter(DeadLetter(self.plan.source, self.split.id, position, problem, raw))


def shown(raw: bytes) -> str:
    """Return the beginning of some input, for an error."""
    text = raw.decode(errors="backslashreplace").rstrip("\r\n")
    return repr(text if len(text) <= 120 else text[:117] + "...")


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch without rows."""
    return pa.RecordBatch.from_pylist([], schema=schema)


def failing(count: int, attempt: Callable[[int, int], _T]) -> tuple[list[_T], dict[int, str]]:
    """Do something to rows 0 to ``count``, finding by halving the rows for which it raises ValueError.

    Args:
        count: number of rows.
        attempt: does it to the rows from its first argument up to its second, and raises ValueError
            (as ArrowInvalid is) or TypeError if it cannot be done to all of them.

    Returns:
        The results for the stretches that can be done, in order, and per row that cannot what was said.

    >>> failing(4, lambda a, b: [int("1x23"[i]) for i in range(a, b)])
    ([[1], [2, 3]], {1: "invalid literal for int() with base 10: 'x'"})
    """
    done: list[_T] = []
    bad: dict[int, str] = {}
    waiting = [(0, count)] if count else []
    while waiting:
        start, end = waiting.pop()
        try:
            done.append(attempt(start, end))
        except (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
            if end - start == 1:
                bad[start] = str(error)
            else:
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
    return done, bad
