"""Two ways to do the same work, measured in turns in one process, and printed beside each other."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import click


@dataclass(frozen=True, slots=True)
class Run:
    """One way through the whole work.

    Attributes:
        seconds: how long it took.
        cpu_s: processor time of all threads of this process in that time.
    """

    seconds: float
    cpu_s: float


def cpu_seconds() -> float:
    """Return the processor time that all threads of this process have used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(work: Callable[[], object]) -> Run:
    """Measure in this process."""
    began, cpu = time.perf_counter(), cpu_seconds()
    work()
    return Run(time.perf_counter() - began, cpu_seconds() - cpu)


def in_turns(ways: Mapping[str, Callable[[int], object]], runs: int) -> dict[str, Run]:
    """Go each way so many times, one after the other, and once before, which loads code; return the best of each.

    Args:
        ways: functions of the number of the turn, from 0 on.

    >>> went = []
    >>> best = in_turns({"one": lambda turn: went.append((1, turn)), "other": lambda turn: went.append((2, turn))}, 1)
    >>> went, list(best)
    ([(1, 0), (2, 0), (1, 1), (2, 1)], ['one', 'other'])
    """
    results: dict[str, list[Run]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, way in ways.items():
            run = measured(lambda: way(turn))  # noqa: B023 - called at once
            if turn:
                results[name].append(run)
    return {name: Run(min(r.seconds for r in of), min(r.cpu_s for r in of)) for name, of in results.items()}


def show(what: str, count: int, best: Mapping[str, Run]) -> None:
    """Print how many of ``what`` each way does a second, and the last way's speed as a share of each other one's.

    >>> show("rows", 1000, {"plain": Run(1.0, 0.5), "job": Run(2.0, 1.0)})
    plain         1,000 rows/s     2,000 a second of processor time
    job             500 rows/s     1,000 a second of processor time
    job/plain      0.50             0.50
    """
    width = max(map(len, best)) + 4
    for name, run in best.items():
        per_cpu = f"{count / run.cpu_s:>9,.0f} a second of processor time"
        click.echo(f"{name:{width}} {count / run.seconds:>9,.0f} {what}/s {per_cpu}")
    last, others = list(best)[-1], list(best)[:-1]
    for other in others:
        wall, cpu = best[other].seconds / best[last].seconds, best[other].cpu_s / best[last].cpu_s
        click.echo(f"{last + '/' + other:{width}} {wall:>9.2f} {'':{len(what) + 2}} {cpu:>9.2f}")
