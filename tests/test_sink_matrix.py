"""Every sink, in four shapes of jobs, disturbed at every fail point: what is visible is what should be, always.

``pytest -m exhaustive tests/test_sink_matrix.py`` tries everything; ``-m slow`` and the default run try samples,
others with another ``MILLSTREAM_ROTATION``. A case of the default run costs about a second.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from matrix.cases import ACTIONS, ELSEWHERE, PARTS, SINKS, Case, Chain, cases, chains, points_of, sample
from matrix.lives import Life
from matrix.places import Servers
from matrix.shapes import SHAPES
from millstream.engine import failpoints
from nursery import End, Nursery

Usual = Callable[[str, str], End]
WARM = ("matrix.shapes", "aiohttp", "confluent_kafka", "psycopg", "pyiceberg.catalog.sql", "pyiceberg.io.pyarrow")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery(*WARM) as running:
        yield running


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as running:
        yield running


@pytest.fixture(scope="module")
def usual(nursery: Nursery, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Usual:
    """An undisturbed run of a shape into a sink, and another start after it, which changes nothing."""

    @cache
    def run(sink: str, shape: str) -> End:
        with Life(nursery, servers, sink, shape, tmp_path_factory.mktemp("usual")) as life:
            end = life.finish()
            assert life.finish().outcome == "already finished"
        return end

    return run


def check(case: Case | Chain, nursery: Nursery, servers: Servers, usual: Usual, folder: Path) -> None:
    with Life(nursery, servers, case.sink, case.shape, folder) as life:
        if isinstance(case, Case):
            case.check(life, usual(case.sink, case.shape))
        else:
            case.check(life)


def check_all(all_: Sequence[Case | Chain], nursery: Nursery, servers: Servers, usual: Usual, folder: Path) -> None:
    """Try all of them and fail with all that went wrong; what went well is removed."""
    failed = []
    for number, case in enumerate(all_):
        place = folder / str(number)
        try:
            check(case, nursery, servers, usual, place)
        except AssertionError as error:
            error.add_note(f"in case {case}; see {place}")
            failed.append(error)
        else:
            shutil.rmtree(place)
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(all_)} cases failed", failed)


@pytest.mark.parametrize("case", sample(4), ids=str)
def test_a_few(case: Case | Chain, nursery: Nursery, servers: Servers, usual: Usual, tmp_path: Path) -> None:
    check(case, nursery, servers, usual, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", sample(24)[4:], ids=str)
def test_some(case: Case | Chain, nursery: Nursery, servers: Servers, usual: Usual, tmp_path: Path) -> None:
    check(case, nursery, servers, usual, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sink", SINKS)
def test_every_fail_point(
    sink: str, shape: str, action: str, nursery: Nursery, servers: Servers, usual: Usual, tmp_path: Path
) -> None:
    check_all(cases(sink, shape, action), nursery, servers, usual, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sink", SINKS)
def test_every_death_in_recovery(
    sink: str, shape: str, nursery: Nursery, servers: Servers, usual: Usual, tmp_path: Path
) -> None:
    check_all(chains(sink, shape), nursery, servers, usual, tmp_path)


def test_no_fail_point_is_missed() -> None:
    """A new one is either everybody's, or a sink's, or somewhere else on purpose; and no sink is without any."""
    tried = {point for sink in SINKS for point in points_of(sink)}
    assert {name for name in failpoints.NAMES if name not in tried} == {
        name for name in failpoints.NAMES if name.startswith(ELSEWHERE)
    }
    assert all(any(point.startswith(prefix) for point in points_of(sink)) for sink, prefix in SINKS.items())
    for sink in SINKS:
        parts = {(c.point, c.action, c.part) for shape in SHAPES for a in ACTIONS for c in cases(sink, shape, a)}
        common = [point for point in points_of(sink) if not point.startswith("recovery.")]
        assert all((point, "kill", part) in parts for point in common for part in PARTS)
