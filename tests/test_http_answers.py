"""Answers that other threads give reach the requests that wait; and what measures them does all of the work."""

import asyncio
import re
import threading
from http import HTTPStatus

import pytest
from click.testing import CliRunner
from millstream.benchmarks import http_source
from millstream.connectors.http_answers import Answers
from millstream.connectors.http_messages import Answer

LATE = Answer(HTTPStatus.SERVICE_UNAVAILABLE, {}, again=1)


def good(number):
    return Answer(HTTPStatus.OK, {"messages": number})


def test_every_answer_arrives_whichever_thread_gives_it_and_when():
    async def all_of_them():
        answers = Answers(asyncio.get_running_loop(), 60, LATE)
        futures = [answers.expected() for _ in range(2_000)]

        def give(first):
            for number in range(first, len(futures), 4):
                answers.give(futures[number], good(number))

        threads = [threading.Thread(target=give, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        found = await asyncio.gather(*futures)
        for thread in threads:
            thread.join()
        return found

    assert asyncio.run(all_of_them()) == [good(number) for number in range(2_000)]


def test_who_is_not_answered_is_told_so_in_time_and_nobody_twice():
    async def some():
        loop = asyncio.get_running_loop()
        answers = Answers(loop, 0.01, LATE)
        gone, first, second = (answers.expected() for _ in range(3))
        gone.cancel()
        answers.give(first, good(1))
        answers.give(first, good(2))
        answers.give(gone, good(3))
        found = [await first, await second]
        answers.give(second, good(4))
        third = answers.expected()
        return [*found, await third]

    assert asyncio.run(some()) == [good(1), LATE, LATE]


def test_requests_are_printed_beside_a_bare_server():
    words = ["--requests", "300", "--connections", "20", "--runs", "1"]

    ended = CliRunner().invoke(http_source.main, words, catch_exceptions=False)

    assert ended.exit_code == 0, ended.output
    first, *lines = ended.output.splitlines()
    assert first == "300 requests of one message over 20 connections, best of 1"
    rate = r"{} +[\d,]+ requests/s +[\d,]+ a second of processor time"
    expected = [rate.format("bare"), rate.format("job"), r"job/bare +\d+\.\d\d +\d+\.\d\d"]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_requests_that_are_not_answered_well_are_no_result():
    async def serve_and_send():
        async def refuse(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            await asyncio.to_thread(http_source.send, port, 1, 1)

    with pytest.raises(SystemExit, match="of 1 requests 0 were answered well"):
        asyncio.run(serve_and_send())
