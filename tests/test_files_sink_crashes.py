"""The file sink under any order of writes, checkpoints, aborts, crashes and changes of parallelism."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from millstream.connectors.files_sink import FileSink, parquet
from millstream.connectors.held_rows import HELD
from millstream.engine import failpoints
from millstream.engine.errors import ExternalError
from millstream.engine.sink import Committable, SinkContext
from millstream.engine.state import StateDelta
from millstream.engine.time import ManualClock

SCHEMA = pa.schema([("id", pa.int64()), ("shop", pa.string())])


def batch(ids: list[int], shops: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"id": ids, "shop": shops}, schema=SCHEMA)


def only(held: pa.Table, wanted: Callable[[int], bool]) -> pa.Table:
    return held.filter(pa.array([wanted(bucket) for bucket in held.column("file").to_pylist()], pa.bool_()))


@dataclass
class Store:
    """What the checkpoint store would hold: one consistent epoch."""

    epoch: int = 0
    generation: int = 0
    held: list[pa.Table] = field(default_factory=list)
    committables: list[Committable] = field(default_factory=list)

    def apply(self, epoch: int, deltas: list[StateDelta], committables: list[Committable]) -> None:
        for delta in deltas:
            self.held.append(delta.rows)
            gone = set(delta.dropped)
            self.held = [only(t, lambda bucket, gone=gone: bucket not in gone) for t in self.held]
        self.epoch, self.committables = epoch, list(committables)

    def held_rows(self, subtask: int, parallelism: int) -> list[pa.RecordBatch]:
        mine = [only(t, lambda bucket: random.Random(bucket).randrange(parallelism) == subtask) for t in self.held]
        return [b for t in mine for b in t.to_batches(max_chunksize=3) if b.num_rows]


class Running:
    """One generation of the job, called in the runtime's order."""

    def __init__(self, sink: FileSink, store: Store, parallelism: int) -> None:
        store.generation += 1
        self.store = store
        self.parallelism = parallelism
        contexts = [
            SinkContext("job", "0123abcd", "sink1", store.generation, i, parallelism) for i in range(parallelism)
        ]
        self.committer = sink.committer(SCHEMA, contexts[0])
        if store.epoch:
            self.committer.commit(store.epoch, store.committables)
        self.committer.discard_uncommitted()
        self.writers = [sink.writer(SCHEMA, context) for context in contexts]
        for index, writer in enumerate(self.writers):
            writer.restore(HELD, store.held_rows(index, parallelism), 0)
        self.epoch = store.epoch
        self.deltas: list[StateDelta] = []
        self.committables: list[Committable] = []

    def prepare(self, subtask: int, epoch: int, final: bool = False) -> None:
        self.committables += self.writers[subtask].prepare(epoch, final)
        self.deltas += self.writers[subtask].snapshot(epoch).values()

    def commit_store(self, epoch: int) -> None:
        self.store.apply(epoch, self.deltas, self.committables)
        self.deltas, self.committables = [], []

    def checkpoint(self, final: bool = False) -> None:
        self.epoch += 1
        for subtask in range(self.parallelism):
            self.prepare(subtask, self.epoch, final)
        self.commit_store(self.epoch)
        self.committer.commit(self.epoch, self.store.committables)


def visible(folder: Path) -> Counter[int]:
    ids: Counter[int] = Counter()
    for path in folder.rglob("*.parquet"):
        ids.update(pq.ParquetFile(path).read(columns=["id"]).column("id").to_pylist())
    return ids


def staged(folder: Path) -> list[str]:
    return [p.name for p in (folder.parent / ".millstream").rglob("*") if p.suffix == ".staged" or "part-" in p.name]


PUBLISHING = [
    "",
    "files.publishing=raise",
    "files.rename=raise@1",
    "files.rename=raise@2",
    "files.gathered=raise",
    "files.visible=raise",
]
"""Where making an epoch visible may be cut short."""


