"""What to do when a job starts on a store: facts in, a decision out. No connection, no clock, no logger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
    """Going on would lose or double something; ``reasons`` say what, a sentence each."""

    reasons: tuple[str, ...]


Decision: TypeAlias = StartFresh | Resume | CommitAgain | Refuse


def decide(facts: StoreFacts, job: Sequence[OperatorState]) -> Decision:
    """Decide how a job starts on a store.

    >>> from millstream.engine.element import Generation
    >>> decide(StoreFacts("job", None, None, Generation(0)), [])
    StartFresh()
    """
    if facts.last is None:
        return StartFresh()
    now = {operator.id: operator for operator in job}
    reasons = _differences(facts.last, now)
    if reasons:
        return Refuse(tuple(reasons))
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
