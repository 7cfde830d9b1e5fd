"""The decision how a job starts, with plain values."""

from __future__ import annotations

import pyarrow as pa
from millstream.engine.element import BarrierKind, Epoch, Generation
from millstream.engine.recovery import CommitAgain, Refuse, Resume, StartFresh, decide
from millstream.engine.state import StateTable
from millstream.engine.store.types import Manifest, OperatorState, StoreFacts

SOURCE = OperatorState("o1", "orders", "source", ())
SCHEMA = pa.schema([("k", pa.string()), ("n", pa.int64())])
WINDOW = OperatorState("o2", "window", "window", (StateTable("windows", SCHEMA, ("k",), ("k",)),))


def facts(*operators: OperatorState, kind: BarrierKind = BarrierKind.CHECKPOINT) -> StoreFacts:
    manifest = Manifest(Epoch(7), Generation(2), kind, 0, {}, {}, {o.id: o for o in operators})
    return StoreFacts("job", manifest, Epoch(7), Generation(2))


def test_an_empty_store_starts_fresh() -> None:
    assert decide(StoreFacts("job", None, None, Generation(3)), [SOURCE]) == StartFresh()


def test_the_same_job_resumes_at_its_last_epoch() -> None:
    assert decide(facts(SOURCE, WINDOW), [SOURCE, WINDOW]) == Resume(Epoch(7))


def test_a_stopped_job_resumes_too() -> None:
    assert decide(facts(SOURCE, kind=BarrierKind.STOP), [SOURCE]) == Resume(Epoch(7))


def test_a_finished_job_only_commits_again() -> None:
    assert decide(facts(SOURCE, kind=BarrierKind.FINAL), [SOURCE]) == CommitAgain(Epoch(7))


def test_an_operator_more_is_welcome_and_named() -> None:
    assert decide(facts(SOURCE), [SOURCE, WINDOW]) == Resume(Epoch(7), ("window",))


def test_an_operator_less_is_refused_by_name() -> None:
    decision = decide(facts(SOURCE, WINDOW), [SOURCE])
    assert isinstance(decision, Refuse)
    assert "window 'window' is in the checkpoint but not in the job" in decision.reasons[0]


def test_a_changed_type_is_refused_with_the_difference() -> None:
    changed = pa.schema([("k", pa.string()), ("n", pa.float64())])
    now = OperatorState("o2", "window", "window", (StateTable("windows", changed, ("k",), ("k",)),))
    decision = decide(facts(SOURCE, WINDOW), [SOURCE, now])
    assert isinstance(decision, Refuse)
    assert "n: int64 in the checkpoint, double in the job" in decision.reasons[0]


def test_every_difference_is_listed() -> None:
    decision = decide(facts(SOURCE, WINDOW), [])
    assert isinstance(decision, Refuse)
    assert len(decision.reasons) == 2
