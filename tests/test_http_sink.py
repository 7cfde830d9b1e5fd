"""Webhooks: each row is sent until it is confirmed, always with the same key, and again after any crash."""

from __future__ import annotations

import re
import socket
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import millstream as ms
import msgspec
import pyarrow as pa
import pytest
from http_kit import Receiver, Sent, free_port
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.connectors.http_journal import Journal
from millstream.connectors.http_outbox import OutboxWriter, unpacked
from millstream.connectors.http_sink import HttpSink
from millstream.engine import failpoints
from millstream.engine.errors import DataError, JobError, SchemaError
from millstream.engine.sink import SinkContext
from millstream.engine.store.reader import StoreReader
from millstream.testing import check_sink

FAST = ms.retry(4, wait="1ms", longest="5ms")
CONTEXT = SinkContext("job", "j1", "s1", generation=1, subtask=2, parallelism=3)
ROWS = [{"id": f"m{n}", "n": n} for n in range(10)]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.disarm()


def send(receiver: Receiver, store: Path, rows: Any = None, restarts: int = 1, **options: Any) -> ms.JobResult:
    """Run a bounded job that sends its rows in its only epoch."""
    job = ms.Job("hooks")
    batches = [pa.RecordBatch.from_pylist(rows or ROWS)]
    options = {"retry": FAST, "name": "hook", **options}
    job.read(ms.memory_source(batches, name="rows")).write(ms.http_sink(receiver.url, **options))
    return job.run(store, restarts=restarts)


def letters(store: Path) -> list[dict[str, Any]]:
    with StoreReader.open(store) as reader:
        return list(reader.dead_letters().to_pylist())


# -- what is sent ----------------------------------------------------------------------------------------------


def test_each_row_is_a_request_with_a_key_of_its_own(tmp_path: Path) -> None:
    with closing(Receiver()) as receiver:
        send(receiver, tmp_path / "s.duckdb", headers={"X-Shop": "north"}, method="PUT")
        assert sorted(sent.body["n"] for sent in receiver.requests) == list(range(10))
        assert len({sent.key for sent in receiver.requests}) == 10
        first = receiver.requests[0]
        assert (first.method, first.headers["X-Shop"], first.headers["Content-Type"]) == (
            "PUT",
            "north",
            "application/json",
        )


def test_a_column_can_be_the_key(tmp_path: Path) -> None:
    with closing(Receiver()) as receiver:
        send(receiver, tmp_path / "s.duckdb", [{"id": "a b/1%"}, {"id": "né\n"}], key="id")
        assert {sent.key for sent in receiver.requests} == {"a b/1%25", "n%C3%A9%0A"}


