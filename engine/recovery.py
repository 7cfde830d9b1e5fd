"""What to do when a job starts on a store: facts in, a decision out. No connection, no clock, no logger."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final, TypeAlias

from millstream.engine.element import BarrierKind, Epoch
from millstream.engine.fitting import Change, Verdict, accept, compare
from millstream.engine.store.types import OperatorState, StoreFacts


@dataclass(frozen=True, slots=True)
class StartFresh:
    """Nothing was ever committed: read every source from its start."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on after this epoch. Its effects are committed again first: the crash may have come between the two.

    ``dropped`` (id to name) are those whose state is given up on request.
    """

    epoch: Epoch
    new_operators: tuple[str, ...] = ()
    migrated: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CommitAgain:
    """The job had finished; only its last effects may still be missing."""

    epoch: Epoch
    dropped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refuse:
    """Going on would lose or double something; ``reasons`` say what, a sentence each, and ``advice`` what to do."""

    reasons: tuple[str, ...]
    advice: str


_ELSEWHERE: Final = (
    "Start the job in the folder it was started in before, so that relative paths lead where they led; to work on "
    "other folders from their beginning, give it another --store."
)


Decision: TypeAlias = StartFresh | Resume | CommitAgain | Refuse


def decide(
    facts: StoreFacts, job: Sequence[OperatorState], moved_from: PurePath | None = None, drop: Collection[str] = ()
) -> Decision:
    """Decide how a job starts on a store.

    Args:
        job: what its sources, sinks and operators keep.
        moved_from: the folder that held everything the job reads and writes until it was moved.
        drop: names or ids of operators, sources and sinks whose state may be given up.

    Raises:
        JobError: a name in ``drop`` means nothing, or several things.

    >>> from millstream.engine.element import Generation
    >>> decide(StoreFacts("job", None, None, Generation(0)), [])
    StartFresh()
    """
    changes = compare(facts, job)
    accepted = accept(changes, drop, facts)
    if facts.last is None:
        return StartFresh()
    if accepted.refused:
        return Refuse(tuple(map(str, accepted.refused)), _advice(accepted.refused))
    elsewhere = _elsewhere(facts, job, moved_from)
    if elsewhere is not None:
        return elsewhere
    if facts.last.kind is BarrierKind.FINAL and not facts.replays:
        return CommitAgain(facts.last.epoch, accepted.dropped)
    new = tuple(c.name for c in changes if c.verdict is Verdict.NEW)
    migrated = tuple(c.name for c in changes if c.verdict is Verdict.MIGRATED)
    return Resume(facts.last.epoch, new, migrated, accepted.dropped)


def _advice(refused: Sequence[Change]) -> str:
    """Say which command would accept the differences."""
    lines = []
    losing = [change for change in refused if change.loses]
    if losing:
        names = [change.name for change in losing]
        said = [change.id if names.count(change.name) > 1 else change.name for change in losing]
        options = " ".join(f"--drop-state {shlex.quote(name)}" for name in said)
        lines.append(f"Run the job as it was, or give up that state: {options}")
    if any(change.unpublished for change in refused):
        lines.append(
            "Output that may not be visible yet is not given up: run the job as it was and stop it (Ctrl-C or "
            "SIGTERM), which makes everything visible; then change it"
        )
    lines.append("Or start anew with another --store and new output folders. millstream plan --against shows all of it")
    return "\n".join(lines)


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
