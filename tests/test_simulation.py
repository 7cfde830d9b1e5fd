"""Seeded simulation: any interleaving, crashes anywhere, any parallelism after them; the same output."""

from __future__ import annotations

from pathlib import Path

import millstream as ms
import pytest
from millstream.testing import simulate
from sample_jobs import expected, in_batches, orders, result, revenue_job


def check(seed: int, folder: Path) -> int:
    out = ms.memory_sink()
    done = simulate(lambda: revenue_job(out, count=300), folder / f"{seed}.duckdb", seed)
    assert result(out) == expected(300), f"seed {seed} reproduces it"
    return done.crashes


def check_with_late_rows(seed: int, folder: Path) -> int:
    """Which rows are late depends on the interleaving; that each counts once, and each window fires once, does not."""
    out, late = ms.memory_sink(name="out"), ms.memory_sink(name="late")
    rows = orders(300)

    def make() -> ms.Job:
        job = ms.Job("late")
        streams = [
            job.read(ms.memory_source(in_batches(part), splits=2, name=name), event_time="at", max_delay="2s")
            for name, part in (("first", rows[::2]), ("second", [*rows[151::2], *rows[1:151:2]]))
        ]
        windows = streams[0].union(streams[1]).group_by("shop").window(ms.tumbling("10s"), lateness="1s")
        counted = windows.agg(orders=ms.count(), ids=ms.sum("id"))
        counted.write(out)
        counted.late.write(late)
        return job

    done = simulate(make, folder / f"{seed}.duckdb", seed)
    windows = [(row["shop"], row["window_start"]) for row in out.rows()]
    assert len(windows) == len(set(windows)), f"seed {seed}: a window fired twice"
    assert sum(row["orders"] for row in out.rows()) + len(late.rows()) == len(rows), f"seed {seed} reproduces it"
    ids = sum(row["ids"] for row in out.rows()) + sum(row["id"] for row in late.rows())
    assert ids == sum(row["id"] for row in rows), f"seed {seed} reproduces it"
    return done.crashes


@pytest.mark.parametrize("seed", range(20))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    assert check(seed, tmp_path) > 0


@pytest.mark.parametrize("seed", range(10))
def test_a_seed_with_late_rows(seed: int, tmp_path: Path) -> None:
    assert check_with_late_rows(seed, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_hundred_seeds(tmp_path: Path) -> None:
    assert sum(check(seed, tmp_path) for seed in range(1000, 1500)) > 1000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_seeds_with_late_rows(tmp_path: Path) -> None:
    assert sum(check_with_late_rows(seed, tmp_path) for seed in range(2000, 2200)) > 400
