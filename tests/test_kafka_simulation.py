"""The Kafka sink's protocol, simulated: crashes at any step, zombies with copies of the store, networks that delay,
repeat and lose, brokers that go away, days that pass. Readers find each message of each committed epoch once.

A seed that fails fails again: ``pytest "tests/test_kafka_simulation.py::test_a_seed[17]"``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import millstream as ms
import pytest
from kafka_model.job_trial import run_with_engine
from kafka_model.mutations import MUTATIONS
from kafka_model.trial import run
from kafka_model.world import Violation
from millstream.engine.errors import ExternalError, JobFailed
from millstream.engine.runtime.run import RunSettings, run_job
from millstream.engine.sink import Committer, SinkContext

FAULTS = {
    "crash", "freeze", "taken over", "restarted elsewhere", "refused",
    "lost", "late", "repeated", "unanswered", "slow marker", "brokers away",
    "queue full", "store failed", "failed at", "transaction timed out", "idle for days", "down for days",
}  # fmt: skip
FAILPOINTS = {"kafka.fenced", "kafka.begun", "kafka.sent", "kafka.visible"}


@pytest.mark.parametrize("seed", range(250))
def test_a_seed(seed: int) -> None:
    assert run(seed).looked > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(250, 2500))
def test_one_of_many_seeds(seed: int) -> None:
    assert run(seed).looked > 0


@pytest.mark.parametrize("seed", range(6))
def test_a_seed_with_the_whole_engine(seed: int, tmp_path: Path) -> None:
    assert run_with_engine(seed, tmp_path / "s.duckdb")["kafka.visible"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 106))
def test_one_of_many_seeds_with_the_whole_engine(seed: int, tmp_path: Path) -> None:
    assert run_with_engine(seed, tmp_path / "s.duckdb")["kafka.visible"]


def test_a_seed_decides_everything() -> None:
    assert run(11) == run(11)


def test_whatever_can_go_wrong_does() -> None:
    counts, crashed_at, deepest = Counter[str](), set[str](), 0
    for seed in range(120):
        ledger = run(seed)
        counts += ledger.counts
        crashed_at |= ledger.crashed_at
        deepest = max(deepest, ledger.deepest)
    assert {name: counts[name] for name in FAULTS if not counts[name]} == {}
    assert min(counts[name] for name in FAILPOINTS) > 100
    for place in ("recovery", "commit again", "init", "fetch", "add", "produce", "commit", "epoch", *FAILPOINTS):
        assert [at for at in crashed_at if at.startswith(place)], f"no crash hit {place}"
    assert deepest >= 3
    assert counts["crash"] > 250


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_protocol_is_found_out(name: str) -> None:
    """Within 1,000 seeds, or the simulation would prove nothing."""
    for seed in range(1000):
        try:
            run(seed, MUTATIONS[name])
        except Violation:
            return
    pytest.fail(f"{name}: not noticed")


def test_a_committer_that_cannot_be_made_is_asked_for_once_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by this simulation: to close it, it was made a second time, with all its patience."""
    asked: list[int] = []

    def away(sink: object, schema: object, context: SinkContext) -> Committer:
        asked.append(context.generation)
        raise ExternalError("the brokers are away")

    out = ms.memory_sink()
    monkeypatch.setattr(type(out), "committer", away)
    job = ms.Job("j")
    job.read(ms.memory_source([{"n": 1}])).write(out)
    with pytest.raises(JobFailed, match="the brokers are away"):
        run_job(job.plan(1), RunSettings(restarts=2, backoff=0.0))
    assert asked == [1, 2, 3]