class CrashMachine(RuleBasedStateMachine):
    """Rows are numbered; after a crash those not covered by a checkpoint are written again, as a source would."""

    @initialize(
        partitioned=st.booleans(),
        atomic=st.booleans(),
        hold=st.sampled_from([0, 150, 400]),
        parallelism=st.integers(1, 3),
    )
    def begin(self, partitioned: bool, atomic: bool, hold: int, parallelism: int) -> None:
        self.home = Path(tempfile.mkdtemp())
        self.folder = self.home / "out"
        self.clock = ManualClock()
        self.atomic = atomic
        self.sink = parquet(
            self.folder,
            partition_by=["shop"] if partitioned else [],
            atomic_epochs=atomic,
            roll_rows=25,
            roll_bytes=800,
            roll_age="10s",
            hold_bytes=hold,
            clock=self.clock,
        )
        self.store = Store()
        self.next_id = 0
        self.again: list[int] = []  # rows of dead generations that no checkpoint covers
        self.covered: set[int] = set()
        self.open_rows: dict[int, set[int]] = {}  # by subtask: written since its last barrier
        self.uncovered: set[int] = set()  # handed over at a barrier whose checkpoint is not committed
        self.cuts: list[tuple[int, frozenset[int]]] = [(0, frozenset())]
        self.seen: Counter[int] = Counter()
        self.taken: Counter[int] = Counter()  # what a reader has moved away
        self.running: Running | None = None
        self.start(parallelism)

    def start(self, parallelism: int) -> None:
        self.running = Running(self.sink, self.store, parallelism)
        self.open_rows = {i: set() for i in range(parallelism)}

    def crash(self) -> None:
        """Forget all that was in memory."""
        failpoints.disarm()
        self.running = None
        lost = set().union(self.uncovered, *self.open_rows.values()) - self.covered
        self.again += sorted(lost)
        self.uncovered = set()
        self.open_rows = {}
        self.cuts = [(e, rows) for e, rows in self.cuts if e <= self.store.epoch]

    def write_some(self, subtask: int, count: int, shops: list[str]) -> None:
        replayed = [self.again.pop() for _ in range(min(count, len(self.again)))]
        fresh = list(range(self.next_id, self.next_id + count - len(replayed)))
        self.next_id += len(fresh)
        ids = replayed + fresh
        self.running.writers[subtask].write(batch(ids, [shops[i % len(shops)] for i in ids]))
        self.open_rows[subtask].update(ids)

    @precondition(lambda self: self.running is not None)
    @rule(who=st.integers(0, 2), count=st.integers(1, 30), shops=st.lists(st.sampled_from("abc"), min_size=1))
    def write(self, who: int, count: int, shops: list[str]) -> None:
        self.write_some(who % self.running.parallelism, count, shops)

    @rule(seconds=st.sampled_from([1, 6, 20]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.running is not None)
    @rule(
        order=st.permutations([0, 1, 2]),
        late=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), max_size=3),
        stop_after=st.integers(0, 8),
        abort=st.booleans(),
        where=st.sampled_from(PUBLISHING),
    )
    def checkpoint(self, order, late, stop_after: int, abort: bool, where: str) -> None:
        """Prepare in some order, with rows coming in between; stop anywhere, or go through."""
        running = self.running
        running.epoch += 1
        late = list(late)
        for done, subtask in enumerate(i for i in order if i < running.parallelism):
            if done == stop_after:
                return None if abort else self.crash()
            running.prepare(subtask, running.epoch)
            self.uncovered |= self.open_rows[subtask]
            self.open_rows[subtask] = set()
            if late:
                who, count = late.pop()
                self.write_some(who % running.parallelism, count, ["a", "c"])
        self.cuts.append((running.epoch, frozenset(self.covered | self.uncovered)))
        if stop_after == 4:
            return None if abort else self.crash()
        running.commit_store(running.epoch)
        self.covered |= self.uncovered
        self.uncovered = set()
        if stop_after == 5:
            return self.crash()
        return self.commit(where if stop_after == 6 else "")

    def commit(self, where: str) -> None:
        failpoints.arm(where)
        try:
            self.running.committer.commit(self.store.epoch, self.store.committables)
        except failpoints.FailpointError:
            self.crash()
        failpoints.disarm()

    @rule(parallelism=st.integers(1, 3), where=st.sampled_from(PUBLISHING))
    def restart(self, parallelism: int, where: str) -> None:
        """Crash, and perhaps once more while recovering."""
        self.crash()
        failpoints.arm(where)
        try:
            self.start(parallelism)
        except failpoints.FailpointError:
            self.crash()
            self.start(parallelism)
        failpoints.disarm()

    @rule(folders=st.booleans(), which=st.lists(st.booleans(), min_size=1))
    def take_away(self, folders: bool, which: list[bool]) -> None:
        """A reader moves some of the files away that it sees; and, with all of a folder's, the folder."""
        for turn, path in enumerate(sorted(self.folder.rglob("*.parquet"))):
            if which[turn % len(which)]:
                self.taken.update(pq.ParquetFile(path).read(columns=["id"]).column("id").to_pylist())
                path.unlink()
                if folders and path.parent != self.folder and not any(path.parent.iterdir()):
                    path.parent.rmdir()

    @invariant()
    def a_reader_sees_whole_epochs_once(self) -> None:
        if not hasattr(self, "folder"):
            return
        now = visible(self.folder) + self.taken
        assert max(now.values(), default=1) == 1, [i for i, n in now.items() if n > 1]
        assert now >= self.seen
        assert set(now) <= self.covered
        if self.atomic:
            assert frozenset(now) in {rows for e, rows in self.cuts if e <= self.store.epoch}
        self.seen = now

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        if self.running is None or self.uncovered or self.running.deltas or self.running.committables:
            self.restart(2, "")
        if self.again:
            self.write_some(0, len(self.again), ["b"])
        self.running.checkpoint(final=True)
        assert visible(self.folder) + self.taken == Counter(range(self.next_id))
        assert not staged(self.folder)
        self.running = None
        shutil.rmtree(self.home)


TestCrashes = CrashMachine.TestCase
TestCrashes.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("point", ["files.staged", "files.rename", "files.gathered"])
def test_a_crash_at_each_step_leaves_nothing_behind(tmp_path: Path, point: str) -> None:
    sink = parquet(tmp_path / "out", hold_bytes=0)
    store = Store()
    job = Running(sink, store, 2)
    job.writers[0].write(batch([1, 2], ["a", "b"]))
    job.writers[1].write(batch([3], ["c"]))
    failpoints.arm(f"{point}=raise")
    with pytest.raises(ExternalError):
        job.checkpoint()
    failpoints.disarm()
    assert visible(tmp_path / "out") == Counter()

    again = Running(sink, store, 3)
    if not store.epoch:
        again.writers[2].write(batch([1, 2, 3], ["a", "b", "c"]))
    again.checkpoint(final=True)

    assert visible(tmp_path / "out") == Counter([1, 2, 3])
    assert not staged(tmp_path / "out")
