"""Rows that wait until event time has passed them."""

from __future__ import annotations

import numpy as np
from millstream.engine.codes import Ints


class Waiting:
    """Ids of rows, in runs that are sorted by time. A run is merged with its predecessor once it is half as long.

    So there are few runs, a row is sorted only a few times, and looking for what has passed costs nothing for the rest.

    >>> waiting = Waiting()
    >>> waiting.add(np.array([0, 1, 2]), np.array([30, 10, 20]))
    >>> waiting.add(np.array([3]), np.array([10]))
    >>> waiting.take(20).tolist(), waiting.take(99).tolist()
    ([1, 3], [2, 0])
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Ints, Ints]] = []  # times, ids

    def add(self, ids: Ints, times: Ints) -> None:
        """Rows begin to wait.

        Args:
            ids: int64, ascending, and greater than those before.
            times: int64, of the same length.
        """
        if not len(ids):
            return
        self._runs.append(_sorted(times, ids))
        while len(self._runs) > 1 and 2 * len(self._runs[-1][0]) >= len(self._runs[-2][0]):
            (times, ids), (later_times, later_ids) = self._runs[-2:]
            self._runs[-2:] = [_sorted(np.concatenate([times, later_times]), np.concatenate([ids, later_ids]))]

    def take(self, limit: int) -> Ints:
        """Return the rows whose time is before ``limit``, by time and then by id; they wait no more."""
        passed = []
        for number, (times, ids) in enumerate(self._runs):
            end = int(np.searchsorted(times, limit))
            if end:
                passed.append((times[:end], ids[:end]))
                self._runs[number] = times[end:], ids[end:]
        if not passed:
            return np.empty(0, np.int64)
        self._runs = [run for run in self._runs if len(run[0])]
        if len(passed) == 1:
            return passed[0][1]
        times, ids = (np.concatenate(parts) for parts in zip(*passed, strict=True))
        return ids[np.lexsort((ids, times))]

    def move(self, moved: Ints) -> None:
        """Rows have new ids, in the same order: ``moved[old]``."""
        self._runs = [(times, moved[ids]) for times, ids in self._runs]


def _sorted(times: Ints, ids: Ints) -> tuple[Ints, Ints]:
    order = np.argsort(times, kind="stable")
    return times[order], ids[order]
