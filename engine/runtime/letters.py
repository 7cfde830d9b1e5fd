"""Dead letters of a running job: handed back to their operators, and kept from becoming too many."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa
from millstream.engine.errors import StateMismatch
from millstream.engine.failpoints import hit
from millstream.engine.graph import OperatorId, Write
from millstream.engine.operator import Exchange, ExchangeKind, OperatorSpec
from millstream.engine.plan import Plan
from millstream.engine.runtime.chain import OperatorTarget, SinkTarget
from millstream.engine.runtime.subtask import Subtask
from millstream.engine.source import DeadLetter
from millstream.engine.store.store import CheckpointStore
from millstream.engine.store.types import MarkedLetter, NodeLetters

_MOST_ROWS: Final = 1_024


@dataclass(frozen=True, slots=True)
class LetterLimit:
    """How many dead letters there may be.

    Attributes:
        most: so many may be in the store.
        before: so many were in it when the generation began, without those that are replayed.
        since: answers how many this generation has made so far.
    """

    most: int
    before: int
    since: Callable[[], int]

    @property
    def count(self) -> int:
        """How many there will be once everything up to now is committed."""
        return self.before + self.since()

    @property
    def exceeded(self) -> bool:
        """Whether that is too many."""
        return self.count > self.most


class SinkLetters:
    """What committers put aside: written at once, behind the commit point, and counted for as long as it runs."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self.counts: Counter[str] = Counter()

    def begin(self) -> None:
        """Count from now on: what came before, while the last epoch was committed again, is in the store's count."""
        self.counts.clear()

    def put_aside(self, node_id: str, name: str, epoch: int, letters: Sequence[DeadLetter]) -> None:
        """As ``SinkContext.put_aside``, of one sink."""
        self.counts[name] += self._store.add_letters(epoch, [NodeLetters(node_id, name, 0, dead) for dead in letters])


def misfits(letters: Sequence[MarkedLetter], plan: Plan) -> Counter[str]:
    """Say why a job cannot process dead letters again: each reason, and of how many it is true."""
    return Counter(problem for letter in letters if (problem := _misfit(letter, plan)))


def check_replayable(letters: Sequence[MarkedLetter], plan: Plan) -> None:
    """Raise StateMismatch unless the job can process these dead letters again, naming each reason once."""
    reasons = misfits(letters, plan)
    if reasons:
        listed = "\n".join(f"  - {count:,} x {reason}" for reason, count in reasons.items())
        raise StateMismatch(
            f"dead letters that are to be replayed do not fit job {plan.job!r}:\n{listed}\n"
            f"Change the job back, or go without them: if they are marked already, millstream deadletters replay STORE "
            f"JOB --undo --all takes the marks off"
        )


def replaying_sinks(plan: Plan) -> tuple[str, ...]:
    """Return the ids of a job's sinks that take messages again which they have put aside."""
    return tuple(node.id for node in plan.graph.sinks() if isinstance(node.body, Write) and node.body.sink.replays)


def _misfit(letter: MarkedLetter, plan: Plan) -> str:
    node = plan.graph.nodes.get(OperatorId(letter.node_id))
    if isinstance(letter.letter, DeadLetter):
        if letter.node_id in replaying_sinks(plan):
            return ""
        return f"sink {letter.name!r} ({letter.node_id}) is not in the job: it, or something before it, was changed"
    if node is None or not isinstance(node.body, OperatorSpec):
        return (
            f"operator {letter.name!r} ({letter.node_id}) is not in the job: it was removed, or it or something before "
            f"it was changed"
        )
    (wanted,) = plan.input_schemas(node)
    have = letter.letter.schema
    differences = [
        f"{field.name!r} is {have.field(field.name).type if field.name in have.names else 'missing'} in the letter, "
        f"{field.type} in the job"
        for field in wanted
        if field.name not in have.names or not have.field(field.name).type.equals(field.type)
    ]
    return f"the rows of {node.label} have changed: column {'; column '.join(differences)}" if differences else ""


def schedule_replays(letters: Sequence[MarkedLetter], plan: Plan, subtasks: Sequence[Subtask]) -> None:
    """Have subtasks process dead letters again before anything else, so that the first epoch covers what comes of it.

    Rows go where the operator's exchange sends them, in the order in which they became dead letters. Messages of a sink
    all go to its first writer.
    """
    rows: Mapping[str, list[MarkedLetter]] = defaultdict(list)
    messages: Mapping[str, list[DeadLetter]] = defaultdict(list)
    for letter in letters:
        if isinstance(letter.letter, DeadLetter):
            messages[letter.node_id].append(letter.letter)
        else:
            rows[letter.node_id].append(letter)
    _schedule_rows(rows, plan, subtasks)
    for node_id, own in messages.items():
        subtask, sink = next((s, sink) for s in subtasks for sink in s.parts.sinks if sink.id == node_id)
        subtask.do_first(partial(_replay_messages, sink, own))


def _schedule_rows(letters: Mapping[str, list[MarkedLetter]], plan: Plan, subtasks: Sequence[Subtask]) -> None:
    targets: Mapping[str, list[tuple[Subtask, OperatorTarget]]] = defaultdict(list)
    for subtask in subtasks if letters else ():
        for target in subtask.parts.operators:
            targets[target.id].append((subtask, target))
    for node_id, own in letters.items():
        node = plan.graph.nodes[node_id]  # type: ignore[index]
        assert isinstance(node.body, OperatorSpec)
        copies = targets[node_id]
        for attempts, batch in _batches(own, plan.input_schemas(node)[0]):
            for (subtask, target), part in zip(copies, _parts(batch, node.body.exchange(), len(copies)), strict=True):
                if part.num_rows:
                    subtask.do_first(partial(_replay, target, part, attempts))


def _replay(target: OperatorTarget, batch: pa.RecordBatch, attempts: int) -> None:
    hit("letters.replay")
    target.replay(batch, attempts)


def _replay_messages(sink: SinkTarget, messages: Sequence[DeadLetter]) -> None:
    hit("letters.replay")
    sink.replay(messages)


def _batches(letters: Sequence[MarkedLetter], schema: pa.Schema) -> list[tuple[int, pa.RecordBatch]]:
    """Put rows together that have been tried equally often."""
    by_attempts: Mapping[int, list[pa.RecordBatch]] = defaultdict(list)
    for letter in letters:
        assert not isinstance(letter.letter, DeadLetter)
        row = letter.letter.select(schema.names)
        by_attempts[letter.attempts].append(pa.RecordBatch.from_arrays(row.columns, schema=schema))
    return [
        (attempts, batch)
        for attempts, rows in by_attempts.items()
        for batch in pa.Table.from_batches(rows).combine_chunks().to_batches(max_chunksize=_MOST_ROWS)
    ]


def _parts(batch: pa.RecordBatch, exchange: Exchange, count: int) -> Sequence[pa.RecordBatch]:
    if exchange.kind is not ExchangeKind.HASH or count == 1:
        return [batch, *([batch.slice(0, 0)] * (count - 1))]
    from millstream.engine.hashing import exchange_hash, partition

    return partition(batch, exchange_hash([batch.column(name) for name in exchange.keys]), count)
