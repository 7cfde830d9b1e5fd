"""Rows that sinks hold back over epochs: what is published, and when, under any order of crashes and restarts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.connectors.holding_writer import Holding, HoldingWriter, HoldRule, held_table
from millstream.connectors.outbox import Sent, outbox_table, pack, settle, unpack
from millstream.connectors.roll_agreement import RollAgreement
from millstream.engine.changelog import WEIGHT, weighted
from millstream.engine.sink import Committable, SinkContext
from millstream.engine.state import StateDelta
from millstream.engine.time import ManualClock
from millstream.testing.states import StateModel

ROWS = pa.schema({"k": pa.int64(), "v": pa.int64()})
Kind = Literal["append", "upsert", "changelog"]
Ending = Literal["committed", "aborted", "crashed before", "crashed after"]


@dataclass
class Destination:
    """A table with a marker."""

    keys: tuple[str, ...]
    rows: list[tuple[int, int]] = field(default_factory=list)
    marker: int = 0

    def publish(self, epoch: int, committables: Sequence[Committable]) -> None:
        if not committables or epoch <= self.marker:
            return
        letter = unpack(committables)
        assert letter.after == self.marker, "the marker of a destination is the last epoch with rows before"
        self.marker = epoch
        for row in settle(letter.rows, self.keys).to_pylist():
            if self.keys:
                self.rows = [other for other in self.rows if other[0] != row["k"]]
            if row.get(WEIGHT, 1) > 0:
                self.rows.append((row["k"], row["v"]))


class Running:
    """A job's sink from start to start, on a model of the store."""

    def __init__(self, kind: Kind, hold_bytes: int) -> None:
        self.schema = weighted(ROWS) if kind == "changelog" else ROWS
        self.keys = () if kind == "append" else ("k",)
        self.clock = ManualClock()
        self.rule = HoldRule.of(hold_bytes, "10s", self.clock)
        self.model = StateModel((outbox_table(), held_table(self.schema)), "sink")
        self.destination = Destination(self.keys)
        self.stored: tuple[int, list[Committable]] = (0, [])
        self.generation = 0
        self.shown = 0
        """The last epoch whose rows have been handed over and stored."""
        self.start(1)

    def start(self, parallelism: int) -> None:
        self.generation += 1
        self.epoch, self.released = self.stored[0], self.shown
        sent, agreement = Sent(), RollAgreement(parallelism)
        self.sent = sent
        self.publish()
        holding = Holding(self.rule, agreement, self.schema, lambda rows: rows, lambda rows: rows)
        self.writers = [
            HoldingWriter(
                "sink",
                self.schema,
                self.keys,
                SinkContext("job", "j1", "s1", self.generation, number, parallelism, self.epoch),
                sent,
                holding,
            )
            for number in range(parallelism)
        ]
        self.model.begin(parallelism)
        self.model.restore(self.writers)
        self.prepared: list[Committable] = []
        self.handed_over: list[list[Mapping[str, StateDelta]]] = []

    def write(self, who: int, row: Mapping[str, int]) -> None:
        self.writers[who % len(self.writers)].write(pa.RecordBatch.from_pylist([row], schema=self.schema))

    def barrier(self, order: Sequence[int], *, final: bool = False) -> None:
        self.epoch += 1
        turns = {number: None for number in order if number < len(self.writers)}
        done = {number: self.pass_barrier(number, final) for number in turns}
        parts = [done[number] for number in sorted(done)]  # so does the coordinator put them together
        self.prepared += [committable for prepared, _ in parts for committable in prepared]
        self.released = self.epoch if any(prepared for prepared, _ in parts) else self.released
        self.handed_over.append([deltas for _, deltas in parts])

    def pass_barrier(self, number: int, final: bool) -> tuple[Sequence[Committable], Mapping[str, StateDelta]]:
        writer = self.writers[number]
        return writer.prepare(self.epoch, final), writer.snapshot(self.epoch)

    def store(self) -> None:
        for deltas in self.handed_over:
            self.model.commit(self.epoch, deltas)
        self.stored = (self.epoch, self.prepared)
        self.shown = self.released
        self.prepared, self.handed_over = [], []

    def publish(self) -> None:
        """What a committer does, at the start of a generation too."""
        self.destination.publish(*self.stored)
        if self.stored[1]:
            self.sent.note(self.stored[0])


