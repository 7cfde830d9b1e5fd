"""One job of the matrix from its first start to its end, however often it is killed, and what is demanded of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from nursery import End, Nursery, Start

from matrix.places import PLACES, Servers
from matrix.shapes import Row, expected

JOB = """
import millstream as ms
from matrix.shapes import SHAPES

job = ms.Job("matrix")
SHAPES[{shape!r}](job).write({sink})
"""


class Life:
    """One job: a shape, and a place of its own that it writes to; a context manager."""

    def __init__(self, nursery: Nursery, servers: Servers, sink: str, shape: str, folder: Path) -> None:
        self.kills = 0
        self._nursery = nursery
        self._folder = folder / "job"
        self._folder.mkdir(parents=True)
        self.place = PLACES[sink](self._folder, servers)
        (self._folder / "job.py").write_text(JOB.format(shape=shape, sink=self.place.sink))
        self._all = Counter(expected(shape))
        self._before: Counter[Row] = Counter()

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *error: object) -> None:
        self.place.close()

    def start(self, failpoint: str = "", parallelism: int = 2, restarts: int = 3) -> End:
        """Start it, and look at what can be seen afterwards."""
        start = Start(str(self._folder), failpoint=failpoint, parallelism=parallelism, restarts=restarts)
        end = self._nursery.run(start)
        self.kills += end.killed
        self._look(f"after {failpoint or 'the last start'}")
        return end

    def killed(self, failpoint: str, parallelism: int = 2) -> None:
        """Start it, and demand that it be killed."""
        end = self.start(failpoint, parallelism)
        assert end.killed, f"{failpoint} was not reached: {end}"

    def finish(self, parallelism: int = 2) -> End:
        """Start it undisturbed, and demand that everything be as if nothing had happened."""
        end = self.start(parallelism=parallelism)
        self.check(end)
        return end

    def check(self, end: End) -> None:
        """Demand that the job has finished and that all is there, once."""
        assert end.status == 0, end.log
        assert end.outcome in ("finished", "already finished")
        found, wanted = Counter(self.place.read() + self.place.aside()), Counter(self._wanted())
        missing, surplus = wanted - found, found - wanted
        assert not missing, f"{missing.total()} rows missing, {surplus.total()} too many: {missing}"
        assert not surplus, f"{surplus.total()} rows too many: {surplus}"
        assert self.place.left_over() == []

    def _wanted(self) -> list[Row]:
        if not self.place.key:
            return list(self._all)
        last = {row.k: row for row in sorted(self._all, key=lambda row: row.at)}
        return list(last.values())

    def _look(self, when: str) -> None:
        """Demand that what is seen now is part of the truth, and no less than what was seen before."""
        rows = self.place.read()
        found = Counter(rows)
        assert found <= self._all, f"{when} there are rows too many: {found - self._all}"
        if self.place.key:
            assert _times(self._before) <= _times(found), f"{when} keys have older rows than before, or none"
        else:
            assert self._before <= found, f"{when} rows have gone: {self._before - found}"
        if self.place.ordered:
            newest: dict[str, int] = {}
            for row in rows:
                assert newest.get(row.k, -1) < row.at, f"{when} {row} comes after {newest[row.k]}"
                newest[row.k] = row.at
        self._before = found


def _times(rows: Counter[Row]) -> Counter[str]:
    """Of each key, the time of its row; keys that have two are an error."""
    times = Counter({row.k: row.at + 1 for row in rows})
    assert len(times) == rows.total(), f"keys are there twice: {rows}"
    return times
