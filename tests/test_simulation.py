"""Seeded simulation: any interleaving, crashes anywhere, any parallelism after them; the same output."""

from __future__ import annotations

from pathlib import Path

import millstream as ms
import pytest
from millstream.testing import simulate
from sample_jobs import expected, result, revenue_job


def check(seed: int, folder: Path) -> int:
    out = ms.memory_sink()
    done = simulate(lambda: revenue_job(out, count=300), folder / f"{seed}.duckdb", seed)
    assert result(out) == expected(300), f"seed {seed} reproduces it"
    return done.crashes


@pytest.mark.parametrize("seed", range(20))
def test_a_seed(seed: int, tmp_path: Path) -> None:
    assert check(seed, tmp_path) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_hundred_seeds(tmp_path: Path) -> None:
    assert sum(check(seed, tmp_path) for seed in range(1000, 1500)) > 1000