@dataclass
class Truth:
    """What should be there: the rows of each epoch, applied one epoch after the other."""

    keyed: bool
    written: list[tuple[int, int, int, int, int]] = field(default_factory=list)  # epoch, writer, number, key, value

    def up_to(self, epoch: int) -> list[tuple[int, int]]:
        rows = [(key, value) for at, _, _, key, value in sorted(self.written) if at <= epoch]
        return sorted(dict(rows).items()) if self.keyed else rows


@dataclass(frozen=True)
class Step:
    """Some rows, each of a writer and a key, then a barrier that comes to the writers in some order."""

    rows: list[tuple[int, int]]
    order: list[int]
    ending: Ending
    parallelism: int
    seconds: int


steps = st.builds(
    Step,
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=4),
    order=st.permutations([0, 1, 2]),
    ending=st.sampled_from(["committed", "committed", "committed", "aborted", "crashed before", "crashed after"]),
    parallelism=st.integers(1, 3),
    seconds=st.sampled_from([0, 0, 4, 30]),
)


@pytest.mark.parametrize("kind", ["append", "upsert", "changelog"])
@given(run=st.lists(steps, max_size=8), hold_bytes=st.sampled_from([0, 60, 200, 10_000]))
@settings(max_examples=80, deadline=None)
def test_what_is_published_is_what_was_written_up_to_an_epoch(kind: Kind, run: list[Step], hold_bytes: int) -> None:
    job, truth = Running(kind, hold_bytes), Truth(kind != "append")
    number = 0
    for step in run:
        for any_writer, key in step.rows:
            number, who = number + 1, any_writer % len(job.writers)
            if kind == "changelog":
                before = dict(truth.up_to(job.epoch + 1))
                if key in before:
                    job.write(number, {"k": key, "v": before[key], WEIGHT: -1})
            job.write(who, {"k": key, "v": number} | ({WEIGHT: 1} if kind == "changelog" else {}))
            truth.written.append((job.epoch + 1, 0 if kind == "changelog" else who, number, key, number))
        job.clock.advance(step.seconds)
        job.barrier(step.order)
        if step.ending == "crashed before":
            truth.written = [row for row in truth.written if row[0] <= job.stored[0]]
            job.start(step.parallelism)
        elif step.ending != "aborted":
            job.store()
            if step.ending == "crashed after":
                job.start(step.parallelism)
            job.publish()
            job.publish()
        assert sorted(job.destination.rows) == sorted(truth.up_to(job.shown))
        if step.ending == "committed" and (step.seconds >= 10 or not hold_bytes):
            assert sorted(job.destination.rows) == sorted(truth.up_to(job.epoch)), "rows are held back for too long"
    job.barrier([0, 1, 2], final=True)
    job.store()
    job.publish()
    assert sorted(job.destination.rows) == sorted(truth.up_to(job.epoch)), "the end holds nothing back"
    job.start(2)
    assert not any(writer._kept for writer in job.writers), "what was published is held no more"
    job.model.check_untouched()


def test_rows_of_all_writers_are_put_in_order_by_what_is_no_column_of_theirs() -> None:
    one, two = (pa.table([[f"{n}" for n in order], order], ["a", "a"]) for order in ([3, 5], [1, 4]))
    letter = unpack([*pack(one, 7, ordered=True), *pack(two, 8, ordered=True)])
    assert (letter.rows.to_pydict(), letter.after) == ({"a": ["1", "3", "4", "5"]}, 7)
