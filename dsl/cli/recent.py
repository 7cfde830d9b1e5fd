"""The last few seconds of a job: rates, and how often who waited."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from millstream.engine.runtime.monitor import JobStatus

SPAN = 3.0
"""Seconds over which rates are taken."""


class Recent:
    """A window of looks at a job. A new generation counts from zero, so it empties the window."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, JobStatus]] = deque()

    def add(self, now: float, status: JobStatus) -> None:
        """Take a look, made at ``now`` seconds."""
        if self._looks and self._looks[-1][1].generation != status.generation:
            self._looks.clear()
        self._looks.append((now, status))
        while len(self._looks) > 2 and self._looks[1][0] <= now - SPAN:
            self._looks.popleft()

    def read_rates(self) -> dict[str, float]:
        """Rows per second of each source."""
        (_, first), (_, last) = self._looks[0], self._looks[-1]
        return self._rates(first.rows_read, last.rows_read)

    def written_rates(self) -> dict[str, float]:
        """Rows per second of each sink."""
        (_, first), (_, last) = self._looks[0], self._looks[-1]
        return self._rates(first.rows_written, last.rows_written)

    def back_pressure(self) -> dict[str, float]:
        """By subtask, in what share of the looks it waited for room; those that never did are left out."""
        blocked = Counter(name.partition(":")[2] or name for _, status in self._looks for name in status.blocked)
        return {name: times / len(self._looks) for name, times in blocked.most_common()}

    def _rates(self, first: Mapping[str, int], last: Mapping[str, int]) -> dict[str, float]:
        seconds = self._looks[-1][0] - self._looks[0][0]
        return {name: (rows - first.get(name, 0)) / seconds if seconds else 0.0 for name, rows in last.items()}
