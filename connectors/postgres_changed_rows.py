"""Changes of a table as they come, message by message, until they are made into columns all at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
from millstream.connectors.postgres_pgoutput import DELETE, INSERT, KIND, OLD_ROW, UPDATE, WHOLE

ROWS: Final = {INSERT: 1, UPDATE: 2, DELETE: 1}
"""How many rows of a changelog a message of each kind makes."""

Places = tuple[int, ...]


@dataclass(slots=True)
class ChangedRows:
    """Messages with inserts, updates and deletes, in order.

    Attributes:
        count: how many rows they make.
        size: their bytes.
    """

    count: int = 0
    size: int = 0
    _runs: list[tuple[Places, list[bytes]]] = field(default_factory=list)

    def add(self, message: bytes, places: Places) -> bool:
        """Take a message; return whether it says all there is to say.

        Args:
            places: which columns of the table are wanted. They change when the table does.
        """
        kind = message[KIND]
        if kind != INSERT and message[OLD_ROW] != WHOLE:
            return False
        if not self._runs or self._runs[-1][0] is not places:
            self._runs.append((places, []))
        self._runs[-1][1].append(message)
        self.count += ROWS[kind]
        self.size += len(message)
        return True

    def as_csv(self) -> tuple[bytes, npt.NDArray[np.int64]] | None:
        """Return the rows as text, as COPY would write it but for quotes, and their weights.

        Returns:
            None: a value is told nowhere.
        """
        made = [_as_csv(places, messages) for places, messages in self._runs]
        good = [each for each in made if each is not None]
        if len(good) < len(made):
            return None
        return b"".join(text for text, _ in good), np.concatenate([weights for _, weights in good])


def _as_csv(places: Places, messages: list[bytes]) -> tuple[bytes, npt.NDArray[np.int64]] | None:
    from millstream.connectors.postgres_changes_kernels import rows_as_csv

    data = np.frombuffer(b"".join(messages), np.uint8)
    starts = np.cumsum([0, *map(len, messages[:-1])])
    rows = sum(ROWS[message[KIND]] for message in messages)
    weights = np.empty(rows, np.int64)
    # A value may be written twice, for an update that leaves it, and each of its bytes may be a quote.
    out = np.empty(4 * len(data) + 4 * rows * len(places), np.uint8)
    size = rows_as_csv(data, starts, np.array(places, np.int64), out, weights)
    return None if size < 0 else (out[:size].tobytes(), weights)
