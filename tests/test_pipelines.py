"""Every pipeline yields its golden output: run plainly, killed anywhere, resumed with another parallelism.

Each start is a real process (see nursery.py) and each kill a real SIGKILL. By default every fail point is tried once
per action and every pipeline several times; ``pytest -m exhaustive`` tries all of them with each other.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from millstream.engine import failpoints
from nursery import End, Nursery, Start
from pipeline_kit import FOLDER, Pipeline, leftovers, pipelines

sys.path.insert(0, str(FOLDER))
from inputs import write_inputs

PIPELINES = pipelines()
ROTATION = int(os.environ.get("MILLSTREAM_ROTATION", "0"))
"""Another number pairs other pipelines with the fail points in the default run."""

# What happens to copies, to dead letters and in some connectors has tests of its own.
ELSEWHERE = ("copy.", "letters.", "postgres.", "duckdb.", "http.", "kafka.", "delta.", "iceberg.")
IN_JOBS = tuple(name for name in failpoints.NAMES if not name.startswith(ELSEWHERE))
AT_RESUME = tuple(name for name in failpoints.NAMES if name.startswith("recovery."))
"""They are tried when a job is resumed: at its first start there is nothing to recover."""

PARTS = (0.0, 0.4, 0.7)
"""When a fail point acts: at its first hit, and when so much of the hits of an undisturbed run are over."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "input"
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def usual(nursery: Nursery, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Pipeline], End]:
    """An undisturbed run of each pipeline."""

    @cache
    def run(pipeline: Pipeline) -> End:
        return Life(nursery, pipeline, tmp_path_factory.mktemp(pipeline.name), inputs).finish()

    return run


@dataclass(frozen=True)
class Case:
    """Where a job is hit, how, and after which part of the run."""

    pipeline: Pipeline
    failpoint: str
    action: str
    part: float

    def __str__(self) -> str:
        return f"{self.pipeline.name}-{self.failpoint}-{self.action}-{self.part}"

    def armed(self, usual: End) -> str:
        """As the environment variable says it."""
        hits = 0 if self.failpoint in AT_RESUME else int(usual.hits[self.failpoint] * self.part)
        return f"{self.failpoint}={self.action}@{1 + hits}"


def reachable(pipeline: Pipeline, failpoint: str) -> bool:
    """Whether a pipeline comes by a fail point at parallelism 2."""
    if failpoint == "files.gathered":  # only where an epoch has several files
        return pipeline.name not in ("hive_layout", "window_top")
    if failpoint == "barrier.align":  # only where a subtask has several inputs
        return pipeline.name in ("union_sources", "generator_window", "late_rows", "string_keys", "window_top")
    return True


def every_case(action: str, pipeline: Pipeline) -> list[Case]:
    return [
        Case(pipeline, failpoint, action, part)
        for number, failpoint in enumerate(IN_JOBS)
        if reachable(pipeline, failpoint)
        for part in (PARTS[:1] if failpoint in AT_RESUME else PARTS[:2] if action == "raise" else PARTS)
        if action != "hang" or part == PARTS[number % len(PARTS)] or failpoint in AT_RESUME
    ]


def some_cases(action: str, shift: int) -> list[Case]:
    """Each fail point once, with pipelines and parts in turn."""
    chosen = []
    for number, failpoint in enumerate(IN_JOBS):
        able = [pipeline for pipeline in PIPELINES if reachable(pipeline, failpoint)]
        turn = number + shift + ROTATION
        chosen.append(Case(able[turn % len(able)], failpoint, action, PARTS[turn % len(PARTS)]))
    return chosen


class Life:
    """One job from its first start to its end, however often it is killed."""

    def __init__(self, nursery: Nursery, pipeline: Pipeline, folder: Path, inputs: Path) -> None:
        self.nursery = nursery
        self.pipeline = pipeline
        self.folder = pipeline.lay_out(folder / "job", inputs)
        self.inputs = inputs
        self.kills = 0

    def start(self, failpoint: str = "", parallelism: int = 2, restarts: int = 3) -> End:
        start = Start(str(self.folder), parallelism=parallelism, failpoint=failpoint, restarts=restarts)
        end = self.nursery.run(start)
        self.kills += end.killed
        return end

    def killed(self, failpoint: str, parallelism: int = 2) -> None:
        """Start it, and demand that it be killed; what can be seen then is part of the truth."""
        end = self.start(failpoint, parallelism)
        assert end.killed, f"{failpoint} was not reached: {end}"
        for name, rows in self.pipeline.found(self.folder, self.inputs).items():
            surplus = rows - self.pipeline.golden[name]
            assert not surplus, f"{name} has rows too many after {failpoint}: {surplus}"

    def finish(self, parallelism: int = 2) -> End:
        """Start it undisturbed, and demand that everything be as if nothing had happened."""
        end = self.start(parallelism=parallelism)
        assert end.status == 0, end.log
        assert end.outcome in ("finished", "already finished")
        self.check()
        return end

    def check(self) -> None:
        found = self.pipeline.found(self.folder, self.inputs)
        for name, golden in self.pipeline.golden.items():
            missing, surplus = golden - found[name], found[name] - golden
            assert not missing, f"{name}: {missing.total()} rows missing, {surplus.total()} too many: {missing}"
            assert not surplus, f"{name}: {surplus.total()} rows too many: {surplus}"
        assert leftovers(self.folder) == []


@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: p.name)
def test_the_golden_output_is_what_duckdb_says(pipeline: Pipeline, inputs: Path) -> None:
    assert pipeline.golden == pipeline.expected(inputs)
    assert all(pipeline.golden.values())


