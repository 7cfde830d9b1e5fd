"""Messages that a receiver refused for good are sent again when they are replayed: the same bytes, the same key."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from cli_kit import call, logged, running
from http_kit import Receiver, Sent
from hypothesis import given
from hypothesis import strategies as st
from millstream.connectors.http_outbox import Message, OutboxWriter, put_aside, unpacked
from millstream.engine import failpoints
from millstream.engine.errors import DataError
from millstream.engine.failpoints import ENVIRONMENT
from millstream.engine.runtime.letters import replaying_sinks
from millstream.engine.sink import SinkContext
from millstream.engine.source import DeadLetter
from millstream.engine.store.letters import LetterChange, Selection
from millstream.engine.store.reader import StoreReader
from millstream.engine.store.store import CheckpointStore

FAST = ms.retry(4, wait="1ms", longest="5ms")
ROWS = [{"id": f"m{n}", "n": n, "shop": f"s{n % 2}"} for n in range(10)]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


class Picky:
    """Refuses odd numbers until it is told better."""

    mended = False

    def __call__(self, sent: Sent, times: int) -> tuple[int, dict[str, str], str]:
        odd = sent.body["n"] % 2 and not self.mended
        return (422, {}, f"{sent.body['n']} is odd") if odd else (204, {}, "")


def job_to(receiver: Receiver, **options: Any) -> ms.Job:
    job = ms.Job("hooks")
    read = job.read(ms.memory_source([pa.RecordBatch.from_pylist(ROWS)], name="rows"))
    read.write(ms.http_sink(receiver.url, **{"retry": FAST, "name": "hook", "on_error": "dead_letter", **options}))
    return job


def letters(store: Path) -> list[dict[str, Any]]:
    with StoreReader.open(store) as reader:
        return list(reader.dead_letters().to_pylist())


def mark(store: Path, job: ms.Job) -> int:
    opened = CheckpointStore.open(store)
    try:
        return opened.change_letters(Selection(sinks=replaying_sinks(job.plan())), LetterChange.MARK)
    finally:
        opened.close()


@pytest.mark.parametrize("options", [{}, {"key": "id"}, {"order_by": "shop"}], ids=["place", "key", "order"])
def test_they_are_sent_as_they_were_and_are_no_letters_any_more(options: dict[str, Any], tmp_path: Path) -> None:
    store, picky = tmp_path / "s.duckdb", Picky()
    with closing(Receiver(picky)) as receiver:
        job_to(receiver, **options).run(store)
        assert mark(store, job_to(receiver, **options)) == 5
        assert job_to(receiver, **options).run(store).outcome == "finished"
        again = letters(store)
        assert [(letter["attempts"], letter["replay"]) for letter in again] == 5 * [(2, False)], "refused once more"
        picky.mended = True
        mark(store, job_to(receiver, **options))
        job_to(receiver, **options).run(store)
        assert letters(store) == []
        assert job_to(receiver, **options).run(store).outcome == "already finished"
        assert len(receiver.requests) == 20
        assert sorted(body["n"] for body in receiver.effects) == list(range(10)), "each kept its key"
        if options.get("order_by"):
            assert [sent.body["n"] for sent in receiver.requests[-5:]] == [1, 3, 5, 7, 9], "one after the other"


@pytest.mark.parametrize("point", ["letters.replay", "store.before_commit", "store.after_commit", "http.confirmed"])
def test_a_crash_on_the_way_leaves_the_letter_or_sends_the_message(point: str, tmp_path: Path) -> None:
    store, picky = tmp_path / "s.duckdb", Picky()
    with closing(Receiver(picky)) as receiver:
        job_to(receiver, key="id").run(store)
        mark(store, job_to(receiver, key="id"))
        picky.mended = True
        failpoints.arm(f"{point}=raise")
        assert job_to(receiver, key="id").run(store, restarts=1).restarts == 1
        assert letters(store) == []
        assert sorted(body["n"] for body in receiver.effects) == list(range(10))
        confirmed = [sent.key for sent in receiver.requests[10:]]
        assert set(confirmed) == {f"m{n}" for n in (1, 3, 5, 7, 9)}


JOB = """
import os
import millstream as ms

