"""Which disturbances there are: every fail point that jobs of a sink and a shape come by, with every action."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from millstream.engine import failpoints
from nursery import End

from matrix.lives import Life
from matrix.places import PLACES
from matrix.shapes import SHAPES

ROTATION: Final = int(os.environ.get("MILLSTREAM_ROTATION", "0"))
"""Another number chooses other parts of the run, other chains, and other cases for the samples."""

ACTIONS: Final = ("kill", "raise", "hang")
PARTS: Final = (0.0, 0.4, 0.7)
"""A fail point acts at its first hit, or when so much of the hits of an undisturbed run are over."""

SINKS: Final = {name: place.points for name, place in PLACES.items()}
ELSEWHERE: Final = ("copy.", "letters.", "postgres.copying", "postgres.copied")
"""Commands, and a source: they have tests of their own."""
AT_RESUME: Final = tuple(name for name in failpoints.NAMES if name.startswith("recovery."))
"""At its first start a job has nothing to recover."""
RESUMABLE: Final = "store.after_commit=kill@3"
"""Leaves an epoch behind that is committed and not visible."""
RESTARTS: Final = ("store.generation", "sink.commit", "sink.committed")
LATE: Final = ("http.put_aside",)
"""A start may commit several epochs before it comes there."""
OF_SEVERAL = ("files.gathered",)
"""Where the files of several subtasks become visible together."""


def points_of(sink: str) -> tuple[str, ...]:
    """The fail points that a job with this sink comes by; what no other sink claims is everybody's."""
    others = tuple(prefix for prefix in SINKS.values() if prefix != SINKS[sink])
    return tuple(name for name in failpoints.NAMES if not name.startswith((*others, *ELSEWHERE)))


def recovery_points_of(sink: str) -> tuple[str, ...]:
    """Those that a start comes by while it recovers, or just after."""
    own = tuple(name for name in points_of(sink) if name.startswith(SINKS[sink]) and name not in LATE)
    return AT_RESUME + RESTARTS + (() if PLACES[sink].rare else own)


@dataclass(frozen=True)
class Case:
    """A fail point, what it does, and when."""

    sink: str
    shape: str
    point: str
    action: str
    part: float

    def __str__(self) -> str:
        return f"{self.sink}-{self.shape}-{self.point}-{self.action}-{self.part}"

    def check(self, life: Life, usual: End) -> None:
        """Disturb a job once, and demand that nobody can tell."""
        hit = 1
        if self.point in AT_RESUME:
            life.killed(RESUMABLE)
        else:
            assert usual.hits[self.point], f"no undisturbed run comes by {self.point}"
            hit += int(usual.hits[self.point] * self.part)
        armed = f"{self.point}={self.action}@{hit}"
        if self.action == "raise":
            self._check_raised(life, armed, hit)
            return
        life.killed(armed)
        life.finish(parallelism=1 + hit % 3)
        assert life.kills == 1 + (self.point in AT_RESUME)

    def _check_raised(self, life: Life, armed: str, hit: int) -> None:
        end = life.start(armed)
        assert end.status == 0, end.log
        assert end.hits[self.point] >= hit, f"{armed} was not reached"
        # Once the job has ended and the store is closing, there is nothing left to restart.
        if end.restarts == 0 and self.point == "store.checkpoint":
            assert "store.close.log_not_folded" in end.log
            end = life.start()
        else:
            assert end.restarts == 1, end.log
        life.check(end)


@dataclass(frozen=True)
class Chain:
    """Deaths inside recovery, one after the other; ``after`` what a job died of before it had to recover."""

    sink: str
    shape: str
    points: tuple[str, ...]
    after: str = RESUMABLE

    def __str__(self) -> str:
        return f"{self.sink}-{self.shape}-{'-'.join(self.points)}"

    def check(self, life: Life) -> None:
        """Kill or hang it at each, let the last one also raise in the end, and demand that nobody can tell."""
        life.killed(self.after)
        for depth, point in enumerate(self.points):
            action = "hang" if (len(point) + depth) % 3 == 0 else "kill"
            life.killed(f"{point}={action}", parallelism=1 + depth % 3 + (point in OF_SEVERAL))
        end = life.start("recovery.begin=raise;" + ";".join(f"{point}=raise" for point in self.points[-1:]))
        assert end.restarts == len({"recovery.begin", self.points[-1]}), end.log
        life.check(end)
        assert life.kills == 1 + len(self.points)


def cases(sink: str, shape: str, action: str) -> list[Case]:
    """One for each fail point, which acts at a part of the run that depends on sink, shape and action."""
    turn = list(SINKS).index(sink) + list(SHAPES).index(shape) + ACTIONS.index(action) + ROTATION
    return [
        Case(sink, shape, point, action, 0.0 if point in AT_RESUME else PARTS[(number + turn) % len(PARTS)])
        for number, point in enumerate(points_of(sink))
    ]


def chains(sink: str, shape: str) -> list[Chain]:
    """Three deaths deep: each point first, second and third, with others in other shapes; and after the job's end."""
    points = recovery_points_of(sink)
    turn = 2 * list(SHAPES).index(shape) + ROTATION
    found = []
    for further in (turn, turn + 1):
        second, third = further % len(points), further * 5 % len(points)
        for number in range(len(points)):
            chosen = (points[number], points[(number + second) % len(points)], points[(number + third) % len(points)])
            found.append(Chain(sink, shape, chosen))
    again = ("recovery.begin", "recovery.declared", "recovery.commit_again", "recovery.discard")
    found += [Chain(sink, shape, again[number : number + 3], after="job.stop=kill") for number in range(2)]
    return found


def sample(count: int) -> list[Case | Chain]:
    """Some of all of them: every sink in turn, with shapes, actions and fail points that the rotation chooses."""
    chosen: list[Case | Chain] = []
    for number in range(count):
        turn = number + ROTATION * count
        sink = list(SINKS)[turn % len(SINKS)]
        shape = list(SHAPES)[(turn + turn // len(SINKS)) % len(SHAPES)]
        all_: list[Case] | list[Chain] = (
            chains(sink, shape) if turn % 4 == 3 else cases(sink, shape, ACTIONS[turn // 4 % len(ACTIONS)])
        )
        chosen.append(all_[turn * 17 % len(all_)])
    return chosen