@pytest.mark.parametrize("parallelism", [1, 2, 3])
@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: p.name)
def test_undisturbed(pipeline: Pipeline, parallelism: int, nursery: Nursery, inputs: Path, tmp_path: Path) -> None:
    life = Life(nursery, pipeline, tmp_path, inputs)
    end = life.finish(parallelism)
    assert end.epoch >= 8, "too few epochs to crash in"
    if parallelism == 2:
        assert life.finish(parallelism).outcome == "already finished"


def check_killed(case: Case, life: Life, usual: End) -> None:
    if case.failpoint in AT_RESUME:
        life.killed("store.after_commit=kill@5")
    life.killed(case.armed(usual))
    life.finish()
    assert life.kills == 1 + (case.failpoint in AT_RESUME)


def check_raised(case: Case, life: Life, usual: End) -> None:
    if case.failpoint in AT_RESUME:
        life.killed("store.after_commit=kill@5")
    armed = case.armed(usual)
    end = life.start(armed)
    assert end.status == 0, end.log
    assert end.hits[case.failpoint] >= int(armed.rpartition("@")[2]), f"{armed} was not reached"
    # Once the job has ended and the store is closing, there is nothing left to restart.
    if end.restarts == 0 and case.failpoint == "store.checkpoint":
        assert "store.close.log_not_folded" in end.log
        assert life.finish().outcome == "already finished"
    else:
        assert end.restarts == 1, end.log
    life.check()


Usual = Callable[[Pipeline], End]


@pytest.mark.parametrize("case", some_cases("kill", 0), ids=str)
def test_killed_at_a_fail_point(case: Case, nursery: Nursery, usual: Usual, inputs: Path, tmp_path: Path) -> None:
    check_killed(case, Life(nursery, case.pipeline, tmp_path, inputs), usual(case.pipeline))


@pytest.mark.parametrize("case", some_cases("raise", 5), ids=str)
def test_failed_at_a_fail_point(case: Case, nursery: Nursery, usual: Usual, inputs: Path, tmp_path: Path) -> None:
    check_raised(case, Life(nursery, case.pipeline, tmp_path, inputs), usual(case.pipeline))


@pytest.mark.parametrize("case", some_cases("hang", 9)[ROTATION % 4 :: 4], ids=str)
def test_hung_at_a_fail_point_and_killed(
    case: Case, nursery: Nursery, usual: Usual, inputs: Path, tmp_path: Path
) -> None:
    check_killed(case, Life(nursery, case.pipeline, tmp_path, inputs), usual(case.pipeline))


@pytest.mark.parametrize("number", range(len(PIPELINES)), ids=lambda n: PIPELINES[n].name)
def test_resumed_with_another_parallelism(number: int, nursery: Nursery, inputs: Path, tmp_path: Path) -> None:
    """1 to 3 to 2 and the like, killed twice."""
    points = ("store.after_commit=kill@4", "sink.prepared=kill@5", "files.rename=kill@2")
    life = Life(nursery, PIPELINES[number], tmp_path, inputs)
    first = (number + ROTATION) % 3
    life.killed(points[first], parallelism=1 + first)
    life.killed("store.before_commit=kill@2", parallelism=1 + (first + 1) % 3)
    assert life.finish(parallelism=1 + (first + 2) % 3).restored_from > 0
    assert life.kills == 2


def test_killed_again_and_again_in_recovery(nursery: Nursery, inputs: Path, tmp_path: Path) -> None:
    life = Life(nursery, PIPELINES[ROTATION % len(PIPELINES)], tmp_path, inputs)
    life.killed("files.rename=kill@6")
    for name in AT_RESUME:
        life.killed(f"{name}=kill")
        life.killed(f"{name}=hang")
    life.finish()
    assert life.kills == 1 + 2 * len(AT_RESUME)


def check_killed_at_every_start(pipeline: Pipeline, nursery: Nursery, inputs: Path, tmp_path: Path) -> None:
    """Each start commits one epoch and dies in the next; the job gets done all the same."""
    life = Life(nursery, pipeline, tmp_path, inputs)
    for turn in count():
        end = life.start("store.before_commit=kill@2", parallelism=1 + turn % 3)
        if not end.killed:
            break
    assert end.status == 0, end.log
    assert life.kills >= 5
    life.check()


def test_killed_at_every_start(nursery: Nursery, inputs: Path, tmp_path: Path) -> None:
    check_killed_at_every_start(PIPELINES[(5 + ROTATION) % len(PIPELINES)], nursery, inputs, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: p.name)
def test_each_killed_at_every_start(pipeline: Pipeline, nursery: Nursery, inputs: Path, tmp_path: Path) -> None:
    check_killed_at_every_start(pipeline, nursery, inputs, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("pipeline", PIPELINES, ids=lambda p: p.name)
@pytest.mark.parametrize("action", ["kill", "hang", "raise"])
def test_every_fail_point(
    action: str, pipeline: Pipeline, nursery: Nursery, usual: Usual, inputs: Path, tmp_path: Path
) -> None:
    check = check_raised if action == "raise" else check_killed
    for number, case in enumerate(every_case(action, pipeline)):
        folder = tmp_path / str(number)
        try:
            check(case, Life(nursery, pipeline, folder, inputs), usual(pipeline))
        except AssertionError as error:
            error.add_note(f"in case {case}; see {folder}")
            raise
        shutil.rmtree(folder)


def test_the_default_run_is_not_too_small() -> None:
    kills = some_cases("kill", 0)
    assert {case.failpoint for case in kills} == set(IN_JOBS)
    tried = [case.pipeline for case in kills + some_cases("raise", 5)]
    assert all(tried.count(pipeline) >= 2 for pipeline in PIPELINES)