job = ms.Job("hooks")
read = job.read(ms.files("in/*.jsonl", schema={"id": str, "n": int}, on_error="dead_letter", name="rows"))
sink = ms.http_sink(os.environ["HOOK"], key="id", on_error="dead_letter", name="hook", retry=ms.retry(4, wait="1ms"))
read.write(sink)
"""


def test_the_command_line_and_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.jsonl").write_text("".join(f'{{"id": "m{n}", "n": {n}}}\n' for n in range(6)) + "oops\n")
    picky = Picky()
    with closing(Receiver(picky)) as receiver:
        monkeypatch.setenv("HOOK", receiver.url)
        call("run", "job.py")
        said = call("deadletters", "replay", "hooks.duckdb", "job.py", "--source", "rows", code=1)
        assert "Those of a sink can, if it is in the job as it was" in str(said.exception or said.output) + said.stderr
        said = call("deadletters", "replay", "hooks.duckdb", "job.py", "--all")
        assert "1 dead letters of sources, or of sinks that are not in the job, are left" in said.stderr
        assert "3 dead letters will be replayed" in said.stderr
        assert (
            "3 dead letters will not be"
            in call("deadletters", "replay", "hooks.duckdb", "job.py", "--all", "--undo").stderr
        )
        call("deadletters", "replay", "hooks.duckdb", "job.py", "--source", "hook")
        (tmp_path / "job.py").write_text(JOB.replace('name="hook"', 'name="other"'))
        with running(tmp_path, "run", "job.py") as job:
            assert job.code() != 0
        assert "sink 'hook' (" in job.err
        assert "is not in the job" in job.err
        (tmp_path / "job.py").write_text(JOB)
        picky.mended = True
        monkeypatch.setenv(ENVIRONMENT, "store.before_commit=kill")
        with running(tmp_path, "run", "job.py") as job:
            assert job.code() == -signal.SIGKILL
        monkeypatch.delenv(ENVIRONMENT)
        with running(tmp_path, "run", "job.py") as job:
            assert job.code() == 0, job.err
            assert logged(job.err)[-1]["event"] == "finished"
        assert [letter["source"] for letter in letters(tmp_path / "hooks.duckdb")] == ["rows"]
        assert sorted(body["n"] for body in receiver.effects) == list(range(6))


@given(
    st.lists(st.tuples(st.binary(max_size=9), st.sampled_from(["k", "a, key b", ", order 7, key x"])), max_size=5),
    st.booleans(),
)
def test_what_is_put_aside_comes_back_as_it_was(made: list[tuple[bytes, str]], ordered: bool) -> None:
    given_ = [Message(3, 0, n, key, n - 1 if ordered else None, body) for n, (body, key) in enumerate(made)]
    writer = OutboxWriter("hook", None, "n" if ordered else None, CONTEXT)
    writer.replay([put_aside(message, "hook", "no") for message in given_])
    writer.write(pa.record_batch({"n": [9]}))
    *again, new = unpacked(writer.prepare(8, final=False), "job", "sink")
    assert [(m.body, m.key, m.order, m.attempts) for m in again] == [(m.body, m.key, m.order, 2) for m in given_]
    assert [m.place for m in (*again, new)] == [(8, 2, n) for n in range(len(made) + 1)]
    assert (new.body, new.attempts) == (b'{"n":9}', 1)


def test_a_key_that_was_too_long_to_be_kept_is_not_made_up() -> None:
    writer = OutboxWriter("hook", "n", None, CONTEXT)
    writer.replay(
        [DeadLetter("hook", "epoch 1, subtask 0", f"message 0, key {'k' * 4_000}"[:4_000] + "...", "no", b"1")]
    )
    with pytest.raises(DataError, match=r"hook: the key of message 0, key kkk.* too long .*--undo"):
        writer.prepare(2, final=False)


CONTEXT = SinkContext("job", "j1", "s1", generation=1, subtask=2, parallelism=3)
