"""The decision how a job starts, with plain values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath

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


# -- folders ------------------------------------------------------------------------------------------------------

FILES = replace(SOURCE, folders=("/a/in",))
OUT = OperatorState("o3", "out", "sink", (), folders=("/a/data/out", "/a/data/.millstream"))
BEFORE = replace(facts(FILES, OUT), folders={"o1": FILES.folders, "o3": OUT.folders})


def moved(operator: OperatorState, *folders: str) -> OperatorState:
    return replace(operator, folders=folders)


ALL_MOVED = [moved(FILES, "/b/c/in"), moved(OUT, "/b/c/data/out", "/b/c/data/.millstream")]


def test_other_folders_are_refused_with_both_names_and_what_to_do() -> None:
    decision = decide(BEFORE, ALL_MOVED)
    assert isinstance(decision, Refuse)
    assert decision.reasons[0] == "source 'orders': /a/in at the last start, /b/c/in now"
    assert len(decision.reasons) == 3
    assert "--moved-from /a, or job.run(..., moved_from='/a')" in decision.advice


def test_a_finished_job_is_not_taken_elsewhere_either() -> None:
    finished = replace(BEFORE, last=facts(FILES, OUT, kind=BarrierKind.FINAL).last)
    assert isinstance(decide(finished, ALL_MOVED), Refuse)
    assert decide(finished, [FILES, OUT]) == CommitAgain(Epoch(7))


def test_what_was_moved_on_purpose_is_taken() -> None:
    assert decide(BEFORE, ALL_MOVED, PurePath("/a")) == Resume(Epoch(7))
    assert decide(BEFORE, [FILES, OUT], PurePath("/a")) == Resume(Epoch(7)), "saying it again is harmless"


def test_only_what_was_there_can_have_been_moved_from_there() -> None:
    assert isinstance(decide(BEFORE, ALL_MOVED, PurePath("/")), Refuse)
    decision = decide(BEFORE, ALL_MOVED, PurePath("/a/data"))
    assert isinstance(decision, Refuse)
    assert decision.reasons == ("source 'orders': /a/in at the last start, /b/c/in now",)
    renamed = [moved(FILES, "/b/input"), ALL_MOVED[1]]
    assert isinstance(decide(BEFORE, renamed, PurePath("/a")), Refuse)


def test_a_folder_that_cannot_have_been_moved_is_not_said_to_be() -> None:
    decision = decide(BEFORE, [moved(FILES, "/a"), OUT])
    assert isinstance(decision, Refuse)
    assert "--moved-from" not in decision.advice


def test_a_source_that_had_no_folder_may_get_one_and_lose_it_again() -> None:
    assert decide(replace(BEFORE, folders={"o3": OUT.folders}), [FILES, OUT]) == Resume(Epoch(7))
    assert decide(BEFORE, [SOURCE, OUT]) == Resume(Epoch(7))


def test_folders_do_not_matter_before_anything_was_committed() -> None:
    assert decide(replace(BEFORE, last=None), ALL_MOVED) == StartFresh()
