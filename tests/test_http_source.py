"""Messages sent by HTTP: acknowledged when they are durable, refused in words, counted once."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaiting
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import millstream as ms
import pyarrow as pa
import pytest
from http_kit import Reply, Senders, free_port, insist, post, running
from hypothesis import given, settings
from hypothesis import strategies as st
from millstream.connectors.http_messages import BadBody, cut
from millstream.connectors.http_source import HttpSource
from millstream.engine import failpoints
from millstream.engine.errors import ExternalError, JobError
from millstream.engine.source import DeadLetter, ReadContext, SplitEnd, SplitReader

SCHEMA = {"order": str, "amount": float, "at": "timestamp[us]"}


def row(order: str, amount: float | None = None, at: dt.datetime | None = None) -> dict[str, Any]:
    return {"order": order, "amount": amount, "at": at}


class Bench:
    """A reader that is read by hand, and senders to it."""

    def __init__(self, source: HttpSource, position: int | None = None) -> None:
        self.letters: list[DeadLetter] = []
        (split,) = source.discover()
        self.reader: SplitReader = source.open(split, position, ReadContext(self.letters.append))
        self.senders = Senders(source.address.port)

    def read(self) -> pa.RecordBatch:
        """Wait until something has come."""
        for _ in range(5000):
            got = self.reader.read()
            if not isinstance(got, SplitEnd):
                assert isinstance(got, pa.RecordBatch)
                return got
            time.sleep(0.002)
        raise AssertionError("nothing came")

    def refused(self, body: Any, **headers: str) -> Reply:
        """Send what nothing is read of."""
        waiting = self.senders.post(body, headers)
        while not waiting.done():
            assert self.reader.read() is SplitEnd.PENDING
            time.sleep(0.001)
        return waiting.result()

    def until_waiting(self, requests: int) -> None:
        while self.reader._inbox.unanswered < requests:
            time.sleep(0.001)

    def orders(self) -> list[str]:
        return self.read().column("order").to_pylist()


@contextmanager
def listening(position: int | None = None, **options: Any) -> Iterator[Bench]:
    options = {"schema": SCHEMA, "id": "order", **options}
    bench = Bench(ms.http_source(free_port(), **options), position)
    try:
        yield bench
    finally:
        bench.reader.close()
        bench.senders.close()


# -- bodies ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text()))))
def test_every_way_to_write_messages_gives_the_same(messages: list[dict[str, Any]]) -> None:
    def read(body: str, content_type: str) -> list[Any]:
        found = cut(body.encode(), content_type)
        assert not any(b"\n" in message or b"\r" in message for message in found)
        return [json.loads(message) for message in found]

    for indent in (None, 1):
        assert read(json.dumps(messages, indent=indent), "application/json") == messages
        assert [read(json.dumps(message, indent=indent), "") for message in messages] == [[m] for m in messages]
    for end in ("\n", "\r\n", "\n\n"):
        lines = end.join(json.dumps(message, ensure_ascii=False) for message in messages)
        assert read(lines, "application/x-ndjson") == messages


@pytest.mark.parametrize("body", [b"[1, 2", b"[{}{}]", b"[", b"[{}],"])
def test_an_array_that_does_not_end_well_is_no_body(body: bytes) -> None:
    with pytest.raises(BadBody):
        cut(body, "application/json")


def test_rows_are_what_was_sent_packed_or_not():
    with listening() as bench:
        sent = [{"order": "a", "amount": 1.5, "at": "2026-01-01T00:00:00", "more": [1]}, {"order": "b"}]
        first = bench.senders.post(gzip.compress(json.dumps(sent).encode()), {"Content-Encoding": "gzip"})
        assert bench.read().to_pylist() == [row("a", 1.5, dt.datetime(2026, 1, 1)), row("b")]
        assert bench.reader.position() == 2
        bench.reader.committed(2)
        assert first.result().body == {"messages": 2}


# -- acknowledged ----------------------------------------------------------------------------------------------


def test_a_request_is_answered_when_its_checkpoint_is_durable_and_not_before():
    with listening(position=40) as bench:
        first = bench.senders.post([{"order": "a"}, {"order": "b"}])
        assert bench.orders() == ["a", "b"]
        second = bench.senders.post({"order": "c"})
        assert bench.orders() == ["c"]
        assert bench.reader.position() == 43
        for position in (40, 41):
            bench.reader.committed(position)
        with pytest.raises(StillWaiting):
            first.result(0.1)
        bench.reader.committed(42)
        assert first.result().status == 200
        with pytest.raises(StillWaiting):
            second.result(0.1)
        bench.reader.committed(43)
        assert second.result().status == 200


def test_whoever_is_not_answered_when_the_job_stops_is_told_to_send_again():
    with listening() as bench:
        read = bench.senders.post({"order": "a"})
        bench.read()
        waiting = bench.senders.post({"order": "b"})
        bench.until_waiting(2)
        bench.reader.close()
        for reply in (read.result(), waiting.result()):
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


def test_who_waits_too_long_is_told_to_send_again():
    with listening(timeout="50ms") as bench:
        waiting = bench.senders.post({"order": "a"})
        assert bench.orders() == ["a"]
        reply = waiting.result()
        assert reply.status == 503
        assert reply.body["error"] == "the messages are not durable after 0.05 s; send them again"
        bench.reader.committed(1)


# -- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"order": "a"', "Input data was truncated"),
        (b'[{"order": "a"}', "the array of messages cannot be read: Input data was truncated"),
        (b"\xff", "JSON is malformed: invalid character (byte 0)"),
        ({"amount": 1}, "column 'order', which names the message, is missing or null"),
        ({"order": "a", "amount": "much"}, "Expected `float | null`, got `str` - at `$.amount`"),
        ([{"order": "a"}, 7], "message 2: Expected `object`, got `int`"),
    ],
)
def test_nothing_is_taken_of_a_request_that_is_bad_in_part(body: Any, error: str) -> None:
    with listening() as bench:
        reply = bench.refused(body)
        assert (reply.status, reply.body["error"]) == (400, error)
        assert bench.reader.position() == 0


def test_others_are_taken_beside_a_request_that_is_refused():
    with listening() as bench:
        good = [bench.senders.post([{"order": "a"}, {"order": "b"}]), bench.senders.post({"order": "c"})]
        bad = bench.senders.post([{"order": "d"}, {"order": "e", "at": "soon"}, {}, {"order": "f"}])
        bench.until_waiting(3)
        assert sorted(bench.orders()) == ["a", "b", "c"]
        assert bad.result().body["bad_messages"] == [2, 3]
        bench.reader.committed(3)
        assert [reply.result().status for reply in good] == [200, 200]


def test_what_is_bad_can_be_put_aside():
    with listening(on_error="dead_letter", position=10) as bench:
        some = bench.senders.post([{"order": "a"}, {"order": None}, {"order": "b"}])
        assert bench.orders() == ["a", "b"]
        none = bench.senders.post(b'[{"order": 1},\n')
        assert bench.read().num_rows == 0, "an empty batch, so that its position is written down"
        assert [(letter.position, letter.raw) for letter in bench.letters] == [
            ("message 12", b'{"order": null}'),
            ("message 14", b'[{"order": 1},\n'),
        ]
        assert "the array of messages" in bench.letters[1].error
        bench.reader.committed(14)
        assert some.result().body == {"messages": 2, "put_aside": 1}
        assert none.result().body == {"messages": 0, "put_aside": 1}


def test_only_so_many_requests_wait():
    with listening(max_requests=2) as bench:
        taken = [bench.senders.post({"order": name}) for name in "ab"]
        bench.until_waiting(2)
        reply = post(bench.senders._port, {"order": "c"})
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        read = bench.orders()
        assert sorted(read if len(read) == 2 else read + bench.orders()) == ["a", "b"]
        bench.reader.committed(2)
        assert [reply.result().status for reply in taken] == [200, 200]


def test_only_so_many_bytes_wait_but_one_request_always_may():
    with listening(max_waiting="100B") as bench:
        large = bench.senders.post({"order": "a" * 200})
        bench.until_waiting(1)
        assert post(bench.senders._port, {"order": "b"}).status == 503
        assert bench.orders() == ["a" * 200]
        second = bench.senders.post({"order": "b"})
        assert bench.orders() == ["b"]
        bench.reader.committed(2)
        assert (large.result().status, second.result().status) == (200, 200)


def test_large_bodies_are_refused_packed_or_not():
    with listening(max_body="1KB") as bench:
        body = json.dumps({"order": "a" * 2000}).encode()
        assert bench.refused(body).status == 413
        reply = bench.refused(gzip.compress(body), **{"Content-Encoding": "gzip"})
        assert (reply.status, "1,000 bytes" in reply.body["error"]) == (413, True)
        assert bench.refused(b"no gzip", **{"Content-Encoding": "gzip"}).status == 400


def test_a_sender_that_asks_first_is_told_to_go_on_or_not_to():
    with listening(max_body="1KB") as bench, socket.create_connection(("127.0.0.1", bench.senders._port)) as sender:
        head = "POST /ingest HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n"
        sender.sendall(head.format(14).encode())
        assert sender.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sender.sendall(b'{"order": "a"}')
        assert bench.orders() == ["a"]
        bench.reader.committed(1)
        assert sender.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        sender.sendall(head.format(5000).encode())
        assert sender.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_only_who_shows_the_token_is_listened_to():
    with listening(token="s3cret") as bench:
        for wrong in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"}):
            reply = bench.refused({"order": "a"}, **wrong)
            assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
        right = bench.senders.post({"order": "a"}, {"Authorization": "Bearer s3cret", "Origin": "https://shop.example"})
        assert bench.orders() == ["a"]
        bench.reader.committed(1)
        assert right.result().status == 200


def test_without_a_token_no_page_in_a_browser_can_send():
    with listening() as bench:
        assert bench.refused({"order": "a"}, Origin="http://127.0.0.1:1").status == 403


def test_other_paths_and_methods_are_refused():
    with listening(path="/orders/new") as bench:
        assert bench.refused({"order": "a"}).body == {"error": "messages are taken at /orders/new"}
        with socket.create_connection(("127.0.0.1", bench.senders._port)) as connection:
            connection.sendall(b"GET /orders/new HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"405 Method Not Allowed" in connection.recv(200)


NASTY = st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\ud800", b"\n", b"\r", b"null", b"1e999", b"\xff"]
)


@settings(deadline=None, max_examples=60)
@given(
    st.binary(max_size=20)
    | st.lists(NASTY | st.sampled_from([b'"order"', b'"a"', b'"amount"', b'{"order":"b"}']), max_size=8).map(b"".join)
    | st.integers(1, 3000).map(lambda depth: b'{"order":' + b"[" * depth)
    | st.sampled_from(
        [b'{"order": "\\ud800"}', b'{"order": "c", "amount": 1e999}', b'{"order": "d", "at": "99999-01-01"}']
    )
)
def test_no_body_does_any_harm(fuzzed: dict[str, Bench], body: bytes) -> None:
    for keep, bench in fuzzed.items():
        position = bench.reader.position()
        waiting = bench.senders.post(body)
        while not waiting.done():
            got = bench.reader.read()
            if isinstance(got, pa.RecordBatch):
                bench.reader.committed(bench.reader.position())
        reply = waiting.result()
        assert reply.status in ({200} if keep == "dead_letter" else {200, 400})
        assert bench.reader.position() - position == sum(reply.body.get(name, 0) for name in ("messages", "put_aside"))


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[dict[str, Bench]]:
    with listening(on_error="refuse") as strict, listening(on_error="dead_letter") as lenient:
        yield {"refuse": strict, "dead_letter": lenient}


# -- ids of headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["k-1", '"k-1"'])
def test_a_header_can_name_the_message(sent: str) -> None:
    with listening(schema={"amount": float}, id="key") as bench:
        waiting = bench.senders.post({"amount": 2}, {"Idempotency-Key": sent})
        assert bench.read().to_pylist() == [{"amount": 2.0, "key": "k-1"}]
        bench.reader.committed(1)
        assert waiting.result().status == 200
        assert "missing" in bench.refused({"amount": 2}).body["error"]
        assert "printable ASCII" in bench.refused({"amount": 2}, **{"Idempotency-Key": "é"}).body["error"]
        assert "names one message" in bench.refused([{}, {}], **{"Idempotency-Key": "k"}).body["error"]


# -- jobs ------------------------------------------------------------------------------------------------------


def job_of(out: Any, **options: Any) -> tuple[ms.Job, int]:
    port = free_port()
    job = ms.Job("orders")
    job.read(ms.http_source(port, **{"schema": SCHEMA, "id": "order", **options})).write(out)
    return job, port


@pytest.mark.parametrize("parallelism", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_message_counts_once_however_often_it_is_sent(tmp_path: Path, parallelism: int) -> None:
    out = ms.memory_sink()
    job, port = job_of(out)
    with running(job, tmp_path / "s.duckdb", parallelism=parallelism):
        sent = [{"order": "a"}, {"order": "b"}, {"order": "a"}]
        assert [insist(port, sent).status for _ in range(3)] == [200, 200, 200]
        assert insist(port, {"order": "c"}).status == 200
        assert sorted(message["order"] for message in out.rows()) == ["a", "b", "c"], "answered, and not yet there"
    with running(job, tmp_path / "s.duckdb"):
        assert insist(port, [{"order": "c"}, {"order": "d"}]).status == 200
    assert sorted(message["order"] for message in out.rows()) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "point",
    [
        "store.before_commit",
        "source.committed",
        *(pytest.param(point, marks=pytest.mark.slow) for point in ("store.after_commit", "sink.commit")),
    ],
)
def test_a_sender_that_is_not_answered_sends_again_after_the_restart(tmp_path: Path, point: str) -> None:
    out = ms.memory_sink()
    job, port = job_of(out)
    with running(job, tmp_path / "s.duckdb") as (_, done):
        assert insist(port, {"order": "a"}).status == 200
        failpoints.arm(f"{point}=raise")
        first = post(port, {"order": "b"})
        assert first.status == 503
        assert insist(port, {"order": "b"}).status == 200
        failpoints.disarm()
    assert done.result().restarts == 1
    assert [message["order"] for message in out.rows()] == ["a", "b"]


def test_who_is_in_hand_when_the_job_is_stopped_is_answered_after_the_last_checkpoint(tmp_path: Path) -> None:
    out, read = ms.memory_sink(), threading.Event()
    job, port = job_of(out)

    def look(status: Any) -> None:
        if status.rows_read["ingest"]:
            read.set()

    with running(job, tmp_path / "s.duckdb", every="1h", on_status=look) as (control, _):
        waiting = ThreadPoolExecutor(1).submit(insist, port, {"order": "a"})
        assert read.wait(30)
        assert not waiting.done()
        control.stop()
        assert waiting.result().status == 200
    assert [message["order"] for message in out.rows()] == ["a"]


def test_ids_can_be_forgotten_and_what_comes_after_that_is_late(tmp_path: Path) -> None:
    out, late = ms.memory_sink("out"), ms.memory_sink("late")
    port = free_port()
    job = ms.Job("orders")
    orders = job.read(ms.http_source(port, schema=SCHEMA, id="order", within="1h"), event_time="at")
    orders.write(out)
    orders.late.write(late)
    with running(job, tmp_path / "s.duckdb"):
        for name, at in (("a", "2026-01-01T10:00:00"), ("b", "2026-01-01T13:00:00"), ("a", "2026-01-01T10:00:00")):
            assert insist(port, {"order": name, "at": at}).status == 200
    assert [message["order"] for message in out.rows()] == ["a", "b"]
    assert [message["order"] for message in late.rows()] == ["a"]


def test_a_port_that_is_taken_fails_the_job(tmp_path: Path) -> None:
    job, port = job_of(ms.memory_sink())
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ms.JobFailed, match="cannot be listened on"):
        job.run(tmp_path / "s.duckdb", restarts=0)


# -- what is said before it runs -------------------------------------------------------------------------------


def test_only_with_ids_is_it_exactly_once():
    def plan(id: str | None) -> Any:
        job = ms.Job("orders")
        job.read(ms.http_source(8080, schema=SCHEMA, id=id)).write(ms.jsonl("out"))
        return job.plan()

    (exact,), (weak,) = plan("order").guarantees, plan(None).guarantees
    assert (exact.exactly_once, weak.exactly_once) == (True, False)
    assert "sends it again until it is answered" in exact.reason
    assert "give id=" in weak.reason


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"host": "0.0.0.0"}, "other machines could send"),
        ({"host": "example.org"}, "other machines could send"),
        ({"token": " "}, "anybody could show that"),
        ({"port": 0}, "from 1 to 65535"),
        ({"path": "ingest"}, "as in '/ingest'"),
        ({"id_header": "X-Id"}, "not both"),
        ({"id": None, "within": "1h"}, "are about ids"),
        ({"on_error": "ignore"}, "'refuse' or 'dead_letter'"),
        ({"max_requests": 0}, "above 0"),
        ({"schema": {"order": pa.map_(pa.string(), pa.string())}}, "cannot be read from JSON"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError, match=told):
        ms.http_source(**{"port": 8080, "schema": SCHEMA, "id": "order", **options})


def test_a_token_that_is_empty_when_it_is_looked_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGEST_TOKEN", " ")
    with pytest.raises(JobError, match="anybody could show that"):
        Bench(ms.http_source(free_port(), schema=SCHEMA, id="order", token="${env:INGEST_TOKEN}"))


def test_the_token_is_not_shown():
    assert "s3cret" not in repr(ms.http_source(8080, schema=SCHEMA, id="order", token="s3cret"))


def test_a_certificate_that_is_not_there_is_named():
    source = ms.http_source(free_port(), schema=SCHEMA, id="order", tls=("no.pem", "no.key"))
    with pytest.raises(ExternalError, match=r"no\.pem"):
        Bench(source)
