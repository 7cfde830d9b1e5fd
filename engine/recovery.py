"""What to do when a job starts on a store: facts in, a decision out. No connection, no clock, no logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, TypeAlias

from millstream.engine.element import BarrierKind, Epoch
from millstream.engine.store.types import Manifest, OperatorState, StoreFacts


@dataclass(frozen=True, slots=True)
class StartFresh:
    """Nothing was ever committed: read every source from its start."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on after this epoch. Its effects are committed again first: the crash may have come between the two."""

    epoch: Epoch
    new_operators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CommitAgain:
    """The job had finished; only its last effects may still be missing."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Refuse:
    """Going on would lose or double something; ``reasons`` say what, a sentence each, and ``advice`` what to do."""

    reasons: tuple[str, ...]
    advice: str


_CHANGED: Final = (
    "Run the job as it was, give the operator its old name, or start anew with another --store and new output folders."
)

_ELSEWHERE: Final = (
    "Start the job in the folder it was started in before, so that relative paths lead where they led; to work on "
    "other folders from their beginning, give it another --store."
)


Decision: TypeAlias = StartFresh | Resume | CommitAgain | Refuse


def decide(facts: StoreFacts, job: Sequence[OperatorState], moved_from: PurePath | None = None) -> Decision:
    """Decide how a job starts on a store.

    Args:
        job: what its sources, sinks and operators keep.
        moved_from: the folder that held everything the job reads and writes until it was moved.

    >>> from millstream.engine.element import Generation
    >>> decide(StoreFacts("job", None, None, Generation(0)), [])
    StartFresh()
    """
    if facts.last is None:
        return StartFresh()
    now = {operator.id: operator for operator in job}
    reasons = _differences(facts.last, now)
    if reasons:
        return Refuse(tuple(reasons), _CHANGED)
    elsewhere = _elsewhere(facts, job, moved_from)
    if elsewhere is not None:
        return elsewhere
    if facts.last.kind is BarrierKind.FINAL:
        return CommitAgain(facts.last.epoch)
    new = tuple(o.name for o in job if o.id not in facts.last.operators)
    return Resume(facts.last.epoch, new)


def _differences(last: Manifest, now: Mapping[str, OperatorState]) -> list[str]:
    reasons = []
    for id_, before in last.operators.items():
        after = now.get(id_)
        if after is None:
            reasons.append(
                f"{before.kind} {before.name!r} is in the checkpoint but not in the job: it was removed, or it or "
                f"something before it was changed"
            )
        else:
            reasons += _table_differences(before, after)
    return reasons


def _table_differences(before: OperatorState, after: OperatorState) -> list[str]:
    old, new = {t.name: t for t in before.tables}, {t.name: t for t in after.tables}
    reasons = [f"{before.kind} {before.name!r} no longer keeps {name!r}" for name in old if name not in new]
    for name, table in old.items():
        if name in new and not table.schema.equals(new[name].schema):
            changes = [
                f"{field.name}: {_type(table.schema, field.name)} in the checkpoint, "
                f"{_type(new[name].schema, field.name)} in the job"
                for field in [*table.schema, *new[name].schema]
                if _type(table.schema, field.name) != _type(new[name].schema, field.name)
            ]
            detail = "; ".join(dict.fromkeys(changes)) or "the columns stand in another order"
            reasons.append(f"{before.kind} {before.name!r}, state {name!r}: {detail}")
    if not reasons and before.meaning != after.meaning:
        reasons.append(f"{before.kind} {before.name!r}: {before.meaning} in the checkpoint, {after.meaning} in the job")
    return reasons


def _type(schema: object, name: str) -> str:
    names = schema.names  # type: ignore[attr-defined]
    return str(schema.field(name).type) if name in names else "no such column"  # type: ignore[attr-defined]


def _elsewhere(facts: StoreFacts, job: Sequence[OperatorState], moved_from: PurePath | None) -> Refuse | None:
    """Refuse sources and sinks whose folders are not those of the last start, unless they have been moved there."""
    reasons, origins = [], []
    for operator in job:
        # One of them may be empty: under a name of its own a source may change into something else.
        for was, now in zip(facts.folders.get(operator.id, ()), operator.folders, strict=False):
            if was != now and not _was_moved(was, now, moved_from):
                reasons.append(f"{operator.kind} {operator.name!r}: {was} at the last start, {now} now")
                origins.append(_origin(was, now))
    if not reasons:
        return None
    advice = _ELSEWHERE
    if len(set(origins)) == 1 and origins[0] is not None:
        advice += (
            f" If store, input and output (with .millstream beside it) were moved there on purpose, say so once: "
            f"--moved-from {origins[0]}, or job.run(..., moved_from={str(origins[0])!r})."
        )
    return Refuse(tuple(reasons), advice)


def _was_moved(was: str, now: str, moved_from: PurePath | None) -> bool:
    """Whether a path below ``moved_from`` has the same end now."""
    if moved_from is None or not PurePath(was).is_relative_to(moved_from):
        return False
    kept = PurePath(was).relative_to(moved_from).parts
    return PurePath(now).parts[len(PurePath(now).parts) - len(kept) :] == kept


def _origin(was: str, now: str) -> PurePath | None:
    """The folder something was moved from, if it was; None if the two paths have not even their last name in common.

    >>> _origin("/a/in/orders", "/b/c/in/orders")
    PurePosixPath('/a')
    """
    before, after = PurePath(was), PurePath(now)
    while before.name == after.name and before.name:
        before, after = before.parent, after.parent
    return None if before == PurePath(was) else before
