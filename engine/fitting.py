"""What becomes of a checkpoint under another version of the job: kept, migrated, refused, dropped. Plain values."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from millstream.engine.errors import JobError
from millstream.engine.store.migration import compare_tables
from millstream.engine.store.types import OperatorState, StoreFacts


class Verdict(enum.Enum):
    """What happens to one operator, source or sink."""

    KEPT = "kept"  # it goes on where it was
    NEW = "new"  # it begins with nothing
    MIGRATED = "migrated"  # its rows are put into the new columns
    CHANGED = "changed"  # its state means something else now: refused, unless it is dropped
    DROPPED = "dropped"  # it is no longer in the job


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the comparison.

    Attributes:
        details: a phrase for each thing that differs or would be lost.
        loses: going on loses state or positions, so somebody must have said so.
        unpublished: so many committables of a sink that is gone may not be visible yet: it cannot go.
    """

    id: str
    name: str
    kind: str
    verdict: Verdict
    details: tuple[str, ...] = ()
    loses: bool = False
    unpublished: int = 0

    @property
    def refused(self) -> bool:
        """Whether a job does not start like this by itself."""
        return self.loses or bool(self.unpublished)

    def __str__(self) -> str:
        said = f": {'; '.join(self.details)}" if self.details else ""
        return f"{self.kind} {self.name!r} ({self.id}) {self.verdict.value}{said}"


def compare(facts: StoreFacts, job: Sequence[OperatorState]) -> list[Change]:
    """Compare a job with the last checkpoint of a store: what the job has, in its order, then what it lost.

    >>> from millstream.engine.element import Generation
    >>> source = OperatorState("o1", "orders", "source", ())
    >>> [str(change) for change in compare(StoreFacts("job", None, None, Generation(0)), [source])]
    ["source 'orders' (o1) new: read from its start"]
    """
    last = facts.last
    before = last.operators if last else {}
    now = {operator.id: operator for operator in job}
    changes = [
        _changed(before[operator.id], operator, facts) if last and operator.id in before else _added(operator, facts)
        for operator in job
    ]
    return changes + [_lost(old, facts) for id_, old in before.items() if id_ not in now]


def _added(operator: OperatorState, facts: StoreFacts) -> Change:
    if operator.id in facts.dropped:
        details: tuple[str, ...] = ("its state was dropped",)
    elif operator.kind == "source":
        details = ("read from its start",)
    else:
        details = ("begins with what comes after the checkpoint",) if facts.last else ()
    return Change(operator.id, operator.name, operator.kind, Verdict.NEW, details)


def _changed(old: OperatorState, new: OperatorState, facts: StoreFacts) -> Change:
    assert facts.last is not None
    last = facts.last
    migrated: list[str] = []
    refused: list[str] = []
    tables = {table.name: table for table in new.tables}
    for table in old.tables:
        if (old.id, table.name) not in last.tables:
            continue
        if table.name not in tables:
            refused.append(f"it no longer keeps {table.name!r}")
            continue
        found = compare_tables(table, tables[table.name])
        migrated += [f"state {table.name!r}: {text}" for text in found.migrated]
        refused += [f"state {table.name!r}: {text}" for text in found.refused]
    held = any(id_ == old.id for id_, _ in last.tables)
    if held and not refused and old.meaning != new.meaning:
        refused.append(f"{old.meaning} in the checkpoint, {new.meaning} in the job")
    if refused:
        refused += _letters(old, facts)
    verdict = Verdict.CHANGED if refused else Verdict.MIGRATED if migrated else Verdict.KEPT
    return Change(new.id, new.name, new.kind, verdict, tuple(refused or migrated), loses=bool(refused))


def _lost(old: OperatorState, facts: StoreFacts) -> Change:
    assert facts.last is not None
    details = []
    tables = [name for id_, name in facts.last.tables if id_ == old.id]
    unpublished = facts.unpublished.get(old.id, 0) if old.kind == "sink" else 0
    if tables:
        details.append(f"its state ({', '.join(tables)}) would be lost")
    if old.id in facts.read:
        details.append("its positions would be lost")
    if unpublished:
        details.append(
            f"its output of epoch {facts.last.epoch} ({unpublished} committable{'s' * (unpublished > 1)}) may not be "
            f"visible yet"
        )
    details += _letters(old, facts)
    loses = bool(tables) or old.id in facts.read
    return Change(old.id, old.name, old.kind, Verdict.DROPPED, tuple(details), loses, unpublished)


def _letters(old: OperatorState, facts: StoreFacts) -> list[str]:
    """Say that dead letters are not lost with state: no reason to refuse anything, but good to know."""
    count = facts.dead_letters.get(old.id, 0)
    return [f"its {count:,} dead letter{'s' * (count > 1)} would stay"] if count else []


@dataclass(frozen=True, slots=True)
class Accepted:
    """What is given up, as somebody asked for, and what stands in the way.

    Attributes:
        dropped: (id, name) of those whose state is given up.
        refused: what nobody agreed to lose, or what cannot be.
    """

    dropped: Mapping[str, str]
    refused: tuple[Change, ...]


def accept(changes: Sequence[Change], drop: Collection[str], facts: StoreFacts) -> Accepted:
    """Say which state may be given up: that of the names or ids in ``drop``.

    To name what fits gives up nothing, and so does naming what was dropped before: a job that is started again by
    the same command must not lose more.

    Raises:
        JobError: a name means nothing in the job or the checkpoint, or several things that would lose state.
    """
    wanted = set()
    for name in drop:
        meant = [change for change in changes if name in (change.id, change.name)]
        losing = [change.id for change in meant if change.loses]
        if not meant and name not in facts.dropped and name not in facts.dropped.values():
            known = sorted({change.name for change in changes})
            raise JobError(f"drop_state (--drop-state): there is no {name!r}; there are {', '.join(known) or 'none'}")
        if len(losing) > 1:
            raise JobError(
                f"drop_state (--drop-state): {len(losing)} are called {name!r} and would lose their state: say which "
                f"by id, {' or '.join(losing)}"
            )
        wanted.update(losing)
    refused = tuple(c for c in changes if c.unpublished or (c.loses and c.id not in wanted))
    return Accepted({c.id: c.name for c in changes if c.id in wanted}, refused)
