"""The decision how a job starts, with plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pytest
from millstream.engine.element import BarrierKind, Epoch, Generation
from millstream.engine.errors import JobError
from millstream.engine.fitting import Verdict, compare
from millstream.engine.recovery import CommitAgain, Refuse, Resume, StartFresh, decide
from millstream.engine.state import StateKind, StateTable
from millstream.engine.store.types import Manifest, OperatorState, StoreFacts, TableManifest

SOURCE = OperatorState("o1", "orders", "source", ())
SCHEMA = pa.schema([("k", pa.string()), ("n", pa.int64())])
WINDOW = OperatorState("o2", "window", "window", (StateTable("windows", SCHEMA, ("k",), ("k",)),))


def facts(
    *operators: OperatorState,
    kind: BarrierKind = BarrierKind.CHECKPOINT,
    read: Sequence[str] = ("o1",),
    unpublished: Mapping[str, int] | None = None,
    tables: bool = True,
) -> StoreFacts:
    held = {(o.id, table.name): TableManifest(1, 0, "") for o in operators for table in o.tables if tables}
    manifest = Manifest(Epoch(7), Generation(2), kind, 0, held, {}, {o.id: o for o in operators})
    return StoreFacts("job", manifest, Epoch(7), Generation(2), {}, frozenset(read), unpublished or {})


def test_an_empty_store_starts_fresh() -> None:
    assert decide(StoreFacts("job", None, None, Generation(3)), [SOURCE]) == StartFresh()


def test_the_same_job_resumes_at_its_last_epoch() -> None:
    assert decide(facts(SOURCE, WINDOW), [SOURCE, WINDOW]) == Resume(Epoch(7))


def test_a_stopped_job_resumes_too() -> None:
    assert decide(facts(SOURCE, kind=BarrierKind.STOP), [SOURCE]) == Resume(Epoch(7))


def test_a_finished_job_only_commits_again() -> None:
    assert decide(facts(SOURCE, kind=BarrierKind.FINAL), [SOURCE]) == CommitAgain(Epoch(7))


def test_a_finished_job_goes_on_for_letters_to_replay_in_whatever_version() -> None:
    found = replace(facts(SOURCE, WINDOW, kind=BarrierKind.FINAL), dead_letters={"o2": 3}, replays=1)
    assert decide(found, [SOURCE, WINDOW]) == Resume(Epoch(7))
    other = replace(WINDOW, id="o3", name="other")
    assert decide(found, [SOURCE, other], drop=["window"]) == Resume(Epoch(7), ("other",), (), {"o2": "window"})
    refused = decide(found, [SOURCE])
    assert isinstance(refused, Refuse)
    assert refused.reasons[0].endswith("its state (windows) would be lost; its 3 dead letters would stay")


def test_an_operator_more_is_welcome_and_named() -> None:
    assert decide(facts(SOURCE), [SOURCE, WINDOW]) == Resume(Epoch(7), ("window",))


def test_an_operator_less_is_refused_by_name() -> None:
    decision = decide(facts(SOURCE, WINDOW), [SOURCE])
    assert isinstance(decision, Refuse)
    assert str(decision.reasons[0]) == "window 'window' (o2) dropped: its state (windows) would be lost"
    assert decide(facts(SOURCE, WINDOW), [SOURCE], drop=["window"]) == Resume(Epoch(7), dropped={"o2": "window"})
    assert decide(facts(SOURCE, WINDOW), [SOURCE], drop=["o2"]) == Resume(Epoch(7), dropped={"o2": "window"})


def test_what_never_kept_anything_may_go() -> None:
    gone = OperatorState("o9", "out", "sink", ())
    assert decide(facts(SOURCE, gone, read=()), []) == Resume(Epoch(7))


def test_positions_are_not_lost_in_silence() -> None:
    decision = decide(facts(SOURCE), [])
    assert isinstance(decision, Refuse)
    assert str(decision.reasons[0]) == "source 'orders' (o1) dropped: its positions would be lost"
    assert decide(facts(SOURCE), [], drop=["orders"]) == Resume(Epoch(7), dropped={"o1": "orders"})


def test_a_sink_whose_output_may_not_be_visible_cannot_go() -> None:
    sink = OperatorState("o3", "out", "sink", ())
    for drop in ([], ["out"]):
        decision = decide(facts(SOURCE, sink, unpublished={"o3": 2}), [SOURCE], drop=drop)
        assert isinstance(decision, Refuse)
        assert "its output of epoch 7 (2 committables) may not be visible yet" in str(decision.reasons[0])


def test_a_changed_type_is_refused_with_the_difference() -> None:
    changed = pa.schema([("k", pa.string()), ("n", pa.float64())])
    now = OperatorState("o2", "window", "window", (StateTable("windows", changed, ("k",), ("k",)),))
    decision = decide(facts(SOURCE, WINDOW), [SOURCE, now])
    assert isinstance(decision, Refuse)
    assert "n: int64 in the checkpoint, double in the job" in str(decision.reasons[0])
    assert decide(facts(SOURCE, WINDOW), [SOURCE, now], drop=["window"]) == Resume(Epoch(7), dropped={"o2": "window"})


def test_another_meaning_is_refused_unless_nothing_is_kept_yet() -> None:
    now = replace(WINDOW, meaning="window(2m)")
    decision = decide(facts(SOURCE, replace(WINDOW, meaning="window(1m)")), [SOURCE, now])
    assert isinstance(decision, Refuse)
    assert "window(1m) in the checkpoint, window(2m) in the job" in str(decision.reasons[0])
    empty = facts(SOURCE, replace(WINDOW, meaning="window(1m)"), tables=False)
    assert decide(empty, [SOURCE, now]) == Resume(Epoch(7))


@pytest.mark.parametrize(
    ("columns", "options", "told"),
    [
        ({"n": pa.int64(), "k": pa.string()}, {}, "the columns stand in another order"),
        ({"k": pa.large_string(), "n": pa.int64()}, {}, "k: string is widened to large_string"),
        ({"k": pa.string(), "n": pa.int64(), "m": pa.float64()}, {}, "m: added, null in older rows"),
        ({"k": pa.string(), "n": pa.int64(), "m": pa.int8()}, {"defaults": {"m": 3}}, "m: added, 3 in older rows"),
    ],
)
def test_columns_that_can_be_migrated(columns: dict[str, pa.DataType], options: dict[str, Any], told: str) -> None:
    now = replace(WINDOW, tables=(StateTable("windows", pa.schema(columns), ("k",), ("k",), **options),))
    (change,) = compare(facts(WINDOW), [now])
    assert (change.verdict, change.details) == (Verdict.MIGRATED, (f"state 'windows': {told}",))
    assert decide(facts(WINDOW), [now]) == Resume(Epoch(7), migrated=("window",))


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (StateTable("windows", pa.schema({"k": pa.string()}), ("k",)), "n: int64 in the checkpoint, no such column"),
        (StateTable("windows", SCHEMA, ("k", "n")), "its key was k and is k, n"),
        (StateTable("windows", SCHEMA, ("n",), kind=StateKind.ROWS), "its rows were keyed and are rows"),
        (StateTable("other", SCHEMA, ("k",)), "it no longer keeps 'windows'"),
        (
            StateTable("windows", pa.schema([*SCHEMA, pa.field("m", pa.int8(), nullable=False)]), ("k",)),
            "m: no such column in the checkpoint, and it has no default",
        ),
        (
            StateTable("windows", pa.schema([SCHEMA.field(0), pa.field("n", pa.int64(), nullable=False)]), ("k",)),
            "n: may be null in the checkpoint, must not be in the job",
        ),
    ],
)
def test_columns_that_cannot_be_migrated(table: StateTable, told: str) -> None:
    (change,) = compare(facts(WINDOW), [replace(WINDOW, tables=(table,))])
    assert change.verdict is Verdict.CHANGED
    assert told in "; ".join(change.details)


def test_every_difference_is_listed() -> None:
    decision = decide(facts(SOURCE, WINDOW), [])
    assert isinstance(decision, Refuse)
    assert len(decision.reasons) == 2


def test_dropping_what_fits_or_is_gone_already_changes_nothing() -> None:
    assert decide(facts(SOURCE, WINDOW), [SOURCE, WINDOW], drop=["window"]) == Resume(Epoch(7))
    before = replace(facts(SOURCE), dropped={"o2": "window"})
    assert decide(before, [SOURCE], drop=["window"]) == Resume(Epoch(7))


def test_a_name_that_means_nothing_or_two_things_is_refused() -> None:
    with pytest.raises(JobError, match="there is no 'windw'; there are orders, window"):
        decide(facts(SOURCE, WINDOW), [SOURCE], drop=["windw"])
    with pytest.raises(JobError, match="2 are called 'window' and would lose their state: say which by id, o2 or o4"):
        decide(facts(SOURCE, WINDOW, replace(WINDOW, id="o4")), [SOURCE], drop=["window"])


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
