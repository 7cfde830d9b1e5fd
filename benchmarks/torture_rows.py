"""The rows that go through a tortured job, and what says whether they have come out as they should.

Every split of the input is a row of numbered rows; each row belongs to a key of that split and is numbered within it.
Every tenth row is the one before it again, and the job has to pass over it: that takes state. So of each key the
numbers 0, 1, 2 ... must come out, in that order, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

KEYS: Final = 8
"""Keys of a split."""

REPEAT: Final = 10
"""Each row whose number, counted from 1, can be divided by it is the row before it again."""

SCHEMA: Final = {"p": "int64", "k": "string", "s": "int64"}
"""Split, key, and number within the key."""

_MOST_SENTENCES: Final = 20


def distinct(rows: int) -> int:
    """How many of the first rows of a split are not repeats.

    >>> [distinct(rows) for rows in (1, 9, 10, 11, 20)]
    [1, 9, 9, 10, 18]
    """
    return rows - rows // REPEAT


def row(split: int, number: int) -> dict[str, Any]:
    """Return a row of a split.

    >>> row(2, 0), row(2, 8) == row(2, 9)
    ({'p': 2, 'k': '2-0', 's': 0}, True)
    """
    first = distinct(number + 1) - 1
    return {"p": split, "k": f"{split}-{first % KEYS}", "s": first // KEYS}


@dataclass
class Oracle:
    """Is told every row that has come out, in the order of each key, and says what is wrong.

    >>> oracle = Oracle()
    >>> oracle.see([("2-0", 0), ("2-0", 2), ("2-0", 2)])
    >>> oracle.violations
    ['key 2-0: after row 0 came row 2', 'key 2-0: after row 2 came row 2']

    Attributes:
        seen: by split, how many rows have come out.
        violations: a sentence each, for the first ones.
    """

    seen: Counter[int] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    _last: dict[str, int] = field(default_factory=dict)

    def see(self, rows: Iterable[tuple[str, int]]) -> None:
        """Take keys and numbers."""
        for key, number in rows:
            self.seen[int(key.partition("-")[0])] += 1
            last = self._last.get(key, -1)
            if number != last + 1:
                self.complain(f"key {key}: after row {last} came row {number}")
            self._last[key] = number

    def complain(self, sentence: str) -> None:
        """Write a violation down."""
        if len(self.violations) < _MOST_SENTENCES:
            self.violations.append(sentence)