def test_secrets_are_looked_up_and_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_TOKEN", "s3cret-canary")
    with closing(Receiver()) as receiver:
        send(receiver, tmp_path / "s.duckdb", headers={"Authorization": "Bearer ${env:HOOK_TOKEN}"})
        assert {sent.headers["Authorization"] for sent in receiver.requests} == {"Bearer s3cret-canary"}
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"s3cret-canary" in f.read_bytes()]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.text(max_size=8), max_size=5), max_size=4),
    st.sampled_from([1, 20, 10_000]),
)
def test_messages_come_out_of_the_checkpoint_as_they_went_in(epochs: list[list[str]], piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("millstream.connectors.http_outbox._PIECE", piece)
        writer = OutboxWriter("hook", None, "t", CONTEXT)
        keys: set[str] = set()
        for epoch, texts in enumerate(epochs, start=1):
            for text in texts:
                writer.write(pa.record_batch({"t": [text]}))
            messages = unpacked(writer.prepare(epoch, final=False), "j1", "s1")
            assert [message.place for message in messages] == [(epoch, 2, n) for n in range(len(texts))]
            assert [message.body for message in messages] == [msgspec.json.encode({"t": text}) for text in texts]
            keys |= {message.key for message in messages}
        assert len(keys) == sum(map(len, epochs))


# -- until it is confirmed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [409, 429, 503])
def test_what_may_pass_is_tried_again_with_the_same_key(status: int, tmp_path: Path) -> None:
    def answer(sent: Sent, times: int) -> tuple[int, dict[str, str], str]:
        return (200 if times == 3 else status, {"Retry-After": "0"}, "busy")

    with closing(Receiver(answer)) as receiver:
        result = send(receiver, tmp_path / "s.duckdb")
        assert result.restarts == 0
        assert set(Counter(sent.key for sent in receiver.requests).values()) == {3}
        assert sorted(body["n"] for body in receiver.effects) == list(range(10))


def test_a_receiver_that_asks_to_wait_is_left_alone_so_long(tmp_path: Path) -> None:
    slept: list[float] = []

    def answer(sent: Sent, times: int) -> tuple[int, dict[str, str], str]:
        return (200 if times > 1 else 503, {"Retry-After": "7"}, "")

    async def sleep(seconds: float, *_: Any) -> None:
        slept.append(seconds)

    with closing(Receiver(answer)) as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setattr("millstream.connectors.http_delivery.asyncio.sleep", sleep)
        send(receiver, tmp_path / "s.duckdb", ROWS[:1], retry=ms.retry(2, wait="1ms", longest="10s"))
    assert 7.0 in slept


def test_the_job_fails_when_nobody_is_there_and_goes_on_when_somebody_is(tmp_path: Path) -> None:
    port = free_port()

    def job() -> ms.Job:
        job = ms.Job("hooks")
        rows = job.read(ms.memory_source(ROWS, name="rows"))
        rows.write(ms.http_sink(f"http://127.0.0.1:{port}/hook", retry=ms.retry(2, wait="1ms"), name="hook"))
        return job

    with pytest.raises(ms.JobFailed, match=r"could not be sent.*stay in the checkpoint"):
        job().run(tmp_path / "s.duckdb", restarts=0)
    with closing(Receiver()) as receiver:
        port = receiver.port
        assert job().run(tmp_path / "s.duckdb").outcome == "already finished"
        assert sorted(sent.body["n"] for sent in receiver.requests) == list(range(10))


def test_a_receiver_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink = ms.http_sink(
            f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout="50ms", retry=ms.retry(2, wait="1ms")
        )
        job = ms.Job("hooks")
        job.read(ms.memory_source(ROWS[:1])).write(sink)
        with pytest.raises(ms.JobFailed, match=r"not answered within 0\.05 s, also at attempt 2"):
            job.run(tmp_path / "s.duckdb", restarts=0)


@pytest.mark.parametrize("status", [301, 401, 404])
def test_a_wrong_address_fails_the_job_even_where_refused_messages_are_put_aside(status: int, tmp_path: Path) -> None:
    with closing(Receiver(lambda sent, times: (status, {"Location": "/other"}, ""))) as receiver:
        with pytest.raises(ms.JobFailed, match="Not the message is wrong"):
            send(receiver, tmp_path / "s.duckdb", restarts=0, on_error="dead_letter", concurrency=1)
        assert len(receiver.requests) == 1, "not tried again, not followed elsewhere"
    assert letters(tmp_path / "s.duckdb") == []


@pytest.mark.parametrize("key", [None, "id"])
def test_receivers_that_know_keys_see_each_row_once_whatever_crashes(
    key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    receivers: list[Receiver] = []
    committers: list[Any] = []
    make = HttpSink.committer
    monkeypatch.setattr(HttpSink, "committer", lambda *args: committers.append(make(*args)) or committers[-1])

    def fresh() -> Receiver:
        receivers.append(Receiver())
        return receivers[-1]

    seen = check_sink(
        fresh,
        lambda place: ms.http_sink(place.url, key=key, retry=FAST),
        lambda place: place.effects,
        [pa.RecordBatch.from_pylist(ROWS)],
    )
    assert sorted(row["n"] for row in seen) == list(range(10))
    for receiver in receivers:
        receiver.close()
    for committer in committers:
        committer.close()  # whoever crashed has not


# -- refused for good ------------------------------------------------------------------------------------------


ODD = [f"message {n}, key m{n}" for n in (1, 3, 5, 7, 9)]


def picky(sent: Sent, times: int) -> tuple[int, dict[str, str], str]:
    return (422, {}, f"{sent.body['n']} is odd") if sent.body["n"] % 2 else (204, {}, "")


def test_refused_messages_fail_the_job(tmp_path: Path) -> None:
    with closing(Receiver(picky)) as receiver, pytest.raises(ms.JobFailed, match=r"422 .*: [13579] is odd"):
        send(receiver, tmp_path / "s.duckdb", restarts=0)


def test_refused_messages_are_put_aside_with_the_answer(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    with closing(Receiver(picky)) as receiver:
        result = send(receiver, store, on_error="dead_letter", key="id")
        assert result.status is not None
        assert result.status.dead_letters["hook"] == 5
        assert len(receiver.requests) == 10
    kept = {letter["position"]: letter for letter in letters(store)}
    assert sorted(kept) == ODD
    for n in (1, 3, 5, 7, 9):
        letter = kept[f"message {n}, key m{n}"]
        assert (letter["source"], letter["raw"]) == ("hook", b'{"id":"m%d","n":%d}' % (n, n))
        assert re.fullmatch(f"was answered 422 .*: {n} is odd", letter["error"])


def test_too_many_refused_messages_fail_the_job(tmp_path: Path) -> None:
    job = ms.Job("hooks")
    with closing(Receiver(picky)) as receiver:
        job.read(ms.memory_source(ROWS, name="rows")).write(ms.http_sink(receiver.url, on_error="dead_letter"))
        with pytest.raises(ms.TooManyDeadLetters):
            job.run(tmp_path / "s.duckdb", max_dead_letters=4)


@pytest.mark.parametrize("point", ["letters.change", "http.put_aside", "http.confirmed"])
def test_a_crash_among_refusals_puts_each_aside_once(point: str, tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    with closing(Receiver(picky)) as receiver:
        failpoints.arm(f"{point}=raise")
        assert send(receiver, store, on_error="dead_letter", key="id").restarts == 1
        assert failpoints.hits(point) > 0
        assert sorted(letter["position"] for letter in letters(store)) == ODD
        assert sorted(body["n"] for body in receiver.effects) == list(range(10))


# -- order and how many at once --------------------------------------------------------------------------------


def test_messages_of_one_key_are_sent_in_order_and_others_beside_them(tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=20)

    def answer(sent: Sent, times: int) -> tuple[int, dict[str, str], str]:
        if sent.body["n"] < 2 and times == 1:
            together.wait()  # only if both customers are served at once
        return (200, {}, "") if times > sent.body["n"] % 2 else (503, {}, "")

    rows = [{"customer": two_lanes(4)[n // 3 % 2] if n > 1 else two_lanes(4)[n], "n": n} for n in range(20)]
    with closing(Receiver(answer)) as receiver:
        send(receiver, tmp_path / "s.duckdb", rows, order_by="customer", concurrency=4)
        for customer in two_lanes(4):
            seen = [sent.body["n"] for sent in receiver.requests if sent.body["customer"] == customer]
            assert seen == sorted(seen)
        assert len(receiver.effects) == 20


def two_lanes(concurrency: int) -> list[str]:
    """Two values that are not in the same lane."""
    by_lane = {zlib.crc32(name.encode()) % concurrency: name for name in "abcdefgh"}
    return list(by_lane.values())[:2]


def test_no_more_are_under_way_than_allowed(tmp_path: Path) -> None:
    with closing(Receiver()) as receiver:
        send(receiver, tmp_path / "s.duckdb", concurrency=3)
        assert receiver.most_at_once <= 3


# -- crashes ---------------------------------------------------------------------------------------------------


def test_what_is_confirmed_is_not_sent_again_after_a_crash(tmp_path: Path) -> None:
    with closing(Receiver()) as receiver:
        failpoints.arm("http.confirmed=raise@7")
        assert send(receiver, tmp_path / "s.duckdb", concurrency=1).restarts == 1
        times = Counter(sent.body["n"] for sent in receiver.requests)
        assert times == Counter([*range(10), 6]), "only the one whose confirmation was not noted comes again"
        assert send(receiver, tmp_path / "s.duckdb").outcome == "already finished"
        assert len(receiver.requests) == 11


def test_keys_are_the_same_after_a_crash(tmp_path: Path) -> None:
    with closing(Receiver()) as receiver:
        failpoints.arm("sink.commit=raise")
        send(receiver, tmp_path / "a.duckdb")
        failpoints.arm("http.confirmed=raise")
        (tmp_path / "b").mkdir()
        send(receiver, tmp_path / "b" / "b.duckdb", concurrency=1)
        assert len(receiver.effects) == 20, "and those of another job are others"
        assert len(receiver.requests) == 21


LINES = st.lists(st.tuples(*[st.integers(0, 300)] * 3), max_size=20)


@settings(deadline=None)
@given(LINES, LINES, st.integers(0, 60))
def test_a_journal_that_is_cut_anywhere_forgets_and_invents_nothing(
    before: list[tuple[int, int, int]], after: list[tuple[int, int, int]], cut: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sent"
        journal = Journal("hook", path)
        journal.begin("epoch 1")
        for place in before:
            journal.settle([place])
        journal.close()
        whole = path.read_bytes()
        path.write_bytes(whole[: max(len("epoch 1\n"), len(whole) - cut)])
        kept = path.read_bytes().count(b"\n") - 1
        again = Journal("hook", path)
        assert again.begin("epoch 1") == set(before[:kept])
        again.settle(after)
        assert Journal("hook", path).begin("epoch 1") == set(before[:kept]) | set(after)
        assert Journal("hook", path).begin("epoch 2") == set()
        again.close()


# -- what is said before it runs -------------------------------------------------------------------------------


def test_the_plan_says_what_the_receiver_must_do():
    job = ms.Job("hooks")
    job.read(ms.memory_source(ROWS)).write(ms.http_sink("https://shop.example/hook?token=${env:T}"))
    (path,) = job.plan().guarantees
    assert path.sink == "https://shop.example/hook"
    assert (
        "exactly once if the receiver passes over messages whose Idempotency-Key it has seen, else at least once"
        in path.reason
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: ms.http_sink("shop.example/hook"), "begins with http"),
        (lambda: ms.http_sink("https://me:pass@shop.example/"), "put credentials into headers="),
        (lambda: ms.http_sink("${env:HOOK}"), "give it a name"),
        (lambda: ms.http_sink("http://a/", method="GET"), "POST, PUT, PATCH"),
        (lambda: ms.http_sink("http://a/", concurrency=0), "from 1 on"),
        (lambda: ms.http_sink("http://a/", timeout=0), "longer than 0"),
        (lambda: ms.http_sink("http://a/", retry=3), r"takes ms\.retry"),
        (lambda: ms.http_sink("http://a/", retry=ms.retry(on=OSError)), "no use for on="),
        (lambda: ms.http_sink("http://a/", on_error="drop"), "'fail' or 'dead_letter'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(JobError, match=told):
        make()


def test_columns_are_checked_when_the_job_is_written():
    rows = ms.Job("hooks").read(ms.memory_source([{"id": "a", "x": 1.5}]))
    for options in ({"key": "di"}, {"order_by": "x"}):
        with pytest.raises(SchemaError, match=r"di|float|double"):
            rows.write(ms.http_sink("http://a/", **options))


def test_a_row_without_a_key_is_an_error():
    with pytest.raises(DataError, match="'id'"):
        OutboxWriter("hook", "id", None, CONTEXT).write(pa.record_batch({"id": ["a", None]}))
